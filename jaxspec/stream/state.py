"""How far a stream over a market is, and what it found: kept on disk for when it is interrupted.

The file is written in one step and belongs to one version of one market, one batch of users and
their scores. Every number in it is checked when it is read.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxspec.base import FileError, as_path, reading, write_atomically
from jaxspec.files import seems_to_be
from jaxspec.stream.blocks import StreamedGroup

__all__ = ["State"]

SAVE_SECONDS = 10.0  # between two writings of the state
MAX_BYTES_PER_NUMBER = 8  # a state is at most so large, beside its header


class State:
    """How far the passes are, and what they found: {name: (M, Q)} for every group of users."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        belongs_to: dict[str, str],
        count: int,
        groups: Sequence[StreamedGroup],
        passes: int,
    ) -> None:
        self.path = None if path is None else as_path(path, name="resume")
        self.belongs_to, self.done = belongs_to, [0] * passes
        self.found = [
            {name: np.zeros((count, len(one.group.users.counts)), np.float32) for name in one.kept}
            for one in groups
        ]
        self.saved = time.monotonic()
        if self.path is not None and self.path.exists():
            with reading(self.path):
                self._load()

    def _load(self) -> None:
        """Go on from a file of `save`, which is checked."""
        assert self.path is not None
        if not self.path.is_file():
            raise FileError(message="resume: expected a file, got something else")
        numbers = sum(array.size for found in self.found for array in found.values())
        limit = MAX_BYTES_PER_NUMBER * numbers + (1 << 20)
        if self.path.stat().st_size > limit:
            raise FileError(message=f"resume: expected at most {limit} bytes, got more")
        seems = seems_to_be(self.path)
        if "numpy arrays" not in seems:
            raise FileError(
                field="resume", expected="the state of an interrupted stream", got=seems
            )
        with np.load(self.path, allow_pickle=False) as file:
            header = json.loads(str(file["belongs_to"]))
            for name, value in self.belongs_to.items():
                if header.get(name) != value:
                    raise FileError(
                        message=f"resume: this state is of another {name}; remove it to start anew"
                    )
            done = file["done"].tolist()
            count = len(self.found[0]["closeness"])
            good = len(done) == len(self.done)
            good = good and all(isinstance(one, int) and 0 <= one <= count for one in done)
            if not good or done[0] != max(done):
                raise FileError(
                    field="done", expected=f"{len(self.done)} counts up to {count}", got=done
                )
            for i, found in enumerate(self.found):
                for name, all_rows in found.items():
                    part, shape = file[f"{i} {name}"], (done[0], all_rows.shape[1])
                    if part.shape != shape or part.dtype != np.float32:
                        raise FileError(
                            field=name,
                            expected=f"float32 of shape {shape}",
                            got=f"{part.dtype} of shape {part.shape}",
                        )
                    if not np.isfinite(part).all():
                        raise FileError(field=name, expected="finite numbers", got="others")
                    all_rows[: done[0]] = part
        self.done = done

    def advance(self, which: int, done: int) -> None:
        """Note that a pass has come so far, now and then on disk too."""
        self.done[which] = done
        if self.path is not None and time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is known in one step."""
        if self.path is None or not self.done[0]:
            return
        parts: dict[str, Any] = {
            f"{i} {name}": all_rows[: self.done[0]]
            for i, found in enumerate(self.found)
            for name, all_rows in found.items()
        }
        data = io.BytesIO()
        header = np.array(json.dumps(self.belongs_to))
        np.savez(data, belongs_to=header, done=np.array(self.done), **parts)
        write_atomically(self.path, data.getvalue())
        self.saved = time.monotonic()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Write what is known if the work is interrupted, by whatever it is."""
        try:
            yield
        except BaseException:
            self.save()
            raise

    def remove(self) -> None:
        """Remove what was written: the work is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
