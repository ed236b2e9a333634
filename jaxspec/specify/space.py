"""A space: what a market publishes once, and what makes specifications comparable.

A `Space` names a public feature extractor, and fixes the kernel, the number of features and the
probe set: public, unlabelled features on which every submitter may run its model. Specifications
carry the space's name and digest, and nothing is compared across spaces. A space never holds
anybody's private data.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base import Persistent, as_features, as_size
from jaxspec.kernels import (
    Gaussian,
    Kernel,
    Laplacian,
    as_kernel,
    kernel_label,
    median_bandwidth,
    usable_bandwidth,
    whitening,
)
from jaxspec.specify.probe_proxy import choose_landmarks

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float

__all__ = ["Space", "as_space", "check_same_space"]

DIGEST_CHARACTERS = 32  # of a SHA-256 in hexadecimal: 128 bits


class Space(Persistent):
    """The name, kernel, dimension and probe set that a market publishes.

    Two spaces are equal if their digests are. The attributes are read-only.

    Attributes:
        name: names the public extractor and how features were made, such as "fashion-pca64".
        kernel: the kernel of all mean embeddings.
        dimension: d, the number of features.
        probe: (p, d) unlabelled features that are in no order of meaning, or None.
        digest: a digest of all of these. The bandwidth and the probe enter it as float32 numbers.
    """

    name: str
    kernel: Kernel
    dimension: int
    probe: Float[Array, "p d"] | None
    digest: str

    def __init__(
        self, name: str, kernel: Kernel, *, dimension: int, probe: ArrayLike | None = None
    ) -> None:
        """Make a space.

        Args:
            name: a non-empty string.
            kernel: a kernel such as `Gaussian(bandwidth=2.1)`.
            dimension: d, at least one.
            probe: (p, d) features of a public probe set, or None.

        Raises:
            TypeError: an argument of the wrong type; the message names it.
            ValueError: an empty name, a probe of another dimension or with numbers that are not
                finite.
        """
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string, got a {type(name).__name__}")
        if not name.strip():
            raise ValueError(f"name: expected a non-empty string, got {name!r}")
        kernel = as_kernel("kernel", kernel)
        if not usable_bandwidth(np.asarray(kernel.bandwidth, np.float32)):
            raise ValueError(
                "kernel: expected a bandwidth whose square float32 holds, "
                f"got {kernel_label(kernel)}"
            )
        kernel = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), kernel)
        size = as_size("dimension", dimension)
        rows = None
        if probe is not None:
            features = as_features("probe", probe, dimension=size)
            rows = jnp.asarray(np.asarray(features, np.float32))
        digest = _digest(name, kernel, size, rows)
        values = {"name": name, "kernel": kernel, "dimension": size, "probe": rows}
        for attribute, value in {**values, "digest": digest}.items():
            object.__setattr__(self, attribute, value)

    @classmethod
    def from_features(
        cls,
        name: str,
        features: ArrayLike,
        *,
        probe: ArrayLike | None = None,
        kernel: type[Kernel] = Gaussian,
    ) -> Space:
        """Make a space whose bandwidth is the median distance between public features.

        Submitters cannot see each other's data, so none of them can choose a bandwidth that fits
        all. Features that are public can: the probe set, or the extractor's features of any public
        data of the same kind.

        Args:
            name: as for `Space`.
            features: (n, d) public features; a sample of 2,000 rows stands for more.
            probe: as for `Space`; it may be the same features.
            kernel: the kernel's class. The median is of sum-norm distances for `Laplacian`, and
                of Euclidean distances for the others.

        Raises:
            TypeError, ValueError: as `Space`, or features that are all equal.
        """
        rows = as_features("features", features)
        metric = "cityblock" if kernel is Laplacian else "euclidean"
        bandwidth = median_bandwidth(rows, metric=metric)
        return cls(name, kernel(bandwidth=bandwidth), dimension=rows.shape[1], probe=probe)

    @functools.cached_property
    def landmarks(self) -> Float[Array, "D d"]:
        """The rows of the probe on which all probe proxies are functions; none without a probe."""
        if self.probe is None:
            return jnp.zeros((0, self.dimension), jnp.float32)
        return jnp.asarray(choose_landmarks(self.probe))

    @functools.cached_property
    def whitening(self) -> Float[Array, "D D"]:
        """K^(-1/2) of the landmarks' Gram matrix K; empty without a probe."""
        if self.probe is None:
            return jnp.zeros((0, 0), jnp.float32)
        return whitening(self.kernel, self.landmarks)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a Space cannot be changed; make a new one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: a Space cannot be changed; make a new one")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.name, self.kernel, self.dimension, self.probe)

    def __repr__(self) -> str:
        rows = "no probe" if self.probe is None else f"a probe of {len(self.probe)} rows"
        return (
            f"Space({self.name!r}, {kernel_label(self.kernel)}, dimension={self.dimension}, {rows})"
        )


def _restored(name: str, kernel: Kernel, dimension: int, probe: Any) -> Space:
    return Space(name, kernel, dimension=dimension, probe=probe)


def _digest(name: str, kernel: Kernel, dimension: int, probe: Any) -> str:
    found = hashlib.sha256()
    bandwidth = np.float32(kernel.bandwidth).tobytes()
    found.update(f"{name}\0{type(kernel).__name__}\0{dimension}\0".encode("utf-8", "replace"))
    found.update(bandwidth)
    if probe is not None:
        rows = np.ascontiguousarray(np.asarray(probe, "<f4"))
        found.update(f"{rows.shape}".encode() + rows.tobytes())
    return found.hexdigest()[:DIGEST_CHARACTERS]


def as_space(name: str, value: Any) -> Space:
    """Return `value` if it is a space.

    Raises:
        TypeError: it is not; the message names the argument.
    """
    if not isinstance(value, Space):
        raise TypeError(f"{name}: expected a Space, got a {type(value).__name__}: {value!r:.80}")
    return value


def check_same_space(name: str, one: Any, other_name: str, other: Any) -> None:
    """Raise unless two things live in one space.

    Args:
        name: what `one` is called in the error.
        one: anything with `space_name` and `space_digest`.
        other_name: what `other` is called in the error.
        other: a `Space`, or anything with `space_name` and `space_digest`.

    Raises:
        ValueError: they do not; the message names both spaces and the cause.
    """
    if isinstance(other, Space):
        space_name, digest = other.name, other.digest
    else:
        space_name, digest = other.space_name, other.space_digest
    if one.space_digest == digest:
        return
    if one.space_name != space_name:
        raise ValueError(
            f"{name}: its space is {one.space_name!r}, but {other_name} is in {space_name!r}; "
            "specifications compare only within one space"
        )
    raise ValueError(
        f"{name}: its space is called {one.space_name!r} as that of {other_name}, but its digest "
        f"is {one.space_digest!r:.40} and not {digest!r}: the kernel, its bandwidth, the dimension "
        "or the probe differ; specifications compare only within one space"
    )
