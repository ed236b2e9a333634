"""Processes that change a market on disk again and again, until they are killed.

As a program it imports jaxspec once and starts such a process, a fork of itself, for every line
that it reads: a path, a seed and the number of the first change. A process prints its number, and
a line after every change that was acknowledged.
"""

import itertools
import os
import random
import sys

import jaxspec as js

CHANGES = ("append", "update", "remove", "compact", "rollback")


def small_specification(number, names=("a", "b")):
    """Return a specification of a few numbers that follow from `number`."""
    import numpy as np

    rng = np.random.default_rng(number)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return js.Specification(
        js.ReducedSet(normal(2, 4), normal(2)),
        js.Proxy(normal(4, 2), normal(2)),
        class_names=names,
        space_name=small_space().name,
        space_digest=small_space().digest,
        num_examples=10,
    )


def small_space():
    return js.Space("small", js.Gaussian(bandwidth=2.0), dimension=4)


def change(folder, kind, number):
    """Return the folder after one change of a kind."""
    if kind == "append":
        return folder.append({f"m{number}": small_specification(number)}, note=str(number))
    if kind == "update":
        return folder.update({folder.ids[0]: small_specification(number)})
    if kind == "remove":
        return folder.remove([folder.ids[number % len(folder)]]) if len(folder) > 2 else folder
    if kind == "compact":
        return folder.compact(keep=2)
    versions = folder.history()
    return folder.rollback(versions[-min(len(versions), 2)].name)


def main(path, seed, first):
    folder = js.MarketFolder(path)
    rng = random.Random(int(seed))
    for number in itertools.count(int(first)):
        folder = change(folder, rng.choice(CHANGES), number)
        ids = ",".join(folder.ids)
        os.write(1, f"{folder.version} {ids}\n".encode())


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()  # before anything is computed: jax has started no threads
        if child == 0:
            os.write(1, f"{os.getpid()}\n".encode())
            main(*line.split())
        os.waitpid(child, 0)
        os.write(1, b"ended\n")
