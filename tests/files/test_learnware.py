"""Files of other packages: what they hold comes back, by those packages' own formulas."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from made_files import REPOSITORY

import jaxspec as js
from jaxspec.base import FileError
from jaxspec.files import from_learnware, to_learnware

GAMMA = 0.05


def written(path, **changes):
    """A file as the package `learnware` writes it, field by field."""
    rng = np.random.default_rng(0)
    content = {
        "z": rng.normal(size=(5, 3)).tolist(),
        "beta": [0.4, 0.3, -0.1, 0.2, 0.15],
        "gamma": GAMMA,
        "num_points": 120,
        "type": "RKMETableSpecification",
        **changes,
    }
    content = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    return content


def learnware_distance(one, other):
    """`RKMETableSpecification.dist` in float64: exp(-gamma |x - y|^2), z flattened to rows."""
    (x, v), (y, w) = (
        (np.reshape(file["z"], (len(file["z"]), -1)), np.array(file["beta"]))
        for file in (one, other)
    )

    def inner(a, p, b, q):
        squared = ((a[:, None] - b[None]) ** 2).sum(axis=2)
        return p @ np.exp(-one["gamma"] * squared) @ q

    return inner(x, v, x, v) - 2 * inner(x, v, y, w) + inner(y, w, y, w)


def test_a_file_is_compared_as_the_package_compares_it(tmp_path):
    one = written(tmp_path / "one.json")
    other = written(tmp_path / "two.json", z=[[0.0, 1.0, 2.0], [1, 1, 1]], beta=[0.7, 0.1])
    (phi, kernel), (psi, same) = (from_learnware(tmp_path / f"{n}.json") for n in ("one", "two"))
    np.testing.assert_array_equal(phi.points, one["z"])
    np.testing.assert_array_equal(phi.weights, one["beta"])  # which do not sum to one
    assert kernel.bandwidth == same.bandwidth
    np.testing.assert_allclose(1 / (2 * kernel.bandwidth**2), GAMMA, rtol=1e-7)
    with jax.enable_x64(True):
        _, exact = from_learnware(tmp_path / "one.json")
        np.testing.assert_allclose(1 / (2 * exact.bandwidth**2), GAMMA, rtol=1e-12)
    want = learnware_distance(one, other)
    np.testing.assert_allclose(js.squared_mmd(kernel, phi, psi), want, rtol=1e-5)


def test_points_of_more_axes_are_flattened_as_the_package_does(tmp_path):
    pictures = np.random.default_rng(1).normal(size=(5, 2, 2, 3))
    content = written(tmp_path / "a.json", z=pictures.tolist())
    phi, _ = from_learnware(tmp_path / "a.json")
    np.testing.assert_array_equal(phi.points, np.reshape(content["z"], (5, 12)))


def test_what_is_written_comes_back_bit_by_bit(tmp_path):
    features = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
    kernel = js.Gaussian(bandwidth=js.median_bandwidth(features))
    phi = js.reduce_set(features, size=10, kernel=kernel)
    path = tmp_path / "folder" / "a.json"
    to_learnware(path, phi, kernel, num_examples=len(features))
    content = json.loads(path.read_text())
    assert sorted(content) == ["beta", "gamma", "num_points", "type", "z"]
    assert content["type"] == "RKMETableSpecification"
    assert content["num_points"] == 120
    back, same = from_learnware(path)
    np.testing.assert_array_equal(back.points, phi.points)
    np.testing.assert_array_equal(back.weights, phi.weights)
    np.testing.assert_allclose(same.bandwidth, kernel.bandwidth, rtol=1e-7)
    assert js.squared_mmd(kernel, phi, back) == js.squared_mmd(kernel, phi, phi)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "RKMEImageSpecification"}, "type: expected 'RKMETableSpecification', got 'RKMEI"),
        ({"type": None}, "type: expected this field"),
        ({"z": None}, "z: expected this field"),
        ({"gamma": None}, "gamma: expected this field"),
        ({"gamma": 0}, "gamma: expected a positive finite number, got 0"),
        ({"gamma": -0.1}, "gamma: expected a positive finite number"),
        ({"gamma": float("nan")}, "gamma: expected a positive finite number, got nan"),
        ({"gamma": True}, "gamma: expected a positive finite number"),
        ({"gamma": "0.1"}, "gamma: expected a positive finite number"),
        ({"gamma": 1e-70}, "bandwidth: expected"),
        ({"z": [[1.0, 2.0], [3.0]]}, "z: expected rows of equal length"),
        ({"z": [["a"]] * 5}, "z: expected numbers"),
        ({"z": []}, "z: expected"),
        ({"z": [1.0, 2.0]}, r"z: expected shape \(n, d\)"),
        ({"z": [[float("inf")]] * 5}, "z: expected finite numbers"),
        ({"z": [[10**400]] * 5}, "z: expected numbers"),
        ({"beta": [1.0]}, r"beta: expected shape \(5,\), one weight per point"),
        ({"beta": [[1.0]] * 5}, r"beta: expected shape \(5,\)"),
        ({"beta": [float("nan")] * 5}, "beta: expected finite numbers"),
        ({"beta": "high"}, "beta: expected numbers"),
    ],
)
def test_a_field_that_is_off_is_refused_by_name(tmp_path, change, message):
    written(tmp_path / "a.json", **change)
    with pytest.raises(FileError, match="a.json: .*" + message):
        from_learnware(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text", ["", "{", "[1, 2]", "3", "null", '{"z": [[1', "\x80", "[" * 100_000, "__import__('os')"]
)
def test_files_of_another_kind_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match="a.json: "):
        from_learnware(tmp_path / "a.json")


def test_bad_arguments_are_named_and_nothing_is_written(tmp_path):
    points, kernel, path = np.ones((3, 2)), js.Gaussian(bandwidth=1.0), tmp_path / "a.json"
    good = js.ReducedSet(points, np.ones(3))
    with pytest.raises(FileNotFoundError, match="a.json"):
        from_learnware(path)
    with pytest.raises(FileError, match="expected a file, got a folder"):
        from_learnware(tmp_path)
    with pytest.raises(TypeError, match="reduced_set: expected a ReducedSet, got a ndarray"):
        to_learnware(path, points, kernel)
    with pytest.raises(TypeError, match="kernel: expected a kernel"):
        to_learnware(path, good, 0.1)
    with pytest.raises(ValueError, match="kernel: expected a Gaussian, got a Laplacian"):
        to_learnware(path, good, js.Laplacian(bandwidth=1.0))
    with pytest.raises(ValueError, match=r"reduced_set.weights: expected shape \(3,\)"):
        to_learnware(path, js.ReducedSet(points, np.ones(4)), kernel)
    with pytest.raises(ValueError, match="reduced_set.weights: expected finite"):
        to_learnware(path, js.ReducedSet(points, np.full(3, np.nan)), kernel)
    with pytest.raises(ValueError, match="reduced_set.points: expected finite"):
        to_learnware(path, js.ReducedSet(points * np.inf, np.ones(3)), kernel)
    with pytest.raises(ValueError, match="num_examples: expected at least 0"):
        to_learnware(path, good, kernel, num_examples=-1)
    assert not list(tmp_path.iterdir())


def test_the_other_package_is_not_imported():
    code = (
        "import sys, jaxspec.files; print([m for m in ('learnware', 'torch') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr
