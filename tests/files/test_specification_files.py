"""Files of specifications: bit-exact round trips, and refusal of everything else by name."""

import copy
import dataclasses
import json
import os
import pickle
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from made_files import (
    DIMENSION,
    assert_same,
    made_space,
    made_specification,
    made_user,
    refused,
)

import jaxspec as js
from jaxspec.base import FileError
from jaxspec.files import specification_files
from jaxspec.specify import RANK, About, ProbeProxy


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(
    "parts", [{}, {"probe": True}, {"hidden": True}, {"probe": True, "hidden": True}]
)
def test_a_specification_comes_back_bit_by_bit(tmp_path, classes, parts):
    about = About({"licence": "MIT", "parameters": 4_200_000, "share": 0.1, "open": True})
    spec = made_specification(1, classes=classes, about=about, **parts)
    spec.save(tmp_path / "x.safetensors")
    back = js.Specification.load(tmp_path / "x.safetensors")
    assert_same(back, spec)
    assert [type(value) for value in back.about.values()] == [str, bool, int, float]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(back))
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("share_labels", [True, False])
def test_a_user_specification_comes_back_bit_by_bit(tmp_path, share_labels):
    user = made_user(1, share_labels=share_labels)
    user.save(str(tmp_path / "u.safetensors"))
    back = js.UserSpecification.load(str(tmp_path / "u.safetensors"))
    assert_same(back, user)
    assert (back.labels is None) == (not share_labels)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in "ab":
        made_specification(1, probe=True, hidden=True).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_processes_and_orders_give_the_same_bytes(tmp_path):
    entries = {"licence": "MIT", "b": 1, "a": 2.5, "open": True}
    made_specification(1, probe=True, about=About(entries)).save(tmp_path / "a")
    made_user(1).save(tmp_path / "user a")
    made_space().save(tmp_path / "space a")
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from made_files import *\n"
        "from jaxspec.specify import About\n"
        "entries = {'open': True, 'a': 2.5, 'b': 1, 'licence': 'MIT'}\n"
        "made_specification(1, probe=True, about=About(entries)).save(sys.argv[1] + '/b')\n"
        "made_user(1).save(sys.argv[1] + '/user b')\n"
        "made_space().save(sys.argv[1] + '/space b')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    for name in ("", "user ", "space "):
        assert (tmp_path / f"{name}a").read_bytes() == (tmp_path / f"{name}b").read_bytes()


def test_files_of_newer_versions_are_said_to_be_that(tmp_path):
    path = tmp_path / "x.safetensors"
    changed(path, header={"format_version": 3})
    message = "format_version: expected 2, got 3; a newer version of jaxspec wrote this file"
    refused(lambda: js.Specification.load(path), path, message)


def test_a_reader_takes_all_versions_from_its_oldest_on(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    changed(path, header={"format_version": 2})
    later = dataclasses.replace(specification_files.SPECIFICATION, version=4, oldest=2)
    monkeypatch.setattr(specification_files, "SPECIFICATION", later)
    assert_same(js.Specification.load(path), made_specification(0, probe=True))
    changed_again = dataclasses.replace(later, oldest=3)
    monkeypatch.setattr(specification_files, "SPECIFICATION", changed_again)
    refused(lambda: js.Specification.load(path), path, "format_version: expected 4, got 2")


def test_two_loads_of_one_file_can_be_compared(tmp_path):
    made_specification(0).save(tmp_path / "s")
    made_user(0).save(tmp_path / "u")
    for cls, name in ((js.Specification, "s"), (js.UserSpecification, "u")):
        one, two = cls.load(tmp_path / name), cls.load(tmp_path / name)
        assert (one == two) in (True, False)
        assert one == one
        assert copy.deepcopy(one) is not None


def test_every_field_of_the_classes_is_declared():
    """A field that is added to a class must be saved, or said to be no part of a file."""
    version = {"format_version"}
    for cls, kind in (
        (js.Specification, specification_files.SPECIFICATION),
        (js.UserSpecification, specification_files.USER_SPECIFICATION),
    ):
        declared = {name.partition(".")[0] for name in kind.arrays} | set(kind.values)
        assert {field.name for field in dataclasses.fields(cls)} == declared | version
    for cls, field in (
        (js.ReducedSet, "reduced_set"),
        (js.Proxy, "proxy"),
        (ProbeProxy, "probe_proxy"),
    ):
        arrays = specification_files.SPECIFICATION.arrays
        declared = {name.partition(".")[2] for name in arrays if name.startswith(f"{field}.")}
        assert {one.name for one in dataclasses.fields(cls)} == declared


def test_unusual_names_and_memory_layouts_come_back(tmp_path):
    spec = made_specification(2)
    weights = np.asarray(spec.proxy.weights)
    transposed = dataclasses.replace(spec.proxy, weights=np.array(weights.T, order="C").T)
    spec = dataclasses.replace(
        spec, proxy=transposed, num_examples=np.int64(7), class_names=("ü", "b", "\0", "\ud800")
    )
    spec.save(tmp_path / "x.safetensors")
    assert_same(js.Specification.load(tmp_path / "x.safetensors"), spec)


def test_both_unicode_forms_of_a_class_name_are_one_name(tmp_path):
    spec = made_specification(0, class_names=("cafe\u0301", "b", "c", "d"))
    spec.save(tmp_path / "x.safetensors")
    assert js.Specification.load(tmp_path / "x.safetensors").class_names[0] == "caf\u00e9"


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f8", "<f4"])
def test_arrays_of_any_byte_order_and_width_come_back_as_numbers(tmp_path, dtype):
    spec = jax.tree.map(lambda leaf: np.asarray(leaf, dtype) / 3, made_specification(0))
    spec.save(tmp_path / "x.safetensors")
    back = js.Specification.load(tmp_path / "x.safetensors")
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(spec), strict=True):
        np.testing.assert_array_equal(a, b.astype(np.float32))
    with jax.enable_x64(True):
        back = js.Specification.load(tmp_path / "x.safetensors")
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(spec), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype.newbyteorder("=")


def test_a_probe_proxy_of_five_classes_takes_at_most_45_kilobytes(tmp_path):
    probe = np.random.default_rng(0).normal(size=(1000, 64))
    space = js.Space("s", js.Gaussian(bandwidth=8.0), dimension=64, probe=probe)
    assert len(space.landmarks) == 800
    spec = made_specification(0, classes=5, size=50, space=space, probe=True, hidden=True)
    spec.save(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_size <= 45_000


def test_saving_again_replaces_the_file_and_a_failed_save_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "x.safetensors"
    made_specification(0).save(path)
    made_specification(1).save(path)
    assert_same(js.Specification.load(path), made_specification(1))

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        made_specification(2).save(path)
    assert_same(js.Specification.load(path), made_specification(1))
    assert os.listdir(path.parent) == ["x.safetensors"]


# Files that are changed


def checksum_of(document, tensors):
    """The checksum by its definition, for files that are changed on purpose."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    checksum = zlib.crc32(text.encode())
    for name, array in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.tobytes(), checksum)
    return checksum


def changed(path, *, header=None, values=None, arrays=None, drop=None, user=False, honest=True):
    """Write a file with some parts replaced, with a checksum that fits if `honest`."""
    (made_user(0) if user else made_specification(0, probe=True)).save(path)
    with safetensors.safe_open(path, framework="np") as file:
        document = json.loads(file.metadata()["jaxspec"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    document["values"].update(values or {})
    tensors.update({name: np.asarray(array) for name, array in (arrays or {}).items()})
    tensors.pop(drop, None)
    document["values"].pop(drop, None)
    document.update(header or {})
    checksum = document.pop("checksum")
    document["checksum"] = checksum_of(document, tensors) if honest else checksum
    safetensors.numpy.save_file(tensors, path, metadata={"jaxspec": json.dumps(document)})


ZEROS = np.zeros((10, DIMENSION), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"header": {"format_version": 1}}, "format_version: expected 2, got 1"),
        ({"header": {"format_version": True}}, "format_version: expected 2, got True"),
        ({"header": {"kind": "UserSpecification"}}, "expected a Specification, got 'UserSpec"),
        ({"header": {"format": "other"}}, "format: expected 'jaxspec', got 'other'"),
        ({"header": {"values": []}}, "values: expected an object"),
        ({"header": {"more": 1}}, "metadata: expected an object with"),
        ({"values": {"class_names": ["a", "b", "c"]}}, r"proxy.*shape \(.*class=3\)"),
        ({"values": {"class_names": ["a", "b", "c", 4]}}, "class_names: expected strings, got 4"),
        ({"values": {"class_names": ["a", "b", "c", "a"]}}, "class_names: expected different"),
        ({"values": {"class_names": ["a", "b", "c", "d" * 1001]}}, "class_names: .*1000 char"),
        ({"values": {"class_names": "abcd"}}, "class_names: expected a list"),
        ({"values": {"space_name": 3}}, "space_name: expected a non-empty string.*got 3"),
        ({"values": {"space_name": " "}}, "space_name"),
        ({"values": {"space_digest": "xyz"}}, "space_digest: expected a digest"),
        ({"values": {"num_examples": "9"}}, "num_examples: expected an integer.*got '9'"),
        ({"values": {"num_examples": 9.0}}, "num_examples: expected an integer.*got 9.0"),
        ({"values": {"num_examples": -1}}, "num_examples: .*got -1"),
        ({"values": {"num_examples": True}}, "num_examples: .*got True"),
        ({"values": {"num_examples": 2**60}}, "num_examples: "),
        ({"values": {"about": ["MIT"]}}, "about: expected an object"),
        ({"values": {"about": {"a": None}}}, "about: expected a string, a number or a boolean"),
        ({"values": {"about": {"a": "x" * 1001}}}, "about: expected .* at most 1000 characters"),
        ({"values": {"about": {str(i): i for i in range(65)}}}, "about: expected at most 64"),
        ({"values": {"other": 1}}, "other.*no such field"),
        ({"drop": "space_name"}, "space_name: expected this field"),
        ({"drop": "class_names"}, "class_names: expected this field"),
        ({"drop": "proxy.bias"}, "proxy.bias: expected this array"),
        ({"drop": "probe_proxy.fidelity"}, "probe_proxy.fidelity: expected this array"),
        ({"arrays": {"more": ZEROS}}, "more.*no such array"),
        ({"arrays": {"labels": np.zeros(10, np.int32)}}, "labels.*no such array"),
        ({"arrays": {"reduced_set.points": ZEROS * np.nan}}, "finite.*reduced_set.points"),
        ({"arrays": {"reduced_set.points": ZEROS + 1e16}}, "1e.15 in reduced_set.points"),
        ({"arrays": {"reduced_set.points": ZEROS[:, :0]}}, "reduced_set.points: .*feature, got 0"),
        ({"arrays": {"reduced_set.points": ZEROS[:5]}}, r"reduced_set.*shape \(point=\d+"),
        ({"arrays": {"reduced_set.points": ZEROS[0]}}, r"points: expected 2 axes, got 1"),
        ({"arrays": {"reduced_set.points": ZEROS.astype(int)}}, "reduced_set.points: .*got 'I64'"),
        ({"arrays": {"proxy.weights": np.zeros((5, 4), np.float32)}}, "proxy.weights: expected sh"),
        ({"arrays": {"representation": ZEROS.T}}, rf"representation: .*direction={RANK}"),
        ({"arrays": {"probe_proxy.fidelity": np.float32(1.5)}}, "fidelity: .*0..1, got 1.5"),
        ({"arrays": {"probe_proxy.fidelity": np.ones(1, np.float32)}}, "fidelity: expected 0 axes"),
        ({"honest": False, "values": {"num_examples": 121}}, "checksum"),
        ({"honest": False, "arrays": {"proxy.bias": np.ones(4, np.float32)}}, "checksum"),
        ({"user": True}, "expected a Specification, got 'UserSpecification'"),
    ],
)
def test_a_field_that_is_not_as_it_must_be_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "x.safetensors"
    changed(path, **change)
    refused(lambda: js.Specification.load(path), path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "expected a UserSpecification, got 'Specification'"),
        ({"user": True, "arrays": {"labels": np.full(40, 4)}}, r"labels: expected .*0\.\.3, got 4"),
        ({"user": True, "arrays": {"labels": np.full(40, -1)}}, r"labels: expected .*got -1"),
        ({"user": True, "arrays": {"labels": np.zeros(39, int)}}, "labels: expected shape"),
        ({"user": True, "arrays": {"labels": np.zeros(40)}}, "labels: .*got 'F64'"),
        (
            {"user": True, "arrays": {"reduced_set.weights": np.zeros(40, np.float32)}},
            "weights: expected a sum above zero, got 0.0",
        ),
        (
            {"user": True, "arrays": {"reduced_set.weights": np.full(40, -1, np.float32)}},
            "weights: expected a sum above zero, got -40.0",
        ),
        ({"user": True, "values": {"about": {}}}, "about.*no such field"),
    ],
)
def test_a_user_field_that_is_not_as_it_must_be_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "x.safetensors"
    changed(path, **change)
    refused(lambda: js.UserSpecification.load(path), path, message)


def test_what_could_not_be_read_is_not_written(tmp_path):
    spec, user, path = made_specification(0, probe=True), made_user(0), tmp_path / "x.safetensors"
    weights = np.full(10, np.nan, np.float32)
    halves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), spec.proxy)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), spec)
    for bad, message in [
        (dataclasses.replace(spec, reduced_set=js.ReducedSet(ZEROS, weights)), "finite.*weights"),
        (dataclasses.replace(spec, class_names=("a", "b")), "proxy"),
        (dataclasses.replace(spec, class_names="abcd"), "class_names: expected a tuple"),
        (dataclasses.replace(spec, format_version=9), "format_version: expected 2, got 9"),
        (dataclasses.replace(spec, num_examples=1.5), "num_examples|float"),
        (dataclasses.replace(user, labels=np.full(40, 4, np.int32)), r"labels: expected .*0\.\.3"),
        (dataclasses.replace(spec, proxy=halves), "dtype bfloat16"),
        (several, "axes, got"),
    ]:
        refused(lambda bad=bad: bad.save(path), path, message)
    assert not os.listdir(tmp_path)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_damaged_bit_anywhere_is_noticed(tmp_path):
    """Numbers and names that are only slightly changed would be scored without an error."""
    path = tmp_path / "spec.safetensors"
    made_specification(0).save(path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")  # of the numbers, after length and header
    places = np.random.default_rng(0).integers(start, len(data), 100)
    for place in [*range(start), *places, *range(len(data) - 8, len(data))]:
        broken = bytearray(data)
        broken[place] ^= 1  # the last bit of a number, or the next letter
        path.write_bytes(broken)
        refused(lambda: js.Specification.load(path), path, "expected")
    path.write_bytes(data)
    assert_same(js.Specification.load(path), made_specification(0))


def conforms(spec):
    """Check what the format promises of anything that is loaded."""
    (m, d), classes = spec.reduced_set.points.shape, len(spec.class_names)
    assert spec.reduced_set.weights.shape == (m,)
    assert spec.proxy.weights.shape == (d, classes)
    assert spec.proxy.bias.shape == (classes,)
    assert len(set(spec.class_names)) == classes >= 2
    assert all(isinstance(name, str) and name.strip() for name in spec.class_names)
    assert isinstance(spec.space_name, str)
    assert spec.num_examples >= 0
    for leaf in jax.tree.leaves(spec):
        assert leaf.dtype in (jnp.float32, jnp.float16)
        assert float(jnp.abs(leaf).max()) <= 1e15


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_refused_or_hold_what_the_format_promises(tmp_path, seed):
    """Bytes are flipped, cut, repeated and put in; numbers in the header are changed."""
    rng, path = np.random.default_rng(seed), tmp_path / "x.safetensors"
    made_specification(0, probe=True, hidden=True).save(path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, start if rng.random() < 0.8 else len(data)))
            kind = rng.integers(5)
            if kind == 0:
                data[at] = rng.integers(256)
            elif kind == 1:
                data[at] ^= 1 << rng.integers(8)
            elif kind == 2:
                del data[at : at + int(rng.integers(1, 20))]
            elif kind == 3:
                data[at:at] = data[at : at + int(rng.integers(1, 20))]
            else:
                digits = [i for i in range(8, min(start, len(data))) if 48 <= data[i] < 58]
                data[digits[rng.integers(len(digits))]] = 48 + rng.integers(10)
        if rng.random() < 0.5:  # a length that fits to the header again
            grown = len(data) - len(whole)
            data[:8] = max(start - 8 + grown, 0).to_bytes(8, "little")
        path.write_bytes(data)
        try:
            spec = js.Specification.load(path)
        except FileError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
        else:
            conforms(spec)


@pytest.mark.parametrize("seed", range(2))
def test_declarations_with_a_right_checksum_are_refused_or_hold_what_is_promised(tmp_path, seed):
    """A forger computes checksums, so only the declarations can refuse a change."""
    rng, path = np.random.default_rng(seed), tmp_path / "x.safetensors"
    odd = [None, True, -1, 0, 2**63, 1.5, "", "x", [], {}, ["a", "b"], [[]], 10**400]
    fields = ["class_names", "space_name", "space_digest", "num_examples", "about"]
    shapes = [(), (0,), (1,), (4,), (10,), (6, 4), (4, 6), (10, 6), (30, 4), (1, 10, 6)]
    arrays = [*specification_files.SPECIFICATION.arrays, "labels", "x"]
    for _ in range(100):
        change = {"values": {rng.choice(fields): odd[rng.integers(len(odd))]}}
        if rng.random() < 0.7:
            shape = shapes[rng.integers(len(shapes))]
            dtype = rng.choice(["f2", "f4", "f8", "i4", "u1", "b1", "c8"])
            change = {"arrays": {rng.choice(arrays): np.ones(shape, dtype)}}
        try:
            changed(path, **change)
        except (ValueError, TypeError, KeyError, safetensors.SafetensorError):
            continue  # not even this file can be written
        try:
            spec = js.Specification.load(path)
        except FileError:
            continue
        with jax.enable_x64(False):
            conforms(spec)


# What is no specification file


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "this seems to be an empty file"),
        (b"\0", "this seems to be something unknown"),
        (b"garbage" * 99, "this seems to be text"),
        (b'{"z": [1, 2], "beta": [1]}', "this seems to be JSON"),
        (b'\n [{"a": 1}]', "this seems to be JSON"),
        (b"<html><body>404</body></html>", "this seems to be HTML or XML"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "this seems to be a PNG picture"),
        (b"\xff\xd8\xff\xe0" + bytes(99), "this seems to be a JPEG picture"),
        (b"\x1f\x8b\x08" + bytes(99), "this seems to be a gzip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this seems to be a Git LFS pointer"),
        (pickle.dumps({"a": 1}), "this seems to be a pickle"),
        (raw({"a": entry([1], [0, 4])}, b"1234"), "a safetensors file of something else"),
        (raw({"__metadata__": {"jaxspec": "[" * 10**6}}), "expected JSON of at most 3 levels"),
        (raw(b"{" * 10**6), "header: expected JSON of at most 3 levels"),
        (raw(b'{"__metadata__": {"jaxspec": "' + b'\\"' * 10**6), "header: expected JSON"),
        (raw(b'{"a": 1, "a": 1}'), "one name twice"),
        (raw({"__metadata__": {"jaxspec": "{}"}}), "metadata: expected an object with"),
        (raw({"__metadata__": {"jaxspec": "NaN"}}), "NaN is not a number"),
        (raw({"__metadata__": ["jaxspec"]}), "a safetensors file of something else"),
        ((1 << 62).to_bytes(8, "little") + b'{"a": 1}', "a safetensors file that is cut short"),
    ],
)
def test_files_of_another_kind_are_refused_and_said_to_be_that(tmp_path, data, message):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    for cls in (js.Specification, js.UserSpecification, js.Space):
        refused(lambda cls=cls: cls.load(path), path, message)


def test_archives_folders_and_markets_are_said_to_be_that(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "folder").mkdir()
    (tmp_path / "market").mkdir()
    (tmp_path / "market" / "market.json").write_text("{}")
    for name, message in [
        ("a.npz", r"seems to be numpy arrays \(.npz\)"),
        ("a.npy", r"seems to be a numpy array \(.npy\)"),
        ("folder", "seems to be a folder"),
        ("market", "seems to be the folder of a market, which Market.load reads"),
    ]:
        path = tmp_path / name
        refused(lambda path=path: js.Specification.load(path), path, message)
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors"):
        js.Specification.load(tmp_path / "nowhere.safetensors")


def test_no_pickle_is_run(tmp_path):
    path, witness = tmp_path / "x.safetensors", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Bomb(witness)))
    refused(lambda: js.Specification.load(path), path, "never opened because it could run code")
    assert not witness.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_sockets_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path, kind in [
            (tmp_path / "pipe", "named pipe"),
            (tmp_path / "socket", "socket"),
            (Path("/dev/zero"), "device"),
        ]:
            for cls in (js.Specification, js.Space):
                message = f"expected a regular file, got a {kind}"
                refused(lambda path=path, cls=cls: cls.load(path), path, message)


def test_declared_sizes_are_compared_before_anything_is_allocated(tmp_path):
    path = tmp_path / "x.safetensors"
    made_specification(0).save(path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    terabytes = {**header, "reduced_set.points": entry([10**9, 6], [0, 24 * 10**9])}
    overlap = {**header, "proxy.weights": {**header["proxy.weights"], "data_offsets": [0, 96]}}
    short = {**header, "proxy.bias": {**header["proxy.bias"], "shape": [3]}}
    negative = {**header, "proxy.bias": {**header["proxy.bias"], "shape": [-4]}}
    complex_ = {**header, "proxy.bias": {**header["proxy.bias"], "dtype": "C64"}}
    for content, message in [
        (raw(terabytes, data), "data_offsets: expected arrays that fill"),
        (raw(overlap, data), "data_offsets: expected arrays that fill"),
        (raw(short, data), "proxy.bias: expected 12 bytes"),
        (raw(negative, data), "proxy.bias: expected shape of whole numbers"),
        (raw(complex_, data), "proxy.bias: expected numbers of type .*got 'C64'"),
        (raw(header, data[:-4]), "data_offsets: expected arrays that fill"),
        (raw(header, data + b"0000"), "data_offsets: expected arrays that fill"),
    ]:
        path.write_bytes(content)
        refused(lambda: js.Specification.load(path), path, message)
    with open(path, "wb") as file:  # a sparse file takes no place on disk
        file.write(whole)
        file.truncate((1 << 30) + 1)
    refused(lambda: js.Specification.load(path), path, "expected at most 1073741824 bytes")
    with open(path, "wb") as file:
        file.write((1 << 29).to_bytes(8, "little") + b"{")
        file.truncate(1 << 30)
    refused(lambda: js.Specification.load(path), path, "header: expected at most")


@pytest.mark.parametrize("path", [None, 5, ["a"], b"a"])
def test_what_is_no_path_is_refused_by_name(path):
    for call in (
        lambda: made_specification(0).save(path),
        lambda: js.Specification.load(path),
        lambda: made_user(0).save(path),
        lambda: made_space().save(path),
        lambda: js.Space.load(path),
    ):
        with pytest.raises(TypeError, match="path: expected a string or a path, got a"):
            call()


@pytest.mark.parametrize("path", ["gs://bucket/x.safetensors", "s3://bucket/x", "https://a/b"])
def test_addresses_are_refused_by_name(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: made_specification(0).save(path),
        lambda: js.Specification.load(path),
        lambda: made_space().save(path),
    ):
        with pytest.raises(ValueError, match="path: "):
            call()
    assert not os.listdir(tmp_path)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    made_specification(0).save("~/mine.safetensors")
    assert os.listdir(tmp_path) == ["mine.safetensors"]
    assert_same(js.Specification.load("~/mine.safetensors"), made_specification(0))


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    message = "expected the name of a file, got a folder"
    refused(lambda: made_specification(0).save(tmp_path / "folder"), tmp_path / "folder", message)
