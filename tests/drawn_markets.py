"""Random learnwares and users: nothing is fitted, so that nothing has to be compiled for it.

Every third learnware has no probe proxy and every second one no representation; numbers of points
and classes differ. `SPACE` has 20 landmarks.
"""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

import jaxspec as js
from jaxspec.scoring import embedding_pass
from jaxspec.specify import RANK, ProbeProxy

D, COUNT = 5, 21
KERNEL = js.Gaussian(bandwidth=2.0)
LANDMARKS = np.random.default_rng(9).normal(size=(20, D)).astype(np.float32)
SPACE = js.Space("drawn", KERNEL, dimension=D, probe=LANDMARKS)
LETTERS = "abcdef"


def space_of(kernel=KERNEL, offset=0.0, name="drawn"):
    return js.Space(name, kernel, dimension=D, probe=LANDMARKS + np.float32(offset))


def drawn(seed, *, probe=True, classes=None, space=SPACE, offset=0.0):
    """Return a specification of so many, or of two to four, of six classes.

    With a given number of classes it has a representation, else every second one has.
    """
    rng = np.random.default_rng(seed)
    represented = probe and (classes is not None or seed % 2 == 1)
    classes, size = classes or 2 + seed % 3, 6 + seed % 2

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    weights = rng.random(size).astype(np.float32)
    proxy = ProbeProxy(normal(20, classes), normal(classes), np.float32(0.9))
    spec = js.Specification(
        js.ReducedSet(normal(size, D) + normal(D) + np.float32(offset), weights / weights.sum()),
        js.Proxy(normal(D, classes), normal(classes)),
        class_names=tuple(LETTERS[(seed + i) % 6] for i in range(classes)),
        space_name=space.name,
        space_digest=space.digest,
        num_examples=50,
        probe_proxy=proxy if probe and (seed % 3 or classes == 6) else None,
        representation=normal(D, RANK) if represented else None,
    )
    return jax.tree.map(jax.numpy.asarray, spec)


def drawn_user(seed, names="abc", *, n=12, space=SPACE, offset=0.0):
    rng = np.random.default_rng(1000 + seed)
    classes = len(names)
    points = 0.7 * rng.normal(size=(n, D)) + rng.normal(size=D) + offset
    weights = rng.normal(size=(D, classes)).astype(np.float32)
    user = js.UserSpecification(
        js.ReducedSet(points.astype(np.float32), np.full(n, 1 / n, np.float32)),
        js.Proxy(weights, np.zeros(classes, np.float32)),
        (np.arange(n) % classes).astype(np.int32),
        class_names=tuple(names),
        space_name=space.name,
        space_digest=space.digest,
        num_examples=n,
    )
    return jax.tree.map(jax.numpy.asarray, user)


USERS = [drawn_user(0), drawn_user(1, "bc"), drawn_user(2, "xyz"), drawn_user(3, "ab")]


def near_user(spec, seed=0, names="abc", n=12):
    """Return a user whose examples are those of a learnware's distribution: it is the peer."""
    rng = np.random.default_rng(seed)
    user = drawn_user(seed, names, n=n)
    owner = np.asarray(spec.reduced_set.points)
    chance = np.asarray(spec.reduced_set.weights, np.float64)
    rows = owner[rng.choice(len(owner), size=n, p=chance / chance.sum())]
    points = (rows + 0.05 * rng.normal(size=rows.shape)).astype(np.float32)
    reduced = js.ReducedSet(jax.numpy.asarray(points), user.reduced_set.weights)
    return dataclasses.replace(user, reduced_set=reduced)


def drawn_specifications(count=COUNT, **options):
    return {f"m{seed}": drawn(seed, **options) for seed in range(count)}


def drawn_market(count=COUNT, *, probe=True, space=SPACE, offset=0.0, **options):
    specs = drawn_specifications(count, probe=probe, space=space, offset=offset)
    return js.Market(space, specs, **options)


def drawn_batches(count, size=7):
    """Yield what `from_stacked` takes: learnwares of three classes, all with a probe proxy."""
    for start in range(0, count, size):
        seeds = range(start, min(start + size, count))
        specs = [
            dataclasses.replace(drawn(6 * seed + 1, classes=3), class_names=("a", "b", "c"))
            for seed in seeds
        ]
        yield [f"m{seed}" for seed in seeds], jax.tree.map(lambda *one: np.stack(one), *specs)


def assert_same_match(got, want, atol=1e-5):
    assert got.ids == want.ids
    assert got.method == want.method
    np.testing.assert_array_equal(got.class_map, want.class_map)
    for name in ("scores", "squared_mmd", "class_similarity"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=atol)


def assert_same_matches(got, want, atol=1e-5):
    for one, other in zip(got, want, strict=True):
        assert_same_match(one, other, atol)


def assert_best_of(best, whole, k, atol=1e-5):
    """Check the best k against an answer over the whole market: a stable sort by score."""
    rows = np.argsort(-whole.scores, kind="stable")[:k]
    assert best.ids == tuple(whole.ids[row] for row in rows)
    assert best.method == whole.method
    assert best.class_names == whole.class_names
    assert best.learnware_class_names == tuple(whole.learnware_class_names[row] for row in rows)
    for name in ("scores", "squared_mmd", "class_similarity"):
        np.testing.assert_allclose(getattr(best, name), getattr(whole, name)[rows], atol=atol)
    np.testing.assert_array_equal(best.class_map, whole.class_map[rows])


@dataclasses.dataclass(frozen=True)
class NearAndAlike:
    """A score of somebody else: similarity of classes minus distance."""

    factor: float = 3.0
    name: str = "near and alike"
    needs: tuple[str, ...] = ("squared_mmd", "similarity")

    def __call__(self, evidence):
        return evidence.similarity - self.factor * evidence.squared_mmd


@contextlib.contextmanager
def one_width():
    """Compile the last block of columns for one width instead of eleven."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_pass, "WIDTHS", (128,))
        yield


@contextlib.contextmanager
def small_chunks():
    """Let even a market of 21 learnwares be gone through in several chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_pass, "block_entries", lambda: 1 << 13)
        yield
