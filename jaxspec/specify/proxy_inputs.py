"""The arguments of `fit_proxy` and `fit_proxies`: checked, and padded to few shapes.

`check_problem` and `as_options` check once what users give; `pad_problem` and `stack_problems`
make the padded arrays that `proxy_solver.prepare` takes. Nothing here computes with the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxspec.base import as_features, as_labels, as_number, as_probabilities, as_size, pad_to
from jaxspec.specify.compiled_inputs import as_scalar

__all__ = ["as_options", "check_problem", "pad_problem", "stack_problems"]


def check_problem(
    features: Any,
    labels: Any,
    teacher: Any,
    num_classes: Any,
    name: str,
    suffix: str,
    dimension: int | None = None,
    copy: bool = True,
) -> tuple[Any, Any, Any]:
    """Return features, labels and teacher of one problem, checked."""
    classes = as_size(f"num_classes{suffix}", num_classes, minimum=2)
    features = as_features(f"{name}{suffix}", features, dimension=dimension, copy=copy)
    rows = features.shape[0]
    if labels is None and teacher is None:
        raise ValueError(f"labels{suffix}: expected labels, a teacher or both, got neither")
    if labels is not None:
        labels = as_labels(
            f"labels{suffix}", labels, rows=rows, num_classes=classes, every_class=True
        )
    if teacher is not None:
        teacher = as_probabilities(f"teacher{suffix}", teacher, rows=rows, num_classes=classes)
    return features, labels, teacher


def as_options(
    teacher_weight: Any, ridge: Any, tolerance: Any, max_iterations: Any, dtype: Any
) -> tuple[Any, ...]:
    """Return the checked options as arrays of one type, so that no type compiles anew."""
    as_number("teacher_weight", teacher_weight, "a number >= 0", least=0)
    for name, value in (("ridge", ridge), ("tolerance", tolerance)):
        as_number(name, value, "a positive number", least=0, strict=True)
    steps = np.int32(as_size("max_iterations", max_iterations))
    return (*(as_scalar(value, dtype) for value in (teacher_weight, ridge, tolerance)), steps)


def pad_problem(
    features: Any, labels: Any, teacher: Any, classes: int, rows: int, width: int
) -> tuple[Any, ...]:
    """Return what the solver takes; absent labels are -1 and an absent teacher is zeros."""
    n, d = features.shape
    dtype = features.dtype
    if labels is None:
        labels = np.full(n, -1, np.int32)
    if teacher is None:
        teacher = np.zeros((n, classes), dtype)
    return (
        pad_to(features, (rows, d)),
        pad_to(labels, (rows,), value=-1),
        pad_to(teacher.astype(dtype), (rows, width)),
        pad_to(np.ones(n, dtype), (rows,)),
        pad_to(np.ones(classes, dtype), (width,)),
    )


def stack_problems(
    problems: Sequence[tuple[Any, Any, Any]],
    classes: Sequence[int],
    size: int,
    rows: int,
    width: int,
    dtype: Any,
) -> tuple[np.ndarray, ...]:
    """Return `pad_problem` of many problems, stacked; every number is copied once.

    There are `size` of them: those beyond the given ones have no rows and end where they start.
    """
    d = problems[0][0].shape[1]
    x = np.zeros((size, rows, d), dtype)
    y = np.full((size, rows), -1, np.int32)
    t = np.zeros((size, rows, width), dtype)
    row_mask, class_mask = np.zeros((size, rows), dtype), np.zeros((size, width), dtype)
    for i, (features, labels, teacher) in enumerate(problems):
        n = len(features)
        x[i, :n] = features
        if labels is not None:
            y[i, :n] = labels
        if teacher is not None:
            t[i, :n, : teacher.shape[1]] = teacher
        row_mask[i, :n] = 1
        class_mask[i, : classes[i]] = 1
    return x, y, t, row_mask, class_mask
