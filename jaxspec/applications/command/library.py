"""The library, imported when a command needs it: importing jax takes a second."""

from __future__ import annotations

import os
from typing import Any

from jaxspec.applications.command.session import Session

__all__ = ["library"]


def library(session: Session) -> Any:
    """Return the module `jaxspec` with all of its public names, ready to compute.

    What is compiled is kept on disk, so that the next command starts at once. A folder that is
    named by jax's own variable JAX_COMPILATION_CACHE_DIR is used as it is.
    """
    with session.stage("Starting jax"):
        import jaxspec

        jaxspec.Space  # noqa: B018 (the first use of a public name imports all of them)
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jaxspec.cache_compilations()
    return jaxspec
