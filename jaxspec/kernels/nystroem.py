"""The Nystroem feature map: features lifted on landmarks, so that a kernel is an inner product.

    phi(z) = K_LL^{-1/2} k(L, z),      phi(z)' phi(z') ~ k(z, z'),

for landmarks L (D, d). `whitening` gives K_LL^{-1/2}, `lift` applies the map. Both are for use
inside compiled functions and check nothing.
Williams and Seeger, "Using the Nystroem Method to Speed Up Kernel Machines", NIPS 2000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.kernels.kernels import Kernel, kernel_values

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float

__all__ = ["lift", "whitening"]

EIGENVALUE_FLOOR = 1e-6  # of the largest: about the rounding of a float32 Gram matrix


@jax.jit
def whitening(kernel: Kernel, landmarks: Float[Array, "D d"]) -> Float[Array, "D D"]:
    """Return K_LL^{-1/2}, with eigenvalues below 1e-6 of the largest raised to that."""
    gram = kernel_values(kernel, landmarks, landmarks)
    values, vectors = jnp.linalg.eigh(0.5 * (gram + gram.T))
    values = jnp.maximum(values, EIGENVALUE_FLOOR * values[-1])
    return jnp.matmul(vectors / jnp.sqrt(values)[None, :], vectors.T, precision="highest")


def lift(
    kernel: Kernel,
    landmarks: Float[Array, "D d"],
    white: Float[Array, "D E"],
    features: Float[Array, "n d"],
) -> Float[Array, "n E"]:
    """Return phi(z) for each row of `features`; `white` is `whitening(kernel, landmarks)`."""
    return jnp.matmul(kernel_values(kernel, features, landmarks), white, precision="highest")
