"""Large markets of real specifications, on the pictures of the embedded demo data.

Learnwares are specified on ten garments in eleven visual contexts, by 64 features of a public
extractor. Each has a reduced set of 200 pictures of five of the garments, from one context or from
a mixture of two, and a linear proxy of their labels. No models are trained: an index compares
specifications. Users have ten examples per class of other pictures, under the names of the garments
(direct use) or under names of their own (fine-tuning). `Pictures` reads the data; `make_market` and
`make_users` draw from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import jaxspec as js
from benchmarks.markets.batches import Batch, market_of, specification_of
from jaxspec.applications.demo_data import load_fashion_contexts

__all__ = ["Pictures", "make_market", "make_users"]

ROWS, POINTS, CLASSES, PER_CLASS, SPACES = 200, 50, 5, 10, 60
DIMENSION = 64
BATCH = 400  # learnwares of one label space that are specified at a time


class Pictures:
    """Features by context and garment, one half for developers and the other for users."""

    def __init__(self) -> None:
        """Read the embedded data."""
        data = load_fashion_contexts()
        self.features = data.features[:, :DIMENSION]
        self.names = data.class_names
        self.contexts = len(data.context_names)
        kernel = js.Gaussian(bandwidth=js.median_bandwidth(self.features[::10]))
        self.space = js.Space("fashion contexts", kernel, dimension=DIMENSION)
        rng = np.random.default_rng(7)
        self.label_spaces = [rng.permutation(len(self.names))[:CLASSES] for _ in range(SPACES)]
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
            of_first = rng.binomial(per_class, share)
            for context, count in ((first, of_first), (second, per_class - of_first)):
                pool = self.rows[int(context), int(garment)][half::2]
                rows.append(rng.choice(pool, size=count, replace=count > len(pool)))
        at = np.concatenate(rows)
        return self.features[at], np.repeat(np.arange(len(garments)), per_class)

    def class_names(self, garments: np.ndarray) -> list[str]:
        """Return the names of garments."""
        return [self.names[garment] for garment in garments]


def _batches(pictures: Pictures, count: int) -> Iterator[Batch]:
    rng = np.random.default_rng(0)
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        garments = pictures.label_spaces[start // BATCH % SPACES]
        tasks = [pictures.draw(rng, garments, ROWS // CLASSES, half=0) for _ in range(size)]
        features, labels = zip(*tasks, strict=True)
        sets = js.reduce_sets(
            features,
            size=POINTS,
            kernel=pictures.space.kernel,
            key=jax.random.key(start),
            max_iterations=3,
        )
        proxies = js.fit_proxies(features, labels, num_classes=[CLASSES] * size)
        yield specification_of(
            pictures.space,
            [f"learnware {start + i}" for i in range(size)],
            np.asarray(sets.points),
            weights=np.asarray(proxies.weights),
            bias=np.asarray(proxies.bias),
            class_names=pictures.class_names(garments),
            point_weights=np.asarray(sets.weights),
        )


def make_market(pictures: Pictures, count: int, **options: Any) -> js.Market:
    """Return a market of `count` learnwares; options as of `batches.market_of`."""
    return market_of(pictures.space, _batches(pictures, count), count=count, **options)


def make_users(
    pictures: Pictures, count: int, *, learnwares: int, other: bool = False
) -> list[js.UserSpecification]:
    """Return users of a market.

    Args:
        pictures: what they are drawn from.
        count: users.
        learnwares: in the market, which says which of the label spaces it has.
        other: whether their classes have names that no learnware has.
    """
    rng = np.random.default_rng(1 + other)
    spaces = min(SPACES, -(-learnwares // BATCH))
    users = []
    for i in range(count):
        garments = pictures.label_spaces[rng.integers(spaces)]
        features, labels = pictures.draw(rng, garments, PER_CLASS, half=1)
        names = pictures.class_names(garments)
        if other:
            names = [f"user {i}, {k}" for k in range(len(garments))]
        users.append(js.specify_user(pictures.space, features, labels, class_names=names))
    return users
