"""Where the users of a batch job come from: files of users, or an iterable of specifications.

A source gives users in order, as ragged arrays, and a digest of what it gave. `skip` goes past
users that an earlier run answered, and gives the same digest, which tells whether they are the same
users. Nothing here asks a market.
"""

from __future__ import annotations

import bisect
import collections
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxspec.base import FileError, existing_path
from jaxspec.files import UsersFile, is_users_file, read_user_arrays
from jaxspec.specify import Space, StackedUsers, UserSpecification, stack_users_of

__all__ = ["UserSource", "user_source"]

SUFFIX = ".safetensors"


class UserSource(Protocol):
    """Users in order."""

    total: int | None

    def take(self, count: int) -> tuple[StackedUsers, str]:
        """Return the next users, none at the end, and a digest of them."""
        ...

    def skip(self, count: int) -> str:
        """Go past the next users, and return the digest that `take` would have given."""
        ...


def user_source(users: Any, space: Space) -> UserSource:
    """Return where users come from.

    Args:
        users: see `match_many`.
        space: of the market.

    Raises:
        TypeError, ValueError, FileError: neither paths nor users, no file in a folder, a file of
            users of another space, or an id twice.
    """
    if isinstance(users, str | os.PathLike):
        return _Files([users], space)
    if isinstance(users, UserSpecification):
        users = [users]
    if isinstance(users, Sequence) and users and isinstance(users[0], str | os.PathLike):
        return _Files(users, space)
    if not isinstance(users, Iterable):
        raise TypeError(
            "users: expected specifications of users, a mapping of them, or paths of their files, "
            f"got a {type(users).__name__}"
        )
    return _Given(users, space)


class _Given:
    """Users of a mapping, of pairs of an id and a user, or of an iterable: then ids are numbers."""

    def __init__(self, users: Iterable[Any], space: Space) -> None:
        self.total = len(users) if isinstance(users, Sized) else None
        self._pairs = _pairs_of(users)
        self._space = space

    def take(self, count: int) -> tuple[StackedUsers, str]:
        pairs = list(itertools.islice(self._pairs, count))
        found = stack_users_of([one for one, _ in pairs], [one for _, one in pairs], self._space)
        digest = hashlib.sha256(repr((found.ids, found.errors, found.label_spaces)).encode())
        for value in (found.label_space, found.counts, found.points, found.weights, found.labels):
            digest.update(np.ascontiguousarray(value).tobytes())
        return found, digest.hexdigest()

    def skip(self, count: int) -> str:
        return self.take(count)[1]


def _pairs_of(users: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(users, Mapping):
        yield from ((str(name), user) for name, user in users.items())
        return
    for number, one in enumerate(users):
        if isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str):
            yield one
        else:
            yield str(number), one


class _Files:
    """Users of files: one user each, with the file's name as id, or many with ids of their own.

    `take` may give fewer users than asked for: at most those of one file of many, or of files of
    one user that follow each other.
    """

    def __init__(self, paths: Sequence[Any], space: Space) -> None:
        self._space = space
        self._ids: list[str] = []
        self._from: list[tuple[UsersFile, int] | Path] = []  # the runs of users: what each is from
        self._ends: list[int] = []  # and where it ends, in the order of ids
        for path in paths:
            found = existing_path(path, name="users")
            if not found.is_dir():
                self._add(found, found.stem)
                continue
            names = sorted(found.rglob(f"*{SUFFIX}"))
            if not names:
                raise FileError(found, f"expected files *{SUFFIX} of users, got a folder without")
            for name in names:
                self._add(name, name.relative_to(found).with_suffix("").as_posix())
        if len(set(self._ids)) != len(self._ids):
            twice, times = collections.Counter(self._ids).most_common(1)[0]
            raise ValueError(f"users: expected different ids, got {twice!r} {times} times")
        self.total: int | None = len(self._ids)
        self._at = self._run = 0

    def _add(self, path: Path, name: str) -> None:
        if not is_users_file(path):
            self._ids.append(name)
            self._from.append(path)
        else:
            file = UsersFile(path)
            wanted, own = self._space.digest, file.space_digest
            if own != wanted or file.dimension != self._space.dimension:
                raise FileError(
                    path,
                    field="space_digest",
                    expected=f"{wanted!r} of the market's space {self._space.name!r}",
                    got=f"{own!r:.80} of {file.space_name!r:.80}",
                )
            self._from.append((file, len(self._ids)))
            self._ids += file.ids
        self._ends.append(len(self._ids))

    def take(self, count: int) -> tuple[StackedUsers, str]:
        first, last = self._next(count)
        digest = self._digest(first, last)
        if first == last or isinstance(self._from[self._run_of(first)], Path):
            return self._read(first, last), digest
        file, start = self._from[self._run_of(first)]  # type: ignore[misc]
        return file.read(first - start, last - start), digest

    def skip(self, count: int) -> str:
        return self._digest(*self._next(count, whole=True))

    def _run_of(self, place: int) -> int:
        return bisect.bisect_right(self._ends, place)

    def _next(self, count: int, *, whole: bool = False) -> tuple[int, int]:
        """Return which users come next: as many as asked for, or those up to another kind."""
        first, last = self._at, min(self._at + count, len(self._ids))
        if first < last and not whole:
            run = self._run_of(first)
            while isinstance(self._from[run], Path) and self._ends[run] < last:
                if not isinstance(self._from[run + 1], Path):
                    break
                run += 1
            last = min(last, self._ends[run])
        self._at = last
        return first, last

    def _digest(self, first: int, last: int) -> str:
        """Return a digest of ids and of the tables of files; the numbers are not read for it."""
        digest = hashlib.sha256(repr(self._ids[first:last]).encode())
        for source in self._from[self._run_of(first) : self._run_of(max(last - 1, first)) + 1]:
            if not isinstance(source, Path):
                digest.update(str(source[0].checksum).encode())
        return digest.hexdigest()

    def _read(self, first: int, last: int) -> StackedUsers:
        """Return users that have a file each."""
        users: list[Any] = []
        errors: list[str | None] = []
        for place in range(first, last):
            path = self._from[self._run_of(place)]
            assert isinstance(path, Path)
            try:
                users.append(read_user_arrays(path))
                errors.append(None)
            except (FileError, OSError) as error:
                users.append(None)
                errors.append(str(error))
        return stack_users_of(self._ids[first:last], users, self._space, errors=errors)
