"""Large made markets whose distributions differ by a shift, for timing and for the index.

A context moves thirty class prototypes by an offset in twelve directions and bends each of them a
little. A learnware has its own mixture of two contexts, five of the classes, m points around them,
and class vectors along them. Users are made in the same way, from mixtures that no learnware has.
`make_world` draws the prototypes and `make_market` and `make_users` draw from them on the host;
`device_market` draws the same distribution on the device. This is no substitute for real data,
which `benchmarks.studies.identification` is about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

import jaxspec as js
from benchmarks.markets.batches import Batch, market_of, specification_of

__all__ = ["World", "class_names", "make_market", "make_users", "make_world", "reduced_sets"]

CLASSES, PER_TASK, CONTEXTS, SPACES = 30, 5, 200, 60
NOISE = 6.0  # length of a point's distance to its class, typically


@dataclasses.dataclass(frozen=True)
class World:
    """What all learnwares and users are drawn from."""

    prototypes: np.ndarray  # (CONTEXTS, CLASSES, d)
    spaces: np.ndarray  # (SPACES, PER_TASK): the classes of every label space
    space: js.Space

    @property
    def dimension(self) -> int:
        """The dimension d of the features."""
        return self.prototypes.shape[2]


def make_world(dimension: int = 64, seed: int = 0) -> World:
    """Draw prototypes and label spaces."""
    rng = np.random.default_rng(seed)
    root = np.sqrt(dimension)
    basis = rng.normal(size=(12, dimension)) / root
    offsets = 6.0 * rng.normal(size=(CONTEXTS, 12)) @ basis
    classes = rng.normal(size=(CLASSES, dimension)) / root * 8.0
    bends = rng.normal(size=(CONTEXTS, CLASSES, dimension)) / root * 3.0
    prototypes = classes + offsets[:, None] + bends
    spaces = np.stack([rng.permutation(CLASSES)[:PER_TASK] for _ in range(SPACES)])
    flat = prototypes[:20].reshape(-1, dimension)
    noisy = flat + rng.normal(size=flat.shape) / root * NOISE
    kernel = js.Gaussian(bandwidth=js.median_bandwidth(noisy.astype(np.float32)))
    space = js.Space("made", kernel, dimension=dimension)
    return World(prototypes.astype(np.float32), spaces, space)


def class_names(world: World, space: int) -> tuple[str, ...]:
    """Return the class names of a label space."""
    return tuple(f"class {c}" for c in world.spaces[space])


def _tasks(
    world: World, rng: np.random.Generator, count: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return label spaces (b,), class means (b, 5, d) and points (b, size, d), class by class."""
    space = rng.integers(SPACES, size=count)
    pair = rng.integers(CONTEXTS, size=(count, 2))
    mix = rng.uniform(0, 0.5, size=(count, 1, 1)).astype(np.float32)
    classes = world.spaces[space]
    first = world.prototypes[pair[:, :1], classes]
    second = world.prototypes[pair[:, 1:], classes]
    means = (1 - mix) * first + mix * second
    noise = rng.standard_normal((count, size, world.dimension), np.float32)
    labels = np.arange(size) % PER_TASK
    return space, means, means[:, labels] + noise * (NOISE / np.sqrt(world.dimension))


def _drawn(
    world: World, count: int, size: int, seed: int, batch: int = 4096
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (number of the first, label spaces, points, class vectors) of blocks of learnwares."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, batch):
        space, means, points = _tasks(world, rng, min(batch, count - start), size)
        vectors = means - means.mean(axis=1, keepdims=True)
        vectors += rng.standard_normal(vectors.shape, np.float32) * 0.3
        yield start, space, points, vectors


def _batches(world: World, count: int, size: int, seed: int) -> Iterator[Batch]:
    for start, spaces, points, vectors in _drawn(world, count, size, seed):
        for space in np.unique(spaces):  # a stacked specification has one label space
            rows = np.flatnonzero(spaces == space)
            yield specification_of(
                world.space,
                [f"learnware {start + row}" for row in rows],
                points[rows],
                weights=vectors[rows].swapaxes(1, 2),
                bias=np.zeros((len(rows), PER_TASK), np.float32),
                class_names=class_names(world, space),
            )


def make_market(
    world: World, count: int, *, size: int = 50, seed: int = 1, **options: Any
) -> js.Market:
    """Return a market of `count` learnwares of `size` points; options as of `batches.market_of`."""
    return market_of(world.space, _batches(world, count, size, seed), count=count, **options)


def reduced_sets(
    world: World, count: int, *, size: int = 50, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return points (M, m, d) and weights (M, m) of the learnwares of `make_market`."""
    blocks = _drawn(world, count, size, seed)
    points = np.concatenate([block[2] for block in blocks])
    return points, np.full(points.shape[:2], 1 / size, np.float32)


def make_users(
    world: World, count: int, *, size: int = 50, seed: int = 2
) -> list[js.UserSpecification]:
    """Return users with `size` labelled examples each."""
    rng = np.random.default_rng(seed)
    space, _, points = _tasks(world, rng, count, size)
    labels = np.arange(size) % PER_TASK
    return [
        js.specify_user(world.space, points[i], labels, class_names=class_names(world, space[i]))
        for i in range(count)
    ]
