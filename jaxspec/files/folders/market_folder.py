"""A market on disk that is read in parts, and that changes without being rewritten.

`MarketFolder` opens one version of a market and holds it until it is closed: whatever others write
meanwhile, it is read to the end. `append`, `update`, `remove`, `compact` and `rollback` put a new
version in force and return it; they write what is new only. For markets larger than memory:
`jaxspec.match` streams a folder. How a folder looks is said in `jaxspec.files.folders.versions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from jax.sharding import Mesh

from jaxspec.base import PathLike, as_path, as_size, existing_path, reading
from jaxspec.files.folders import changes
from jaxspec.files.folders.commits import checked_note
from jaxspec.files.folders.stored_market import StoredMarket
from jaxspec.files.folders.verification import verify_view
from jaxspec.files.folders.versions import VersionInfo, read_pointer
from jaxspec.files.folders.view import View, view_of
from jaxspec.files.folders.whole_market import load_rows
from jaxspec.market import Market, as_limits, check_precision, checked_mapping, checked_mesh
from jaxspec.specify import Limits, Space, Specification

__all__ = ["MarketFolder"]


class MarketFolder(StoredMarket):
    """One version of a market on disk; its attributes are those of `StoredMarket`."""

    def __init__(
        self,
        path: PathLike,
        *,
        version: str | None = None,
        verify: bool = False,
        block_size: int | None = None,
    ) -> None:
        """Open a market that `MarketFolder.create` or `Market.save` made.

        Args:
            path: the folder.
            version: the name of a version of `history`; None for the one in force.
            verify: read all files once and check their checksums, as `Market.load` does. What is
                read later is checked to be finite and within limits in any case.
            block_size: learnwares that `match` reads together; None for some 32 MiB of them.

        Raises:
            TypeError: `path` is neither a string nor a path, or a block size that is not an
                integer.
            ValueError: a block size below one.
            FileNotFoundError: there is nothing at `path`.
            FileError: not such a folder, no such version, or with a field that is not as it must
                be; the message names the folder and the field.
        """
        size = None if block_size is None else as_size("block_size", block_size)
        if version is not None and not isinstance(version, str):
            raise TypeError(f"version: expected a string, got a {type(version).__name__}")
        self.path = existing_path(path)
        with reading(self.path):
            self._become(view_of(self.path, version, verify=verify), size)

    def _at(self, view: View) -> MarketFolder:
        """Return this folder at another version."""
        other = type(self).__new__(type(self))
        other.path = self.path
        other._become(view, self.block_size)
        return other

    @classmethod
    def create(
        cls,
        path: PathLike,
        space: Space,
        specifications: Mapping[str, Specification] | None = None,
        *,
        precision: str = "float32",
        limits: Limits | None = None,
    ) -> MarketFolder:
        """Make a market on disk, and open its first version.

        Args:
            path: a new folder, or an empty one.
            space: what all of its specifications live in.
            specifications: {id: specification}; None for an empty market.
            precision: as for `Market`.
            limits: as for `Market`; they are kept in the folder.

        Raises:
            TypeError, ValueError: as `Market`. Nothing is written then.
            FileError: there is a market or something else at `path`, or it cannot be written.
        """
        target = as_path(path)
        if not isinstance(space, Space):
            raise TypeError(f"space: expected a Space, got a {type(space).__name__}")
        given = {} if specifications is None else specifications
        own = as_limits(limits)
        specs = checked_mapping("specifications", given, space, own)
        folder = cls.__new__(cls)
        folder.path = target
        view = changes.create(target, space, specs, check_precision(precision), own)
        folder._become(view, None)
        return folder

    # How it is opened and closed

    def close(self) -> None:
        """Give the version back: once it is no longer kept, a writer may remove it.

        A folder that is no longer referred to is closed too, and so is one whose process ends.
        """
        self._view.close()

    def __enter__(self) -> MarketFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, *, mesh: Mesh | None = None) -> Market:
        """Read all of the version into memory: the same numbers, and room for more learnwares.

        Args:
            mesh: devices to spread the market over, as `Market.shard` does.

        Raises:
            TypeError: not a mesh.
            FileError: a file is damaged; the message names it.
        """
        checked = None if mesh is None else checked_mesh(mesh)
        with reading(self.path):
            verify_view(self._view, numbers=False)
            market = load_rows(self._view)
        return market if checked is None else market.shard(checked)

    def verify(self, *, progress: Callable[[int, int], None] | None = None) -> None:
        """Read everything, and check checksums, limits, and what follows from other numbers.

        Args:
            progress: called with (learnwares checked, learnwares).

        Raises:
            FileError: something is not as it was written; the message names it.
        """
        with reading(self.path):
            verify_view(self._view, progress=progress)

    # How it changes

    @property
    def limits(self) -> Limits:
        """How large a specification may be that enters."""
        return self._view.opened.manifest.limits

    def append(
        self, specifications: Mapping[str, Specification], *, note: str = ""
    ) -> MarketFolder:
        """Add specifications to the version in force, and return the new version.

        Args:
            specifications: {id: specification} with ids that are not in the market yet.
            note: for the history.

        Raises:
            TypeError, ValueError: as `Market.add`. Nothing is added then.
            FileError: somebody else is writing, or it cannot be written.
        """
        specs = checked_mapping("specifications", specifications, self.space, self.limits)
        text = checked_note(note)
        return self._at(changes.append(self.path, self._view, specs, text)) if specs else self

    def update(
        self, specifications: Mapping[str, Specification], *, note: str = ""
    ) -> MarketFolder:
        """Put specifications in place of those of the same ids, and return the new version.

        The replaced learnwares move to the end of the market's order.

        Raises:
            KeyError, TypeError, ValueError: as `Market.update`. Nothing is changed then.
            FileError: as `append`.
        """
        specs = checked_mapping("specifications", specifications, self.space, self.limits)
        text = checked_note(note)
        return self._at(changes.update(self.path, self._view, specs, text)) if specs else self

    def remove(self, ids: Iterable[str], *, note: str = "") -> MarketFolder:
        """Remove learnwares, and return the new version; `compact` gives their room back.

        Raises:
            TypeError, KeyError: as `Market.remove`. Nothing is removed then.
            FileError: as `append`.
        """
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise TypeError(f"ids: expected a sequence of ids such as ['id'], got {ids!r:.80}")
        gone, text = list(ids), checked_note(note)
        return self._at(changes.remove(self.path, self._view, gone, text)) if gone else self

    def compact(self, *, keep: int = 1, note: str = "") -> MarketFolder:
        """Write all learnwares to one segment, and forget all but the last `keep` versions.

        Args:
            keep: versions that are kept, the new one included.
            note: for the history.

        Raises:
            TypeError, ValueError: a number below one.
            FileError: as `append`.
        """
        kept, text = as_size("keep", keep), checked_note(note)
        return self._at(changes.compact(self.path, self._view, kept, text))

    def history(self) -> tuple[VersionInfo, ...]:
        """Return what is known of all versions that are kept, oldest first.

        Raises:
            FileError: the folder is damaged.
        """
        with reading(self.path):
            return read_pointer(self.path).versions

    def rollback(self, name: str, *, note: str = "") -> MarketFolder:
        """Put the contents of an earlier version in force, as a new version, and return it.

        Args:
            name: of a version of `history`.
            note: for the history.

        Raises:
            TypeError: a name that is not a string.
            FileError: no version of this name is kept, or as `append`.
        """
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string, got a {type(name).__name__}")
        return self._at(changes.roll_back(self.path, self._view, name, checked_note(note)))
