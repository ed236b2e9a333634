"""Fitting linear proxies, the linear softmax models that stand for learnwares' predictions.

`fit_proxy` (one problem) and `fit_proxies` (many at once) may be called; both return a `Proxy`
(`linear_proxy.py`). The problem is convex and is solved to a tolerance on the norm of the gradient
(`proxy_solver.py`); a problem that is stopped before gives a `ConvergenceWarning`. Nothing here
chooses the features or the ridge.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import jax
import numpy as np

from jaxspec.base import bucket, device_kind, is_concrete, on_processor
from jaxspec.specify.compiled_inputs import padded_rows
from jaxspec.specify.linear_proxy import (
    Proxy,
    ProxyDiagnostics,
    centre_classes,
    predict_log_probabilities,
)
from jaxspec.specify.proxy_inputs import as_options, check_problem, pad_problem, stack_problems
from jaxspec.specify.proxy_solver import minimise, prepare
from jaxspec.specify.variable_projection import matmul

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float, Int

__all__ = [
    "ConvergenceWarning",
    "Proxy",
    "ProxyDiagnostics",
    "centre_classes",
    "fit_proxies",
    "fit_proxy",
    "predict_log_probabilities",
]

MIN_PADDED_CLASSES = 8
# Problems per compiled call. An accelerator solves them side by side: a step costs it about a
# hundred launches, however many problems there are.
CHUNK = {"processor": 64, "accelerator": 256}


class ConvergenceWarning(UserWarning):
    """The solver stopped at `max_iterations`, before the gradient was below the tolerance."""


@overload
def fit_proxy(
    Z: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"] | None,
    *,
    num_classes: int,
    teacher: Float[ArrayLike, "n C"] | None = ...,
    teacher_weight: float = ...,
    ridge: float = ...,
    tolerance: float = ...,
    max_iterations: int = ...,
    return_diagnostics: Literal[False] = ...,
) -> Proxy: ...


@overload
def fit_proxy(
    Z: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"] | None,
    *,
    num_classes: int,
    teacher: Float[ArrayLike, "n C"] | None = ...,
    teacher_weight: float = ...,
    ridge: float = ...,
    tolerance: float = ...,
    max_iterations: int = ...,
    return_diagnostics: Literal[True],
) -> tuple[Proxy, ProxyDiagnostics]: ...


def fit_proxy(
    Z: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"] | None,
    *,
    num_classes: int,
    teacher: Float[ArrayLike, "n C"] | None = None,
    teacher_weight: float = 1.0,
    ridge: float = 1e-3,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    return_diagnostics: bool = False,
) -> Proxy | tuple[Proxy, ProxyDiagnostics]:
    """Return the linear proxy that minimises, over W (d, C) and b (C,),

        1/n sum_i CE(y_i, p_i) + teacher_weight/n sum_i KL(t_i || p_i) + ridge/2 |W|_F^2

    with p_i = softmax(z_i W + b) and natural logarithms. The ridge penalises the weights in the
    features' own units (they are not standardised), as in scikit-learn; the bias has no penalty.
    The optimum is found whatever the scales of the columns. Under `jit` and `vmap` num_classes is
    static; elsewhere n and C are padded, so that few shapes compile.

    Args:
        Z: (n, d) features z_i.
        labels: (n,) y_i in 0..C-1, every class at least once; None leaves out the CE term.
        num_classes: C, at least two.
        teacher: (n, C) t_i, class probabilities of the model; None leaves out the KL term.
        teacher_weight: weight of the KL term, not negative.
        ridge: positive, in squared units of the features; scikit-learn's C is 1 / (n ridge).
        tolerance: on the gradient norm of `ProxyDiagnostics`; 1e-5 is reached in float32.
        max_iterations: largest number of L-BFGS steps; 5 to 100 are usual.
        return_diagnostics: whether to return (proxy, diagnostics).

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes, values or classes that do not fit; the message names the argument.
    """
    features, labels, teacher = check_problem(Z, labels, teacher, num_classes, "Z", "")
    options = as_options(teacher_weight, ridge, tolerance, max_iterations, features.dtype)
    n, classes = features.shape[0], int(num_classes)
    concrete = is_concrete(features, labels, teacher)
    rows = padded_rows(n) if concrete else n
    width = bucket(classes, minimum=MIN_PADDED_CLASSES) if concrete else classes
    proxy, diagnostics = _fit(
        *pad_problem(features, labels, teacher, classes, rows, width), *options
    )
    if is_concrete(proxy):
        # Cut by numpy: eager jax operations, jnp.asarray too, compile for every number of classes.
        weights, bias = jax.device_get((proxy.weights, proxy.bias))
        proxy = Proxy(jax.device_put(weights[:, :classes]), jax.device_put(bias[:classes]))
        _warn("Z", np.asarray(diagnostics.converged)[None], diagnostics, tolerance)
    return (proxy, diagnostics) if return_diagnostics else proxy


@overload
def fit_proxies(
    features: Sequence[Float[ArrayLike, "n d"]],
    labels: Sequence[Int[ArrayLike, " n"]] | None,
    *,
    num_classes: Sequence[int],
    teachers: Sequence[Float[ArrayLike, "n C"]] | None = ...,
    teacher_weight: float = ...,
    ridge: float = ...,
    tolerance: float = ...,
    max_iterations: int = ...,
    return_diagnostics: Literal[False] = ...,
) -> Proxy: ...


@overload
def fit_proxies(
    features: Sequence[Float[ArrayLike, "n d"]],
    labels: Sequence[Int[ArrayLike, " n"]] | None,
    *,
    num_classes: Sequence[int],
    teachers: Sequence[Float[ArrayLike, "n C"]] | None = ...,
    teacher_weight: float = ...,
    ridge: float = ...,
    tolerance: float = ...,
    max_iterations: int = ...,
    return_diagnostics: Literal[True],
) -> tuple[Proxy, ProxyDiagnostics]: ...


def fit_proxies(
    features: Sequence[Float[ArrayLike, "n d"]],
    labels: Sequence[Int[ArrayLike, " n"]] | None,
    *,
    num_classes: Sequence[int],
    teachers: Sequence[Float[ArrayLike, "n C"]] | None = None,
    teacher_weight: float = 1.0,
    ridge: float = 1e-3,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    return_diagnostics: bool = False,
) -> Proxy | tuple[Proxy, ProxyDiagnostics]:
    """Return the solutions of B problems of `fit_proxy`, as one `Proxy`.

    Args:
        features: B arrays (n_i, d).
        labels: B arrays (n_i,), or None.
        num_classes: B integers C_i.
        teachers: B arrays (n_i, C_i), or None.
        teacher_weight: as in `fit_proxy`; so are the options that follow.
        ridge: as in `fit_proxy`.
        tolerance: as in `fit_proxy`.
        max_iterations: as in `fit_proxy`.
        return_diagnostics: whether to return (proxy, diagnostics).

    Returns:
        weights (B, d, C_max) and bias (B, C_max). Columns from C_i on are exactly zero and took no
        part in the softmax.

    Raises:
        TypeError, ValueError: as `fit_proxy`, naming the problem, for example 'labels[3]'.
    """
    lists = {
        "features": features, "labels": labels, "num_classes": num_classes, "teachers": teachers
    }  # fmt: skip
    for name, value in lists.items():
        required = name in ("features", "num_classes")
        if not hasattr(value, "__len__") and (value is not None or required):
            raise TypeError(f"{name}: expected one entry per problem, got {value!r:.80}")
    count = len(features)
    if count == 0:
        raise ValueError("features: expected at least one problem, got none")
    for name, value in lists.items():
        if value is not None and len(value) != count:  # type: ignore[arg-type]
            got = len(value)  # type: ignore[arg-type]
            raise ValueError(f"{name}: expected {count} entries, one per problem, got {got}")
    problems = [
        check_problem(
            features[i],
            None if labels is None else labels[i],
            None if teachers is None else teachers[i],
            num_classes[i],
            "features",
            f"[{i}]",
            dimension=None if i == 0 else np.shape(features[0])[-1],
            copy=False,
        )
        for i in range(count)
    ]
    dtype = np.result_type(*(rows.dtype for rows, _, _ in problems))
    options = as_options(teacher_weight, ridge, tolerance, max_iterations, dtype)
    rows = padded_rows(max(len(z) for z, _, _ in problems))
    width = bucket(max(num_classes), minimum=MIN_PADDED_CLASSES)
    size = min(bucket(count), CHUNK[device_kind()])
    parts = []
    for first in range(0, count, size):
        chosen = slice(first, first + size)
        arrays = stack_problems(problems[chosen], num_classes[chosen], size, rows, width, dtype)
        parts.append(_fit_chunk(*arrays, *options))
    stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *jax.device_get(parts))
    proxy, diagnostics = stacked
    largest = max(num_classes)
    proxy = Proxy(
        jax.device_put(proxy.weights[:, :, :largest]), jax.device_put(proxy.bias[:, :largest])
    )
    _warn("features", diagnostics.converged, diagnostics, tolerance)
    return (proxy, jax.device_put(diagnostics)) if return_diagnostics else proxy


def _warn(name: str, converged: Any, diagnostics: ProxyDiagnostics, tolerance: float) -> None:
    """Warn of problems that were stopped before they converged."""
    stopped = np.flatnonzero(~converged)
    if stopped.size == 0:
        return
    norm = np.atleast_1d(np.asarray(diagnostics.gradient_norm))[stopped[0]]
    steps = np.atleast_1d(np.asarray(diagnostics.iterations))[stopped[0]]
    problem = name if converged.size == 1 and name == "Z" else f"{name}[{stopped[0]}]"
    others = f", and {stopped.size - 1} other problems" if stopped.size > 1 else ""
    warnings.warn(
        f"{problem}: the proxy stopped after {steps} steps with a gradient norm of {norm:.1e}, "
        f"expected at most tolerance={float(tolerance):.1e}{others}; "
        "a larger max_iterations or ridge may help",
        ConvergenceWarning,
        stacklevel=3,
    )


@jax.jit
def _fit(
    features: Array,
    labels: Array,
    teacher: Array,
    row_mask: Array,
    class_mask: Array,
    teacher_weight: Array,
    ridge: Array,
    tolerance: Array,
    max_iterations: Array,
) -> tuple[Proxy, ProxyDiagnostics]:
    """Solve one padded problem."""
    problem, origin, units, constant = prepare(
        features, labels, teacher, row_mask, class_mask, teacher_weight, ridge, tolerance
    )
    v, norm, iterations = minimise(problem, max_iterations)
    weights = v[:, :-1].T / units[:, None]
    proxy = Proxy(weights, v[:, -1] - matmul(origin, weights))
    objective = constant + problem.value(v)
    return proxy, ProxyDiagnostics(objective, norm, iterations, norm <= problem.tolerance)


_fit_together = jax.jit(jax.vmap(_fit, in_axes=(0, 0, 0, 0, 0, None, None, None, None)))


@jax.jit
def _fit_in_turn(*arguments: Array) -> tuple[Proxy, ProxyDiagnostics]:
    return jax.lax.map(lambda problem: _fit(*problem, *arguments[5:]), arguments[:5])


def _fit_chunk(*arguments: Any) -> tuple[Proxy, ProxyDiagnostics]:
    """Solve the problems side by side on an accelerator, one after the other on a processor.

    256 problems of n = 1000, d = 64 and C = 5 took one core 3.1 s side by side, where every step
    waits for the slowest problem and the data leave the cache, and 0.9 s one after the other.
    """
    solve = _fit_in_turn if on_processor() else _fit_together
    return solve(*arguments)
