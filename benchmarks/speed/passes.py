"""Did a change make the pass over a market slower? Two source trees take turns at the same queries.

    git worktree add ../before HEAD~1
    python -m benchmarks.speed.passes --other ../before

Each tree is run by a process of its own, which makes the same market (`made_market`, m = 50) with
the code of that tree and asks it for the best ten, for 1 and 16 users, by embeddings ("rkme") and
by the default score ("likelihood"). One query runs at a time. A ratio is that of the fastest
repeats, this tree to the other: above one, this tree is slower. On a machine with other work, the
ratio of the processor's seconds is the more reliable one. `--adapter FILE` makes the market and
asks it where the other tree has another interface (see `pass_worker.prepare`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import ROOT, merge_results, milliseconds, print_table, progress
from benchmarks.speed.timing import Timed, time_in_turns

WORKER = Path(__file__).with_name("pass_worker.py")
METHODS, USERS, BEST = ("rkme", "likelihood"), (1, 16), 10


class TreeProcess:
    """A process that answers queries with the code of one source tree."""

    def __init__(self, tree: Path, job: dict[str, Any], adapter: Path | None) -> None:
        """Start the process and wait until it has made the market of the job."""
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],  # -P: not the folder of the worker
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tree,
        )
        self.made = self._reply({**job, "adapter": str(adapter.resolve()) if adapter else ""})
        if not Path(self.made["package"]).resolve().is_relative_to(tree.resolve()):
            raise RuntimeError(f"expected the jaxspec of {tree}, got {self.made['package']}")

    def _reply(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of a tree ended at the job {job}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def ask(self, method: str, users: int) -> Timed:
        """Return the scores and the processor's seconds of a query, with the seconds it took."""
        reply = self._reply({"method": method, "users": users, "k": BEST})
        return Timed((np.array(reply["scores"]), reply["processor_s"]), reply["seconds"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(options: argparse.Namespace, learnwares: int) -> dict[str, Any]:
    """Return the times of both trees for every query of a market, and their ratios."""
    job = {"learnwares": learnwares, "dimension": options.dimension, "users": max(USERS)}
    progress(f"{learnwares} learnwares, both trees")
    trees = {"this": TreeProcess(ROOT, job, None)}
    record: dict[str, Any] = {}
    try:
        trees["other"] = TreeProcess(options.other, job, options.adapter)
        for method in METHODS:
            for users in USERS:
                calls = {
                    name: lambda _, tree=tree, query=(method, users): tree.ask(*query)
                    for name, tree in trees.items()
                }
                rows = time_in_turns(calls, options.repeats)
                scores = [row.results[-1][0] for row in rows.values()]
                used = {name: min(one for _, one in row.results) for name, row in rows.items()}
                record[f"{method}, {users} users"] = {
                    **{name: row.record() for name, row in rows.items()},
                    "ratio": rows["this"].minimum / rows["other"].minimum,
                    "min_processor_s": used,
                    "ratio of processor seconds": used["this"] / used["other"],
                    "largest difference of a score": float(np.abs(scores[0] - scores[1]).max()),
                }
        record["make_s"] = {name: tree.made["seconds"] for name, tree in trees.items()}
    finally:
        for tree in trees.values():
            tree.close()
    return record


def main() -> None:
    """Compare the trees on every size that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--other", type=Path, required=True, help="folder of the other source tree")
    parser.add_argument("--adapter", type=Path, help="file, for a tree of another interface")
    parser.add_argument("--learnwares", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="JSON; sizes not asked for stay as they were")
    options = parser.parse_args()
    for learnwares in options.learnwares:
        found = compare(options, learnwares)
        rows = [
            [
                name,
                *(milliseconds(one[tree]["min_s"]) for tree in ("this", "other")),
                one["ratio"],
                one["ratio of processor seconds"],
                one["largest difference of a score"],
            ]
            for name, one in found.items()
            if "ratio" in one
        ]
        headers = ["query", "this tree", "other tree", "ratio", "of processor seconds"]
        headers += ["largest difference of a score"]
        how = f"ms, minimum of {options.repeats}"
        print_table(f"{learnwares} learnwares, d = {options.dimension}, {how}", headers, rows)
        if options.output:
            merge_results(options.output, {str(learnwares): found})


if __name__ == "__main__":
    main()
