"""Made markets whose learnwares differ in shape and in function, with a probe on request.

In `made_market` distributions differ by a shift, so that the mean point says all about closeness.
Here a class of a context has two components on either side of its centre, in a direction of its
own, and noise along eight directions that the context turns and stretches. A learnware mixes two
contexts and has its own shares of classes and components and its own size of noise. Thirty label
spaces have three to eight of thirty classes.

The model of a learnware is the posterior of its own components plus a smooth random function of its
own, which is small for a good model and large for a poor one: what a model does is not settled by
what it was trained on. With a probe it is asked about features from all contexts, and the library
fits its probe proxy. Users are drawn in the same way. Users of other class names have classes that
no learnware has: of ten held-out prototypes, or unions of two of the thirty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxspec as js
from benchmarks.markets.batches import Batch, market_of, specification_of
from jaxspec.specify import fit_probe_proxies

__all__ = ["World", "make_market", "make_users", "make_world"]

CLASSES, HELD_OUT, CONTEXTS, SPACES = 30, 10, 40, 30
AXES = 8  # directions of the noise of a context
WAVES = 48  # random features of the function that is a model's own
PROBE, LANDMARKS = 1000, 200


@dataclasses.dataclass(frozen=True)
class World:
    """What all learnwares and users are drawn from."""

    centres: np.ndarray  # (CONTEXTS, CLASSES + HELD_OUT, d)
    arms: np.ndarray  # (CONTEXTS, CLASSES + HELD_OUT, d): from a centre to a component
    axes: np.ndarray  # (CONTEXTS, AXES, d) of the noise; their length is its deviation
    spaces: tuple[np.ndarray, ...]  # SPACES of three to eight classes
    frequencies: np.ndarray  # (d, WAVES)
    phases: np.ndarray  # (WAVES,)
    probe: np.ndarray  # (PROBE, d): what the models are asked about
    spaces_of: dict[bool, js.Space]  # with a probe and without

    @property
    def dimension(self) -> int:
        """The dimension d of the features."""
        return self.centres.shape[2]


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
        {},
    )
    everything = np.arange(CLASSES)[:, None]
    points, _ = _sample(_tasks(world, rng, PROBE // 50, everything), rng, 50)
    probe = rng.permutation(points.reshape(-1, dimension))
    kernel = js.Gaussian(bandwidth=js.median_bandwidth(probe))
    space = partial(js.Space, "made shapes", kernel, dimension=dimension)
    # All rows of a small probe are landmarks: so the proxies have LANDMARKS of them.
    spaces_of = {True: space(probe=probe[:LANDMARKS]), False: space()}
    return dataclasses.replace(world, probe=probe, spaces_of=spaces_of)


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
    """Return points (b, size, d) and their classes (b, size).

    With `even`, all classes have the same number of points.
    """
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
        tasks: b of them, with one prototype per class.
        own: (b, WAVES, C) weights of the functions that are the models' own.
        flaw: (b,) the sizes of these functions.
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


def _batches(world: World, count: int, probe: bool, size: int, seed: int) -> Iterator[Batch]:
    """Yield all learnwares of one label space after the other."""
    rng = np.random.default_rng([8, seed])
    start = 0
    for space, number in enumerate(rng.multinomial(count, np.full(SPACES, 1 / SPACES))):
        if not number:
            continue
        groups = world.spaces[space][:, None]
        tasks = _tasks(world, rng, number, groups)
        points, _ = _sample(tasks, rng, size)
        flaw = rng.gamma(2.0, 1.0, size=number).astype(np.float32)
        own = rng.standard_normal((number, WAVES, len(groups)), np.float32)
        means = tasks.centres[:, :, 0]
        means = means + rng.standard_normal(means.shape, np.float32) * flaw[:, None, None] * 0.2
        middle = means.mean(axis=1, keepdims=True)
        vectors = (means - middle) / 10.0  # as of classes that all have this variance
        bias = -0.5 * (np.square(means) - np.square(middle)).sum(axis=2) / 10.0
        proxies = None
        if probe:
            proxies = _probe_proxies(world, _answers(world, tasks, own, flaw, world.probe))
        yield specification_of(
            world.spaces_of[probe],
            [f"learnware {start + row}" for row in range(number)],
            points,
            weights=vectors.swapaxes(1, 2),
            bias=bias,
            class_names=[f"class {one}" for one in world.spaces[space]],
            probe_proxy=proxies,
        )
        start += number


def _probe_proxies(world: World, outputs: np.ndarray) -> Any:
    """Return the stacked probe proxies of models with outputs (b, PROBE, C) on the probe."""
    space = world.spaces_of[True]
    fitted = fit_probe_proxies(
        space.kernel, space.landmarks, space.whitening, world.probe, list(outputs)
    )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *fitted)


def make_market(
    world: World, count: int, *, probe: bool = True, size: int = 50, seed: int = 1, **options: Any
) -> js.Market:
    """Return a market of `count` learnwares; options as of `batches.market_of`."""
    batches = _batches(world, count, probe, size, seed)
    return market_of(world.spaces_of[probe], batches, count=count, **options)


def make_users(
    world: World,
    count: int,
    *,
    probe: bool = True,
    other: bool = False,
    per_class: int = 10,
    seed: int = 2,
) -> list[js.UserSpecification]:
    """Return users of a market with or without a probe, who have labelled examples.

    Args:
        world: what they are drawn from.
        count: users.
        probe: as of the market that they ask.
        other: whether their classes have names that no learnware has.
        per_class: labelled examples per class.
        seed: of the draw.
    """
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
        user = js.specify_user(world.spaces_of[probe], points[0], labels[0], class_names=names)
        users.append(user)
    return users
