"""Specifications for learnware markets: find, among many trained models, the ones worth reusing.

The method is that of Guo, Zhou, Li and Zhou, "Identifying Useful Learnwares for Heterogeneous
Label Spaces" (ICML 2023). A market publishes a `Space`; owners of models call `specify`; users call
`specify_user` and `match`. `docs/first-market.md` goes through it step by step.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"


def _is_command() -> bool:
    """Tell whether this process was started as the command `jaxspec`."""
    started = os.path.basename((getattr(sys, "argv", None) or [""])[0])
    return started in ("jaxspec", "jaxspec.exe")


if TYPE_CHECKING or not _is_command():
    from jaxspec.public import *  # noqa: F403
    from jaxspec.public import __all__ as __all__


def __getattr__(name: str) -> Any:
    """Import the public names when one of them is first used, in the process of the command."""
    wanted = name == "__all__" or not name.startswith("_")
    if wanted and "__all__" not in globals() and "jaxspec.public" not in sys.modules:
        public = importlib.import_module("jaxspec.public")
        globals().update({one: getattr(public, one) for one in public.__all__})
        globals()["__all__"] = public.__all__
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'jaxspec' has no attribute {name!r}")
