"""`match_many`: a batch job that answers very many users, with answers in memory or on disk.

Reading and preparing users, the work of the device, and writing overlap. What is done is kept on
disk part by part, so that a job goes on where it was interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import jax
import numpy as np

from jaxspec.applications.answer_files import check_format
from jaxspec.applications.batch_journal import Journal, only_job
from jaxspec.applications.batch_users import UserSource, user_source
from jaxspec.base import Behind, FileError, PathLike, as_path, as_size, on_processor
from jaxspec.files import MarketFolder
from jaxspec.index import Index
from jaxspec.market import Market
from jaxspec.matching import Asked, BatchAnswers, answer_many, as_asked, catalogue_of
from jaxspec.scoring import Score
from jaxspec.specify import StackedUsers, UserSpecification

if TYPE_CHECKING:
    from jax.typing import ArrayLike

__all__ = ["BatchReport", "match_many"]

PART_SECONDS = 5.0  # a part of the answers takes about so long: that much is lost by a kill
LARGEST_PART = 16  # batches; more would need memory and gain nothing
# A pass holds several arrays of (batch, learnwares) numbers: one is kept to some 256 MiB, and no
# more users are taken together than a device needs to be busy.
PASS_ENTRIES = 1 << 26
MAX_BATCH_ON_PROCESSOR, MAX_BATCH, MIN_BATCH = 64, 512, 8
# A stream keeps some six numbers per learnware and user, in up to 1 GiB; every batch reads the
# whole market, so it is as large as that allows.
STREAM_ENTRIES, MAX_STREAM_BATCH = (1 << 28) // 6, 1024


@dataclasses.dataclass(frozen=True)
class BatchReport:
    """What a batch job with an output has done.

    Attributes:
        output: the file or folder with the answers; `jaxspec.read_answers` reads it.
        users: how many there were.
        failed: how many of them have an error instead of an answer.
        resumed: how many had been answered by an interrupted job.
        seconds: that this job took.
    """

    output: Path
    users: int
    failed: int
    resumed: int
    seconds: float


Users = (
    PathLike
    | Iterable[PathLike]
    | Iterable[UserSpecification]
    | Iterable[tuple[str, UserSpecification]]
)


@overload
def match_many(
    where: Any,
    users: Users,
    *,
    k: int = ...,
    batch_size: int | None = ...,
    output: None = ...,
    method: str | Score | None = ...,
    reuse: str | None = ...,
    label_spaces: str = ...,
    among: ArrayLike | str | None = ...,
    verified: bool = ...,
    progress: Callable[[int, int | None], None] | None = ...,
    resume: bool = ...,
    errors: str = ...,
) -> BatchAnswers: ...


@overload
def match_many(
    where: Any,
    users: Users,
    *,
    k: int = ...,
    batch_size: int | None = ...,
    output: PathLike,
    method: str | Score | None = ...,
    reuse: str | None = ...,
    label_spaces: str = ...,
    among: ArrayLike | str | None = ...,
    verified: bool = ...,
    progress: Callable[[int, int | None], None] | None = ...,
    resume: bool = ...,
    errors: str = ...,
) -> BatchReport: ...


def match_many(
    where: Any,
    users: Users,
    *,
    k: int = 10,
    batch_size: int | None = None,
    output: PathLike | None = None,
    method: str | Score | None = None,
    reuse: str | None = None,
    label_spaces: str = "auto",
    among: ArrayLike | str | None = None,
    verified: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    resume: bool = True,
    errors: str = "keep",
) -> BatchAnswers | BatchReport:
    """Answer many users; see `match` for `where`, `method`, `reuse`, `label_spaces` and `among`.

    Args:
        where: a market, an index, or a folder: that is streamed once per batch of users.
        users: a mapping {id: user}, an iterable of users or of (id, user), gone through in another
            thread; or paths of user specifications, of folders of them, or of `save_users`.
        k: how many learnwares each user is answered at most, best first.
        batch_size: users that are scored together; None for what suits the device.
        output: a file .parquet or .npz, or a folder, in which Parquet parts stay; None to return
            the answers.
        method: as `match`.
        reuse: as `match`.
        label_spaces: as `match`.
        among: as `match`.
        verified: as `match`.
        progress: called with (users done, users or None); `Pace` gives rate and remaining time.
        resume: go on with an interrupted job of the same output; it has to ask the same.
        errors: "keep" gives a user that cannot be asked a row with an error, "raise" stops there.

    Returns:
        `BatchAnswers`, or with an output a `BatchReport`.

    Raises:
        TypeError, ValueError: as `match`.
        FileError: an interrupted job asked something else, another job writes to this output, or
            a file of many users is damaged or of another space.
    """
    if errors not in ("keep", "raise"):
        raise ValueError(f"errors: expected 'keep' or 'raise', got {errors!r:.80}")
    began, catalogue = time.monotonic(), catalogue_of(where)
    size = _batch_size(where) if batch_size is None else as_size("batch_size", batch_size)
    streamed = isinstance(where, MarketFolder)
    asked = as_asked(
        where, k=k, method=method, reuse=reuse, label_spaces=label_spaces, among=among,
        verified=verified,
        batch_size=size, together=streamed,
    )  # fmt: skip
    target = None if output is None else as_path(output, name="output")
    if target is not None:
        check_format(target.suffix or ".parquet")
    source = user_source(users, catalogue.space)
    job = _Job(asked, source, progress, stops=errors == "raise")
    if target is None:
        return BatchAnswers.joined([answers for answers, _ in job.parts()], asked.k)
    with only_job(target):
        journal = Journal(target, _belongs_to(asked, where), resume=resume)
        resumed = job.skip(journal)

        def write(part: tuple[BatchAnswers, str]) -> None:
            journal.add(*part)

        with Behind(write) as written:
            for part in job.parts():
                written.put(part)
        journal.finish(asked.k)
    seconds = time.monotonic() - began
    return BatchReport(target, journal.users, journal.failed, resumed, seconds)


class _Job:
    """Users of a source on their way to answers, in parts that take some seconds each."""

    def __init__(
        self,
        asked: Asked,
        source: UserSource,
        progress: Callable[[int, int | None], None] | None,
        *,
        stops: bool,
    ) -> None:
        self.asked, self.source, self.stops = asked, source, stops
        self.progress, self.before = progress, 0
        self.part_size = asked.batch_size
        self.digests: list[str] = []

    def skip(self, journal: Journal) -> int:
        """Go past the users of an interrupted job, and return how many they are.

        Raises:
            FileError: they are other users.
        """
        for number, part in enumerate(journal.parts):
            if self.source.skip(part["users"]) != part["digest"]:
                raise FileError(
                    journal.folder,
                    f"the job that was interrupted had other users in part {number}; pass "
                    "resume=False to begin anew, or another output",
                )
        self.before = journal.users
        return self.before

    def _chunks(self) -> Iterator[StackedUsers]:
        while True:
            users, digest = self.source.take(self.part_size)
            if len(users) == 0:
                return
            self.digests.append(digest)
            yield users

    def _tell(self, done: float) -> None:
        if self.progress is not None:
            self.progress(self.before + int(done), self.source.total)

    def parts(self) -> Generator[tuple[BatchAnswers, str]]:
        """Yield answers in order, each with the digest of its users."""
        self._tell(0)
        last = time.monotonic()
        answered = answer_many(self.asked, self._chunks(), progress=self._tell)
        with contextlib.closing(answered):
            for number, answers in enumerate(answered):
                if self.stops and answers.failed:
                    pairs = zip(answers.users, answers.errors, strict=True)
                    user, error = next(pair for pair in pairs if pair[1] is not None)
                    raise ValueError(f"users[{user!r:.80}]: {error}")
                yield answers, self.digests[number]
                now = time.monotonic()
                self._choose_size(now - last)
                last = now

    def _choose_size(self, seconds: float) -> None:
        """Make the parts so large that one takes some seconds, in whole batches."""
        smallest = self.asked.batch_size
        if self.asked.together:
            return
        if seconds < PART_SECONDS / 2:
            self.part_size = min(2 * self.part_size, LARGEST_PART * smallest)
        elif seconds > 2 * PART_SECONDS:
            self.part_size = max(self.part_size // 2 // smallest * smallest, smallest)


def _batch_size(where: Any) -> int:
    """Return how many users are scored together."""
    count = max(len(catalogue_of(where)), 1)
    if isinstance(where, MarketFolder):
        limit, largest = STREAM_ENTRIES // count, MAX_STREAM_BATCH
    else:
        limit = PASS_ENTRIES // count
        largest = MAX_BATCH_ON_PROCESSOR if on_processor() else MAX_BATCH
    size = MIN_BATCH
    while 2 * size <= min(limit, largest):
        size *= 2
    return size


def _belongs_to(asked: Asked, where: Any) -> dict[str, str]:
    """Return what the parts of a job belong to, as texts."""
    score = asked.score
    return {
        "market": _version(where),
        "k": str(asked.k),
        "method": "the best one" if score is None else f"{score.name} {score!r}",
        "reuse": str(asked.reuse),
        "label_spaces": asked.label_spaces,
        "among": "all" if asked.among is None else _digest(asked.among),
    }


def _version(where: Any) -> str:
    """Return what tells one market from another: a folder's version, or a digest of the market."""
    if isinstance(where, MarketFolder):
        return f"folder {where.version}"
    market: Market = where.market if isinstance(where, Index) else where
    norms = np.asarray(jax.device_get(market.arrays.self_terms))[np.asarray(market.rows)]
    text = "\n".join([market.space.digest, market.precision, *market.ids])
    kind = "index" if isinstance(where, Index) else "market"
    digest = _digest(np.frombuffer(text.encode(), np.uint8), norms)
    return f"{kind} of {len(market)} learnwares, {digest}"


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for one in arrays:
        digest.update(np.ascontiguousarray(one).tobytes())
    return digest.hexdigest()[:32]
