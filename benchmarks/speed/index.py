"""Which codes should an index filter by, and does it find the best? By how deep these lie.

    python -m benchmarks.speed.index --output benchmarks/results/index.json

Cases: "shifts" and "shapes" compare encodings on a market of `made_market`, whose distributions
differ by a shift, and on one of `made_shapes` without a probe, where they differ in shape; "search"
judges `Index.search` itself on markets of `made_shapes` (`benchmarks.speed.index_recall`), on draws that
chose nothing (draw 0 did). A case that is not run keeps its figures in the output.

Inner products of encodings order the learnwares of a made market. The depth is how many from the
top a user has to score again so that the exact best ten are all among them: ten at best. Random
encodings are drawn several times. One aim is closeness, the cosine of the mean embeddings:

    eigenfunctions  the library's first piece (`jaxspec.index.encoder`)
    random Fourier  of the Gaussian kernel, as unit vectors (Rahimi and Recht, NIPS 2007)
    Nystrom         whitened values at as many anchors as there are floats, as unit vectors
    mean point      by distance, with which closeness falls where distributions are only shifted
    MUVERA          fixed dimensional encodings of point sets (Dhulipala et al., arXiv 2405.19504),
                    without the final projection; settings chosen on another draw of the market
    Chamfer         what MUVERA approximates, exactly: a user's mean of largest inner products

MUVERA's largest inner products are made those of the nearest points: a point x, from the market's
mean and in units of the points' root mean square, is asked for as (x, 1/2) and held as
(x, 1 - |x|^2). Of unit vectors x / |x|, its usual case, the size of a shift is lost: they did
worse. Points count alike, as all weights of the made market do.

The other aim is the default score ("likelihood", names in common, no probe), by the linear filter
of `jaxspec.index` on two pieces, fitted as there to learnwares that act as users, not to the users
that judge. "mean class" is of class vectors brought to length one, as their own mean is zero;
"exact" are the exact parts, so that its depth is the filter's own error. Bytes are of float32
codes; every filter also reads a learnware's label space and |Phi|^2.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec as js
from benchmarks.markets import made_market, made_shapes
from benchmarks.speed import index_recall
from benchmarks.speed.yardstick import print_table, progress, write_json
from jaxspec.base.padding import pad_to
from jaxspec.index.codes import encoder_of
from jaxspec.index.encoder import EMBEDDING, encode_users, pieces_of
from jaxspec.index.filter import PSEUDO_USERS, TOP, fit_weights, pseudo_users
from jaxspec.index.search import _features
from jaxspec.market.arrays import ROW_FIELDS
from jaxspec.market.builder import spaced
from jaxspec.market.calibration import witness
from jaxspec.matching.match import stack_users
from jaxspec.scoring.types import UserArrays
from jaxspec.specify.probe_proxy import whitening

Array = Any
Rows = dict[str, Array]  # {field: (b, ...)} of `MarketArrays`
BLOCK = 256  # learnwares that are encoded at a time
WITHIN = 256  # candidates, for the share of users whose best ten are among them
DRAWS = 3  # of random encodings
CASES = ("shifts", "shapes", "search")


class Encoding(NamedTuple):
    """How learnwares and users become vectors."""

    own: Callable[[Rows], Array]  # b learnwares: (b, F)
    asked: Callable[[UserArrays], Array]  # Q users: (Q, F)


class Exact(NamedTuple):
    """Exact parts and scores of Q users, each (Q, M)."""

    closeness: np.ndarray
    similarity: np.ndarray
    share: np.ndarray
    scores: np.ndarray


class Piece(NamedTuple):
    """An encoding's inner products, and what it takes; nothing where it is exact."""

    users: np.ndarray  # (Q, M)
    pseudo: np.ndarray  # (P, M - P) of the learnwares that act as users, with the others
    floats: int | None = None
    seconds: float | None = None  # a thousand learnwares


# Encodings: of a market, its rows and a seed


def ours(market: js.Market, rows: Rows, seed: int, *, piece: slice) -> Encoding:
    """Return a piece of the library's codes: eigenfunctions, or the sketch of class names."""
    encoder = jax.tree.map(jnp.asarray, encoder_of(market))
    return Encoding(
        lambda block: jnp.concatenate(pieces_of(encoder, market.kernel, block), 1)[:, piece],
        lambda users: jnp.concatenate(encode_users(encoder, market.arrays, users), 1)[:, piece],
    )


def fourier(market: js.Market, rows: Rows, seed: int) -> Encoding:
    """Return random Fourier features of the Gaussian kernel."""
    shape = (market.dimension, EMBEDDING // 2)
    draw = np.random.default_rng(seed).normal(size=shape) / float(market.kernel.bandwidth)
    frequencies = draw.astype(np.float32)

    def embed(points: Array, weights: Array) -> Array:
        phases = points @ frequencies
        waves = jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1)
        return unit(jnp.einsum("bm,bmf->bf", weights, waves))

    return of_points(embed)


def nystrom(market: js.Market, rows: Rows, seed: int) -> Encoding:
    """Return whitened values of the embeddings at some of the market's points."""
    used = np.argwhere(rows["weights"] != 0)
    at = used[np.random.default_rng(seed).choice(len(used), EMBEDDING, replace=False)]
    anchors = rows["points"][at[:, 0], at[:, 1]]
    kernel, white = market.kernel, np.asarray(whitening(market.kernel, anchors))

    def embed(points: Array, weights: Array) -> Array:
        return unit(witness(kernel, anchors, points, weights, jnp.ones(len(points))) @ white)

    return of_points(embed)


def mean_point(market: js.Market, rows: Rows, seed: int) -> Encoding:
    """Return mean points, with inner products that fall with the squared distance."""
    lift = lift_of(rows)

    def mean(points: Array, weights: Array) -> Array:
        return jnp.einsum("bm,bmd->bd", weights, points) / weights.sum(axis=1, keepdims=True)

    return Encoding(
        lambda block: lift(mean(block["points"], block["weights"]))[1],
        lambda users: lift(mean(users.points, users.weights))[0],
    )


def muvera(
    market: js.Market, rows: Rows, seed: int, *, bits: int, width: int, repetitions: int
) -> Encoding:
    """Return fixed dimensional encodings: repetitions x 2^bits x width numbers.

    `bits` random planes cut the points into partitions; what a partition holds is projected to
    `width` numbers by random signs; repetitions are drawn anew. A user's partition holds the sum
    of its points, a learnware's their mean, or the point fewest planes away if it has none there.
    """
    rng, lift, d = np.random.default_rng(seed), lift_of(rows), market.dimension
    planes = rng.normal(size=(repetitions, d, bits)).astype(np.float32)
    signs = rng.choice(np.array([-1, 1], np.float32), (repetitions, d + 1, width))
    signs /= np.sqrt(width * repetitions)
    partitions = np.arange(2**bits)
    differ = (partitions[:, None] ^ partitions)[..., None] >> np.arange(bits) & 1
    hamming = jnp.asarray(differ.sum(axis=2))

    def places(vectors: Array) -> Array:
        sides = jnp.einsum("bmd,rdk->rbmk", vectors[..., :d], planes) > 0
        return (sides * 2 ** np.arange(bits)).sum(axis=3)

    def projected(held: Array) -> Array:
        return jnp.einsum("rbpd,rdw->brpw", held, signs).reshape(held.shape[1], -1)

    def own(block: Rows) -> Array:
        vectors, used = lift(block["points"])[1], block["weights"] != 0
        at = places(vectors)
        inside = (at[..., None] == partitions) & used[..., None]  # (r, b, m, p)
        count = inside.sum(axis=2)[..., None]
        means = jnp.einsum("rbmp,bmd->rbpd", inside, vectors) / jnp.maximum(count, 1)
        nearest = jnp.where(used[..., None], hamming[at], bits + 1).argmin(axis=2)
        fill = jnp.take_along_axis(vectors[None], nearest[..., None], axis=2)
        return projected(jnp.where(count > 0, means, fill))

    def asked(users: UserArrays) -> Array:
        vectors = lift(users.points)[0]
        inside = (places(vectors)[..., None] == partitions) * users.weights[..., None]
        return projected(jnp.einsum("rbmp,bmd->rbpd", inside, vectors))

    return Encoding(own, asked)


def mean_class(market: js.Market, rows: Rows, seed: int) -> Encoding:
    """Return the mean of the class vectors, each of length one."""

    def mean(vectors: Array, used: Array) -> Array:
        total = jnp.where(used[..., None], unit(vectors), 0.0).sum(axis=1)
        return total / used.sum(axis=1, keepdims=True)

    return Encoding(
        lambda block: mean(block["class_vectors"], block["class_ids"] >= 0),
        lambda users: mean(users.class_vectors, users.class_mask),
    )


def of_points(embed: Callable[[Array, Array], Array]) -> Encoding:
    """Return an encoding that treats the points of learnwares and users alike."""
    return Encoding(
        lambda block: embed(block["points"], block["weights"]),
        lambda users: embed(users.points, users.weights),
    )


def unit(vectors: Array) -> Array:
    """Return vectors of length one; zero stays zero."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def lift_of(rows: Rows) -> Callable[[Array], tuple[Array, Array]]:
    """Return a map of points to a user's vectors and a learnware's, for MUVERA's products."""
    points = rows["points"][rows["weights"] != 0]
    centre = points.mean(axis=0)
    size = np.sqrt(np.square(points - centre).sum(axis=1).mean())

    def lift(points: Array) -> tuple[Array, Array]:
        x = (points - centre) / size
        square = jnp.square(x).sum(axis=-1, keepdims=True)
        return (
            jnp.concatenate([x, jnp.full_like(square, 0.5)], axis=-1),
            jnp.concatenate([x, 1.0 - square], axis=-1),
        )

    return lift


NEAR: dict[str, list[Callable[..., Encoding]]] = {
    "eigenfunctions": [partial(ours, piece=slice(EMBEDDING))],
    "random Fourier": [fourier] * DRAWS,
    "Nystrom": [nystrom] * DRAWS,
    "mean point": [mean_point],
    "MUVERA 224": [partial(muvera, bits=1, width=16, repetitions=7)] * DRAWS,
    "MUVERA 2,048": [partial(muvera, bits=1, width=32, repetitions=32)] * DRAWS,
}
IN_FILTER = ("eigenfunctions", "random Fourier", "mean point", "MUVERA 224")
CLASSES: dict[str, Callable[..., Encoding]] = {
    "name sketch": partial(ours, piece=slice(EMBEDDING, None)),
    "mean class": mean_class,
}


# What they are measured by


def encode(own: Callable[[Rows], Array], rows: Rows) -> tuple[np.ndarray, float]:
    """Return the codes of all learnwares, (M, F), and the seconds a thousand took, compiled."""
    total, compiled = len(rows["weights"]), jax.jit(own)
    room = -(-total // BLOCK) * BLOCK
    rows = {name: pad_to(value, (room, *value.shape[1:])) for name, value in rows.items()}
    blocks = [
        {name: value[start : start + BLOCK] for name, value in rows.items()}
        for start in range(0, total, BLOCK)
    ]
    jax.block_until_ready(compiled(blocks[0]))
    began = time.perf_counter()
    codes = np.concatenate([np.asarray(compiled(block)) for block in blocks])[:total]
    return codes, (time.perf_counter() - began) * 1e3 / total


def piece_of(
    encoding: Encoding, rows: Rows, both: Sequence[UserArrays], shown: np.ndarray
) -> Piece:
    """Encode the market and both kinds of users; pseudo-users see the `shown` learnwares."""
    codes, seconds = encode(encoding.own, rows)
    users, pseudo = (np.asarray(jax.jit(encoding.asked)(one)) @ codes.T for one in both)
    return Piece(users, pseudo[:, shown], codes.shape[1], seconds)


def chamfer(rows: Rows, users: UserArrays) -> np.ndarray:
    """Return what MUVERA approximates, (Q, M)."""
    lift, most = lift_of(rows), int(users.counts.max())
    asked = (lift(users.points[:, :most])[0], users.weights[:, :most])

    def own(block: Rows) -> Array:
        vectors, used = lift(block["points"])[1], block["weights"] != 0

        def one(user: tuple[Array, Array]) -> Array:
            products = jnp.where(used[..., None], vectors @ user[0].T, -jnp.inf)
            return products.max(axis=1) @ user[1]

        return jax.lax.map(one, asked).T

    return encode(own, rows)[0].T


def exact_of(market: js.Market, users: Sequence[js.UserSpecification], norms: np.ndarray) -> Exact:
    """Score every learnware (squared norms (M,)) for all users, sixteen at a time."""
    parts: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(users), 16):
        some = list(users[start : start + 16])
        padded = some + some[:1] * (16 - len(some))
        found = js.match(market, padded, reuse="direct", label_spaces="homogeneous")
        for i, user in enumerate(some):
            own = user.reduced_set
            norm = float(js.inner_product(market.kernel, own, own))
            near = (norms + norm - found.squared_mmd[i]) / (2 * np.sqrt(norms * norm))
            has = found.class_map[i] >= 0
            alike = np.where(has, found.class_similarity[i], 0).sum(axis=1) / len(user.class_names)
            count = np.bincount(np.asarray(user.labels), own.weights, has.shape[1])
            parts.append((near, alike, has @ count / count.sum(), found.scores[i]))
        progress(f"scored {len(parts)} of {len(users)} users")
    return Exact(*(np.stack(one) for one in zip(*parts, strict=True)))


def filtered(
    near: Piece,
    alike: Piece,
    norms: np.ndarray,
    shown: np.ndarray,
    users: Exact,
    pseudo: Exact,
) -> Array:
    """Return guesses of the scores, (Q, M), by the filter of two pieces, fitted to pseudo-users."""
    features = _features(near.pseudo, alike.pseudo, pseudo.share, norms[shown])
    features = np.asarray(features, float)
    weights = fit_weights(list(features), list(pseudo.scores.astype(float)))
    return np.asarray(_features(near.users, alike.users, users.share, norms)) @ weights


def depths(guesses: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return the largest rank of one of each user's exact best ten in the guessed order, (Q,)."""
    best = np.argsort(-exact, axis=1, kind="stable")[:, :TOP]
    least = np.take_along_axis(guesses, best, axis=1).min(axis=1, keepdims=True)
    return 1 + (guesses > least).sum(axis=1)


def summary(guesses: Sequence[np.ndarray], exact: np.ndarray, *pieces: Piece) -> dict[str, Any]:
    """Return depths over users and draws, and what the pieces take."""
    found = np.concatenate([depths(one, exact) for one in guesses])
    return {
        "bytes": 4 * sum(one.floats or 0 for one in pieces) or None,
        "s / 1,000": sum(one.seconds or 0.0 for one in pieces) or None,
        "median": int(np.quantile(found, 0.5, method="higher")),
        "99 %": int(np.quantile(found, 0.99, method="higher")),
        f"within {WITHIN}": float((found <= WITHIN).mean()),
    }


def compare(market: js.Market, users: Sequence[js.UserSpecification]) -> dict[str, Any]:
    """Return the rows of both tables, {aim: {codes: summary}}."""
    rows = {name: np.asarray(getattr(market.arrays, name))[market.rows] for name in ROW_FIELDS}
    norms = rows["self_terms"]
    acting = spaced(market.slots, PSEUDO_USERS)
    shown = ~np.isin(market.slots, acting)
    people = (users, pseudo_users(market, acting))
    judges, pseudo = (exact_of(market, some, norms) for some in people)
    pseudo = Exact(*(one[:, shown] for one in pseudo))
    stacked = [stack_users(market, some, label_spaces="homogeneous") for some in people]
    near: dict[str, list[Piece]] = {}
    for name, makers in NEAR.items():
        progress(name)
        made = [make(market, rows, seed) for seed, make in enumerate(makers)]
        near[name] = [piece_of(one, rows, stacked, shown) for one in made]
    by_closeness = {
        name: summary([one.users for one in drawn], judges.closeness, drawn[0])
        for name, drawn in near.items()
    }
    progress("Chamfer")
    by_closeness["Chamfer"] = summary([chamfer(rows, stacked[0])], judges.closeness)
    progress("filters")
    alike = {
        name: piece_of(make(market, rows, 0), rows, stacked, shown)
        for name, make in CLASSES.items()
    }
    alike["none"] = Piece(np.zeros_like(judges.share), np.zeros_like(pseudo.share))
    pairs = [(one, kind) for one in IN_FILTER for kind in alike]
    near["exact"] = [Piece(judges.closeness, pseudo.closeness)]
    alike["exact"] = Piece(judges.similarity, pseudo.similarity)
    by_score = {}
    for one, kind in [*pairs, ("exact", "exact")]:
        guesses = [filtered(draw, alike[kind], norms, shown, judges, pseudo) for draw in near[one]]
        by_score[f"{one} + {kind}"] = summary(guesses, judges.scores, near[one][0], alike[kind])
    return {"closeness": by_closeness, "default score": by_score}


def made(case: str, count: int, people: int) -> tuple[js.Market, list[js.UserSpecification]]:
    """Return the market and the users of a case."""
    progress(f"{case}: making {count} learnwares")
    if case == "shifts":
        world = made_market.make_world()
        return made_market.make_market(world, count), made_market.make_users(world, people, seed=3)
    shapes = made_shapes.make_world(seed=1)
    market = made_shapes.make_market(shapes, count, probe=False, seed=101)
    return market, made_shapes.make_users(shapes, people, seed=201)


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    table = [
        (name, *(f"{cell:,}" if isinstance(cell, int) else cell for cell in row.values()))
        for name, row in rows.items()
    ]
    print_table(title, ("", *next(iter(rows.values()))), table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--draws", type=int, nargs="+", default=(1, 2), help='of "search"')
    parser.add_argument("--learnwares", type=int, default=5000)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    count, people = (1000, 16) if options.quick else (options.learnwares, options.users)
    results = {}
    if options.output and options.output.exists():
        results = json.loads(options.output.read_text())["results"]
    for case in options.cases:
        if case == "search":
            for draw in options.draws:
                found = index_recall.measure(count, people, draw)
                results[f"search, draw {draw}"] = found
                show(f"search, draw {draw}: {count:,} learnwares", found)
            continue
        results[case] = compare(*made(case, count, people))
        for aim, rows in results[case].items():
            title = f"{case}, {aim}: depth of the best {TOP} of {count:,} learnwares"
            show(f"{title}, {people} users", rows)
    if options.output:
        settings = {"learnwares": count, "users": people, "draws": DRAWS, "within": WITHIN}
        write_json(options.output, {"settings": settings, "results": results})


if __name__ == "__main__":
    main()
