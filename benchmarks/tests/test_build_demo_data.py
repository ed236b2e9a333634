"""The packing of the embedded demo data."""

import numpy as np
import pytest

from benchmarks.datasets import build_demo_data


def test_eight_bits_are_off_by_half_a_step_at_most():
    features = np.random.default_rng(0).normal(size=(300, 7)) * 10.0 ** np.arange(-3, 4)
    codes, scales = build_demo_data.quantise(features)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert (np.abs(codes * scales.astype(np.float64) - features) <= 0.5001 * scales).all()
    assert (np.abs(codes.astype(int)).max(0) == 127).all()


def test_the_packed_file_is_byte_identical_and_reads_back(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.int8).reshape(2, 3), "b": np.array(["x", "yz"])}
    for name in ("one.npz", "two.npz"):
        build_demo_data.write_npz(tmp_path / name, arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array)


def test_chosen_rows_are_balanced_distinct_and_refused_when_too_few():
    rng = np.random.default_rng(0)
    labels, contexts = rng.integers(0, 3, 900), rng.integers(0, 2, 900)
    rows = build_demo_data.choose_rows(labels, contexts, 20, seed=1)
    assert len(np.unique(rows)) == len(rows) == 120
    cells = np.bincount(labels[rows] + 3 * contexts[rows])
    assert (cells == 20).all()
    with pytest.raises(ValueError, match="at least 500 pictures"):
        build_demo_data.choose_rows(labels, contexts, 500, seed=1)
