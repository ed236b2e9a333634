"""Which codes should an index filter by? By how deep the exact best lie in the order they give.

    python -m benchmarks.studies.index_codes --output benchmarks/results/index-codes.json

Cases: "shifts" is a market of `made_market`, whose distributions differ by a shift; "shapes" is one
of `made_shapes` without a probe, whose distributions differ in shape too. Inner products of the
encodings of `index_encodings` order the learnwares. The depth is how many from the top have to be
scored again so that the exact best ten are all among them: ten at best. Random encodings are drawn
several times. One aim is closeness, the cosine of the mean embeddings; "Chamfer" is the similarity
that MUVERA approximates, computed exactly. The other aim is the default score ("likelihood", names
in common, no probe), by the linear filter of `jaxspec.index` on two parts, fitted as there to
learnwares that act as users, not to the users that judge; "exact" has the exact parts, so that its
depth is the error of the filter alone. Bytes are of float32 codes; every filter also reads the
label space of a learnware and |Phi|^2.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec as js
from benchmarks.markets import made_market, made_shapes
from benchmarks.records import merge_results, print_table, progress
from benchmarks.studies.index_encodings import BY_CLASSES, BY_CLOSENESS, Encoding, Rows, lift_of
from jaxspec.base import pad_to
from jaxspec.index.filter import PSEUDO_USERS, TOP, fit_weights, make_pseudo_users
from jaxspec.kernels import inner_product
from jaxspec.market import ROW_ARRAYS, evenly_spaced
from jaxspec.matching import stack_users
from jaxspec.scoring import UserArrays

Array = Any
BLOCK = 256  # learnwares that are encoded at a time
WITHIN = 256  # candidates, for the share of users whose best ten are among them
CASES = ("shifts", "shapes")
IN_FILTER = ("eigenfunctions", "random Fourier", "mean point", "MUVERA 224")


class Exact(NamedTuple):
    """The exact parts of the scores of Q users, and the scores, each (Q, M)."""

    closeness: np.ndarray
    similarity: np.ndarray
    share: np.ndarray
    scores: np.ndarray


class Products(NamedTuple):
    """The inner products of an encoding, with its size and time; None where they are exact."""

    users: np.ndarray  # (Q, M)
    pseudo: np.ndarray  # (P, M - P): of the learnwares that act as users with the others
    floats: int | None = None
    seconds: float | None = None  # to encode a thousand learnwares


def encode(own: Callable[[Rows], Array], rows: Rows) -> tuple[np.ndarray, float]:
    """Return the codes of all learnwares, (M, F), and the seconds per thousand of them."""
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


def products_of(
    encoding: Encoding, rows: Rows, both: Sequence[UserArrays], shown: np.ndarray
) -> Products:
    """Encode the market, users and pseudo-users; the latter see the learnwares in `shown` only."""
    codes, seconds = encode(encoding.own, rows)
    users, pseudo = (np.asarray(jax.jit(encoding.asked)(one)) @ codes.T for one in both)
    return Products(users, pseudo[:, shown], codes.shape[1], seconds)


def chamfer(rows: Rows, users: UserArrays) -> np.ndarray:
    """Return the means over a user's points of the largest products with a learnware's, (Q, M)."""
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
    """Score every learnware for all users; `norms` (M,) are the squared norms of the market."""
    kernel, parts = market.kernel, []
    found = js.match(market, list(users), reuse="direct", label_spaces="homogeneous")
    for user, one in zip(users, found, strict=True):
        own = user.reduced_set
        norm = float(inner_product(kernel, own, own))
        near = (norms + norm - one.squared_mmd) / (2 * np.sqrt(norms * norm))
        has = one.class_map >= 0
        alike = np.where(has, one.class_similarity, 0).sum(axis=1) / len(user.class_names)
        count = np.bincount(np.asarray(user.labels), own.weights, has.shape[1])
        parts.append((near, alike, has @ count / count.sum(), one.scores))
    return Exact(*(np.stack(one) for one in zip(*parts, strict=True)))


def filtered(
    near: Products,
    alike: Products,
    norms: np.ndarray,
    shown: np.ndarray,
    users: Exact,
    pseudo: Exact,
) -> Array:
    """Return guesses of the scores, (Q, M), by a filter that is fitted to pseudo-users."""
    features = filter_features(near.pseudo, alike.pseudo, pseudo.share, norms[shown])
    weights = fit_weights(list(features), list(pseudo.scores.astype(float)))
    return filter_features(near.users, alike.users, users.share, norms) @ weights


def filter_features(
    near: np.ndarray, alike: np.ndarray, share: np.ndarray, norms: np.ndarray
) -> np.ndarray:
    """Return the features of the linear filter of the library, (..., 6)."""
    parts = (share, share * alike, share * near, near, norms, 1.0)
    shaped = [np.broadcast_to(part, near.shape) for part in parts]
    return np.stack(shaped, axis=-1).astype(np.float64)


def depths(guesses: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return how deep the exact best ten of each user lie in the guessed order, (Q,)."""
    best = np.argsort(-exact, axis=1, kind="stable")[:, :TOP]
    least = np.take_along_axis(guesses, best, axis=1).min(axis=1, keepdims=True)
    return 1 + (guesses > least).sum(axis=1)


def summary(
    guesses: Sequence[np.ndarray], exact: np.ndarray, *products: Products
) -> dict[str, Any]:
    """Return depths over users and draws, with the bytes and the time of the encodings."""
    found = np.concatenate([depths(one, exact) for one in guesses])
    return {
        "bytes": 4 * sum(one.floats or 0 for one in products) or None,
        "s / 1,000": sum(one.seconds or 0.0 for one in products) or None,
        "median": int(np.quantile(found, 0.5, method="higher")),
        "99 %": int(np.quantile(found, 0.99, method="higher")),
        f"within {WITHIN}": float((found <= WITHIN).mean()),
    }


def compare(market: js.Market, users: Sequence[js.UserSpecification]) -> dict[str, Any]:
    """Return the rows of both tables, {aim: {encoding: summary}}."""
    rows = {name: np.asarray(getattr(market.arrays, name))[market.rows] for name in ROW_ARRAYS}
    norms = rows["self_terms"]
    acting = evenly_spaced(market.slots, PSEUDO_USERS)
    shown = ~np.isin(market.slots, acting)
    people = (users, make_pseudo_users(market, acting))
    judges, pseudo = (exact_of(market, group, norms) for group in people)
    pseudo = Exact(*(one[:, shown] for one in pseudo))
    stacked = [stack_users(market, group, np.ones(len(group), bool)) for group in people]
    near: dict[str, list[Products]] = {}
    for name, makers in BY_CLOSENESS.items():
        progress(name)
        made = [make(market, rows, seed) for seed, make in enumerate(makers)]
        near[name] = [products_of(one, rows, stacked, shown) for one in made]
    by_closeness = {
        name: summary([one.users for one in drawn], judges.closeness, drawn[0])
        for name, drawn in near.items()
    }
    progress("Chamfer")
    by_closeness["Chamfer"] = summary([chamfer(rows, stacked[0])], judges.closeness)
    progress("filters")
    alike = {
        name: products_of(make(market, rows, 0), rows, stacked, shown)
        for name, make in BY_CLASSES.items()
    }
    alike["none"] = Products(np.zeros_like(judges.share), np.zeros_like(pseudo.share))
    pairs = [(one, kind) for one in IN_FILTER for kind in alike]
    near["exact"] = [Products(judges.closeness, pseudo.closeness)]
    alike["exact"] = Products(judges.similarity, pseudo.similarity)
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
    return market, made_shapes.make_users(shapes, people, probe=False, seed=201)


def main() -> None:
    """Compare the encodings on the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--learnwares", type=int, default=5000)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    parser.add_argument("--output", type=Path, help="JSON; cases not asked for stay as they were")
    options = parser.parse_args()
    count, people = (1000, 16) if options.quick else (options.learnwares, options.users)
    results = {}
    for case in options.cases:
        results[case] = compare(*made(case, count, people))
        for aim, rows in results[case].items():
            title = f"{case}, {aim}: depth of the best {TOP} of {count:,} learnwares"
            headers = ("", *next(iter(rows.values())))
            table = [(name, *row.values()) for name, row in rows.items()]
            print_table(f"{title}, {people} users", headers, table)
    if options.output:
        merge_results(options.output, results, settings={"learnwares": count, "users": people})


if __name__ == "__main__":
    main()
