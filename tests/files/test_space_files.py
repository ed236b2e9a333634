"""Files of spaces: the space comes back with its digest, or the file is refused by name."""

import json
import os

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from made_files import DIMENSION, KERNELS, made_space, made_specification, refused
from test_specification_files import checksum_of

import jaxspec as js


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("bandwidth", [0.1, np.float32(0.1), np.float64(1 / 3), 1e15])
def test_a_space_comes_back_with_its_digest(tmp_path, kernel, probe, bandwidth):
    space = made_space(probe, kernel, bandwidth)
    space.save(tmp_path / "x.space.safetensors")
    back = js.Space.load(tmp_path / "x.space.safetensors")
    assert back == space
    assert back.digest == space.digest
    assert (back.name, back.dimension, type(back.kernel)) == (space.name, DIMENSION, kernel)
    assert float(back.kernel.bandwidth) == float(np.float32(bandwidth))
    assert (back.probe is None) == (not probe)
    if probe:
        assert isinstance(back.probe, jax.Array)
        np.testing.assert_array_equal(back.probe, space.probe)
        np.testing.assert_array_equal(back.landmarks, space.landmarks)
    assert os.listdir(tmp_path) == ["x.space.safetensors"]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in "ab":
        made_space().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_two_loads_are_equal_and_a_market_of_one_takes_specifications_of_the_other(tmp_path):
    made_space().save(tmp_path / "x")
    one, two = js.Space.load(tmp_path / "x"), js.Space.load(tmp_path / "x")
    assert one == two
    assert len(js.Market(one, {"a": made_specification(0, space=two, probe=True)})) == 1


def changed(path, *, values=None, arrays=None, drop=None, header=None):
    made_space().save(path)
    with safetensors.safe_open(path, framework="np") as file:
        document = json.loads(file.metadata()["jaxspec"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    document.update(header or {})
    document["values"].update(values or {})
    tensors.update({name: np.asarray(array) for name, array in (arrays or {}).items()})
    tensors.pop(drop, None)
    document["values"].pop(drop, None)
    document.pop("checksum")
    document["checksum"] = checksum_of(document, tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"jaxspec": json.dumps(document)})


PROBE = np.ones((30, DIMENSION), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"header": {"format_version": 2}}, "format_version: expected 1, got 2"),
        ({"values": {"name": ""}}, "name: expected a non-empty string"),
        ({"values": {"name": "another"}}, "digest: expected"),
        ({"values": {"kernel": "Popen"}}, r"kernel: expected one of \['Gaussian'.*got 'Popen'"),
        ({"values": {"kernel": "Laplacian"}}, "digest: expected"),
        ({"values": {"dimension": 7}}, r"probe: expected shape \(probe_row, feature=7\)"),
        ({"values": {"dimension": 0}}, "dimension: expected an integer from 1"),
        ({"values": {"dimension": 6.0}}, "dimension: expected an integer from 1"),
        ({"values": {"digest": "0" * 32}}, "digest: expected"),
        ({"values": {"digest": 3}}, "digest: expected a digest in hexadecimal, got 3"),
        ({"drop": "kernel.bandwidth"}, "kernel.bandwidth: expected this array"),
        ({"drop": "probe"}, "digest: expected"),
        ({"arrays": {"kernel.bandwidth": np.float32(0)}}, "bandwidth: expected a positive"),
        ({"arrays": {"kernel.bandwidth": np.float32(-1)}}, "bandwidth: expected a positive"),
        ({"arrays": {"kernel.bandwidth": np.float32(1e-20)}}, "whose square float32 holds"),
        ({"arrays": {"kernel.bandwidth": np.float32(1e-30)}}, "whose square float32 holds"),
        ({"arrays": {"kernel.bandwidth": np.float32(1e20)}}, "bandwidth"),
        ({"arrays": {"kernel.bandwidth": np.float32(np.nan)}}, "finite.*bandwidth"),
        ({"arrays": {"kernel.bandwidth": np.ones(1, np.float32)}}, "bandwidth: expected 0 axes"),
        ({"arrays": {"kernel.bandwidth": np.float64(3)}}, "bandwidth: .*got 'F64'"),
        ({"arrays": {"probe": PROBE * np.inf}}, "finite.*probe"),
        ({"arrays": {"probe": PROBE}}, "digest: expected"),
        ({"arrays": {"probe": PROBE[:, :3]}}, "probe: expected shape"),
    ],
)
def test_a_field_that_is_not_as_it_must_be_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "x.safetensors"
    changed(path, **change)
    refused(lambda: js.Space.load(path), path, message)


def test_a_bandwidth_whose_square_underflows_is_not_written(tmp_path):
    for probe in (True, False):
        try:
            space = made_space(probe, js.Gaussian, 1e-21)
        except ValueError:
            continue  # refused already where a space is made
        path = tmp_path / "x.safetensors"
        refused(lambda space=space, path=path: space.save(path), path, "whose square float32 holds")
    assert not os.listdir(tmp_path)


def test_a_specification_is_no_space_and_a_space_no_specification(tmp_path):
    made_specification(0).save(tmp_path / "spec")
    made_space().save(tmp_path / "space")
    refused(lambda: js.Space.load(tmp_path / "spec"), tmp_path / "spec", "got 'Specification'")
    refused(lambda: js.Specification.load(tmp_path / "space"), tmp_path / "space", "got 'Space'")
