"""The package `learnware` (PyPI) as a rival, in an environment and a process of its own.

`ensure_environment` makes the environment; `LearnwareProcess` starts `learnware_worker.py` in it
and hands jobs over. The package needs torch, so nothing of it is imported here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import progress
from benchmarks.speed.timing import Timed

__all__ = ["LearnwareProcess", "ensure_environment"]

REQUIREMENTS = ("learnware==0.4.0.post1", "torch==2.13.0", "fast_pytorch_kmeans==0.2.2")
WORKER = Path(__file__).with_name("learnware_worker.py")


def ensure_environment(folder: Path) -> Path:
    """Return the Python of an environment with `REQUIREMENTS`, which is made in `folder` if absent.

    The CPU build of torch is enough: `PIP_EXTRA_INDEX_URL` or the settings of pip choose it.
    """
    python = folder / "bin" / "python"
    if python.exists() and _has_requirements(python):
        return python
    progress(f"making an environment with {', '.join(REQUIREMENTS)} in {folder}")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-input", *REQUIREMENTS]
    subprocess.run(install, check=True, stdout=sys.stderr)
    return python


def _has_requirements(python: Path) -> bool:
    code = (
        "import importlib.metadata as m, sys\n"
        "for requirement in sys.argv[1:]:\n"
        "    name, version = requirement.split('==')\n"
        "    assert m.version(name).split('+')[0] == version\n"
    )
    call = [str(python), "-c", code, *REQUIREMENTS]
    return subprocess.run(call, capture_output=True, check=False).returncode == 0


class LearnwareProcess:
    """A process with the package `learnware`, which stays up between jobs; a context manager.

    Arrays travel through a temporary folder. That folder is also the home directory of the process,
    since the package makes a folder there.
    """

    def __init__(self, python: Path, threads: int | None = None) -> None:
        """Keep what starts the process.

        Args:
            python: from `ensure_environment`.
            threads: of torch, or None for its own choice. One thread is faster for the package
                where other work shares the cores.
        """
        self._python, self._threads = python, threads
        self._saved = 0

    def __enter__(self) -> LearnwareProcess:
        self._folder = tempfile.TemporaryDirectory()
        environment = {**os.environ, "HOME": self._folder.name, "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("PYTHONPATH", None)
        if self._threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        self._process = subprocess.Popen(
            [str(self._python), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def put(self, array: Any) -> str:
        """Keep an array for later jobs and return the name that jobs call it by."""
        self._saved += 1
        path = str(Path(self._folder.name) / f"{self._saved}.npy")
        np.save(path, np.asarray(array))
        return path

    def ask(self, job: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the reply to a job and the arrays of the reply.

        Raises:
            RuntimeError: the job failed, or the process ended.
        """
        path = Path(self._folder.name) / "reply.npz"
        path.unlink(missing_ok=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({**job, "reply": str(path)}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"learnware: its process ended at the job {job['task']!r}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"learnware, job {job['task']!r}: {reply['error']}")
        if not path.exists():
            return reply, {}
        with np.load(path) as arrays:
            return reply, dict(arrays)

    def versions(self) -> dict[str, Any]:
        """Return the versions of the package, of torch and of Python."""
        return self.ask({"task": "versions"})[0]

    def specify(self, rows: str, *, gamma: float, size: int, seed: int, **options: Any) -> Timed:
        """Return the points and weights of one reduced set; `rows` is a name from `put`."""
        job = {"task": "specify", "arrays": {"rows": rows}, "gamma": gamma, "size": size}
        reply, made = self.ask({**job, "seed": seed, "options": options})
        return Timed((made["points"], made["weights"]), reply["seconds"])

    def search(self, arrays: Mapping[str, str], *, gamma: float, path: str) -> Timed:
        """Return the arrays of one search; see `learnware_worker` for `arrays` and `path`."""
        job = {"task": "search", "arrays": dict(arrays), "gamma": gamma, "path": path}
        reply, found = self.ask(job)
        return Timed(found, reply["seconds"])
