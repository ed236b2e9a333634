"""Made markets whose learnwares differ in shape and in function, with a probe on request.

In `made_market` distributions differ by a shift, so a mean point says all about closeness. Here a
class of a context has two components on either side of its centre, in a direction of its own, and
noise along eight directions that the context turns and stretches; a learnware mixes two contexts
and has its own shares of classes and components and its own size of noise. Thirty label spaces have
three to eight of thirty classes.

A learnware's model is the posterior of its own components plus a smooth random function of its
own, small for a good model and large for a poor one: what it does is not settled by what it was
trained on. With a probe it is asked on features from all contexts, and its probe proxy is fitted by
the library on `LANDMARKS` landmarks. Users are drawn the same way; "other" users have classes that
no learnware has: of ten held-out prototypes, or unions of two of the thirty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import jaxspec as js
from jaxspec.specify.probe_proxy import ProbeProxy, fit_probe_proxies

__all__ = ["World", "make_market", "make_users", "make_world", "stacked"]

CLASSES, HELD_OUT, CONTEXTS, SPACES = 30, 10, 40, 30
AXES, WAVES = 8, 48  # directions of a context's noise; random features of the models' own part
PROBE, LANDMARKS = 1000, 200


@dataclasses.dataclass(frozen=True)
class World:
    """What all learnwares and users are drawn from."""

    centres: np.ndarray  # (CONTEXTS, CLASSES + HELD_OUT, d)
    arms: np.ndarray  # (CONTEXTS, CLASSES + HELD_OUT, d) from a centre to its two components
    axes: np.ndarray  # (CONTEXTS, AXES, d) of noise, with its deviation as length
    spaces: tuple[np.ndarray, ...]  # SPACES of three to eight classes
    frequencies: np.ndarray  # (d, WAVES)
    phases: np.ndarray  # (WAVES,)
    probe: np.ndarray  # (PROBE, d)
    kernel: Any


class Tasks(NamedTuple):
    """Distributions of b tasks with C classes of G prototypes each, in d dimensions."""

    centres: np.ndarray  # (b, C, G, d)
    arms: np.ndarray  # (b, C, G, d)
    axes: np.ndarray  # (b, AXES, d)
    shares: np.ndarray  # (b, C) of classes
    sides: np.ndarray  # (b, C) share of the first component
    scale: np.ndarray  # (b,) of the noise


def make_world(dimension: int = 64, seed: int = 0) -> World:
    """Draw prototypes, shapes, label spaces and the probe."""
    rng = np.random.default_rng([7, seed])
    total, root = CLASSES + HELD_OUT, np.sqrt(dimension)
    basis = rng.normal(size=(12, dimension)) / root
    offsets = 2.5 * rng.normal(size=(CONTEXTS, 12)) @ basis
    classes = 8.0 * rng.normal(size=(total, dimension)) / root
    bends = 3.0 * rng.normal(size=(CONTEXTS, total, dimension)) / root
    arms = 5.0 * rng.normal(size=(CONTEXTS, total, dimension)) / root
    axes = np.linalg.qr(rng.normal(size=(CONTEXTS, dimension, AXES)))[0].swapaxes(1, 2)
    axes = axes * 2.0 * rng.lognormal(0.0, 0.5, size=(CONTEXTS, AXES, 1))
    spaces = tuple(rng.permutation(CLASSES)[: rng.integers(3, 9)] for _ in range(SPACES))
    frequencies = rng.normal(size=(dimension, WAVES)) / 8.0
    phases = rng.uniform(0, 2 * np.pi, WAVES)
    centres = classes + offsets[:, None] + bends
    world = World(
        *(np.asarray(one, np.float32) for one in (centres, arms, axes)),
        spaces,
        *(np.asarray(one, np.float32) for one in (frequencies, phases)),
        np.zeros((0, dimension), np.float32),
        None,
    )
    everything = np.arange(CLASSES)[:, None]
    points, _ = _sample(_tasks(world, rng, PROBE // 50, everything), rng, 50)
    probe = rng.permutation(points.reshape(-1, dimension))
    kernel = js.Gaussian(bandwidth=js.median_bandwidth(probe))
    return dataclasses.replace(world, probe=probe, kernel=kernel)


def _tasks(world: World, rng: np.random.Generator, count: int, groups: np.ndarray) -> Tasks:
    """Draw tasks whose classes are groups of prototypes, (C, G)."""
    pair = rng.integers(CONTEXTS, size=(count, 2))
    mix = (0.5 * np.square(rng.random((count, 1, 1, 1)))).astype(np.float32)

    def mixed(values: np.ndarray) -> np.ndarray:
        return (1 - mix) * values[pair[:, 0]][:, groups] + mix * values[pair[:, 1]][:, groups]

    shares = rng.dirichlet(np.full(len(groups), 12.0), size=count).astype(np.float32)
    sides = rng.uniform(0.3, 0.7, size=shares.shape).astype(np.float32)
    scale = rng.uniform(0.5, 1.5, size=count).astype(np.float32)
    return Tasks(mixed(world.centres), mixed(world.arms), world.axes[pair[:, 0]], shares, sides,
                 scale)  # fmt: skip


def _sample(
    tasks: Tasks, rng: np.random.Generator, size: int, *, even: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return points (b, size, d) and their classes (b, size); `even` gives all classes alike."""
    count, classes, group, d = tasks.centres.shape
    if even:
        labels = np.broadcast_to(np.arange(size) % classes, (count, size))
    else:
        places = (np.arange(size) + 0.5) / size
        ends = tasks.shares.cumsum(axis=1)[:, :-1]
        labels = (places[None, :, None] > ends[:, None]).sum(axis=2)
    at = (np.arange(count)[:, None], labels, rng.integers(group, size=labels.shape))
    first = rng.random(labels.shape) < tasks.sides[at[:2]]
    side = np.where(first, 1.0, -1.0).astype(np.float32)[..., None]
    noise = rng.standard_normal((count, size, AXES), np.float32) @ tasks.axes
    noise += rng.standard_normal((count, size, d), np.float32) * (3.0 / np.sqrt(d))
    return tasks.centres[at] + side * tasks.arms[at] + tasks.scale[:, None, None] * noise, labels


def _answers(
    world: World, tasks: Tasks, own: np.ndarray, flaw: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Return probabilities (b, n, C) of models on rows (n, d).

    Args:
        world: for the random features.
        tasks: b of them, with one prototype a class.
        own: (b, WAVES, C) weights of the models' own parts.
        flaw: (b,) their sizes.
        rows: (n, d).
    """
    logits = []
    for sign, share in ((1.0, tasks.sides), (-1.0, 1.0 - tasks.sides)):
        means = (tasks.centres + sign * tasks.arms)[:, :, 0]
        products = np.einsum("nd,bcd->bnc", rows, means, optimize=True)
        distance = np.square(rows).sum(axis=1)[:, None] + np.square(means).sum(axis=2)[:, None]
        logits.append(np.log(share * tasks.shares)[:, None] - (distance - 2 * products) / 20.0)
    waves = np.sqrt(2.0 / WAVES) * np.cos(rows @ world.frequencies + world.phases)
    total = np.logaddexp(*logits) + flaw[:, None, None] * (waves @ own)
    powers = np.exp(total - total.max(axis=2, keepdims=True))
    return powers / powers.sum(axis=2, keepdims=True)


def stacked(
    world: World, count: int, *, probe: bool = True, size: int = 50, seed: int = 1
) -> Iterator[tuple[list[str], js.Specification]]:
    """Yield (ids, stacked specification) of `count` learnwares in all, by label space."""
    rng = np.random.default_rng([8, seed])
    start = 0
    for space, some in enumerate(rng.multinomial(count, np.full(SPACES, 1 / SPACES))):
        if not some:
            continue
        groups = world.spaces[space][:, None]
        tasks = _tasks(world, rng, some, groups)
        points, _ = _sample(tasks, rng, size)
        flaw = rng.gamma(2.0, 1.0, size=some).astype(np.float32)
        own = rng.standard_normal((some, WAVES, len(groups)), np.float32)
        means = tasks.centres[:, :, 0]
        means = means + rng.standard_normal(means.shape, np.float32) * flaw[:, None, None] * 0.2
        middle = means.mean(axis=1, keepdims=True)
        vectors = (means - middle) / 10.0  # as of classes with this variance, all alike
        bias = -0.5 * (np.square(means) - np.square(middle)).sum(axis=2) / 10.0
        said = None
        if probe:
            outputs = _answers(world, tasks, own, flaw, world.probe)
            fitted = fit_probe_proxies(world.kernel, world.probe, list(outputs), size=LANDMARKS)
            said = ProbeProxy(
                fitted[0].landmarks,
                np.stack([one.weights for one in fitted]),
                np.stack([one.bias for one in fitted]),
                np.stack([one.fidelity for one in fitted]),
                fitted[0].fingerprint,
            )
        yield (
            [f"learnware {start + row}" for row in range(some)],
            js.Specification(
                js.ReducedSet(points, np.full((some, size), 1 / size, np.float32)),
                js.Proxy(np.ascontiguousarray(vectors.swapaxes(1, 2)), bias),
                world.kernel,
                tuple(f"class {one}" for one in world.spaces[space]),
                "made shapes",
                num_examples=1000,
                probe=said,
            ),
        )
        start += some


def make_market(
    world: World, count: int, *, probe: bool = True, size: int = 50, seed: int = 1, **options: Any
) -> js.Market:
    """Return a market of `count` learnwares; options as in `Market.from_stacked`."""
    batches = stacked(world, count, probe=probe, size=size, seed=seed)
    return js.Market.from_stacked(batches, count=count, **options)


def make_users(
    world: World, count: int, *, other: bool = False, per_class: int = 10, seed: int = 2
) -> list[js.UserSpecification]:
    """Return users with `per_class` labelled examples a class, of other class names on request."""
    rng = np.random.default_rng([9, seed])
    users = []
    for which in range(count):
        if not other:
            space = world.spaces[rng.integers(SPACES)]
            groups, names = space[:, None], [f"class {one}" for one in space]
        else:
            size = rng.integers(3, 7)
            if which % 2:
                groups = CLASSES + rng.permutation(HELD_OUT)[:size, None]
            else:
                groups = rng.permutation(CLASSES)[: 2 * size].reshape(size, 2)
            names = [f"other {'+'.join(map(str, group))}" for group in groups]
        tasks = _tasks(world, rng, 1, groups)
        points, labels = _sample(tasks, rng, per_class * len(groups), even=True)
        users.append(
            js.specify_user(
                points[0],
                labels[0],
                class_names=names,
                kernel=world.kernel,
                feature_space="made shapes",
            )
        )
    return users
