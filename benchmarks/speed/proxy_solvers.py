"""Which solver fits linear proxies fastest, to a gradient norm of 1e-5 in float32?

What lives here: the solvers that `jaxspec.specify.proxy` was chosen from, on the very problem object it
solves, with scikit-learn's LogisticRegression beside them. From the shell,
``python -m benchmarks.speed.proxy_solvers [--quick] [--repeats 5] [--output proxy.json]`` prints a table and
writes JSON. Solvers take turns within each repeat, so that other load on the machine hits all;
compile time stands apart, and CPU time is given too, which on a shared machine, with
XLA_FLAGS=--xla_cpu_multi_thread_eigen=false on one core, is the steadier number.
Nothing here is imported by the package.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.specify import proxy as library

CASES = (  # n, d, classes, ridge
    (50, 64, 5, 1e-3),
    (50, 256, 5, 1e-3),
    (1000, 64, 5, 1e-3),
    (1000, 64, 5, 1e-5),
    (1000, 64, 10, 1e-3),
    (1000, 64, 50, 1e-3),
    (5000, 64, 10, 1e-3),
    (1000, 256, 10, 1e-3),
    (1000, 256, 10, 1e-5),
    (5000, 256, 50, 1e-3),
)
QUICK = CASES[:1] + CASES[2:4]
BATCH = (256, 1000, 64, 5, 1e-3)
TOLERANCE = 1e-5


def synthetic(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return overlapping Gaussian classes whose axes shrink from 1 to 0.1, as after a PCA."""
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(classes, d)) * 4 / np.sqrt(d)
    labels = np.arange(n) % classes
    features = (means[labels] + generator.normal(size=(n, d))) * np.logspace(0, -1, d)
    return features.astype(np.float32), labels.astype(np.int32)


def _start(problem: Any) -> tuple[Any, Any]:
    v = jnp.zeros((problem.target.shape[0], problem.x.shape[1]), problem.x.dtype)
    return v, problem.gradient(v, _probabilities(problem, v))


def _probabilities(problem: Any, v: Any) -> Any:
    return jnp.exp(problem.log_softmax(problem.logits(v)))


def _inverse(problem: Any, scale: float) -> Any:
    x, mass = problem.x, problem.mass
    block = scale * (x * mass[:, None]).T @ x + jnp.diag(problem.penalty + 1e-6)
    return jnp.linalg.inv(block)


def newton_cg(problem: Any, preconditioned: bool, limit: int = 60) -> Any:
    """Newton, each system by conjugate gradients; the inner matrix is 1 or the mean curvature's."""
    x, mass, penalty = problem.x, problem.mass, problem.penalty
    moment = (x * mass[:, None]).T @ x

    def step(state: Any) -> Any:
        k, v, g = state
        p = _probabilities(problem, v)
        if preconditioned:
            curvature = jnp.sum(mass * p * (1 - p)) / (p.shape[0] - 1) + 1e-6
            inverse = jnp.linalg.inv(curvature * moment + jnp.diag(penalty + 1e-6 * curvature))

        def precondition(residual: Any) -> Any:
            return residual @ inverse if preconditioned else residual

        norm = jnp.linalg.norm(g)
        enough = jnp.maximum(jnp.minimum(0.1, jnp.sqrt(norm)) * norm, 0.3 * TOLERANCE)

        def inner(state: Any) -> Any:
            j, u, residual, direction, energy = state
            q = p * problem.logits(direction)
            image = (mass * (q - p * q.sum(axis=0))) @ x + penalty * direction
            length = energy / jnp.sum(direction * image)
            residual = residual - length * image
            z = precondition(residual)
            new = jnp.sum(residual * z)
            return j + 1, u + length * direction, residual, z + new / energy * direction, new

        z = precondition(-g)
        _, u, _, _, _ = jax.lax.while_loop(
            lambda s: (s[0] < 200) & (jnp.linalg.norm(s[2]) > enough),
            inner,
            (0, jnp.zeros_like(g), -g, z, -jnp.sum(g * z)),
        )
        v, g = _advance(problem, v, g, problem.centre(u))
        return k + 1, v, g

    return _iterate(step, (0, *_start(problem)), limit)


def _advance(problem: Any, v: Any, g: Any, u: Any) -> tuple[Any, Any]:
    """Return the point and gradient after the library's line search along u."""
    t, p = library._step_length(problem, v, problem.logits(v), u, problem.logits(u), jnp.sum(g * u))
    v = v + t * u
    return v, problem.gradient(v, p)


def lbfgs_bound(problem: Any, memory: int = 8, limit: int = 1000) -> Any:
    """The library's L-BFGS with Boehning's bound for its inner matrix."""
    inverse = _inverse(problem, 0.5)

    def step(state: Any) -> Any:
        k, v, g, moves, bends, rho = state
        q, weights = g, []
        for i in range(memory):
            weights.append(rho[i] * jnp.sum(moves[i] * q))
            q = q - weights[i] * bends[i]
        inner = bends[0] @ inverse
        gamma = jnp.where(k == 0, 1.0, 1 / (rho[0] * jnp.sum(bends[0] * inner) + 1e-30))
        z = gamma * (q @ inverse)
        for i in reversed(range(memory)):
            z = z + (weights[i] - rho[i] * jnp.sum(bends[i] * z)) * moves[i]
        after, new = _advance(problem, v, g, -z)
        move, bend, v = after - v, new - g, after
        product = jnp.sum(move * bend)
        return (
            k + 1,
            v,
            new,
            jnp.concatenate([move[None], moves[:-1]]),
            jnp.concatenate([bend[None], bends[:-1]]),
            jnp.append(jnp.where(product > 0, 1 / product, 0.0), rho[:-1]),
        )

    v, g = _start(problem)
    history = jnp.zeros((memory, *v.shape), v.dtype)
    return _iterate(step, (0, v, g, history, history, jnp.zeros(memory, v.dtype)), limit)


def conjugate_gradients(problem: Any, limit: int = 1000) -> Any:
    """Nonlinear conjugate gradients (Polak-Ribiere+), preconditioned with Boehning's bound."""
    inverse = _inverse(problem, 0.5)

    def step(state: Any) -> Any:
        k, v, g, direction, z, energy = state
        new_z = g @ inverse
        new_energy = jnp.sum(g * new_z)
        beta = jnp.where(k == 0, 0.0, jnp.maximum(0, (new_energy - jnp.sum(g * z)) / energy))
        direction = beta * direction - new_z
        v, new = _advance(problem, v, g, direction)
        return k + 1, v, new, direction, new_z, new_energy

    v, g = _start(problem)
    return _iterate(step, (0, v, g, jnp.zeros_like(g), g, jnp.ones(())), limit)


def majorise(problem: Any, limit: int = 5000) -> Any:
    """Boehning's own algorithm: fixed steps with the bound, one factorisation in all."""
    inverse = _inverse(problem, 0.5)

    def step(state: Any) -> Any:
        k, v, g = state
        v = v - g @ inverse
        return k + 1, v, problem.gradient(v, _probabilities(problem, v))

    return _iterate(step, (0, *_start(problem)), limit)


def dense_newton(problem: Any, limit: int = 50) -> Any:
    """Newton with the whole ((d + 1) C)^2 Hessian and one Cholesky factor a step."""
    x, classes, width = problem.x, problem.target.shape[0], problem.x.shape[1]

    def step(state: Any) -> Any:
        k, v, g = state
        p = _probabilities(problem, v)
        root = jnp.sqrt(problem.mass)
        rows = ((p * root).T[:, :, None] * x[:, None, :]).reshape(x.shape[0], -1)
        hessian = (-rows.T @ rows).reshape(classes, width, classes, width)
        blocks = jnp.einsum("ni,kn,nj->kij", x, problem.mass * p, x) + jnp.diag(problem.penalty)
        index = jnp.arange(classes)
        hessian = hessian.at[index, :, index, :].add(blocks)
        gauge = jnp.eye(width)[None, :, None, :] / classes  # the Hessian is singular without it
        hessian = (hessian + gauge).reshape(classes * width, -1)
        hessian = hessian + 1e-7 * jnp.eye(classes * width)
        factor = jax.scipy.linalg.cho_factor(hessian, lower=True)
        u = -jax.scipy.linalg.cho_solve(factor, g.reshape(-1)).reshape(g.shape)
        v, g = _advance(problem, v, g, u)
        return k + 1, v, g

    return _iterate(step, (0, *_start(problem)), limit)


def optax_lbfgs(problem: Any, limit: int = 1000) -> Any:
    """`optax.lbfgs` with its zoom line search."""
    import optax

    def objective(v: Any) -> Any:
        log_p = problem.log_softmax(problem.logits(v))
        return -jnp.sum(problem.target * log_p) + 0.5 * jnp.sum(problem.penalty * v * v)

    solver = optax.lbfgs(memory_size=8)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(state: Any) -> Any:
        k, v, _, inner = state
        value, g = value_and_grad(v, state=inner)
        move, inner = solver.update(g, inner, v, value=value, grad=g, value_fn=objective)
        return k + 1, optax.apply_updates(v, move), optax.tree.get(inner, "grad"), inner

    v, g = _start(problem)
    return _iterate(step, (0, v, g, solver.init(v)), limit)


def _iterate(step: Callable, state: Any, limit: int) -> Any:
    def unconverged(state: Any) -> Any:
        return (state[0] < limit) & (jnp.linalg.norm(state[2]) > TOLERANCE)

    state = jax.lax.while_loop(unconverged, step, state)
    return state[1], jnp.linalg.norm(state[2]), state[0]


SOLVERS: dict[str, Callable] = {
    "l-bfgs (library)": partial(library._minimise, max_iterations=1000),
    "optax.lbfgs": optax_lbfgs,
    "l-bfgs, bound": lbfgs_bound,
    "newton-cg": partial(newton_cg, preconditioned=False),
    "newton-cg, curvature": partial(newton_cg, preconditioned=True),
    "nonlinear cg, bound": conjugate_gradients,
    "boehning": majorise,
    "dense newton": dense_newton,
}


def _alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict]:
    """Time every call in turn, `repeats` rounds; the first call of each is its compile time."""
    rows: dict[str, dict] = {}
    for name, call in calls.items():
        began = time.perf_counter()
        result = jax.block_until_ready(call())
        rows[name] = {
            "first": time.perf_counter() - began,
            "result": result,
            "seconds": [],
            "cpu": [],
        }
    for _ in range(repeats):
        for name, call in calls.items():
            if sum(rows[name]["seconds"]) > 10:
                continue
            began, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            rows[name]["seconds"].append(time.perf_counter() - began)
            rows[name]["cpu"].append(time.process_time() - cpu)
    return rows


def _sklearn(features: np.ndarray, labels: np.ndarray, ridge: float) -> Callable[[], Any]:
    from sklearn.linear_model import LogisticRegression

    def fit() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Its tol is on the largest entry of the mean gradient; 1e-6 gives a norm near 1e-5.
            model = LogisticRegression(C=1 / (len(labels) * ridge), tol=1e-6, max_iter=2000)
            return model.fit(features, labels)

    return fit


def _gradient_norm(features: np.ndarray, labels: np.ndarray, model: Any, ridge: float) -> float:
    """Return the norm of the float64 gradient at scikit-learn's solution, in the library's unit."""
    x = features.astype(np.float64)
    residual = model.predict_proba(x) - np.eye(len(model.classes_))[labels]
    centred = x - x.mean(0)
    unit = np.sqrt(np.square(centred).mean())
    slope = centred.T @ residual / len(x) + ridge * model.coef_.T
    return float(np.hypot(np.linalg.norm(slope) / unit, np.linalg.norm(residual.mean(0))))


def run_case(n: int, d: int, classes: int, ridge: float, repeats: int) -> list[dict]:
    """Time every solver on one problem."""
    features, labels = synthetic(n, d, classes)
    padded = library._pad(
        features, labels, None, classes, library.bucket(n, minimum=library.ROWS), classes
    )
    problem = jax.device_get(library._prepare(*padded, 0.0, ridge, TOLERANCE)[0])
    problem = jax.device_put(problem)
    calls: dict[str, Callable[[], Any]] = {}
    for name, solver in SOLVERS.items():
        if name in ("dense newton", "boehning") and d * classes > 700:  # seconds a fit
            continue
        calls[name] = partial(jax.jit(solver), problem)
    calls["fit_proxy (library)"] = partial(
        library.fit_proxy, features, labels, num_classes=classes, ridge=ridge
    )
    calls["scikit-learn"] = _sklearn(features, labels, ridge)
    rows = []
    for name, row in _alternate(calls, repeats).items():
        result = row["result"]
        if name == "scikit-learn":
            iterations, norm = (
                int(result.n_iter_[0]),
                _gradient_norm(features, labels, result, ridge),
            )
        elif name == "fit_proxy (library)":
            iterations = int(result.diagnostics.iterations)
            norm = float(result.diagnostics.gradient_norm)
        else:
            norm, iterations = float(result[1]), int(result[2])
        rows.append(_row(f"n={n} d={d} C={classes} ridge={ridge:g}", name, row, norm, iterations))
    return rows


def run_batch(count: int, n: int, d: int, classes: int, ridge: float, repeats: int) -> list[dict]:
    """Time many problems at once against a loop of `fit_proxy` and of scikit-learn."""
    data = [synthetic(n, d, classes, seed) for seed in range(count)]
    features, labels = [z for z, _ in data], [y for _, y in data]
    fits = [_sklearn(z, y, ridge) for z, y in data]
    calls = {
        "fit_proxies (library)": partial(
            library.fit_proxies, features, labels, num_classes=[classes] * count, ridge=ridge
        ),
        "loop of fit_proxy": lambda: [
            library.fit_proxy(z, y, num_classes=classes, ridge=ridge) for z, y in data
        ],
        "loop of scikit-learn": lambda: [fit() for fit in fits],
    }
    rows = []
    for name, row in _alternate(calls, repeats).items():
        norm, iterations = float("nan"), 0
        if name == "fit_proxies (library)":
            norm = float(row["result"].diagnostics.gradient_norm.max())
            iterations = int(row["result"].diagnostics.iterations.max())
        case = f"batch of {count}: n={n} d={d} C={classes} ridge={ridge:g}"
        rows.append(_row(case, name, row, norm, iterations))
    return rows


def _row(case: str, name: str, row: dict, norm: float, iterations: int) -> dict:
    seconds = row["seconds"]
    result = {
        "case": case,
        "solver": name,
        "min_ms": 1e3 * min(seconds),
        "median_ms": 1e3 * float(np.median(seconds)),
        "min_cpu_ms": 1e3 * min(row["cpu"]),
        "repeats": len(seconds),
        "first_call_s": row["first"],
        "gradient_norm": norm,
        "iterations": iterations,
    }
    print(
        f"{case:38s} {name:22s} {result['min_ms']:10.2f} {result['median_ms']:10.2f} "
        f"{result['min_cpu_ms']:10.2f} {result['first_call_s']:8.2f} {norm:10.1e} {iterations:6d}",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three small cases, a batch of 32")
    options = parser.parse_args()
    print(
        f"{'case':38s} {'solver':22s} {'min ms':>10s} {'median ms':>10s} {'cpu ms':>10s} "
        f"{'first s':>8s} {'gradient':>10s} {'steps':>6s}"
    )
    rows = []
    for case in QUICK if options.quick else CASES:
        rows += run_case(*case, options.repeats)
    batch = (32, *BATCH[1:]) if options.quick else BATCH
    rows += run_batch(*batch, min(options.repeats, 3))
    if options.output:
        machine = {"jax": jax.__version__, "backend": jax.default_backend()}
        machine |= {"processor": platform.processor() or platform.machine()}
        options.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
