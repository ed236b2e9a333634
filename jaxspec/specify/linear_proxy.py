"""The linear softmax model that stands for a learnware's predictions, and how it was found.

`Proxy` and `ProxyDiagnostics` are frozen pytrees; `predict_log_probabilities` and `centre_classes`
may be called on a proxy. Proxies are fitted in `proxy.py`, never here.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.base import as_features, register
from jaxspec.specify.variable_projection import matmul

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["Proxy", "ProxyDiagnostics", "centre_classes", "predict_log_probabilities"]


@register
@dataclasses.dataclass(frozen=True)
class ProxyDiagnostics:
    """How a proxy was found; every field is a scalar, or (B,) for a batch.

    Attributes:
        objective: value of the objective in `fit_proxy`, in nats.
        gradient_norm: Frobenius norm of its gradient over (s_j W_j, b), where s_j is the standard
            deviation of column j (plus a share of the ridge): the units of the features, and
            their origin, do not change it.
        iterations: L-BFGS steps.
        converged: whether the gradient norm is at most the tolerance.
    """

    objective: Float[Array, "*b"]
    gradient_norm: Float[Array, "*b"]
    iterations: Int[Array, "*b"]
    converged: Bool[Array, "*b"]


@register
@dataclasses.dataclass(frozen=True)
class Proxy:
    """The model softmax(z @ weights + bias).

    Attributes:
        weights: (d, C), per unit of the features; every row sums to zero over the classes.
        bias: (C,), sums to zero. A batch has a leading axis on both arrays.
    """

    weights: Float[Array, "*b d C"]
    bias: Float[Array, "*b C"]


def centre_classes(proxy: Proxy) -> Proxy:
    """Return the same model with weights and bias that have mean zero over the classes.

    One vector added to every class's weights changes no probability, so two proxies are comparable
    only after this choice. Proxies of `fit_proxy` are centred already.
    """
    weights, bias = proxy.weights, proxy.bias
    return dataclasses.replace(
        proxy,
        weights=weights - weights.mean(axis=-1, keepdims=True),
        bias=bias - bias.mean(axis=-1, keepdims=True),
    )


def predict_log_probabilities(
    proxy: Proxy, features: Float[ArrayLike, "n d"]
) -> Float[Array, "n C"]:
    """Return log softmax(z W + b) for every row z of the features, in nats.

    Raises:
        ValueError: the dimension of the features is not that of the weights.
    """
    rows = as_features("features", features, dimension=proxy.weights.shape[-2])
    weights, bias = jnp.asarray(proxy.weights), jnp.asarray(proxy.bias)
    logits = matmul(jnp.asarray(rows, weights.dtype), weights)
    return jax.nn.log_softmax(logits + bias[None, :], axis=-1)
