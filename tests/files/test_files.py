"""Storage: bit-exact round trips, saves that are never half done, and files that are refused."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import DIMENSION, KERNEL, SPACE, names
from test_probe import specification_with_probe

import jaxspec as js
from jaxspec.files import store
from jaxspec.market.market import ROW_FIELDS
from jaxspec.specify.proxy import ProxyDiagnostics
from jaxspec.specify.reduced_set import Diagnostics

REPOSITORY = Path(__file__).resolve().parents[2]
KERNELS = [js.Gaussian, js.Laplacian, js.InverseMultiquadric]


def made_parts(seed, classes, size):
    """Return a reduced set and a proxy of random numbers, with diagnostics of every kind."""
    rng = np.random.default_rng([seed, classes, size])
    points = rng.normal(size=(size, DIMENSION)).astype(np.float32)
    weights = rng.normal(size=size).astype(np.float32)
    found = Diagnostics(None, 0.1, jnp.float32(seed / 3), np.int32(4))
    vectors = rng.normal(size=(DIMENSION, classes)).astype(np.float32)
    bias = rng.normal(size=classes).astype(np.float32)
    fit = ProxyDiagnostics(jnp.float32(1 / 3), np.float64(1e-300), 17)
    return js.ReducedSet(points, weights, found), js.Proxy(jnp.asarray(vectors), bias, fit)


def made_specification(seed, classes=4, size=10):
    parts = made_parts(seed, classes, size)
    return js.Specification(*parts, KERNEL, tuple(names(classes)), SPACE, num_examples=120)


def made_user(seed, classes=4, class_names=None, share_labels=True):
    labels = np.arange(40, dtype=np.int32) % classes if share_labels else None
    own = tuple(class_names or names(classes))
    return js.UserSpecification(*made_parts(seed, classes, 40), KERNEL, labels, own, SPACE, 40)


@pytest.fixture(scope="module")
def market():
    return js.Market.from_specifications({f"m{s}": made_specification(s) for s in range(6)})


def assert_same(one, two):
    """Check that two specifications agree in every bit, dtype and name."""
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).shape == np.asarray(b).shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# Specification files


@pytest.mark.parametrize("classes", [3, 10])
def test_a_specification_comes_back_bit_by_bit(tmp_path, classes):
    spec = made_specification(1, classes=classes)
    spec.save(tmp_path / "x.safetensors")
    back = js.Specification.load(tmp_path / "x.safetensors")
    assert_same(back, spec)
    assert isinstance(back.kernel.bandwidth, float)
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("share_labels", [True, False])
def test_a_user_specification_comes_back_bit_by_bit(tmp_path, share_labels):
    user = made_user(1, share_labels=share_labels)
    user.save(str(tmp_path / "u.safetensors"))
    back = js.UserSpecification.load(str(tmp_path / "u.safetensors"))
    assert_same(back, user)
    assert (back.labels is None) == (not share_labels)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bandwidth", [0.1, np.float32(0.1), jnp.float32(3.0), np.float64(1 / 3)])
def test_every_kernel_and_kind_of_bandwidth_comes_back(tmp_path, kernel, bandwidth):
    spec = dataclasses.replace(made_specification(0), kernel=kernel(bandwidth=bandwidth))
    spec.save(tmp_path / "x.safetensors")
    assert_same(js.Specification.load(tmp_path / "x.safetensors"), spec)


def test_specifications_of_any_memory_layout_and_without_diagnostics_come_back(tmp_path, market):
    spec = market["m2"]  # its proxy weights are a transposed view
    assert not spec.proxy.weights.flags.c_contiguous
    spec = dataclasses.replace(
        spec, num_examples=np.int64(7), class_names=("ü", "b", "c", "\ud800")
    )
    spec.save(tmp_path / "x.safetensors")
    assert_same(js.Specification.load(tmp_path / "x.safetensors"), spec)


def test_float64_leaves_come_back_as_float64(tmp_path):
    spec = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) / 3, made_specification(0))
    spec.save(tmp_path / "x.safetensors")
    assert_same(js.Specification.load(tmp_path / "x.safetensors"), spec)


def test_fields_that_are_added_later_need_no_change_here(tmp_path):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Later(js.Specification):
        class_weights: typing.Any = None
        probe_id: str | None = dataclasses.field(metadata={"static": True}, default=None)

    old = made_specification(0)
    parts = {field.name: getattr(old, field.name) for field in dataclasses.fields(old)}
    without = Later(**parts)
    both = Later(**parts, class_weights=np.ones((10, 4), np.float32), probe_id="abc")
    for spec in (without, both):
        spec.save(tmp_path / "x.safetensors")
        assert_same(Later.load(tmp_path / "x.safetensors"), spec)
    with pytest.raises(ValueError, match="expected a Specification, got a 'Later'"):
        js.Specification.load(tmp_path / "x.safetensors")


def test_every_array_of_a_specification_has_a_declared_shape():
    leaves = {f"{at}": leaf for at, leaf in arrays_of(made_user(0)).items()}
    leaves |= arrays_of(made_specification(0))
    undeclared = {at for at in leaves if at not in store._FIELDS and "diagnostics." not in at}
    assert not undeclared, f"add to _FIELDS in jaxspec/store.py: {undeclared}"


def arrays_of(spec):
    header, arrays = {"static": {}, "types": {}, "numbers": {}}, {}
    store._flatten(spec, "", header, arrays)
    return {**header["numbers"], **arrays}


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


def changed(path, *, header=None, static=None, arrays=None, drop=None):
    """Write a specification file to `path` with some of its parts replaced."""
    made_specification(0).save(path)
    with safetensors.safe_open(path, framework="np") as file:
        text = json.loads(file.metadata()["jaxspec"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for part, value in (header or {}).items():
        text[part] = {**text[part], **value} if isinstance(value, dict) else value
    if static:
        text["static"].update(static)
    tensors.update(arrays or {})
    if drop:
        for part in (tensors, text["static"], text["types"], text["numbers"]):
            part.pop(drop, None)
    safetensors.numpy.save_file(tensors, path, metadata={"jaxspec": json.dumps(text)})


ZEROS = np.zeros((10, 6), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"static": {"format_version": 2}}, "format_version: expected 1, got 2"),
        ({"static": {"class_names": ["a", "b", "c"]}}, r"proxy.*shape \(.*C=3\)"),
        ({"static": {"class_names": ["a", "b", "c", 4]}}, "class_names: expected non-empty str"),
        ({"static": {"class_names": ["a", "b", "c", "a"]}}, "class_names: expected different"),
        ({"static": {"class_names": "abcd"}}, "class_names: expected a sequence"),
        ({"static": {"feature_space": 3}}, "feature_space: expected .*str.*got 3"),
        ({"static": {"feature_space": ""}}, "feature_space"),
        ({"static": {"num_examples": "9"}}, "num_examples: expected .*int.*got '9'"),
        ({"static": {"num_examples": -1}}, "num_examples: got -1"),
        ({"static": {"other": 1}}, "other.*no such field"),
        ({"drop": "feature_space"}, "feature_space"),
        ({"drop": "class_names"}, "class_names"),
        ({"drop": "proxy.bias"}, "proxy.bias: expected this field"),
        ({"drop": "kernel"}, "kernel: expected this field"),
        ({"arrays": {"more": ZEROS}}, "more.*no such field"),
        ({"arrays": {"labels": np.zeros(10, np.int32)}}, "labels.*no such field"),
        ({"arrays": {"reduced_set.points": ZEROS * np.nan}}, "reduced_set.points: .*finite"),
        ({"arrays": {"reduced_set.points": ZEROS[:, :0]}}, "reduced_set.points: .*empty axis"),
        ({"arrays": {"reduced_set.points": ZEROS[:5]}}, r"reduced_set.*shape \(m=\d+"),
        ({"arrays": {"reduced_set.points": ZEROS[0]}}, r"points: expected shape \(m, d=6\), got"),
        ({"arrays": {"reduced_set.points": ZEROS.astype(int)}}, "reduced_set.points: .*dtype int"),
        ({"header": {"numbers": {"kernel.bandwidth": -1.0}}}, "bandwidth: expected a positive"),
        ({"header": {"numbers": {"kernel.bandwidth": "3"}}}, "kernel.bandwidth: got '3'"),
        ({"header": {"numbers": {"proxy.bias": [0, 0, 0, 0]}}}, "proxy.bias: got .* as a number"),
        ({"header": {"numbers": {"kernel.bandwidth": float("nan")}}}, "kernel.bandwidth: .*finite"),
        (
            {"header": {"types": {"kernel": "Popen"}}},
            "kernel: .*Popen",
        ),
        ({"header": {"types": {"reduced_set": "Proxy"}}}, "reduced_set: .*unknown kind 'Proxy'"),
        ({"header": {"kind": "UserSpecification"}}, "expected a Specification, got a 'User"),
        ({"header": {"static": []}}, "TypeError"),
    ],
)
def test_a_file_with_a_field_that_is_off_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "x.safetensors"
    changed(path, **change)
    with pytest.raises(ValueError, match=message) as caught:
        js.Specification.load(path)
    assert str(caught.value).startswith(str(path))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_damaged_bit_anywhere_is_noticed(tmp_path):
    """Numbers and names that are only slightly off would be scored without a word."""
    path = tmp_path / "spec.safetensors"
    made_specification(0).save(path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")  # of the numbers, after length and header
    numbers = np.random.default_rng(0).integers(start, len(data), 100)
    places = [*range(start), *numbers, *range(len(data) - 8, len(data))]
    for place in places:
        broken = bytearray(data)
        broken[place] ^= 1  # the last bit of a number, or the next letter
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="spec.safetensors"):
            js.Specification.load(path)
    path.write_bytes(data)
    assert js.Specification.load(path).class_names == made_specification(0).class_names


def test_files_without_a_checksum_are_read(tmp_path):
    """Version 1 began without one."""
    changed(tmp_path / "x.safetensors")  # nothing but that
    assert_same(js.Specification.load(tmp_path / "x.safetensors"), made_specification(0))


@pytest.mark.parametrize("path", [None, 5, ["a"]])
def test_what_is_no_path_is_refused_by_name(market, path):
    calls = [
        lambda: made_specification(0).save(path),
        lambda: js.Specification.load(path),
        lambda: market.save(path),
        lambda: js.Market.load(path),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="path: expected a string or a path, got a"):
            call()


def test_a_folder_is_no_file_and_a_file_no_folder(market, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder: expected a file's name, got a folder"):
        made_specification(0).save(tmp_path / "folder")
    with pytest.raises(ValueError, match="file: expected a folder, got a file"):
        market.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


def test_files_of_another_kind_are_refused_and_run_nothing(tmp_path):
    path, witness = tmp_path / "x.safetensors", tmp_path / "ran"
    made_specification(0).save(path)
    whole = path.read_bytes()
    huge = (1 << 62).to_bytes(8, "little")
    text = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    liar = len(text).to_bytes(8, "little") + text + b"1234"
    foreign = safetensors.numpy.save({"a": ZEROS})
    nested = safetensors.numpy.save({"a": ZEROS}, metadata={"jaxspec": "[" * 100_000})
    bad = [b"", b"\0", b"garbage" * 99, huge + whole[8:], whole[:-1], whole[:40], whole + b"0"]
    for data in [*bad, liar, foreign, nested, pickle.dumps(Bomb(witness))]:
        path.write_bytes(data)
        with pytest.raises(ValueError) as caught:
            js.Specification.load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    assert not witness.exists()
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors: there is nothing"):
        js.Specification.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="got a folder"):
        js.Specification.load(tmp_path)


def test_what_could_not_be_read_is_not_written(tmp_path):
    spec, user = made_specification(0), made_user(0)
    weights = np.full(10, np.nan, np.float32)
    halves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), spec.proxy)
    for bad, message in [
        (dataclasses.replace(spec, reduced_set=js.ReducedSet(ZEROS, weights)), "weights: .*finite"),
        (dataclasses.replace(spec, class_names=("a", "b")), "proxy"),
        (dataclasses.replace(spec, format_version=9), "format_version"),
        (dataclasses.replace(user, labels=np.full(40, 4, np.int32)), r"labels: expected .*0\.\.3"),
        (dataclasses.replace(spec, proxy=halves), "dtype bfloat16"),
    ]:
        with pytest.raises(ValueError, match=message):
            bad.save(tmp_path / "x.safetensors")
    assert not os.listdir(tmp_path)


def test_without_safetensors_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"jaxspec-learnware\[demo\]"):
        made_specification(0).save(tmp_path / "x.safetensors")


# Markets


def assert_same_market(one, two):
    assert one.ids == two.ids
    assert one.feature_space == two.feature_space
    for learnware in one:
        assert_same(one[learnware], two[learnware])
    for field in dataclasses.fields(one.arrays):
        a, b = getattr(one.arrays, field.name), getattr(two.arrays, field.name)
        if field.name in ROW_FIELDS:
            a, b = np.asarray(a)[one.slots], np.asarray(b)[two.slots]
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def saved(market, tmp_path_factory):
    """The market, on disk. Not to be written into."""
    path = tmp_path_factory.mktemp("saved") / "market"
    market.save(path)
    return path


def test_a_market_comes_back_bit_by_bit_and_matches_the_same(market, saved):
    back = js.Market.load(saved)
    assert_same_market(back, market)
    np.testing.assert_array_equal(
        back.class_numbers(("class b",)), market.class_numbers(("class b",))
    )
    for user in (made_user(1), made_user(2, classes=3), made_user(3, class_names=list("wxyz"))):
        before, after = js.match(market, user), js.match(back, user)
        for name in ("scores", "squared_mmd", "class_similarity", "class_map"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_a_loaded_market_grows_and_compiles_nothing(saved, compile_counter):
    market, user, spec = js.Market.load(saved), made_user(1), made_specification(7)
    js.match(market, user)
    version = market
    with compile_counter() as counter:
        for i in range(3):
            version = version.add(f"new {i}", spec)
            js.match(version, user)
    assert counter.count == 0
    assert version.ids == (*market.ids, "new 0", "new 1", "new 2")
    np.testing.assert_array_equal(version["new 2"].reduced_set.points, spec.reduced_set.points)
    unused = np.asarray(market.arrays.class_ids)[len(version) :]
    assert (unused == -1).all()
    assert not np.asarray(market.arrays.points)[len(version) :].any()


def other_names(spec, names):
    return dataclasses.replace(spec, class_names=tuple(names))


@pytest.mark.parametrize("kernel", KERNELS)
def test_removed_learnwares_stay_away_and_class_numbers_hold(tmp_path, kernel):
    specs = {
        "first": other_names(made_specification(0), "pqrs"),
        "gone": other_names(made_specification(1), ["secret", "p", "s", "hidden"]),
        "wide": made_specification(2, classes=10),
        "last": other_names(made_specification(3), "srqt"),
    }
    own = kernel(bandwidth=jnp.float32(2.7))
    specs = {name: dataclasses.replace(spec, kernel=own) for name, spec in specs.items()}
    market = js.Market.from_specifications(specs).remove("gone")
    market.save(tmp_path / "m")
    back = js.Market.load(tmp_path / "m")
    assert back.ids == ("first", "wide", "last")
    assert type(back.kernel) is kernel
    assert float(back.kernel.bandwidth) == float(own.bandwidth)
    for name in back.ids:
        assert back[name].class_names == specs[name].class_names
        assert back.class_names(name) == specs[name].class_names
        np.testing.assert_array_equal(
            back[name].reduced_set.points, market[name].reduced_set.points
        )
        np.testing.assert_array_equal(back[name].proxy.weights, market[name].proxy.weights)
    assert back.class_numbers(("secret", "hidden")).tolist() == [-2, -2]
    facts = next((tmp_path / "m").glob("version-*/facts.json")).read_text()
    assert "gone" not in facts
    assert "secret" not in facts
    users = [
        dataclasses.replace(made_user(0, class_names=list(names)), kernel=own)
        for names in ("pqrs", "tsrq", "wxyz")
    ]
    before, after = js.match(market, users), js.match(back, users)
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-6)
    np.testing.assert_array_equal(after.class_map, before.class_map)
    again = back.add("gone", specs["gone"])
    np.testing.assert_array_equal(
        again["gone"].reduced_set.points, specs["gone"].reduced_set.points
    )


def test_an_origin_far_from_zero_comes_back(tmp_path):
    def moved(spec):
        points = np.asarray(spec.reduced_set.points) + 100
        return dataclasses.replace(
            spec, reduced_set=js.ReducedSet(points, spec.reduced_set.weights)
        )

    market = js.Market.from_specifications(
        {f"m{s}": moved(made_specification(s)) for s in range(2)}
    )
    market.save(tmp_path / "m")
    assert np.linalg.norm(market.arrays.origin) > 100
    assert_same_market(js.Market.load(tmp_path / "m"), market)


def test_saving_again_replaces_the_market_and_keeps_one_version(market, tmp_path):
    path = tmp_path / "folder" / "m"
    market.save(path)
    grown = market.remove("m1").add("new", made_specification(7))
    grown.save(path)
    assert js.Market.load(path).ids == grown.ids
    assert len(list(path.glob("version-*"))) == 1


KILLED = """
import os, sys
import jaxspec as js
from jaxspec.files import store
market = js.Market.load(sys.argv[1]).remove("m0")
name, when = sys.argv[2:]
write, replace = store._write, os.replace
def killed(path, data):
    if path.name == name and when == "before":
        os._exit(7)
    write(path, data)
    if path.name == name:
        os._exit(7)
def killed_replace(one, two):
    if os.path.basename(two) == name:
        os._exit(7)
    replace(one, two)
if when == "within":
    os.replace = killed_replace
else:
    store._write = killed
market.save(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("name", "when", "survivor"),
    [
        ("facts.json", "before", "old"),
        ("market.json", "within", "old"),
        ("market.json", "after", "new"),
    ],
)
def test_a_save_that_is_killed_leaves_a_whole_market(market, tmp_path, name, when, survivor):
    path = tmp_path / "m"
    market.save(path)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", KILLED, str(path), name, when]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr
    assert not done.stderr.strip()  # neither loading nor saving has anything to say
    assert len(list(path.glob("version-*"))) == 2
    want = market.ids if survivor == "old" else market.ids[1:]
    assert js.Market.load(path).ids == want
    for left in path.glob("version-*"):
        os.utime(left, (0, 0))  # killed long ago
    market.save(path)
    assert len(list(path.glob("version-*"))) == 1
    assert js.Market.load(path).ids == market.ids


def test_a_save_that_fails_leaves_the_old_market_and_no_litter(market, tmp_path, monkeypatch):
    path = tmp_path / "m"
    market.save(path)
    before = sorted(p.name for p in path.iterdir())

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(store, "_write", full)
    with pytest.raises(OSError, match="no space left"):
        market.remove("m0").save(path)
    assert sorted(p.name for p in path.iterdir()) == before
    assert js.Market.load(path).ids == market.ids


def test_a_folder_that_is_no_market_is_left_alone(market, tmp_path):
    (tmp_path / "thesis.tex").write_text("all I have")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a market or an empty folder.*thesis"):
        market.save(tmp_path)
    with pytest.raises(ValueError, match="file: "):
        market.save(tmp_path / "file")
    empty = market
    for learnware in market:
        empty = empty.remove(learnware)
    with pytest.raises(ValueError, match="at least one learnware"):
        empty.save(tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == ["file", "thesis.tex"]
    with pytest.raises(FileNotFoundError, match="nowhere: there is nothing"):
        js.Market.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="without market.json"):
        js.Market.load(tmp_path)
    with pytest.raises(ValueError, match="without market.json"):
        js.Market.load(tmp_path / "file")


class Copy:
    """A copy of a saved market, of which one file or one entry can be changed."""

    def __init__(self, saved, folder):
        import shutil

        self.path = Path(shutil.copytree(saved, folder))
        (self.version,) = self.path.glob("version-*")

    def pointer(self, **entries):
        file = self.path / "market.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    def facts(self, change):
        import zlib

        facts = json.loads((self.version / "facts.json").read_text())
        change(facts)
        data = json.dumps(facts).encode()
        (self.version / "facts.json").write_bytes(data)
        self.pointer(crc32=zlib.crc32(data))

    def refused(self, message):
        with pytest.raises(ValueError, match=message) as caught:
            js.Market.load(self.path)
        assert str(caught.value).startswith(f"{self.path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format_version": 2}, "format_version: expected 1, got 2"),
        ({"format": "other"}, "not that of a market"),
        ({"current": "../elsewhere"}, "expected a version's name"),
        ({"current": 3}, "TypeError"),
        ({"current": "version-0123456789ab"}, "FileNotFoundError"),
        ({"crc32": 1}, "facts.json: its checksum"),
    ],
)
def test_a_pointer_that_is_off_is_refused(saved, tmp_path, entries, message):
    copy = Copy(saved, tmp_path / "m")
    copy.pointer(**entries)
    copy.refused(message)


def points_said(facts, **change):
    shape, dtype = facts["arrays"]["points"]
    facts["arrays"]["points"] = [change.get("shape", shape), change.get("dtype", dtype)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["ids"].__setitem__(1, "m0"), "ids: expected different"),
        (lambda f: f["ids"].__setitem__(1, 5), "ids: expected different"),
        (lambda f: f["ids"].append("more"), "rows"),
        (lambda f: f["class_names"].pop(), "class_ids"),
        (lambda f: f["facts"]["size"].__setitem__(0, 99), "size: expected values in"),
        (lambda f: f["facts"]["size"].__setitem__(0, 1.5), "size: expected 6 values"),
        (lambda f: f["facts"].pop("size"), "facts: expected"),
        (lambda f: f["facts"]["format_version"].__setitem__(0, 2), "format_version: expected 1"),
        (lambda f: f.update(kernel="Popen"), "kernel: expected one of"),
        (lambda f: f.update(bandwidth=-1), "bandwidth: expected a positive"),
        (lambda f: f.update(feature_space=""), "feature_space"),
        (lambda f: f["arrays"].pop("weights"), "arrays: expected"),
        (lambda f: points_said(f, shape=[6, 10, 7]), "class_vectors: expected shape"),
        (lambda f: points_said(f, shape=[6, 10**15, 6]), "square_norms: expected shape"),
        (lambda f: points_said(f, shape=[6, -1, 6]), "points: expected no empty axis"),
        (lambda f: points_said(f, dtype="object"), "points: expected dtype .*got 'object'"),
        (lambda f: f["files"].update(more=1), "arrays: a file is missing or damaged"),
    ],
)
def test_facts_that_are_off_are_refused(saved, tmp_path, change, message):
    copy = Copy(saved, tmp_path / "m")
    copy.facts(change)
    copy.refused(message)


def test_damaged_arrays_are_refused(saved, tmp_path):
    files = [file for file in saved.glob("version-*/arrays/**/*") if file.is_file()]
    assert files
    copy = Copy(saved, tmp_path / "m")
    for file in (copy.path / file.relative_to(saved) for file in files):
        whole = file.read_bytes()
        flipped = bytes([whole[0] ^ 1]) + whole[1:] if whole else b"0"
        for data in (flipped, whole + b"0", pickle.dumps(Bomb(tmp_path / "ran"))):
            file.write_bytes(data)
            copy.refused("arrays: a file is missing or damaged")
        file.unlink()
        copy.refused("arrays: a file is missing or damaged")
        file.write_bytes(whole)
    assert js.Market.load(copy.path).ids == js.Market.load(saved).ids
    assert not (tmp_path / "ran").exists()


def test_a_market_with_nan_is_not_written(market, tmp_path):
    broken = js.Market.from_specifications(dict(market.items()))
    arrays = broken.arrays
    broken._storage.arrays = dataclasses.replace(arrays, self_terms=arrays.self_terms * np.nan)
    with pytest.raises(ValueError, match="self_terms: expected finite"):
        broken.save(tmp_path / "m")
    assert not os.listdir(tmp_path)


def test_nan_in_saved_arrays_is_refused(market, tmp_path, monkeypatch):
    broken = js.Market.from_specifications(dict(market.items()))
    arrays = broken.arrays
    broken._storage.arrays = dataclasses.replace(arrays, self_terms=arrays.self_terms * np.nan)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_check_finite", lambda *_: None)
        broken.save(tmp_path / "m")
    with pytest.raises(ValueError, match="self_terms: expected finite numbers"):
        js.Market.load(tmp_path / "m")


def test_importing_the_package_imports_no_storage():
    code = "import sys, jaxspec; print([m for m in ('orbax', 'safetensors') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_loaded_market_with_a_probe_grows_like_the_one_that_was_saved(tmp_path):
    market = js.Market.from_specifications({f"m{s}": specification_with_probe(s) for s in range(3)})
    market.save(tmp_path / "market")
    grown = [
        one.add("new", specification_with_probe(4))
        for one in (market, js.Market.load(tmp_path / "market"))
    ]
    first, second = (js.match(one, made_user(1)).scores for one in grown)
    np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_low_precision_is_kept_on_disk(tmp_path, storage):
    specs = {f"m{s}": made_specification(s) for s in range(3)}
    market = js.Market.from_specifications(specs, storage=storage)
    market.save(tmp_path / "market")
    loaded = js.Market.load(tmp_path / "market")
    assert loaded.storage == storage
    assert loaded.arrays.points.dtype == market.arrays.points.dtype
    np.testing.assert_array_equal(
        js.match(loaded, made_user(1)).scores, js.match(market, made_user(1)).scores
    )
