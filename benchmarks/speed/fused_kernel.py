"""The fused kernel of the embedding pass on a GPU: is it right, and which block sizes are fastest?

    python -m benchmarks.speed.fused_kernel [--output FILE] [--quick] [--sizes all]

Times the products <Phi_l, Phi_q> of markets drawn on the device (m = 50) with one user (m_T = 50)
by the fused kernel (`jaxspec.scoring.pallas_pass`) beside the pass that XLA compiles, and prints
how far both are from products of complete Gram matrices for the first learnwares. `--sizes all`
tries every block size of `SIZES` and not only the one that the library chooses. Without a GPU the
kernel is interpreted, which checks the numbers and says nothing about time.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.markets import made_market
from benchmarks.markets.device_market import make_on_device
from benchmarks.records import progress, write_record
from benchmarks.speed.timing import time_call
from jaxspec.kernels import distances
from jaxspec.market import ROW_ARRAYS, decode_points
from jaxspec.matching import stack_users
from jaxspec.scoring import embedding_products, pack_columns
from jaxspec.scoring.pallas_pass import Blocks, fused_products

CASES = (
    (200_000, 512, "int8"),
    (100_000, 512, "bfloat16"),
    (200_000, 64, "float32"),
    (400_000, 64, "int8"),
)
QUICK_CASES = ((20, 40, "int8"),)
SIZES = tuple(
    Blocks(rows, columns, depth, warps, stages)
    for rows, warps in ((64, 4), (128, 4), (128, 8), (256, 8), (256, 16))
    for columns in (32, 64)
    for depth in (32, 64, 128)
    for stages in (1, 2, 3)
)
QUICK_SIZES = (Blocks(32, 16, 16),)
COMPARED = 4096  # learnwares whose products are also computed from complete Gram matrices


def by_xla(arrays: Any, users: Any, length: Any) -> Any:
    """Return the products by the pass without the kernel."""
    packed = pack_columns(users.points, users.weights, users.counts)
    stored = (arrays.points, arrays.scales, arrays.square_norms, arrays.weights)
    return embedding_products(arrays.kernel, *stored, *packed, users.counts.sum(), length)


def fused(blocks: Blocks | None, interpret: bool, arrays: Any, users: Any, length: Any) -> Any:
    """Return the products by the kernel; with None, by the block sizes of the library."""
    stored = (arrays.points, arrays.scales, arrays.square_norms, arrays.weights)
    own = (users.points, users.weights, users.counts)
    return fused_products(arrays.kernel, *stored, *own, length, blocks=blocks, interpret=interpret)


@jax.jit
def by_gram(arrays: Any, users: Any) -> Any:
    """Return the products (slots, Q) of a small market from complete Gram matrices."""
    slots, m, d = arrays.points.shape
    points = decode_points(arrays.points, arrays.scales).reshape(-1, d)
    kernel = arrays.kernel

    def one(user: tuple[Any, Any]) -> Any:
        values = kernel.profile(distances(kernel.metric, points, user[0]))
        at = jnp.matmul(values, user[1], precision="highest").reshape(slots, m)
        return (at * arrays.weights).sum(axis=1)

    return jax.lax.map(one, (users.points, users.weights)).T


def measure(case: tuple[int, int, str], sizes: tuple[Blocks | None, ...]) -> dict[str, Any]:
    """Return the times of one market by every way, fastest first."""
    count, dimension, precision = case
    world = made_market.make_world(dimension)
    market = make_on_device(world, count, precision=precision)
    asking = made_market.make_users(world, 1, seed=3)
    users = jax.tree.map(jnp.asarray, stack_users(market, asking, np.ones(1, bool)))
    few = {name: getattr(market.arrays, name)[:COMPARED] for name in ROW_ARRAYS}
    first = dataclasses.replace(market.arrays, **few)
    expected = np.asarray(by_gram(first, users))[: min(COMPARED, count)]
    interpret = jax.default_backend() != "gpu"
    ways: dict[str, Callable[..., Any]] = {"xla": by_xla}
    for size in sizes:
        name = "fused" if size is None else str(tuple(size))
        ways[name] = partial(fused, size, interpret)
    found: dict[str, Any] = {}
    for name, way in ways.items():
        run = partial(jax.jit(way), market.arrays, users, jnp.int32(market.length))
        try:
            timings = time_call(run)
        except Exception as error:  # more registers or shared memory than there are
            found[name] = {"failed": f"{type(error).__name__}: {str(error)[:100]}"}
            continue
        values = np.asarray(timings.results[-1])[: len(expected)]
        apart = float(np.abs(values - expected).max())
        found[name] = {**timings.record(), "largest difference to Gram matrices": apart}
        progress(f"{case} {name:24s} {timings.minimum * 1e3:9.3f} ms   {apart:.1e}")
    return dict(sorted(found.items(), key=lambda item: item[1].get("min_s", np.inf)))


def main() -> None:
    """Measure every market and write the figures on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check the script")
    parser.add_argument("--sizes", choices=("own", "all"), default="own")
    options = parser.parse_args()
    cases = QUICK_CASES if options.quick else CASES
    sizes: tuple[Blocks | None, ...] = (None,)
    if options.quick:
        sizes = QUICK_SIZES
    elif options.sizes == "all":
        sizes = (None, *SIZES)
    record = {str(case): measure(case, sizes) for case in cases}
    if options.output:
        write_record(options.output, {"results": record})


if __name__ == "__main__":
    main()
