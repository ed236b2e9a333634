"""Compiled functions that are kept on disk, so that the next process starts at once."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from jaxspec.base.atomic_files import as_path

__all__ = ["cache_compilations"]

MIN_SECONDS = 0.2  # shorter compilations are not worth a file


def cache_compilations(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keep what jax compiles in this process in a folder, and use what is there already.

    Compiling the first specification and match takes some ten seconds of processor time; a second
    process that calls this first reads the results instead. It changes jax's settings
    `jax_compilation_cache_dir` and `jax_persistent_cache_min_compile_time_secs` for the process.

    Args:
        folder: where; None means "jaxspec/compiled" in the user's cache folder.

    Returns:
        the folder.

    Raises:
        TypeError: `folder` is neither a string nor a path.
        ValueError: it is empty, or an address of a cloud storage.
    """
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "jaxspec" / "compiled"
    found = as_path(folder, name="folder")
    jax.config.update("jax_compilation_cache_dir", str(found))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    return found
