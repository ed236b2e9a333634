"""An index over a large market of real specifications: what it finds, how deep, how fast.

    python -m benchmarks.markets.real_market [--learnwares 100000] [--users 64] [--output FILE]
        [--keep FOLDER] [--quick]

Learnwares are specified on the pictures of the embedded demo data (ten garments, eleven visual
contexts, 64 features of a public extractor): each has a reduced set of 200 pictures of five of the
garments, from one context or a mixture of two, and a linear proxy of their labels. No models are
trained: an index compares specifications. Users have ten examples a class of other pictures, under
the garments' names (direct use) or under names of their own (fine-tuning). The exact pass judges.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxspec as js
from benchmarks.speed import machine
from benchmarks.speed.index_recall import judge
from benchmarks.speed.yardstick import progress
from jaxspec.applications.demo_data import load_fashion_contexts

ROWS, POINTS, CLASSES, PER_CLASS, SPACES = 200, 50, 5, 10, 60
DIMENSION = 64
BATCH = 400  # learnwares of one label space that are specified at a time
SPACE = "fashion contexts"


class Pictures:
    """Features by context and garment, half for developers and half for users."""

    def __init__(self) -> None:
        """Read the embedded data."""
        data = load_fashion_contexts()
        self.features = data.features[:, :DIMENSION]
        self.names = data.class_names
        self.contexts = len(data.context_names)
        rng = np.random.default_rng(7)
        self.spaces = [rng.permutation(len(self.names))[:CLASSES] for _ in range(SPACES)]
        cells = itertools.product(range(self.contexts), range(len(self.names)))
        self.rows = {
            (context, garment): np.flatnonzero(
                (data.contexts == context) & (data.labels == garment)
            )
            for context, garment in cells
        }

    def draw(
        self, rng: np.random.Generator, garments: np.ndarray, per_class: int, half: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return features and labels of one task, class by class, of one context or two."""
        first, second = rng.integers(self.contexts, size=2)
        share = rng.choice([1.0, rng.uniform(0.5, 1.0)])
        rows = []
        for garment in garments:
            some = rng.binomial(per_class, share)
            for context, count in ((first, some), (second, per_class - some)):
                pool = self.rows[int(context), int(garment)][half::2]
                rows.append(rng.choice(pool, size=count, replace=count > len(pool)))
        at = np.concatenate(rows)
        return self.features[at], np.repeat(np.arange(len(garments)), per_class)


def developers(
    pictures: Pictures, count: int, kernel: Any
) -> Iterator[tuple[list[str], js.Specification]]:
    """Yield (ids, stacked specification) of `count` learnwares in all."""
    rng = np.random.default_rng(0)
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        garments = pictures.spaces[start // BATCH % SPACES]
        tasks = [pictures.draw(rng, garments, ROWS // CLASSES, half=0) for _ in range(size)]
        features, labels = zip(*tasks, strict=True)
        sets = js.reduce_sets(
            jax.random.key(start), features, size=POINTS, kernel=kernel, max_iterations=3
        )
        proxies = js.fit_proxies(features, labels, num_classes=[CLASSES] * size)
        yield (
            [f"learnware {start + i}" for i in range(size)],
            js.Specification(
                js.ReducedSet(sets.points, sets.weights),
                js.Proxy(proxies.weights, proxies.bias),
                kernel,
                tuple(pictures.names[g] for g in garments),
                SPACE,
                num_examples=ROWS,
            ),
        )


def users(
    pictures: Pictures, count: int, kernel: Any, *, spaces: int, other: bool
) -> list[js.UserSpecification]:
    """Return users of the first label spaces' names, or of names that no learnware has."""
    rng = np.random.default_rng(1 + other)
    found = []
    for i in range(count):
        garments = pictures.spaces[rng.integers(spaces)]
        features, labels = pictures.draw(rng, garments, PER_CLASS, half=1)
        names = [f"user {i}, {k}" if other else pictures.names[g] for k, g in enumerate(garments)]
        found.append(
            js.specify_user(features, labels, class_names=names, kernel=kernel, feature_space=SPACE)
        )
    return found


def main() -> None:
    """Make the market and the index, ask both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learnwares", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--keep", type=Path, help="where the market is, or is put once made")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    options = parser.parse_args()
    count, people = (800, 16) if options.quick else (options.learnwares, options.users)
    pictures = Pictures()
    kernel = js.Gaussian(bandwidth=js.median_bandwidth(pictures.features[::10]))
    began = time.perf_counter()
    made = None
    if options.keep and options.keep.exists():
        market = js.Market.load(options.keep)
        count = len(market)
    else:
        market = js.Market.from_stacked(
            developers(pictures, count, kernel),
            count=count,
            progress=lambda done, of: progress(f"{done} of {of} learnwares"),
        )
        made = time.perf_counter() - began
        if options.keep:
            market.save(options.keep)
    began = time.perf_counter()
    index = js.Index.build(market)
    built = time.perf_counter() - began
    record: dict[str, Any] = {
        "machine": machine.describe(),
        "learnwares": count,
        "seconds to make": made,
        "seconds to build the index": built,
        "bytes a learnware": index.bytes_per_learnware,
    }
    for other in (False, True):
        spaces = min(SPACES, -(-count // BATCH))
        asked = users(pictures, people, kernel, spaces=spaces, other=other)
        exact = machine.timed(lambda asked=asked: js.top_k(market, asked[0], 10).scores)
        by_index = machine.timed(lambda asked=asked: index.search(asked[0], 10).scores)
        name = "other names" if other else "direct"
        record[name] = {
            **judge(index, asked, recall=0.99),
            "exact, seconds": exact._asdict(),
            "index, seconds": by_index._asdict(),
            "times faster": exact.minimum / by_index.minimum,
        }
        print(name, json.dumps(record[name], indent=1), flush=True)
    if options.output:
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
