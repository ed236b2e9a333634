"""Packed arrays come back bit by bit, and what cannot be packed is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.scoring.host_transfer import pack, pack_scores, unpack, unpack_scores
from jaxspec.scoring.types import Scores


def test_a_tree_comes_back_bit_by_bit():
    rng = np.random.default_rng(0)
    tree = {
        "floats": np.array([[0.0, -0.0], [np.inf, 1e-42]], np.float32),
        "integers": rng.integers(-(2**31), 2**31 - 1, (3, 2, 1), np.int32),
        "flags": rng.random((5,)) > 0.5,
        "none": np.zeros((2, 0), np.float32),
        "scalar": np.int32(7),
        "view": rng.normal(size=(4, 6)).astype(np.float32).T,
    }
    packed, layout = pack(tree)
    assert packed.dtype == np.int32 and packed.ndim == 1
    found = jax.jit(unpack, static_argnums=1)(packed, layout)
    for name, value in tree.items():
        assert found[name].dtype == np.asarray(value).dtype
        wanted = np.asarray(value).tobytes()
        assert np.asarray(found[name]).tobytes() == wanted, name


def test_layouts_of_equal_shapes_are_equal():
    """So that a second user compiles nothing."""
    one, other = (pack({"a": np.full((2, 3), x, np.float32)})[1] for x in (1, 2))
    assert one == other and hash(one) == hash(other)
    assert one != pack({"a": np.zeros((3, 2), np.float32)})[1]


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.float16])
def test_other_types_are_refused(dtype):
    with pytest.raises(TypeError, match=f"got {np.dtype(dtype).name}"):
        pack({"a": np.zeros(3, dtype)})


def test_scores_come_back_bit_by_bit():
    rng = np.random.default_rng(1)
    draw = rng.normal(size=(2, 5)).astype(np.float32)
    draw[0, 3] = -np.inf
    scores = Scores(
        draw,
        rng.normal(size=(2, 5)).astype(np.float32),
        rng.normal(size=(2, 5, 3)).astype(np.float32),
        rng.integers(-1, 9, (2, 5, 3)).astype(np.int32),
    )
    slots = rng.integers(0, 100, (2, 5)).astype(np.int32)
    packed = jax.jit(pack_scores)(jnp.asarray(slots), scores)
    found_slots, found = unpack_scores(np.asarray(packed))
    np.testing.assert_array_equal(found_slots, slots)
    for name in ("scores", "squared_mmd", "class_similarity", "class_map"):
        value = getattr(found, name)
        assert value.dtype == getattr(scores, name).dtype
        np.testing.assert_array_equal(value, getattr(scores, name))
