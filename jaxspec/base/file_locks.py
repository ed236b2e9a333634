"""Locks on files that end with the process that holds them, however it ends.

`try_exclusive` is for whoever writes, and `try_shared` for whoever reads: both return at once. The
system gives a lock back when its file is closed, so a killed process leaves none behind. Locks are
advisory: they bind those who ask for them. Nothing here waits, and nothing reads the files.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted
    fcntl = None  # type: ignore[assignment]

__all__ = ["FileLock", "LocksUnsupportedError", "try_exclusive", "try_shared"]

_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class LocksUnsupportedError(OSError):
    """The system or the file system has no locks on files."""


class FileLock:
    """A lock that is held until `close`, the end of a `with` block, or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Not called by users: `try_exclusive` and `try_shared` make locks."""
        self.path, self.descriptor = path, descriptor

    def close(self) -> None:
        """Give the lock back; closing it twice does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def is_of_path(self) -> bool:
        """Tell whether the locked file is still the one at its path."""
        try:
            there, mine = os.stat(self.path), os.fstat(self.descriptor)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except (OSError, TypeError, AttributeError):  # the interpreter ends, and modules are gone
            return


def try_exclusive(path: Path, *, create: bool = False) -> FileLock | None:
    """Return a lock that nobody else can hold a lock beside, or None where somebody does.

    Args:
        path: of the file.
        create: make the file if there is none.

    Raises:
        LocksUnsupportedError: there are no locks on this system or file system.
        OSError: the file cannot be opened for writing.
    """
    flags = os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_NONBLOCK", 0)
    return _locked(path, os.open(path, flags, 0o666), exclusive=True)


def try_shared(path: Path) -> FileLock | None:
    """Return a lock beside which others can hold shared ones, or None where one is exclusive.

    The file is opened for reading only, so a folder that one may not write to can be locked too.

    Raises:
        LocksUnsupportedError: there are no locks on this system or file system.
        OSError: the file cannot be opened for reading.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    return _locked(path, os.open(path, flags), exclusive=False)


def _locked(path: Path, descriptor: int, *, exclusive: bool) -> FileLock | None:
    lock = FileLock(path, descriptor)
    try:
        if fcntl is None:
            raise LocksUnsupportedError(f"{path}: this system has no locks on files")
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except LocksUnsupportedError:
        lock.close()
        raise
    except BlockingIOError:
        lock.close()
        return None
    except OSError as error:
        lock.close()
        if error.errno in _UNSUPPORTED:
            raise LocksUnsupportedError(f"{path}: this file system has no locks on files") from None
        raise
    return lock
