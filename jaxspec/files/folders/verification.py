"""Verification of a market on disk, end to end: checksums, limits, and what follows from the rest.

Rows are read in blocks, so that a market that is larger than memory can be verified.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxspec.files.folders.row_checks import check_derived, check_rows
from jaxspec.files.folders.segments import check_files
from jaxspec.files.folders.view import View
from jaxspec.market import SCHEMA, making_of

__all__ = ["verify_view"]

ROWS_TOGETHER = 1024


def verify_view(
    view: View, *, numbers: bool = True, progress: Callable[[int, int], None] | None = None
) -> None:
    """Check everything that can be checked of an open version.

    Args:
        view: the version.
        numbers: whether numbers are checked, or only the checksums of all files.
        progress: called with (learnwares checked, learnwares).

    Raises:
        ValueError, TypeError, OSError: something is not as it was written, or cannot be scored.
    """
    for segment in view.opened.segments:
        check_files(segment)
    if not numbers:
        return
    contents, count = view.contents, len(view)
    making = making_of(
        view.opened.space, contents.precision, contents.origin, contents.layout, view.ledger
    )
    names = [name for name, one in SCHEMA.items() if one.saved and one.per_row]
    for first in range(0, count, ROWS_TOGETHER):
        last = min(first + ROWS_TOGETHER, count)
        rows = contents.memory(names, last - first)
        contents.start(rows, first, last).wait()

        def owner(row: int, first: int = first) -> str:
            return view.ledger.ids[first + row]

        check_rows(rows, owner)
        check_derived(rows, making, owner)
        if progress is not None:
            progress(last, count)
