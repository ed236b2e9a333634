"""Models and tasks that the tests of this folder share."""

import jax.numpy as jnp
import numpy as np
from conftest import SPACE, made_task

import jaxspec as js


def proxy_model(spec):
    """A model that is its own proxy: a float64 softmax regression on the public features."""

    def model(features):
        weights = np.asarray(spec.proxy.weights, np.float64)
        logits = np.asarray(features, np.float64) @ weights + np.asarray(spec.proxy.bias)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    return model


def user_of(features, labels, class_names):
    return js.specify_user(SPACE, features, labels, class_names=class_names)


def cross_task(n):
    """A task whose classes cut across those of task 1: each class is a pair of its eight."""
    features, labels = made_task(1, n=n, classes=8)
    return features, np.array([0, 1, 2, 3, 1, 0, 3, 2])[labels]


def linear(parameters, inputs):
    return inputs @ parameters["w"] + parameters["b"][None, :]


def linear_start(classes=4):
    return {"w": np.zeros((6, classes), np.float32), "b": np.zeros(classes, np.float32)}


class TensorLike:
    """Has of a torch tensor what matters here: `size` is a method, and gradients refuse numpy."""

    def __init__(self, values, requires_grad=False):
        self.values, self.requires_grad = np.asarray(values), requires_grad
        self.shape, self.ndim = self.values.shape, self.values.ndim

    def size(self):
        return self.shape

    def detach(self):
        return TensorLike(self.values)

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.values if dtype is None else self.values.astype(dtype)


def torch_tensor(values):
    import pytest

    return pytest.importorskip("torch").as_tensor(np.asarray(values))


ARRAY_LIBRARIES = {"stand-in": TensorLike, "torch": torch_tensor, "jax": jnp.asarray, "list": list}
