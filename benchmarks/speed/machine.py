"""What this machine can do at most, and the time that the exact matching pass needs at least.

    python -m benchmarks.speed.machine [--output machine.json] [--quick]

Measures, with jax on its default device and with numpy, the rates that bound the work of the
library: float32 matrix products of given shapes, exponentials, and memory traffic. `bound_seconds`
turns them into a lower bound for scoring every learnware of a market by its squared MMD.
`peaks_of` gives the rates that vendors publish for their accelerators. Nothing of jaxspec is
imported here, so this also runs where it is not installed.

A rate is that of the fastest repeat, since a limit is what is sought; the median stands beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.records import describe_machine, print_table, write_record
from benchmarks.speed.timing import time_call

__all__ = [
    "Bound",
    "Peaks",
    "Rate",
    "bound_seconds",
    "exp_rate",
    "gemm_rate",
    "limits",
    "memory_rate",
    "peaks_of",
]

SHAPES = ((4096, 64, 4096), (1024, 64, 64), (50, 64, 50_000), (2048, 512, 2048), (4096, 4096, 4096))
EXPONENTIALS = 64  # per entry in one fused pass, so that memory traffic takes little of the time
ENTRIES = {"cpu": 1 << 20, "other": 1 << 26}  # of the array whose exponentials are computed
CACHE_BYTES = tuple(1 << power for power in (18, 20, 22, 24, 26, 28))  # of a block's three arrays
TARGET_FLOPS = {"cpu": 1e10, "other": 2e12}  # work of one timed call: about 0.1 s
TRAFFIC_BYTES = {"cpu": 1 << 30, "other": 1 << 32}  # of the array that is read and written back
LIBRARIES = ("jax", "numpy")


class Rate(NamedTuple):
    """Work per second, in the fastest and in the median repeat."""

    best: float
    median: float
    repeats: int


class Bound(NamedTuple):
    """Seconds that a pass needs at least, and what they consist of."""

    seconds: float  # products, then exponentials, as where the same cores do both
    overlapped: float  # both at the same time, as where a machine has separate units for them
    products: float
    exponentials: float
    memory: float
    gemm: float  # flop/s that the products were bounded with


class Peaks(NamedTuple):
    """Rates in Tflop/s (int8: 10^12 operations per second) and memory traffic in GB/s."""

    float32: float | None
    tf32: float | None
    bfloat16: float
    int8: float | None
    memory: float


# From the data sheets of the vendors, dense, without sparsity; GPUs are SXM parts unless they say
# PCIe. No vendor gives a float32 rate for the matrix units of a TPU.
PEAKS = {
    "NVIDIA A100": Peaks(19.5, 156.0, 312.0, 624.0, 1555.0),
    "NVIDIA A100-SXM4-80GB": Peaks(19.5, 156.0, 312.0, 624.0, 2039.0),
    "NVIDIA H100": Peaks(66.9, 494.7, 989.4, 1978.9, 3350.0),
    "NVIDIA H100 PCIe": Peaks(51.2, 378.0, 756.0, 1513.0, 2000.0),
    "NVIDIA H200": Peaks(66.9, 494.7, 989.4, 1978.9, 4800.0),
    "TPU v4": Peaks(None, None, 275.0, None, 1228.0),
    "TPU v5 lite": Peaks(None, None, 197.0, 394.0, 819.0),
    "TPU v5e": Peaks(None, None, 197.0, 394.0, 819.0),
    "TPU v6 lite": Peaks(None, None, 918.0, 1836.0, 1640.0),
}


def peaks_of(device: str) -> Peaks | None:
    """Return the published rates of a kind of device, by the longest name in `PEAKS` that fits."""
    names = [name for name in PEAKS if device.startswith(name)]
    return PEAKS[max(names, key=len)] if names else None


def _of_backend(table: dict[str, Any]) -> Any:
    return table["cpu" if jax.default_backend() == "cpu" else "other"]


def _rate(work: float, call: Callable[[], Any], repeats: int) -> Rate:
    timing = time_call(call, repeats)
    return Rate(work / timing.minimum, work / timing.median, repeats)


@partial(jax.jit, static_argnames=("passes", "precision"))
def _products(a: Any, b: Any, *, passes: int, precision: Any) -> Any:
    """Return a @ b, computed `passes` times.

    A negligible part of each product is added to the smaller factor of the next, since XLA would
    replace a loop over equal products by a single one.
    """
    left_changes = a.size < b.size

    def body(_: Any, out: Any) -> Any:
        negligible = 1e-30 * out[0, 0]
        left, right = (a + negligible, b) if left_changes else (a, b + negligible)
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
    """Return flop/s of float32 products (m, k) @ (k, n), all written into the same array.

    Args:
        m: rows of the first factor.
        k: inner dimension.
        n: columns of the second.
        library: 'jax' or 'numpy'.
        repeats: timed calls; each computes products for about a tenth of a second.
        precision: of the products of jax. HIGHEST is float32 on every device, as where the library
            forms distances; the default of an accelerator may be coarser and faster.
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
    """Return float32 exponentials per second.

    By jax: 64 independent ones per entry of an array in one fused loop on all cores, each with a
    product and a sum, as in a kernel sum. By numpy: of an array that stays in the cache, on the one
    core that numpy uses.
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
    """Return bytes per second of reading a large array and writing it back, both counted.

    In place, since the operating system would have to provide the pages of a new array.
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
    """Return the best flop/s of (block * points, d) @ (d, columns) over several block sizes.

    A block holds as many learnwares as make the points of learnwares and users and their product
    fill each of `CACHE_BYTES`, the largest of which exceeds all caches.
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
    Gaussian kernel in d dimensions. In any order, and without leaving pairs out, it takes

        products      2 M m Q m_T d floating-point operations for the squared distances, at the rate
                      of the product (block m, d) @ (d, Q m_T) on this machine for the best block
                      size; with one user this product is a thin one and slower than a square one;
        exponentials  M m Q m_T, one per pair of points (`exp_rate`);
        memory        4 M m (d + 1) bytes of points and weights of the learnwares, read once, the
                      same for the users, and M Q distances written, at `memory_rate`. The kernel
                      values, M m x Q m_T, never leave the caches.

    Sums, norms and the terms <Phi_l, Phi_l>, which a market keeps, are not counted.

    Args:
        learnwares: M.
        users: Q.
        dimension: d.
        points: m.
        user_points: m_T.
        library: whose rates: 'jax' or 'numpy'.
        repeats: of the measurements.
        exponentials: an earlier result of `exp_rate`, or None to measure it now.
        memory: an earlier result of `memory_rate`, or None.
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
    """Return the rates of both libraries, {name: {library: `Rate`}}, in 10^9 per second."""
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
    """Print the limits, and the bounds of a few matching passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--learnwares", type=int, default=10_000, help="M of the bounds")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16], help="Q of the bounds")
    parser.add_argument("--points", type=int, default=50, help="m and m_T of the bounds")
    parser.add_argument("--dimension", type=int, default=64, help="d of the bounds")
    parser.add_argument("--quick", action="store_true", help="two shapes, to check the script")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    print_table("machine", ["what", "value"], [(k, str(v)) for k, v in describe_machine().items()])
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
        write_record(options.output, {"limits": rates, "bounds": bounds})


if __name__ == "__main__":
    main()
