"""What this machine can do at most, and the time that the exact matching pass needs at least.

Measures, with jax on its default device and with numpy, the rates that bound the library's work:
float32 matrix products at given shapes, exponentials, and memory traffic. `bound_seconds` turns
them into a lower bound for scoring every learnware of a market by its squared MMD. Needs nothing
beyond jax and numpy, and nothing of the library, so that it also runs where that is not installed:

    python -m benchmarks.speed.machine --output machine.json

Rates are of the fastest repeat, since a limit is what is sought; medians stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = ((4096, 64, 4096), (1024, 64, 64), (50, 64, 50_000), (2048, 512, 2048), (4096, 4096, 4096))
EXPONENTIALS = 64  # of each entry in one fused pass: the traffic is then 1/32 of that of one
ENTRIES = {"cpu": 1 << 20, "other": 1 << 26}  # of the array that exponentials are taken of
CACHE_BYTES = tuple(1 << power for power in (18, 20, 22, 24, 26, 28))  # a block's three arrays
TARGET_FLOPS = {"cpu": 1e10, "other": 2e12}  # work in one timed call: about 0.1 s
TRAFFIC_BYTES = {"cpu": 1 << 30, "other": 1 << 32}  # of the array that is read and written
LIBRARIES = ("jax", "numpy")


class Timing(NamedTuple):
    """Seconds of a call: the first, which compiles, and the fastest and median of later ones."""

    first: float
    minimum: float
    median: float
    repeats: int


class Rate(NamedTuple):
    """Work a second: at the fastest and at the median repeat."""

    best: float
    median: float
    repeats: int


class Bound(NamedTuple):
    """Seconds that a pass needs at least, and what they are made of."""

    seconds: float  # products and exponentials one after the other, as the same cores do both
    overlapped: float  # or at the same time, where a machine has separate units for them
    products: float
    exponentials: float
    memory: float
    gemm: float  # flop/s that the products were bounded with


def timed(call: Callable[[], Any], repeats: int = 5) -> Timing:
    """Time a call: once for compilation, then `repeats` times; waits for what it returns."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    first, *later = seconds
    return Timing(first, min(later), statistics.median(later), repeats)


def describe() -> dict[str, Any]:
    """Return what a record of figures should say about the machine."""
    device = jax.devices()[0]
    load = os.getloadavg() if hasattr(os, "getloadavg") else (None,) * 3
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "processor": _processor(),
        "cores": len(affinity) or os.cpu_count(),
        "load_average": load[0],
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _of_backend(table: dict[str, Any]) -> Any:
    return table["cpu" if jax.default_backend() == "cpu" else "other"]


def _rate(work: float, call: Callable[[], Any], repeats: int) -> Rate:
    timing = timed(call, repeats)
    return Rate(work / timing.minimum, work / timing.median, repeats)


@partial(jax.jit, static_argnames=("passes", "precision"))
def _products(a: Any, b: Any, *, passes: int, precision: Any) -> Any:
    """Return a @ b after as many products.

    The smaller factor takes a nothing from the product before: a loop over equal products would
    be compiled to a single one.
    """
    left_changes = a.size < b.size

    def body(_: Any, out: Any) -> Any:
        nothing = 1e-30 * out[0, 0]
        left, right = (a + nothing, b) if left_changes else (a, b + nothing)
        return jnp.matmul(left, right, precision=precision)

    return jax.lax.fori_loop(0, passes, body, jnp.zeros((a.shape[0], b.shape[1]), a.dtype))


def gemm_rate(
    m: int,
    k: int,
    n: int,
    *,
    library: str = "jax",
    repeats: int = 5,
    precision: Any = jax.lax.Precision.HIGHEST,
) -> Rate:
    """Return flop/s of float32 products (m, k) @ (k, n) into one array that is written over.

    Args:
        m: rows of the first factor.
        k: inner dimension.
        n: columns of the second.
        library: 'jax' or 'numpy'.
        repeats: timed calls; each is as many products as make about a tenth of a second.
        precision: of jax's products. HIGHEST is float32 everywhere, as the library forms
            distances; an accelerator's default may be coarser and faster.
    """
    draw = np.random.default_rng(0)
    a, b = (draw.random(shape, np.float32) for shape in ((m, k), (k, n)))
    passes = max(1, int(_of_backend(TARGET_FLOPS) / (2 * m * k * n)))
    if library == "jax":
        a, b = jnp.asarray(a), jnp.asarray(b)
        call = partial(_products, a, b, passes=passes, precision=precision)
    else:
        out = np.empty((m, n), np.float32)

        def call() -> None:
            for _ in range(passes):
                np.matmul(a, b, out=out)

    return _rate(2.0 * m * k * n * passes, call, repeats)


@jax.jit
def _exponentials(x: Any) -> Any:
    return sum(jnp.exp(x * (-1.0 / (1 + i))) for i in range(EXPONENTIALS))


def exp_rate(*, library: str = "jax", repeats: int = 5) -> Rate:
    """Return float32 exponentials a second.

    jax: 64 independent ones of every entry in one fused loop over an array, on all cores: a
    product and a sum go with each, as in a kernel sum. numpy: of an array that stays in cache, on
    one core, as numpy has it.
    """
    if library == "jax":
        entries = _of_backend(ENTRIES)
        x = jnp.linspace(0.0, 4.0, entries, dtype=jnp.float32)
        return _rate(EXPONENTIALS * float(entries), partial(_exponentials, x), repeats)
    x = np.linspace(-4.0, 0.0, 1 << 15, dtype=np.float32)
    out, passes = np.empty_like(x), 512

    def call() -> None:
        for _ in range(passes):
            np.exp(x, out=out)

    return _rate(float(x.size) * passes, call, repeats)


@partial(jax.jit, donate_argnums=0)
def _scaled(x: Any) -> Any:
    return x * 1.0001


def memory_rate(*, library: str = "jax", repeats: int = 5) -> Rate:
    """Return bytes a second of reading a large array and writing it back, both counted.

    In place, since a fresh array would be measured with the making of its pages.
    """
    entries = _of_backend(TRAFFIC_BYTES) // 4
    state = [(jnp if library == "jax" else np).ones(entries, "float32")]

    def call() -> Any:
        if library == "jax":
            state[0] = _scaled(state[0])
        else:
            np.multiply(state[0], np.float32(1.0001), out=state[0])
        return state[0]

    return _rate(8.0 * entries, call, repeats)


def matching_gemm_rate(
    points: int, columns: int, dimension: int, *, library: str = "jax", repeats: int = 5
) -> Rate:
    """Return the best flop/s of (block * points, d) @ (d, columns), over the blocks' sizes.

    Blocks are whole learnwares, so many that their points, the users' points and the product
    together have each of `CACHE_BYTES`; what is larger than all the caches is among them too.
    """
    sizes = set()
    for allowed in CACHE_BYTES:
        floats = allowed // 4 - dimension * columns
        sizes.add(max(1, floats // (points * (dimension + columns))))
    found = [
        gemm_rate(block * points, dimension, columns, library=library, repeats=repeats)
        for block in sorted(sizes)
    ]
    return max(found, key=lambda rate: rate.best)


def bound_seconds(
    learnwares: int,
    users: int,
    dimension: int,
    *,
    points: int = 50,
    user_points: int = 50,
    library: str = "jax",
    repeats: int = 5,
    exponentials: Rate | None = None,
    memory: Rate | None = None,
) -> Bound:
    """Return a lower bound for the exact matching pass: M learnwares against Q users.

    The pass needs <Phi_l, Phi_q> of every learnware l (m points) and user q (m_T points) under a
    Gaussian kernel in d dimensions. Whatever its order, without leaving pairs out, it takes

        products      2 M m Q m_T d floating-point operations, for the squared distances, at the
                      rate of the product (block m, d) @ (d, Q m_T) on this machine, the best of
                      several blocks (`matching_gemm_rate`): the shape with the users' points as
                      columns, which for one user is a thin one and slower than a square one;
        exponentials  M m Q m_T, one a pair of points (`exp_rate`);
        memory        the learnwares' points and weights read once, 4 M m (d + 1) bytes, the users'
                      likewise, and M Q distances written, at `memory_rate`: the M m x Q m_T kernel
                      values themselves never leave the caches.

    seconds = max(products + exponentials, memory), since the same cores do both kinds of work;
    overlapped = max of the three, for machines with separate units, or if the two interleave
    perfectly. Not counted: sums, weights, norms, the terms <Phi_l, Phi_l> that a market keeps.

    Args:
        learnwares: M.
        users: Q.
        dimension: d.
        points: m.
        user_points: m_T.
        library: whose rates: 'jax' or 'numpy'.
        repeats: of the measurements.
        exponentials: what `exp_rate` has returned before, or None to measure it now.
        memory: what `memory_rate` has returned before, or None.
    """
    options = {"library": library, "repeats": repeats}
    exponentials = exp_rate(**options) if exponentials is None else exponentials
    memory = memory_rate(**options) if memory is None else memory
    columns = users * user_points
    gemm = matching_gemm_rate(points, columns, dimension, **options).best
    pairs = float(learnwares) * points * columns
    traffic = 4.0 * ((learnwares * points + columns) * (dimension + 1) + learnwares * users)
    product, exponential, moved = (
        2.0 * pairs * dimension / gemm,
        pairs / exponentials.best,
        traffic / memory.best,
    )
    return Bound(
        seconds=max(product + exponential, moved),
        overlapped=max(product, exponential, moved),
        products=product,
        exponentials=exponential,
        memory=moved,
        gemm=gemm,
    )


def limits(shapes: tuple[tuple[int, int, int], ...] = SHAPES, repeats: int = 5) -> dict[str, Any]:
    """Return every rate of both libraries: name to library to `Rate`, in G a second."""
    calls: dict[str, Callable[..., Rate]] = {
        f"product {m}x{k} @ {k}x{n}, Gflop/s": partial(gemm_rate, m, k, n) for m, k, n in shapes
    }
    calls["exponentials, G/s"] = exp_rate
    calls["memory, read and write, GB/s"] = memory_rate
    found: dict[str, Any] = {}
    for name, call in calls.items():
        rates = {library: call(library=library, repeats=repeats) for library in LIBRARIES}
        found[name] = {
            library: Rate(rate.best / 1e9, rate.median / 1e9, rate.repeats)
            for library, rate in rates.items()
        }
    return found


def main() -> None:
    """Print the limits and the bounds of a few matching passes; write them on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--learnwares", type=int, default=10_000, help="M of the bounds")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16], help="Q of the bounds")
    parser.add_argument("--points", type=int, default=50, help="m and m_T of the bounds")
    parser.add_argument("--dimension", type=int, default=64, help="d of the bounds")
    parser.add_argument("--quick", action="store_true", help="two shapes, to check the script")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    machine = describe()
    print(json.dumps(machine, indent=1))
    found = limits(SHAPES[:2] if options.quick else SHAPES, options.repeats)
    print(f"\n{'best / median of ' + str(options.repeats):44s}{'jax':>20s}{'numpy':>20s}")
    for name, rates in found.items():
        cells = "".join(f"{rate.best:10.2f} /{rate.median:8.2f}" for rate in rates.values())
        print(f"{name:44s}{cells}", flush=True)
    bounds = {}
    for users in options.users:
        bound = bound_seconds(
            options.learnwares,
            users,
            options.dimension,
            points=options.points,
            user_points=options.points,
            repeats=options.repeats,
        )
        bounds[f"M={options.learnwares} Q={users}"] = bound._asdict()
        print(
            f"matching M={options.learnwares} Q={users} m=m_T={options.points} "
            f"d={options.dimension}: at least {bound.seconds * 1e3:.3f} ms "
            f"(products {bound.products * 1e3:.3f} at {bound.gemm / 1e9:.0f} Gflop/s, exponentials "
            f"{bound.exponentials * 1e3:.3f}, memory {bound.memory * 1e3:.3f}; "
            f"overlapped {bound.overlapped * 1e3:.3f})",
            flush=True,
        )
    if options.output:
        rates = {
            name: {library: rate._asdict() for library, rate in row.items()}
            for name, row in found.items()
        }
        record = {"machine": machine, "limits": rates, "bounds": bounds}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
