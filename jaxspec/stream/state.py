"""How far a stream over a market is, and what it found: kept on disk for when it is interrupted.

`jaxspec.stream` makes a `State`; its file is written in one step and belongs to one version of one
market, one batch of users and their methods.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.files import store
from jaxspec.stream.blocks import Group

__all__ = ["State"]

SAVE_SECONDS = 10.0  # between two writings of the state


class State:
    """How far the passes are, and what they found: {name: (M, Q)} for every group of users."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        said: dict[str, str],
        count: int,
        groups: Sequence[Group],
        passes: int,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.said, self.done = said, [0] * passes
        self.found = [
            {name: np.zeros((count, len(one.users.counts)), np.float32) for name in one.kept}
            for one in groups
        ]
        self.saved = time.monotonic()
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def _load(self, path: Path) -> None:
        """Go on from a file of `save`, which is checked."""
        with store._naming(path), np.load(path, allow_pickle=False) as file:
            said = json.loads(str(file["said"]))
            for name, value in self.said.items():
                good = said[name] == value
                message = f"resume: this state is of another {name}; remove it to start anew"
                store._check_that(good, message)
            done = file["done"].tolist()
            count = len(self.found[0]["closeness"])
            good = len(done) == len(self.done) and all(0 <= one <= count for one in done)
            store._check_that(good and done[0] == max(done), f"done: got {done!r:.80}")
            for i, found in enumerate(self.found):
                for name, whole in found.items():
                    part, sizes = file[f"{i} {name}"], {"n": done[0], "q": whole.shape[1]}
                    store._check_array(name, part.shape, part.dtype, ("f", "nq"), sizes)
                    whole[: done[0]] = part
        self.done = done

    def advance(self, which: int, done: int) -> None:
        """Note that a pass has come so far, on disk too now and then."""
        self.done[which] = done
        if self.path is not None and time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is known in one step."""
        if self.path is None or not self.done[0]:
            return
        parts: dict[str, Any] = {
            f"{i} {name}": whole[: self.done[0]]
            for i, found in enumerate(self.found)
            for name, whole in found.items()
        }
        data = io.BytesIO()
        np.savez(data, said=np.array(json.dumps(self.said)), done=np.array(self.done), **parts)
        store._write(self.path, data.getvalue())
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
