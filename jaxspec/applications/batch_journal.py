"""What a batch job has done so far, on disk: parts of the answers, and a journal that lists them.

A part is written in one step and then entered in the journal, so a job that is killed at any time
goes on after the last part in the journal. The journal belongs to one market, one set of options
and the users of its parts. One job at a time writes to an output.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxspec.applications.answer_files import join_answers, write_answers
from jaxspec.base import FileError, reading, write_atomically
from jaxspec.matching import BatchAnswers

__all__ = ["JOURNAL", "Journal", "only_job", "parts_folder"]

FORMAT = "jaxspec batch 1"
JOURNAL = "journal.json"


class Journal:
    """The parts of one output.

    Attributes:
        output: the file of all answers, or the folder in which the parts stay.
        folder: of the parts.
        parts: what is done: {"file", "users", "failed", "digest"} of each part.
    """

    def __init__(self, output: Path, belongs_to: dict[str, str], *, resume: bool) -> None:
        """Read the journal of an interrupted job, or begin a new one; see `only_job`.

        Raises:
            FileError: a journal of another market or of other options (the message names what
                differs), or a damaged one; a folder with something else.
        """
        self.output, self.joined = output, bool(output.suffix)
        self.folder = parts_folder(output)
        self.suffix = output.suffix or ".parquet"
        self.belongs_to = {"format": FORMAT, **belongs_to}
        self.parts: list[dict[str, Any]] = []
        path = self.folder / JOURNAL
        if path.exists() and resume:
            with reading(path):
                self._load(json.loads(path.read_text("utf-8")))
        else:
            self._clear()

    def _clear(self) -> None:
        """Remove the parts of another job, and nothing that is no part."""
        if not self.joined and not (self.folder / JOURNAL).exists():
            others = [one.name for one in self.folder.iterdir()]
            if others:
                raise FileError(
                    self.folder,
                    expected="an empty folder, or one with the answers of a batch job",
                    got=f"a folder with {sorted(others)[:3]}",
                )
        (self.folder / JOURNAL).unlink(missing_ok=True)  # first: without it no part counts
        for one in self.folder.glob("part-*"):
            one.unlink()

    def _load(self, found: Any) -> None:
        good = isinstance(found, dict) and isinstance(found.get("belongs_to"), dict)
        if not good or not isinstance(found.get("parts"), list):
            raise FileError(expected="a journal of a batch job", got="another text")
        for name, value in self.belongs_to.items():
            own = found["belongs_to"].get(name)
            if own != value:
                raise FileError(
                    message=f"the job that was interrupted had another {name}: {own!r:.200}, now "
                    f"{value!r:.200}; pass resume=False to begin anew, or another output"
                )
        for part in found["parts"]:
            good = isinstance(part, dict) and set(part) == {"file", "users", "failed", "digest"}
            good = good and all(type(part[name]) is int for name in ("users", "failed"))
            if not good or not (self.folder / Path(part["file"]).name).is_file():
                raise FileError(expected="parts that are there", got=f"{part!r:.200}")
        self.parts = found["parts"]

    @property
    def users(self) -> int:
        """How many users the parts have."""
        return sum(part["users"] for part in self.parts)

    @property
    def failed(self) -> int:
        """How many of them have an error."""
        return sum(part["failed"] for part in self.parts)

    def add(self, answers: BatchAnswers, digest: str) -> None:
        """Write the next part, and then enter it in the journal."""
        name = f"part-{len(self.parts):06d}{self.suffix}"
        write_answers(self.folder / name, answers)
        part = {"file": name, "users": len(answers), "failed": answers.failed, "digest": digest}
        self.parts.append(part)
        text = json.dumps({"belongs_to": self.belongs_to, "parts": self.parts}, indent=1)
        write_atomically(self.folder / JOURNAL, text.encode())

    def finish(self, k: int) -> None:
        """Make one file of all parts, and remove them; in a folder they stay as they are."""
        if self.joined:
            files = [self.folder / part["file"] for part in self.parts]
            join_answers(files, self.output, k)
            shutil.rmtree(self.folder)


def parts_folder(output: Path) -> Path:
    """Return the folder of the parts: beside a file, or the output itself if it is a folder."""
    return output.with_name(f"{output.name}.parts") if output.suffix else output


@contextlib.contextmanager
def only_job(output: Path) -> Iterator[None]:
    """Hold the parts of an output for this process; the system lets go when the process ends.

    Raises:
        FileError: another job writes to it, or there is a file where the folder of parts belongs.
    """
    folder = parts_folder(output)
    if folder.exists() and not folder.is_dir():
        raise FileError(folder, expected="a folder for parts of the answers", got="a file")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: there nothing keeps two jobs apart
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise FileError(output, "another batch job is writing to this output") from None
    finally:
        os.close(descriptor)
