"""A label-free linear map from raw features to a few components: centred principal directions.

May be called: `center_and_project` fits a `Projection`, whose `apply` maps features. The origin is
subtracted in float64 before anything is rounded to float32, so that features with a large offset
(map coordinates, unix times) keep their differences. Nothing here looks at labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jaxspec.base import as_features, as_size, is_concrete, to_numpy

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float64
    from numpy.typing import ArrayLike

__all__ = ["Projection", "center_and_project"]

BLOCK_ROWS = 4096  # a float64 copy of all rows at once may not fit in memory


@dataclass(frozen=True, eq=False)
class Projection:
    """The map z = scale (x - origin) @ directions from d raw features to c components.

    Attributes:
        origin: (d,) mean of the features that it was fitted on.
        directions: (d, c) orthonormal columns, the strongest first.
        scale: one factor for all components, so that distances keep their proportions.
    """

    origin: Float64[np.ndarray, " d"]
    directions: Float64[np.ndarray, "d c"]
    scale: float

    def apply(self, features: ArrayLike | Array) -> Float[np.ndarray, "n c"] | Float[Array, "n c"]:
        """Return z for features (n, d): (n, c), in float32 (float64 features under x64: float64).

        Works under `jit`, `vmap` and `grad`, and gives a jax array there; otherwise the result is
        a numpy array.

        Raises:
            TypeError: if features are not real numbers.
            ValueError: if features are not (n, d) with this projection's d, or not finite.
        """
        checked = as_features("features", features, dimension=len(self.origin), copy=False)
        dtype = checked.dtype
        directions = (self.scale * self.directions).astype(dtype)
        if is_concrete(checked):
            rows = _unrounded(features, np.asarray(checked))
            projected = np.empty((len(rows), directions.shape[1]), dtype)
            start = 0
            for centred in _centred_blocks(rows, self.origin):
                projected[start : start + len(centred)] = centred.astype(dtype) @ directions
                start += len(centred)
            return projected
        # The origin as a sum of two numbers of the features' type: one has an error of 0.25 at
        # coordinates of 4.5e6, and the difference with the first is exact for nearby features.
        leading = self.origin.astype(dtype)
        remainder = (self.origin - leading).astype(dtype)
        return jnp.matmul((checked - leading) - remainder, directions, precision="highest")

    __call__ = apply


def center_and_project(features: ArrayLike, *, components: int) -> Projection:
    """Fit the principal directions of unlabelled features.

    The origin is the mean; the directions are the leading eigenvectors of the covariance (each
    with its largest entry positive, so that the result is unique); the scale makes the mean
    squared norm of the projected features 1.

    Args:
        features: (n, d), finite, preferably of data that the whole market shares.
        components: c, at most the rank of the centred features.

    Returns:
        `Projection` with origin (d,), directions (d, c) and scale, computed in float64.

    Raises:
        TypeError: if features are not real numbers or components is not an integer.
        ValueError: if features are not finite or not (n, d), or they span fewer than c
            directions around their mean.
    """
    rows = _unrounded(features, np.asarray(as_features("features", features, copy=False)))
    kept = as_size("components", components)
    count, dimension = rows.shape
    origin = rows.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((dimension, dimension))
    for centred in _centred_blocks(rows, origin):
        covariance += centred.T @ centred
    covariance /= count
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    # Below these floors a variance is rounding: of the covariance, and of the mean.
    eps = np.finfo(np.float64).eps
    floor = dimension * eps * variances[0] + (max(count, dimension) * eps) ** 2 * (origin @ origin)
    rank = int((variances > floor).sum())
    if kept > rank:
        raise ValueError(
            f"components: expected at most {rank}, the directions that features of shape "
            f"{rows.shape} span around their mean, got {kept}"
        )
    directions = vectors[:, :kept]
    largest = np.abs(directions).argmax(axis=0)
    signs = np.sign(directions[largest, np.arange(kept)])
    return Projection(origin, directions * signs, float(1.0 / np.sqrt(variances[:kept].sum())))


def _unrounded(features: ArrayLike, checked: Float[np.ndarray, "n d"]) -> np.ndarray:
    """Return the features as they were given: the checked copy has lost digits to float32."""
    rows = to_numpy("features", features)
    return rows if rows.dtype.kind in "fiub" else checked


def _centred_blocks(rows: np.ndarray, origin: Float64[np.ndarray, " d"]) -> Iterator[np.ndarray]:
    """Yield the rows minus the origin in float64, `BLOCK_ROWS` of them at a time."""
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS].astype(np.float64) - origin
