"""Parts of a measurement in processes of their own, for `scaling` and `streaming`.

A script gives `run_children` its own module, in which `answer` finds the function of a task. The
parent starts no backend of jax, which could take the memory of an accelerator, and makes no market:
on Linux the peak memory of a child begins with that of its parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import ROOT, describe_machine

__all__ = ["answer", "machine_of_children", "run_children"]

LIMIT_S = 1800.0  # for a child
Record = dict[str, Any]


def answer(job: Record, tasks: Mapping[str, Callable[[Record], Record]]) -> None:
    """Do a job in a child, and write what it found where the parent reads it."""
    known = {**tasks, "describe": lambda _: describe_machine()}
    Path(job["reply"]).write_text(json.dumps(known[job["task"]](job)))


def machine_of_children(module: str) -> Record:
    """Return what a child finds out about the machine."""
    return run_children(module, "describe", [{}])[0]


def run_children(
    module: str, task: str, jobs: Sequence[Record], **environment: str
) -> list[Record]:
    """Run one child per job, all at the same time, and return what they found.

    What the first child prints is shown.

    Args:
        module: that is started with `--child JOB` and calls `answer`.
        task: of all jobs.
        jobs: one per child, as JSON holds them.
        environment: variables for the children.

    Raises:
        RuntimeError: a child failed or took too long; the message has the end of its output.
    """
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{which}.txt" for which in range(len(jobs))]
        replies = [path.with_suffix(".json") for path in outputs]
        variables = {**os.environ, **environment}
        try:
            for job, path, reply in zip(jobs, outputs, replies, strict=True):
                whole = json.dumps({**job, "task": task, "reply": str(reply)})
                call = [sys.executable, "-m", module, "--child", whole]
                with open(path, "wb") as out:
                    child = subprocess.Popen(call, cwd=ROOT, env=variables, stdout=out, stderr=out)
                children.append(child)
            _wait(task, children, outputs)
        finally:
            for child in children:
                child.kill()
                child.wait()
        return [json.loads(path.read_text()) for path in replies]


def _wait(task: str, children: Sequence[Any], outputs: Sequence[Path]) -> None:
    """Wait until all children have ended, or raise when one fails or the time is over."""
    until, running = time.monotonic() + LIMIT_S, True
    with open(outputs[0], errors="replace") as shown:
        while running:
            time.sleep(0.1)
            ends = [child.poll() for child in children]
            running, late = None in ends, time.monotonic() > until
            print(shown.read(), end="", file=sys.stderr, flush=True)
            if any(ends) or (running and late):  # the others may wait for the one that failed
                failed = [i for i, end in enumerate(ends) if end or (late and end is None)]
                why = [f"child {i}: {outputs[i].read_text()[-4000:]}" for i in failed]
                ended = f"{task} ended with {ends}" + f", over {LIMIT_S:.0f} s" * late
                raise RuntimeError("\n".join([ended, *why]))
