"""The worker of `learnware_package`: it runs in an environment that has the package `learnware`.

The other benchmarks do not import this file. `learnware_package.LearnwareProcess` starts it and
talks to it over a pipe: every line of standard input is a job (JSON), every line of standard output
its reply. Arrays go through files: a job names a `.npy` file for each of its arrays and an `.npz`
file for those of the reply. Times are taken here and include the calls of the package only, neither
the reading of arrays nor the pipe.

Jobs:

    {"task": "versions"}
    {"task": "specify", "arrays": {"rows": ...}, "gamma": g, "size": m, "seed": s, "options": {...}}
    {"task": "search", "arrays": {"points": (M, m, d), "weights": (M, m), "user_points": (m_T, d),
     "user_weights": (m_T,)}, "gamma": g, "path": "loop" | "single" | "default"}

The kernel of the package is exp(-gamma |x - y|^2); gamma is 1 / (2 bandwidth^2).
"""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import learnware
import numpy as np
import torch
from learnware.learnware import Learnware
from learnware.market.base import BaseUserInfo
from learnware.market.easy.searcher import EasyStatSearcher
from learnware.specification import RKMETableSpecification, Specification, generate_rkme_table_spec
from learnware.utils import setup_seed

SPECIFICATION = "RKMETableSpecification"
CPU = -1  # what the package calls "no CUDA"
PATHS = ("loop", "single", "default")


def versions(_: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the versions of what runs here."""
    return {
        "learnware": learnware.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }, {}


@lru_cache(maxsize=4)
def load(path: str) -> np.ndarray:
    """Return an array; the last four are kept, since every repeat asks for the same ones."""
    return np.load(path)


def specify(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Make one reduced set with `generate_rkme_table_spec`; options are passed on to it."""
    rows = load(
        job["arrays"]["rows"]
    ).copy()  # since the package writes into the array of its caller
    setup_seed(job["seed"])
    began = time.perf_counter()
    made = generate_rkme_table_spec(
        rows,
        gamma=job["gamma"],
        reduced_set_size=job["size"],
        cuda_idx=CPU,
        **job["options"],
    )
    seconds = time.perf_counter() - began
    return {"seconds": seconds}, {"points": made.get_z(), "weights": made.get_beta()}


def _rkme(points: np.ndarray, weights: np.ndarray, gamma: float) -> RKMETableSpecification:
    made = RKMETableSpecification(gamma=gamma, cuda_idx=CPU)
    made.z = torch.from_numpy(np.asarray(points, np.float64))
    made.beta = torch.from_numpy(np.asarray(weights, np.float64))
    made.num_points = len(points)
    return made


@lru_cache(maxsize=1)
def _market(points: str, weights: str, gamma: float) -> list[Learnware]:
    """Return learnwares without models around given reduced sets."""
    pairs = zip(load(points), load(weights), strict=True)
    return [
        Learnware(
            id=str(number),
            model={},
            specification=Specification({}, {SPECIFICATION: _rkme(u, b, gamma)}),
            learnware_dirpath="",
        )
        for number, (u, b) in enumerate(pairs)
    ]


def search(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Ask the statistical searcher of the "easy" market once, for one user.

    Path "single" is the public call of the searcher with `max_search_num=1`, so that its greedy
    search for mixtures has one candidate and ends at once. Path "default" is the public call
    without options. Path "loop" computes the distances only, without the lists and scores of the
    searcher, and returns them.
    """
    arrays, gamma = job["arrays"], job["gamma"]
    market = _market(arrays["points"], arrays["weights"], gamma)
    user = _rkme(load(arrays["user_points"]), load(arrays["user_weights"]), gamma)
    call = _searches(market, user)[job["path"]]
    began = time.perf_counter()
    found = call()
    seconds = time.perf_counter() - began
    if job["path"] == "loop":
        return {"seconds": seconds}, {"distances": np.asarray(found)}
    ids = [int(item.learnware.id) for item in found.get_single_results()]
    return {"seconds": seconds}, {"ids": np.asarray(ids, np.int64)}


def _searches(
    market: list[Learnware], user: RKMETableSpecification
) -> dict[str, Callable[[], Any]]:
    info = BaseUserInfo(stat_info={SPECIFICATION: user})
    searcher = EasyStatSearcher(organizer=None)

    def loop() -> list[float]:
        return [one.specification.get_stat_spec_by_name(SPECIFICATION).dist(user) for one in market]

    return {
        "loop": loop,
        "single": lambda: searcher(market, info, max_search_num=1),
        "default": lambda: searcher(market, info),
    }


TASKS = {"versions": versions, "specify": specify, "search": search}


def main() -> None:
    """Answer jobs until the input ends; a job that fails is answered with its error."""
    logging.disable(logging.WARNING)
    replies, sys.stdout = (
        sys.stdout,
        sys.stderr,
    )  # what the package prints must not be taken for a reply
    for line in sys.stdin:
        job = json.loads(line)
        try:
            reply, arrays = TASKS[job["task"]](job)
            if arrays:
                np.savez(Path(job["reply"]), **arrays)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
