"""What an open `MarketFolder` holds of its version: what it says of itself, its rows, its names.

`view_of` opens a version. Views are values; one that follows another by an `append` shares the
ledger with it, as versions of a market in memory do. Nothing here writes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxspec.files.folders.contents import Contents, read_contents
from jaxspec.files.folders.opened_version import OpenedVersion, open_version
from jaxspec.files.folders.segments import check_files
from jaxspec.market import Ledger

__all__ = ["View", "view_of"]


@dataclasses.dataclass(frozen=True)
class View:
    """An open version.

    Attributes:
        opened: the version with its lease.
        contents: its rows.
        ledger: ids, class names and metadata by row; it may know more rows than the version has.
    """

    opened: OpenedVersion
    contents: Contents
    ledger: Ledger

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in the market's order."""
        return tuple(self.ledger.ids[: len(self)])

    def row_of(self, learnware: object) -> int | None:
        """Return the row of an id, or None."""
        if not isinstance(learnware, str):
            return None
        rows = [row for row in self.ledger.slots_of(learnware) if row < len(self)]
        return rows[0] if rows else None

    def serials(self) -> np.ndarray:
        """Return the serials of all learnwares, (M,) and ascending."""
        parts = [part.segment.serials[part.kept] for part in self.contents.parts]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def close(self) -> None:
        """Give the lease back: a writer may remove the version."""
        if self.opened.lock is not None:
            self.opened.lock.close()


def view_of(target: Path, name: str | None = None, *, verify: bool = False) -> View:
    """Open a version, the one in force unless it is named.

    Args:
        target: the folder.
        name: of the version.
        verify: whether all files are read and their checksums compared.

    Raises:
        ValueError, TypeError, OSError: as `open_version`, or a file that is damaged.
    """
    opened = open_version(target, name)
    try:
        for segment in opened.segments if verify else ():
            check_files(segment)
        return View(opened, *read_contents(opened))
    except BaseException:
        if opened.lock is not None:
            opened.lock.close()
        raise
