"""The worker of `passes`: it asks the market of one source tree, and takes the times.

`passes.TreeProcess` starts it with that tree, and no other, on the path of Python. The first line
of standard input names the market (JSON: learnwares, dimension, users, adapter), every further line
is a query (method, users, k), and every line of standard output is the reply. An adapter is a file
with a function `prepare` like the one here, for a tree with other names of functions.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

Ask = Callable[[str, int, int], list[list[float]]]


def prepare(learnwares: int, dimension: int, users: int) -> Ask:
    """Return a function of (method, users, k) that gives the best k scores of the first users.

    Args:
        learnwares: in the made market.
        dimension: of the features.
        users: how many there are to ask with.
    """
    import jaxspec as js
    from benchmarks.markets import made_market

    world = made_market.make_world(dimension)
    market = made_market.make_market(world, learnwares)
    everyone = made_market.make_users(world, users)

    def ask(method: str, count: int, k: int) -> list[list[float]]:
        found = js.match(market, everyone[:count], k=k, method=method)
        return [one.scores.tolist() for one in found]

    return ask


def main() -> None:
    """Make the market, then answer one query after the other until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not come between the replies
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    adapter = job.pop("adapter")
    began = time.perf_counter()
    ask = (runpy.run_path(adapter)["prepare"] if adapter else prepare)(**job)
    made = {"seconds": time.perf_counter() - began, "package": sys.modules["jaxspec"].__file__}
    print(json.dumps(made), file=replies, flush=True)
    for line in sys.stdin:
        query = json.loads(line)
        began, used = time.perf_counter(), time.process_time()
        scores = ask(query["method"], query["users"], query["k"])
        reply = {
            "seconds": time.perf_counter() - began,
            "processor_s": time.process_time() - used,
            "scores": scores,
        }
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
