"""Which block sizes the fused kernel of `jaxspec.scoring.pallas_pass` should have on this GPU, against XLA.

    python -m benchmarks.speed.fused_blocks [--output FILE] [--quick] [--no-xla]

Times the products of made markets (m = 50) with one user's mean embedding (m_T = 50) for every
block size of `SIZES`, beside the pass that XLA compiles, and prints by how much the two differ.
Interpreted, and so of no interest, where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.markets import made_market
from benchmarks.markets.device_market import make_on_device
from benchmarks.speed import machine
from jaxspec.matching.match import stack_users
from jaxspec.scoring.embedding_pass import embedding_products, pack_columns
from jaxspec.scoring.pallas_pass import Blocks, fused_products

CASES = ((200_000, 512, "int8"), (100_000, 512, "bfloat16"), (200_000, 64, "float32"),
         (400_000, 64, "int8"))  # fmt: skip
QUICK_CASES = ((20, 40, "int8"),)
SIZES = tuple(
    Blocks(rows, columns, depth, warps, stages)
    for rows, warps in ((64, 4), (128, 4), (128, 8), (256, 8), (256, 16))
    for columns in (32, 64)
    for depth in (32, 64, 128)
    for stages in (1, 2, 3)
)
QUICK_SIZES = (Blocks(32, 16, 16),)


def by_xla(arrays: Any, users: Any, length: Any) -> Any:
    """Return the products by the pass without the kernel."""
    packed = pack_columns(users.points, users.weights, users.counts)
    stored = (arrays.points, arrays.scales, arrays.square_norms, arrays.weights)
    return embedding_products(arrays.kernel, *stored, *packed, users.counts.sum(), length)


def fused(blocks: Blocks | None, interpret: bool, arrays: Any, users: Any, length: Any) -> Any:
    """Return the products by the kernel; of its own block sizes for None."""
    stored = (arrays.points, arrays.scales, arrays.square_norms, arrays.weights)
    own = (users.points, users.weights, users.counts)
    return fused_products(arrays.kernel, *stored, *own, length, blocks=blocks, interpret=interpret)


def measure(case: tuple[int, int, str], sizes: tuple[Blocks, ...], xla: bool) -> dict[str, Any]:
    """Return seconds by way, fastest first, of one market."""
    count, dimension, storage = case
    world = made_market.make_world(dimension)
    market = make_on_device(world, count, storage)
    users = stack_users(market, made_market.make_users(world, 1, seed=3))
    arguments = (market.arrays, jax.tree.map(jnp.asarray, users), jnp.int32(market.length))
    ways = {"xla": by_xla} if xla else {}
    interpret = jax.default_backend() != "gpu"
    ways |= {str(tuple(size)): partial(fused, size, interpret) for size in sizes}
    found: dict[str, Any] = {}
    first = None
    for name, way in ways.items():
        run = jax.jit(way)
        try:
            seconds = machine.timed(partial(run, *arguments))._asdict()
        except Exception as error:  # more registers or shared memory than there are
            found[name] = {"failed": f"{type(error).__name__}: {str(error)[:100]}"}
            continue
        values = np.asarray(run(*arguments))
        first = values if first is None else first
        apart = float(np.abs(values - first).max())
        found[name] = {**seconds, "largest difference to the first": apart}
        print(f"{case} {name:24s} {seconds['minimum'] * 1e3:9.3f} ms   {apart:.1e}", flush=True)
    return dict(sorted(found.items(), key=lambda item: item[1].get("minimum", np.inf)))


def main() -> None:
    """Measure all and write them on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check the script")
    parser.add_argument("--no-xla", action="store_true", help="the kernel only")
    options = parser.parse_args()
    cases, sizes = (QUICK_CASES, QUICK_SIZES) if options.quick else (CASES, SIZES)
    record: dict[str, Any] = {"machine": machine.describe()}
    for case in cases:
        record[str(case)] = measure(case, sizes, not options.no_xla)
    if options.output:
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
