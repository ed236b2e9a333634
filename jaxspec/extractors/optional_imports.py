"""Imports of packages that only some of the extractors need.

`import_optional` returns a module or raises an ImportError that says what to install. It installs
nothing itself.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["import_optional"]


def import_optional(module: str, requirement: str) -> ModuleType:
    """Return the module of this name.

    Args:
        module: full name, such as "PIL.Image".
        requirement: what the calling function needs, for the message: a package and how to
            install it.

    Raises:
        ImportError: if the module cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"this function needs {requirement} ({error})") from error
