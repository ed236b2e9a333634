"""Large made markets, for timing and for the index: learnwares of many contexts and label spaces.

A context moves thirty class prototypes by an offset in twelve directions and bends each of them a
little; a learnware has its own mixture of two contexts, five of the classes, m points around them
and class vectors along them. Users are made the same way from mixtures that no learnware has. It is
no substitute for real data: `benchmarks.studies.identification` is about those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

import jaxspec as js

__all__ = ["World", "make_market", "make_users", "make_world", "stacked"]

CLASSES, PER_TASK, CONTEXTS, SPACES = 30, 5, 200, 60


@dataclasses.dataclass(frozen=True)
class World:
    """What all learnwares and users are drawn from."""

    prototypes: np.ndarray  # (CONTEXTS, CLASSES, d)
    spaces: np.ndarray  # (SPACES, PER_TASK) classes of a label space
    kernel: Any
    dimension: int


def make_world(dimension: int = 64, seed: int = 0) -> World:
    """Draw prototypes and label spaces."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(12, dimension)) / np.sqrt(dimension)
    offsets = 6.0 * rng.normal(size=(CONTEXTS, 12)) @ basis
    classes = rng.normal(size=(CLASSES, dimension)) / np.sqrt(dimension) * 8.0
    bends = rng.normal(size=(CONTEXTS, CLASSES, dimension)) / np.sqrt(dimension) * 3.0
    prototypes = classes + offsets[:, None] + bends
    spaces = np.stack([rng.permutation(CLASSES)[:PER_TASK] for _ in range(SPACES)])
    flat = prototypes[:20].reshape(-1, dimension)
    noisy = flat + rng.normal(size=flat.shape) / np.sqrt(dimension) * 6.0
    kernel = js.Gaussian(bandwidth=js.median_bandwidth(noisy.astype(np.float32)))
    return World(prototypes.astype(np.float32), spaces, kernel, dimension)


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
    return space, means, means[:, labels] + noise * (6.0 / np.sqrt(world.dimension))


def stacked(
    world: World, count: int, *, size: int = 50, seed: int = 1, batch: int = 4096
) -> Iterator[tuple[list[str], js.Specification]]:
    """Yield (ids, stacked specification) of `count` learnwares in all.

    A batch is sorted by label space, so that each stacked specification has one.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, count, batch):
        some = min(batch, count - start)
        space, means, points = _tasks(world, rng, some, size)
        vectors = means - means.mean(axis=1, keepdims=True)
        vectors += rng.standard_normal(vectors.shape, np.float32) * 0.3
        for one in np.unique(space):
            rows = np.flatnonzero(space == one)
            yield (
                [f"learnware {start + row}" for row in rows],
                js.Specification(
                    js.ReducedSet(points[rows], np.full((len(rows), size), 1 / size, np.float32)),
                    js.Proxy(
                        np.ascontiguousarray(vectors[rows].swapaxes(1, 2)),
                        np.zeros((len(rows), PER_TASK), np.float32),
                    ),
                    world.kernel,
                    _names(world, one),
                    "made",
                    num_examples=1000,
                ),
            )


def _names(world: World, space: int) -> tuple[str, ...]:
    return tuple(f"class {c}" for c in world.spaces[space])


def make_market(
    world: World, count: int, *, size: int = 50, seed: int = 1, **options: Any
) -> js.Market:
    """Return a market of `count` learnwares; options as in `Market.from_stacked`."""
    return js.Market.from_stacked(
        stacked(world, count, size=size, seed=seed), count=count, **options
    )


def make_users(
    world: World, count: int, *, size: int = 50, seed: int = 2
) -> list[js.UserSpecification]:
    """Return users with `size` labelled examples each."""
    rng = np.random.default_rng(seed)
    space, _, points = _tasks(world, rng, count, size)
    return [
        js.specify_user(
            points[i],
            np.arange(size) % PER_TASK,
            class_names=_names(world, space[i]),
            kernel=world.kernel,
            feature_space="made",
        )
        for i in range(count)
    ]
