"""A process that reads a market on disk again and again, beside whoever writes.

It prints how often it read when its time is over, or the traceback of whatever went wrong.
"""

import sys
import time

import numpy as np
from killed_writer import small_space, small_specification

import jaxspec as js


def numbers_of(learnware):
    """Return the number that a learnware was made from: see `test_readers_beside_a_writer`."""
    return int(learnware.split("-")[1])


def check(folder):
    """Check that the rows of a version are those of its ids, from one and the same version."""
    weights = folder.whole(("weights",))["weights"]
    for row, learnware in enumerate(folder.ids):
        wanted = small_specification(numbers_of(learnware)).reduced_set.weights
        np.testing.assert_array_equal(weights[row], wanted)


def main(path, seconds, kind):
    rng = np.random.default_rng(0)
    user = js.specify_user(
        small_space(), rng.normal(size=(20, 4)), np.arange(20) % 2, class_names=["a", "b"]
    )
    with js.MarketFolder(path) as folder:  # so that everything is compiled
        js.match(folder, user, k=3, method="rkme")
    print("ready", flush=True)
    until, count, versions = time.monotonic() + float(seconds), 0, set()
    while time.monotonic() < until:
        if kind == "load":
            market = js.Market.load(path)
            learnware = market.ids[-1]
            wanted = small_specification(numbers_of(learnware)).reduced_set.weights
            np.testing.assert_array_equal(market[learnware].reduced_set.weights, wanted)
        else:
            with js.MarketFolder(path, verify=kind == "verify") as folder:
                check(folder)
                if kind == "match":
                    found = js.match(folder, user, k=3, method="rkme")
                    assert set(found.ids) <= set(folder.ids)
                    assert np.isfinite(found.scores).all()
                check(folder)
                versions.add(folder.version)
        count += 1
    print(count, len(versions), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
