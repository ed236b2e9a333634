"""Checks of arguments: what is accepted, what is refused, and what the errors name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.base import (
    as_class_labels,
    as_features,
    as_labels,
    as_number,
    as_probabilities,
    as_size,
    as_weights,
)

NAMES = ["cat", "dog", "caf\u00e9"]


def softmax(seed, n=40, classes=7):
    logits = np.random.default_rng(seed).normal(size=(n, classes)) * 3
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)


class Tensor:
    """Behaves as a torch tensor does towards numpy."""

    def __init__(self, values, requires_grad=False, dtype=None):
        self.values, self.requires_grad = np.asarray(values), requires_grad
        self.dtype = dtype or f"torch.{self.values.dtype}"
        self.shape = self.values.shape

    def size(self):
        return self.shape

    def detach(self):
        return Tensor(self.values, dtype=self.dtype)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values.astype(np.float32))

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if "bfloat16" in self.dtype:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint8", "int64", "uint64", "float16", "float32", "float64", ">f4", ">f8"]
    + [">i2", jnp.bfloat16, np.longdouble],
)
def test_features_of_every_real_type_become_native_float32(dtype):
    values = np.array([[0, 1], [1, 1], [1, 0]]).astype(dtype)
    got = as_features("x", values)
    assert got.dtype == np.float32
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, [[0, 1], [1, 1], [1, 0]])
    assert as_features("x", jax.jit(lambda x: x)(np.ones((2, 3)))).shape == (2, 3)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[1, 2]], "timedelta64[s]"),
        np.array([[1, 2]], "datetime64[s]"),
        np.array([[1 + 2j, 2]]),
        np.array([["1", "2"]]),
        np.array([[b"1", b"2"]]),
        np.array([[1, None]], object),
        np.array([[1, 2]], object),
        np.array([[(1, 2)]], "i4,i4"),
        jax.random.split(jax.random.key(0), (2, 2)),
        None,
        "rows",
        {"a": 1},
    ],
)
def test_features_that_are_not_real_numbers_are_refused_by_name(values):
    with pytest.raises((TypeError, ValueError), match="^rows: expected"):
        as_features("rows", values)
    with pytest.raises((TypeError, ValueError), match="^w: expected"):
        as_weights("w", values, rows=1, columns=True)
    with pytest.raises((TypeError, ValueError), match="^p: expected"):
        as_probabilities("p", values, rows=1, num_classes=2)


def masked(values):
    return np.ma.masked_array(values, mask=np.eye(*np.shape(values), dtype=bool))


def test_masked_entries_are_refused_by_name_and_counted():
    hidden = np.ma.masked_array([0, 1, -999], mask=[False, False, True])
    with pytest.raises(ValueError, match="x: expected a value in every entry, .* with 3 masked"):
        as_features("x", masked(np.ones((3, 3))))
    with pytest.raises(ValueError, match="x: expected a value in every entry, .* with 1 masked"):
        as_features("x", [np.ones(3), hidden])
    with pytest.raises(ValueError, match="y: .* masked array with 1 masked"):
        as_labels("y", hidden, rows=3, num_classes=2)
    with pytest.raises(ValueError, match="y: .* masked array with 1 masked"):
        as_class_labels("y", hidden, class_names=NAMES)
    with pytest.raises(ValueError, match="p: .* masked array with 2 masked"):
        as_probabilities("p", masked(np.eye(2)), rows=2, num_classes=2)
    with pytest.raises(ValueError, match="w: .* masked array with 1 masked"):
        as_weights("w", hidden, rows=3)
    with pytest.raises(ValueError, match="k: .* masked"):
        as_number("k", np.ma.masked, "a number", least=0)
    with pytest.raises(TypeError, match="k: expected an integer"):
        as_size("k", np.ma.masked)


def test_a_masked_array_without_masked_entries_is_its_data():
    values = np.ma.masked_array(np.ones((2, 2)), mask=False)
    got = as_features("x", values)
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
@pytest.mark.parametrize("classes", [2, 7, 100])
def test_probabilities_rounded_to_few_bits_are_accepted_and_normalised(dtype, classes):
    exact = softmax(0, classes=classes)
    rounded = jnp.asarray(exact, dtype)
    got = as_probabilities("p", rounded, rows=40, num_classes=classes)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(got, exact, rtol=4 * float(jnp.finfo(dtype).eps), atol=1e-6)
    widened = as_probabilities("p", np.asarray(rounded, np.float32), rows=40, num_classes=classes)
    np.testing.assert_allclose(widened, got, rtol=1.1e-3)
    traced = jax.jit(lambda p: as_probabilities("p", p, rows=40, num_classes=classes))(rounded)
    np.testing.assert_allclose(traced, got, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.float64])
def test_logits_are_no_probabilities_in_any_type(dtype):
    for values in (softmax(0) * 1.1, softmax(0) * 0.9, np.abs(np.log(softmax(0)))):
        with pytest.raises(ValueError, match="p: expected rows that sum to one, got a sum of"):
            as_probabilities("p", values.astype(dtype), rows=40, num_classes=7)
    with pytest.raises(ValueError, match="p: expected probabilities, got a value of -"):
        as_probabilities("p", np.log(softmax(0)), rows=40, num_classes=7)


def test_float32_probabilities_come_back_bit_by_bit():
    values = softmax(0).astype(np.float32)
    np.testing.assert_array_equal(as_probabilities("p", values, rows=40, num_classes=7), values)
    with pytest.raises(ValueError, match="p: expected rows that sum to one"):
        as_probabilities("p", values * np.float32(1.002), rows=40, num_classes=7)


def test_tensors_are_taken_and_refused_where_a_gradient_would_be_lost():
    values = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(as_features("x", Tensor(values)), values)
    np.testing.assert_array_equal(as_labels("y", Tensor([1, 0]), rows=2, num_classes=2), [1, 0])
    np.testing.assert_array_equal(as_class_labels("y", Tensor([1]), class_names=NAMES), [1])
    half = Tensor(softmax(0).astype(jnp.bfloat16).astype(np.float32), dtype="torch.bfloat16")
    got = as_probabilities("p", half, rows=40, num_classes=7)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-6)
    for check in (
        lambda value: as_features("x", value),
        lambda value: as_labels("x", value, rows=2, num_classes=2),
        lambda value: as_weights("x", value, rows=2, columns=True),
    ):
        with pytest.raises(TypeError, match="x: .* requires a gradient.*detach"):
            check(Tensor(values, requires_grad=True))


def test_tensors_of_torch_itself():
    torch = pytest.importorskip("torch")
    values = torch.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(as_features("x", values), values.numpy())
    np.testing.assert_array_equal(
        as_labels("y", torch.tensor([1, 0]), rows=2, num_classes=2), [1, 0]
    )
    half = torch.softmax(torch.randn(5, 3), dim=1).bfloat16()
    got = as_probabilities("p", half, rows=5, num_classes=3)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-6)
    with pytest.raises(TypeError, match="x: .* requires a gradient"):
        as_features("x", values.requires_grad_())


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (np.array([0.0, 1.0]), TypeError),
        (np.array([True, False]), TypeError),
        (np.array(["a", "b"]), TypeError),
        (np.array([0, 1], "timedelta64[s]"), TypeError),
        (np.array([[0], [1]]), ValueError),
        (np.array([0, 1, 1]), ValueError),
        (np.array([0, 2]), ValueError),
        (np.array([-1, 1]), ValueError),
        (np.array([0, 2**40]), ValueError),
        (7, ValueError),
        (None, TypeError),
    ],
)
def test_labels_that_are_no_class_indices_are_refused_by_name(labels, error):
    with pytest.raises(error, match="^y: expected"):
        as_labels("y", labels, rows=2, num_classes=2)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint64", ">i4"])
def test_labels_of_every_integer_type_become_int32(dtype):
    got = as_labels("y", np.array([2, 0, 1], dtype), num_classes=3, every_class=True)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, [2, 0, 1])


def test_a_class_that_does_not_occur_is_named():
    with pytest.raises(
        ValueError, match=r"y: expected every class of 0..3 .* got none of \[1, 3\]"
    ):
        as_labels("y", [0, 2], rows=2, num_classes=4, every_class=True)


@pytest.mark.parametrize(
    "labels",
    [
        ["dog", "cat", "dog"],
        np.array(["dog", "cat", "dog"]),
        np.array(["dog", "cat", "dog"], object),
        np.array([1, 0, 1]),
        np.array([1, 0, 1], object),
        (1, 0, 1),
        jnp.array([1, 0, 1]),
    ],
)
def test_class_labels_are_names_or_indices(labels):
    got = as_class_labels("y", labels, rows=3, class_names=NAMES)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, [1, 0, 1])


def test_both_unicode_forms_of_a_name_are_one_class():
    got = as_class_labels("y", ["cafe\u0301", "caf\u00e9"], class_names=NAMES)
    np.testing.assert_array_equal(got, [2, 2])
    got = as_class_labels("y", ["caf\u00e9"], class_names=["cafe\u0301"])
    np.testing.assert_array_equal(got, [0])


def test_unknown_class_names_are_listed():
    with pytest.raises(ValueError, match=r"y: expected names .*'cat'.* unknown \['bird', 'fox'\]"):
        as_class_labels("y", ["fox", "cat", "bird", "fox"], class_names=NAMES)
    with pytest.raises(TypeError, match="y: expected integers or class names"):
        as_class_labels("y", np.array(["cat", 1], object), class_names=NAMES)
    with pytest.raises(TypeError, match="y: expected integer"):
        as_class_labels("y", [0.5], class_names=NAMES)
    with pytest.raises(ValueError, match="y: expected values in 0..2"):
        as_class_labels("y", [3], class_names=NAMES)
    with pytest.raises(ValueError, match=r"y: expected shape \(3,\)"):
        as_class_labels("y", ["cat"], rows=3, class_names=NAMES)


def test_frames_of_every_number_type_are_taken():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "whole": pandas.array([1, 2, 3], dtype="Int64"),
            "part": pandas.array([0.5, 1.5, 2.5], dtype="Float64"),
            "flag": pandas.array([True, False, True], dtype="boolean"),
            "plain": [1.0, 2.0, 4.0],
            "small": np.array([1, 2, 3], np.int8),
        }
    )
    want = [[1, 0.5, 1, 1, 1], [2, 1.5, 0, 2, 2], [3, 2.5, 1, 4, 3]]
    np.testing.assert_array_equal(as_features("x", frame), want)
    dummies = pandas.get_dummies(pandas.Series(["a", "b", "a"]))
    np.testing.assert_array_equal(as_features("x", dummies), [[1, 0], [0, 1], [1, 0]])
    sparse = pandas.get_dummies(pandas.Series(["a", "b", "a"]), sparse=True)
    np.testing.assert_array_equal(as_features("x", sparse), [[1, 0], [0, 1], [1, 0]])
    mixed = pandas.concat([frame, dummies], axis=1)
    assert as_features("x", mixed).shape == (3, 7)
    np.testing.assert_array_equal(
        as_labels("y", frame["whole"] - 1, rows=3, num_classes=3), [0, 1, 2]
    )
    np.testing.assert_array_equal(as_weights("w", frame["part"], rows=3), [0.5, 1.5, 2.5])


def test_holes_in_frames_are_named_by_row_and_column():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": pandas.array([1, None, 3], dtype="Int64"), "b": [1.0, 2, 3]})
    with pytest.raises(ValueError, match="x: .* missing value in row 1, column 'age'"):
        as_features("x", frame)
    with pytest.raises(ValueError, match="x: .* missing value in row 2, column 'b'"):
        as_features("x", pandas.DataFrame({"a": [1, 2, 3], "b": [1.0, 2.0, np.nan]}))
    with pytest.raises(ValueError, match="y: .* missing value in row 1"):
        as_labels("y", frame["age"], rows=3, num_classes=4)
    with pytest.raises(ValueError, match="y: .* missing value in row 0"):
        as_class_labels("y", pandas.Categorical([None, "cat"]), class_names=NAMES)
    for column in (["a", "b"], [1j, 2j], pandas.to_timedelta([1, 2]), pandas.to_datetime([1, 2])):
        with pytest.raises(TypeError, match="x: expected real numbers, got column 'odd'"):
            as_features("x", pandas.DataFrame({"good": [1, 2], "odd": column}))
        with pytest.raises(TypeError, match="x: expected real numbers"):
            as_features("x", pandas.DataFrame({"odd": column}))


def test_class_names_of_pandas_are_taken():
    pandas = pytest.importorskip("pandas")
    values = ["dog", "cat", "dog"]
    for labels in (
        pandas.Series(values),
        pandas.Series(values, dtype="string"),
        pandas.Series(values, dtype="category"),
        pandas.Categorical(values),
        pandas.Index(values),
    ):
        np.testing.assert_array_equal(as_class_labels("y", labels, class_names=NAMES), [1, 0, 1])


@pytest.mark.parametrize("value", [True, np.True_, 2.0, "2", None, np.ones(2, int), [1]])
def test_a_size_of_another_type_is_a_type_error(value):
    with pytest.raises(TypeError, match="k: expected an integer, got"):
        as_size("k", value)


def test_a_size_out_of_range_is_a_value_error():
    for value in (3, np.int64(3), np.uint8(3), np.array(3), jnp.array(3)):
        got = as_size("k", value, maximum=3)
        assert got == 3
        assert type(got) is int
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        as_size("k", 0)
    with pytest.raises(ValueError, match="k: expected at least 2, got -5"):
        as_size("k", -5, minimum=2)
    with pytest.raises(ValueError, match="k: expected at most 3, got 4"):
        as_size("k", 4, maximum=3)


def test_numbers_are_finite_and_in_range():
    for value in (0, 0.5, np.float32(1), jnp.float32(2), jnp.bfloat16(2), np.array(1)):
        assert as_number("a", value, "a number >= 0", least=0) is value
    for value in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="a: expected a number >= 0, got"):
            as_number("a", value, "a number >= 0", least=0)
    with pytest.raises(ValueError, match="a: expected a positive number, got 0"):
        as_number("a", 0, "a positive number", least=0, strict=True)
    for value in (True, "1", None, 1j, np.ones(1), np.timedelta64(1, "s")):
        with pytest.raises(TypeError, match="a: expected a number, got"):
            as_number("a", value, "a number >= 0", least=0)
