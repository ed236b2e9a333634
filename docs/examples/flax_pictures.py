"""Pictures: small convolutional flax networks, trained by owners who see the world differently.

The pictures are scikit-learn's digits, 8 x 8. Each owner has them in another style, such as
upright, inverted or turned by 90 degrees, and trains a network of its own. A user has 50 labelled
pictures in a style that is close to one of these but equal to none. The market recommends a
network from specifications alone; then all networks are run on the user's test pictures, to see
whether it was right.

The public extractor projects pixels on the principal directions of public pictures. The networks
share nothing with it, so owners also publish how their networks answer on the public pictures.

Run it with `python docs/examples/flax_pictures.py` after `pip install scikit-learn`.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import linen
from sklearn.datasets import load_digits

import jaxspec as js

NAMES = [f"digit {k}" for k in range(10)]


def noisy(pictures: np.ndarray, amount: float, seed: int) -> np.ndarray:
    """Return pictures with noise added."""
    return pictures + amount * np.random.default_rng(seed).normal(size=pictures.shape)


OWNERS = {
    "upright": lambda p: noisy(p, 0.05, 0),
    "inverted": lambda p: noisy(1 - p, 0.05, 1),
    "turned": lambda p: noisy(np.rot90(p, axes=(1, 2)), 0.05, 2),
    "mirrored": lambda p: noisy(p[:, :, ::-1], 0.05, 3),
    "turned and inverted": lambda p: noisy(1 - np.rot90(p, axes=(1, 2)), 0.05, 4),
}
USERS = {
    "pale": lambda p: noisy(0.7 * p, 0.1, 5),
    "turned and pale": lambda p: noisy(0.7 * np.rot90(p, axes=(1, 2)), 0.1, 6),
    "inverted and grey": lambda p: noisy(0.8 - 0.7 * p, 0.1, 7),
}


class Network(linen.Module):
    """Two convolutions and a hidden layer."""

    @linen.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        """Return logits (n, 10) of pictures (n, 8, 8)."""
        x = linen.relu(linen.Conv(16, (3, 3))(pictures[..., None]))
        x = linen.relu(linen.Conv(32, (3, 3), strides=2)(x))
        x = linen.relu(linen.Dense(64)(x.reshape(len(x), -1)))
        return linen.Dense(10)(x)


NETWORK = Network()
OPTIMISER = optax.adam(3e-3)


@jax.jit
def step(parameters: Any, state: Any, pictures: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
    """Return parameters and the optimiser's state after one step on a batch."""

    def loss(parameters: Any) -> jax.Array:
        logits = NETWORK.apply(parameters, pictures)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = OPTIMISER.update(jax.grad(loss)(parameters), state)
    return optax.apply_updates(parameters, updates), state


def train(pictures: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    """Return the parameters of a network after 15 passes over the pictures."""
    parameters = NETWORK.init(jax.random.key(seed), pictures[:1])
    state, rng = OPTIMISER.init(parameters), np.random.default_rng(seed)
    for _ in range(15):
        for batch in rng.permutation(len(labels)).reshape(-1, 50):
            parameters, state = step(parameters, state, pictures[batch], labels[batch])
    return parameters


@jax.jit
def probabilities(parameters: Any, pictures: jax.Array) -> jax.Array:
    """Return class probabilities (n, 10)."""
    return jax.nn.softmax(NETWORK.apply(parameters, pictures))


def main() -> None:
    """Make the market, ask it for three users, and compare with the truth."""
    digits, labels = load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8) / 16
    order = np.random.default_rng(0).permutation(len(labels))
    digits, labels = digits[order], labels[order]
    kinds = {**OWNERS, **USERS}

    # The public extractor, and the public pictures on which every owner runs its network.
    public = np.concatenate([change(digits[:50]) for change in kinds.values()]).astype(np.float32)
    mean = public.reshape(-1, 64).mean(axis=0)
    directions = np.linalg.svd(public.reshape(-1, 64) - mean, full_matrices=False)[2].T

    def extract(pictures: np.ndarray) -> np.ndarray:
        return ((pictures.reshape(-1, 64) - mean) @ directions).astype(np.float32)

    space = js.Space.from_features("digits-pca64", extract(public), probe=extract(public))

    own_pictures, own_labels = digits[50:1050], labels[50:1050]
    views = [change(own_pictures).astype(np.float32) for change in OWNERS.values()]
    models = {
        name: partial(probabilities, train(view, own_labels, seed))
        for seed, (name, view) in enumerate(zip(OWNERS, views, strict=True))
    }
    specs = js.specify_many(
        space,
        [extract(view) for view in views],
        [own_labels] * len(views),
        class_names=[NAMES] * len(views),
        teachers=[model(view) for model, view in zip(models.values(), views, strict=True)],
        probe_outputs=[model(public) for model in models.values()],
    )
    market = js.Market(space, dict(zip(models, specs, strict=True)))
    print(market)

    mine, test = slice(1050, 1100), slice(1100, None)
    for name, change in USERS.items():
        pictures, tests = change(digits[mine]).astype(np.float32), change(digits[test])
        user = js.specify_user(space, extract(pictures), labels[mine], class_names=NAMES)
        found = js.match(market, user)
        accuracy = {
            owner: np.mean(np.asarray(model(tests)).argmax(axis=1) == labels[test])
            for owner, model in models.items()
        }
        chosen = found.top_k(1)[0][0]
        best = max(accuracy, key=accuracy.__getitem__)
        average = np.mean(list(accuracy.values()))
        print(
            f"user {name!r}: recommended {chosen!r}, right on {accuracy[chosen]:.1%} of "
            f"{len(tests)} pictures; best {best!r}, {accuracy[best]:.1%}; average {average:.1%}"
        )


if __name__ == "__main__":
    main()
