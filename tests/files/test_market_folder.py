"""Saved markets: bit-exact round trips, saves that are never half done, and refusal by name."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from made_files import (
    KERNELS,
    REPOSITORY,
    SavedCopy,
    assert_same,
    assert_same_market,
    made_market,
    made_space,
    made_specification,
    made_user,
    refused,
)
from test_specification_files import Bomb

import jaxspec as js
from jaxspec.base import FileError
from jaxspec.files.folders import segments, stored_arrays
from jaxspec.files.folders.entry_columns import ENTRY_COLUMNS
from jaxspec.market import SCHEMA, Entry
from jaxspec.specify import About

ABOUT = [
    {"licence": "MIT", "parameters": 3},
    {},
    {"licence": "GPL"},
    {"open": True},
    {},
    {"x": 0.5},
]
PARTS = [{}, {"probe": True}, {"hidden": True}, {"probe": True, "hidden": True}]


def described_market(**options):
    """A market of six learnwares with metadata."""
    specs = {
        f"m{s}": made_specification(s, about=About(about), **options)
        for s, about in enumerate(ABOUT)
    }
    return js.Market(options.get("space") or made_space(), specs)


@pytest.fixture(scope="module")
def market():
    return described_market(probe=True)


@pytest.fixture(scope="module")
def saved(market, tmp_path_factory):
    """The market, on disk. Not to be written into."""
    path = tmp_path_factory.mktemp("saved") / "market"
    market.save(path)
    return path


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_market_comes_back_bit_by_bit(tmp_path, parts, precision):
    market = described_market(**parts).astype(precision)
    market.save(tmp_path / "m")
    back = js.Market.load(tmp_path / "m")
    assert_same_market(back, market)
    assert back.arrays.points.dtype == market.arrays.points.dtype
    for learnware, about in zip(market, ABOUT, strict=True):
        assert back[learnware].about == about
    assert back.about["licence"].tolist() == ["MIT", None, "GPL", None, None, None]


def test_a_loaded_market_matches_as_the_saved_one_does(market, saved):
    back = js.Market.load(saved)
    for user in (
        made_user(1),
        made_user(2, classes=3),
        made_user(3, class_names=("w", "x", "y", "z")),
    ):
        before, after = js.match(market, user), js.match(back, user)
        for name in ("scores", "squared_mmd", "class_similarity", "class_map"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize("parts", PARTS)
def test_a_loaded_market_grows_and_compiles_nothing(tmp_path, compile_counter, parts):
    made_market(**parts).save(tmp_path / "m")
    market, spec = js.Market.load(tmp_path / "m"), made_specification(7, **parts)
    version = market
    with compile_counter() as counter:
        for i in range(2):
            version = version.add({f"new {i}": spec})
    assert counter.count == 0
    assert version.ids == (*market.ids, "new 0", "new 1")
    np.testing.assert_array_equal(version["new 1"].reduced_set.points, spec.reduced_set.points)
    unused = np.asarray(version.arrays.class_ids)[len(version) :]
    assert (unused == -1).all()
    assert not np.asarray(version.arrays.points)[len(version) :].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_removed_learnwares_stay_away_and_class_names_hold(tmp_path, kernel):
    space = made_space(True, kernel, 2.7)

    def spec(seed, names=None, **options):
        names = {} if names is None else {"class_names": tuple(names)}
        return made_specification(seed, space=space, **names, **options)

    specs = {
        "first": spec(0, "pqrs"),
        "gone": spec(1, ["secret", "p", "s", "hidden"]),
        "wide": spec(2, classes=10),
        "last": spec(3, "srqt"),
    }
    market = js.Market(space, specs).remove(["gone"])
    market.save(tmp_path / "m")
    back = js.Market.load(tmp_path / "m")
    assert back.ids == ("first", "wide", "last")
    assert back.space == space
    for name in back.ids:
        assert back[name].class_names == specs[name].class_names == back.class_names(name)
        np.testing.assert_array_equal(back[name].proxy.weights, market[name].proxy.weights)
        np.testing.assert_array_equal(
            back[name].reduced_set.points, market[name].reduced_set.points
        )
    assert back.ledger.numbers_of(("secret", "hidden")).tolist() == [-2, -2]
    facts = next((tmp_path / "m").glob("segments/*/facts.json")).read_text()
    assert "gone" not in facts
    assert "secret" not in facts
    again = back.add({"gone": specs["gone"]})
    np.testing.assert_array_equal(
        again["gone"].reduced_set.points, specs["gone"].reduced_set.points
    )


def test_an_origin_far_from_zero_comes_back(tmp_path):
    def moved(seed):
        spec = made_specification(seed, probe=True)
        points = np.asarray(spec.reduced_set.points) + 100
        return made_specification(
            seed, probe=True, reduced_set=js.ReducedSet(points, spec.reduced_set.weights)
        )

    market = js.Market(made_space(), {f"m{s}": moved(s) for s in range(2)})
    market.save(tmp_path / "m")
    assert np.linalg.norm(market.arrays.origin) > 100
    assert_same_market(js.Market.load(tmp_path / "m"), market)


def test_a_market_of_many_learnwares_comes_back(tmp_path, monkeypatch):
    """More rows than one block of writing, and than one chunk on disk."""
    monkeypatch.setattr(stored_arrays, "CHUNK_BYTES", 1 << 18)
    monkeypatch.setattr(stored_arrays, "BLOCK_BYTES", 1 << 20)
    space, count = made_space(), 2500
    rng = np.random.default_rng(0)

    def stacked(*shape):
        return jnp.asarray(rng.normal(size=(count, *shape)).astype(np.float32))

    spec = made_specification(
        0,
        reduced_set=js.ReducedSet(stacked(80, 6), stacked(80)),
        proxy=js.Proxy(stacked(6, 4), stacked(4)),
    )
    ids = [f"id {i}" for i in range(count)]
    market = js.Market.from_stacked(space, [(ids, spec)])
    market.save(tmp_path / "m")
    back = js.Market.load(tmp_path / "m")
    assert back.ids == market.ids
    for at in (0, 1, 1023, 1024, count - 1):
        assert_same(back[ids[at]], market[ids[at]])
    facts = json.loads(next((tmp_path / "m").glob("segments/*/facts.json")).read_text())
    blocks = 5
    assert facts["arrays"]["weights"]["chunks"][0] * blocks < count + 64
    assert facts["arrays"]["points"]["chunks"][0] * 4 == facts["arrays"]["weights"]["chunks"][0]


# How it is saved


def names_below(path):
    """Return how many entries each folder of a market has; no temporary files are left."""
    assert not [one for one in path.rglob("*") if one.name.endswith(".tmp")]
    return {one.name: len(list(one.iterdir())) for one in path.iterdir() if one.is_dir()}


def test_saving_again_replaces_the_market_and_keeps_one_version(market, tmp_path):
    path = tmp_path / "folder" / "m"
    market.save(path)
    grown = market.remove(["m1"]).add({"new": made_specification(7, probe=True)})
    grown.save(path)
    assert js.Market.load(path).ids == grown.ids
    assert len(list(path.glob("versions/*"))) == len(list(path.glob("segments/*"))) == 1


KILLED = """
import os, sys
import jaxspec as js
market = js.Market.load(sys.argv[1]).remove(["m0"])
name, when = sys.argv[2:]
replace = os.replace
def killed(one, two):
    if os.path.basename(two) == name and when == "before":
        os._exit(7)
    replace(one, two)
    if os.path.basename(two) == name:
        os._exit(7)
os.replace = killed
market.save(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("name", "when", "survivor"),
    [
        ("facts.json", "before", "old"),
        ("version-000002.json", "after", "old"),
        ("market.json", "before", "old"),
        ("market.json", "after", "new"),
    ],
)
def test_a_save_that_is_killed_leaves_a_complete_market(market, tmp_path, name, when, survivor):
    path = tmp_path / "m"
    market.save(path)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", KILLED, str(path), name, when]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr
    assert not done.stderr.strip()  # neither loading nor saving has anything to say
    assert len(list(path.glob("segments/*"))) == 2
    want = market.ids if survivor == "old" else market.ids[1:]
    assert js.Market.load(path).ids == want
    market.save(path)
    assert names_below(path) == {"versions": 1, "segments": 1, "spaces": 1}
    assert js.Market.load(path).ids == market.ids


def test_a_save_that_fails_leaves_the_old_market_and_no_litter(market, tmp_path, monkeypatch):
    path = tmp_path / "m"
    market.save(path)
    before = sorted(one.relative_to(path) for one in path.rglob("*"))

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(segments, "write_atomically", full)
    refused(lambda: market.remove(["m0"]).save(path), path, "no space left")
    assert sorted(one.relative_to(path) for one in path.rglob("*")) == before
    assert js.Market.load(path).ids == market.ids


def test_a_folder_that_is_no_market_is_left_alone(market, tmp_path):
    (tmp_path / "thesis.tex").write_text("all I have")
    (tmp_path / "file").write_text("")
    refused(lambda: market.save(tmp_path), tmp_path, "a market or an empty folder.*thesis")
    file = tmp_path / "file"
    refused(lambda: market.save(file), file, "expected a folder, got a file")
    refused(lambda: market.save(file / "m"), file / "m", "NotADirectoryError|expected a folder")
    empty = market.remove(market.ids)
    refused(lambda: empty.save(tmp_path / "m"), tmp_path / "m", "at least one learnware")
    assert sorted(os.listdir(tmp_path)) == ["file", "thesis.tex"]
    assert file.read_text() == ""
    with pytest.raises(FileNotFoundError, match="nowhere: there is nothing"):
        js.Market.load(tmp_path / "nowhere")
    refused(lambda: js.Market.load(tmp_path), tmp_path, "without market.json")
    refused(lambda: js.Market.load(file), file, "this seems to be an empty file")
    made_specification(0).save(tmp_path / "spec")
    refused(lambda: js.Market.load(tmp_path / "spec"), tmp_path / "spec", "a safetensors file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_made_gives_one_short_error(market, tmp_path):
    tmp_path.chmod(0o500)
    refused(lambda: market.save(tmp_path / "m"), tmp_path / "m", "PermissionError")


@pytest.mark.parametrize("path", ["gs://bucket/x", "s3://bucket/x"])
def test_addresses_are_refused_by_name(market, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for call in (lambda: market.save(path), lambda: js.Market.load(path)):
        with pytest.raises(ValueError, match="path: "):
            call()
    assert not os.listdir(tmp_path)
    for call in (lambda: market.save(None), lambda: js.Market.load(None)):
        with pytest.raises(TypeError, match="path: expected a string or a path, got a NoneType"):
            call()


def test_a_tilde_is_the_home_folder_and_relative_paths_work(market, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    market.save("~/m")
    market.save("n")
    assert sorted(os.listdir(tmp_path)) == ["m", "n"]
    assert js.Market.load("~/m").ids == js.Market.load("n").ids == market.ids


def with_nan(market):
    """The same market with a number that is not finite, as only a fault could make it."""
    broken = market.astype("float32")
    arrays = broken.shared.arrays
    broken.shared.arrays = dataclasses.replace(arrays, self_terms=arrays.self_terms * np.nan)
    return broken


def test_a_market_with_nan_is_not_written(market, tmp_path):
    path = tmp_path / "m"
    refused(lambda: with_nan(market).save(path), path, "self_terms: expected finite")
    assert not os.listdir(tmp_path)


def test_nan_in_saved_arrays_is_refused(market, tmp_path, monkeypatch):
    path = tmp_path / "m"
    with monkeypatch.context() as patch:
        patch.setattr(segments, "check_rows", lambda *_: None)
        with_nan(market).save(path)
    refused(lambda: js.Market.load(path), path, "self_terms: expected finite numbers")


def test_every_array_and_every_column_is_declared_or_derived():
    for name, one in SCHEMA.items():
        assert one.saved or one.derive is not None or not one.per_row, name
    assert set(ENTRY_COLUMNS) | {"class_names"} == set(Entry.__dataclass_fields__)


# What is read


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format_version": 2}, "format_version: expected 3, got 2"),
        ({"format_version": "3"}, "format_version: expected 3, got '3'"),
        ({"format": "other"}, "market.json: expected that of a market"),
        ({"more": 1}, "market.json: expected an object with"),
        ({"checksum": 1}, "market.json: its checksum is wrong"),
        ({"checksum": None}, "market.json: its checksum is wrong"),
        ({"contents": []}, "market.json: its checksum is wrong"),
    ],
)
def test_a_pointer_that_is_not_as_it_must_be_is_refused(saved, market, tmp_path, entries, message):
    copy = SavedCopy(saved, tmp_path / "m")
    copy.pointer(**entries)
    copy.refused(message)
    copy.refused(message, load=js.MarketFolder)
    refused(lambda: market.save(copy.path), copy.path, message)


def in_version(place, value):
    return lambda contents: contents["versions"][0].__setitem__(place, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(versions=[]), "versions: expected a list of at least one"),
        (lambda c: c["versions"].append(c["versions"][0]), "versions: expected different names"),
        (lambda c: c["versions"][0].pop(), "versions: expected six values"),
        (in_version(0, "../elsewhere"), "versions: expected the name of one"),
        (in_version(0, "version-000009"), "version-000009.json"),
        (in_version(0, 3), "versions: expected the name of one, got 3"),
        (in_version(1, 5), "version-000001.json: its checksum is wrong"),
        (in_version(1, None), "versions: expected a checksum"),
        (in_version(2, -1), "versions: expected seconds"),
        (in_version(2, 1e300), "versions: expected seconds"),
        (in_version(3, 7), "count: expected 6"),
        (in_version(3, "6"), "count: expected an integer"),
        (in_version(5, "x" * 1001), "versions: expected texts"),
        (lambda c: c.update(segments=["../x"]), "segments: expected the name of one"),
        (lambda c: c.update(next_number=-1), "next_number: expected an integer"),
        (lambda c: c.update(next_serial=1.5), "next_serial: expected an integer"),
        (lambda c: c.update(extensions={"index": "x"}), "extensions: expected a folder"),
        (lambda c: c.update(extensions={"index": ["../x-1", 1]}), "extensions: expected a folder"),
        (lambda c: c.update(more=1), "contents: expected an object with"),
    ],
)
def test_contents_of_a_pointer_that_are_not_as_they_must_be_are_refused(
    saved, tmp_path, change, message
):
    copy = SavedCopy(saved, tmp_path / "m")
    copy.contents(change)
    copy.refused(message)
    copy.refused(message, load=js.MarketFolder)


def in_segment(place, value):
    return lambda manifest: manifest["segments"][0].__setitem__(place, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_segment(0, "segment-000009"), "segments: expected a folder segment-000009"),
        (in_segment(0, "../x"), "segments: expected the name of one"),
        (in_segment(1, 5), "facts.json: its checksum is wrong"),
        (in_segment(2, 5), "count: expected 5|ids: expected 5"),
        (in_segment(2, 0), "removed: expected ascending rows below 0"),
        (in_segment(3, [0]), "count: expected 5, that of the segments, got 6"),
        (in_segment(3, [1, 0]), "removed: expected ascending"),
        (in_segment(3, [6]), "removed: expected ascending"),
        (in_segment(3, [-1]), "removed: expected ascending"),
        (in_segment(3, [True]), "removed: expected ascending"),
        (lambda m: m["segments"].append(m["segments"][0]), "segments: expected different names"),
        (lambda m: m["space"].__setitem__(0, "../space"), "spaces: expected the name of one"),
        (lambda m: m["space"].__setitem__(1, 5), "space-.*: its checksum is wrong"),
        (lambda m: m.update(precision="float8"), "precision: expected one of"),
        (lambda m: m.update(precision="int8"), "points: expected dtype .*int8.*, got float32"),
        (lambda m: m.update(more=1), "expected an object with"),
    ],
)
def test_a_manifest_that_is_not_as_it_must_be_is_refused(saved, tmp_path, change, message):
    copy = SavedCopy(saved, tmp_path / "m")
    copy.manifest(change)
    copy.refused(message)
    copy.refused(message, load=js.MarketFolder)


def declared(facts, name="points", **change):
    facts["arrays"][name].update(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["ids"].__setitem__(1, "m0"), "ids: expected different"),
        (lambda f: f["ids"].__setitem__(1, 5), "ids: expected different"),
        (lambda f: f["ids"].__setitem__(1, "x" * 1001), "ids: .*at most 1000"),
        (lambda f: f.update(ids={}), "ids: expected different"),
        (lambda f: f["ids"].append("more"), "ids: expected 6, as the version says, got 7"),
        (lambda f: f["class_names"].pop(), "class_ids"),
        (lambda f: f["class_names"].__setitem__(0, "cafe\u0301"), "class_names: .*NFC"),
        (lambda f: f["class_names"].__setitem__(0, " "), "class_names"),
        (lambda f: f["entries"]["size"].__setitem__(0, 99), "size: expected values in 1..10"),
        (lambda f: f["entries"]["size"].__setitem__(0, 0), "size: expected values in 1..10"),
        (lambda f: f["entries"]["size"].__setitem__(0, 1.5), "size: expected integers"),
        (lambda f: f["entries"]["size"].__setitem__(0, True), "size: expected integers"),
        (lambda f: f["entries"]["size"].pop(), "size: expected a list of 6"),
        (lambda f: f["entries"]["num_examples"].__setitem__(0, -1), "num_examples: expected int"),
        (lambda f: f["entries"].pop("size"), "entries: expected the columns"),
        (lambda f: f["entries"].update(more=[]), "entries: expected the columns"),
        (lambda f: f["entries"]["format_version"].__setitem__(0, 1), "format_version: expected 2"),
        (lambda f: f["entries"]["fidelity"].__setitem__(0, 2), "fidelity: expected numbers in 0"),
        (lambda f: f["entries"]["fidelity"].__setitem__(0, "1"), "fidelity: expected numbers"),
        (lambda f: f["entries"]["fidelity"].__setitem__(0, None), "has_probe: expected one"),
        (lambda f: f["entries"]["about"].__setitem__(0, "MIT"), "about: expected objects or null"),
        (lambda f: f["entries"]["about"].__setitem__(0, {"a": []}), "about|levels"),
        (
            lambda f: f["entries"]["about"].__setitem__(0, {"a": 2**60}),
            "about: expected 'a'",
        ),
        (lambda f: f.update(serials=[0, 5]), "serials: expected the first and length"),
        (lambda f: f.update(serials=[3, 3, 0, 3]), "serials: expected ascending"),
        (lambda f: f.update(serials=[0.0, 6]), "serials: expected the first and length"),
        (lambda f: f.update(more=1), "facts.json: expected an object with"),
        (lambda f: f["arrays"].pop("weights"), "arrays: expected weights"),
        (lambda f: f["arrays"].pop("probe_weights"), "arrays: expected probe_weights"),
        (lambda f: f["arrays"].update(class_grams={}), "arrays: expected no array"),
        (lambda f: f["arrays"].update(more={}), "arrays: expected no array"),
        (
            lambda f: declared(f, shape=[6, 10, 7], chunks=[6, 10, 7]),
            r"points: expected shape \(6, 10, 6\)",
        ),
        (
            lambda f: declared(f, shape=[6, 10**15, 6], chunks=[1, 10**15, 6]),
            "points: expected at most",
        ),
        (lambda f: declared(f, shape=[6, -1, 6]), "points: shape: expected a list of integers"),
        (lambda f: declared(f, shape=[6, 10]), "points: expected chunks of whole rows"),
        (lambda f: declared(f, dtype="object"), "points: expected dtype .*got 'object'"),
        (lambda f: declared(f, dtype="float64"), "points: expected dtype .*got 'float64'"),
        (lambda f: declared(f, dtype=[]), "points: expected dtype"),
        (lambda f: declared(f, chunks=[6, 10, 10**9]), "points: expected chunks of whole rows"),
        (lambda f: declared(f, chunks=[0, 10, 6]), "points: chunks: expected a list of integers"),
        (lambda f: declared(f, chunks=[6, 5, 6]), "points: expected chunks of whole rows"),
        (lambda f: declared(f, chunks=[3, 10, 6]), "points/1.0.0.*expected this file"),
        (lambda f: declared(f, "class_ids", dtype="uint8"), "class_ids: expected dtype"),
        (lambda f: f["files"].update(more=[1, 1]), "more.*expected no such file"),
        (lambda f: f["files"].pop("arrays/points/0.0.0"), "points/0.0.0.*expected this file"),
        (lambda f: f["files"].update({"arrays/points/0.0.0": [1, 1]}), "expected 1440 bytes"),
        (lambda f: f["files"].update({"arrays/points/0.0.0": None}), "files: expected"),
    ],
)
def test_facts_that_are_not_as_they_must_be_are_refused(saved, tmp_path, change, message):
    copy = SavedCopy(saved, tmp_path / "m")
    copy.facts(change)
    copy.refused(message)
    copy.refused(message, load=js.MarketFolder) if "zarray" not in message else None


def test_facts_that_are_not_a_json_object_are_refused(saved, tmp_path):
    copy = SavedCopy(saved, tmp_path / "m")
    for data, message in [
        (b"", "facts.json: expected JSON"),
        (b"[]", "facts.json: expected an object"),
        (b"[" * 10**5, "facts.json: expected JSON of at most 4 levels"),
        (b'{"ids": NaN}', "NaN is not a number"),
        (b'{"ids": 1, "ids": 1}', "one name twice"),
        (pickle.dumps(Bomb(tmp_path / "ran")), "facts.json: expected JSON"),
    ]:
        copy.write_facts(data)
        copy.refused(message)
    assert not (tmp_path / "ran").exists()


def test_a_space_of_another_market_is_refused(saved, tmp_path):
    copy = SavedCopy(saved, tmp_path / "m")
    made_space(False).save(copy.space)
    copy.refused("its checksum is wrong")
    copy.note_files()
    copy.refused("arrays: the space has no probe")


def test_damaged_files_are_refused(saved, tmp_path):
    files = [file for file in saved.glob("segments/*/arrays/**/*") if file.is_file()]
    assert files
    copy = SavedCopy(saved, tmp_path / "m")
    for file in (copy.path / file.relative_to(saved) for file in files):
        data = file.read_bytes()
        flipped = bytes([data[0] ^ 1]) + data[1:]
        for other in (flipped, data + b"0", pickle.dumps(Bomb(tmp_path / "ran"))):
            file.write_bytes(other)
            copy.refused("so it is damaged|as its array is declared|expected .* bytes")
        file.unlink()
        copy.refused("expected this file, got a segment without it")
        file.write_bytes(data)
    (copy.segment / "arrays" / "more").write_bytes(b"1")
    copy.refused("arrays/more.*expected no such file")
    (copy.segment / "arrays" / "more").unlink()
    assert js.Market.load(copy.path).ids == js.Market.load(saved).ids
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_links_that_lead_out_of_the_folder_pipes_and_devices_are_refused(saved, tmp_path):
    copy = SavedCopy(saved, tmp_path / "m")
    elsewhere = tmp_path / "elsewhere"
    files = [copy.space, copy.version]
    for name in ("facts.json", "arrays/points/.zarray", "arrays/points/0.0.0"):
        files.append(copy.segment / name)
    for file in files:
        shutil.move(file, elsewhere)
        file.symlink_to(elsewhere)
        copy.refused("expected a file, got a link")
        file.unlink()
        os.mkfifo(file)
        copy.refused("expected a regular file|expected this file")
        file.unlink()
        file.symlink_to("/dev/zero")
        copy.refused("expected a file, got a link")
        file.unlink()
        shutil.move(elsewhere, file)
    shutil.move(copy.segment / "arrays", elsewhere)
    (copy.segment / "arrays").symlink_to(elsewhere)
    copy.refused("got a link that leads elsewhere")
    (copy.segment / "arrays").unlink()
    shutil.move(elsewhere, copy.segment / "arrays")
    for folder, message in (
        (copy.segment, "expected a folder, got a symbolic link"),
        (copy.segment.parent, "segments: expected no link in a market"),
    ):
        shutil.move(folder, elsewhere)
        folder.symlink_to(elsewhere)
        copy.refused(message)
        folder.unlink()
        shutil.move(elsewhere, folder)
    pointer = copy.path / "market.json"
    shutil.move(pointer, elsewhere)
    pointer.symlink_to(elsewhere)
    copy.refused("market.json: expected no link in a market")
    pointer.unlink()
    os.mkfifo(pointer)
    copy.refused("expected a regular file, got a named pipe")
    pointer.unlink()
    shutil.move(elsewhere, pointer)
    assert js.Market.load(copy.path).ids == js.Market.load(saved).ids
    (tmp_path / "link").symlink_to(copy.path)  # the market itself may be behind a link
    assert js.Market.load(tmp_path / "link").ids == js.Market.load(saved).ids


def redescribed(copy, change):
    """Change the description of an array, with right checksums everywhere."""
    file = copy.segment / "arrays" / "points" / ".zarray"
    entries = json.loads(file.read_text())
    change(entries)
    file.write_text(json.dumps(entries))
    copy.note_files()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z.update(shape=[2**40, 10, 6]), "points/.zarray: expected shape"),
        (lambda z: z.update(chunks=[2**40, 10, 6]), "points/.zarray: expected chunks"),
        (lambda z: z.update(chunks=[0, 10, 6]), "points/.zarray: expected chunks"),
        (lambda z: z.update(dtype="<f8"), "points/.zarray: expected dtype"),
        (
            lambda z: z.update(dtype=[["a", "<f4", [2**40]]]),
            "points/.zarray: expected JSON",
        ),
        (lambda z: z.update(order="F"), "points/.zarray: expected order"),
        (lambda z: z.update(fill_value=1.0), "points/.zarray: expected fill_value"),
        (lambda z: z.update(filters=[{"id": "delta"}]), "points/.zarray: expected filters"),
        (lambda z: z.update(compressor={"id": "zlib"}), "points/.zarray: expected compressor"),
        (lambda z: z.update(dimension_separator="/"), "points/.zarray: expected dimension"),
        (lambda z: z.update(zarr_format=3), "points/.zarray: expected zarr_format"),
        (lambda z: z.update(more=None), "points/.zarray: expected no .*more"),
        (lambda z: z.pop("chunks"), "points/.zarray: expected chunks"),
    ],
)
def test_a_changed_description_of_an_array_is_refused(saved, tmp_path, change, message):
    """A market is read even if its checksums were written anew by whoever changed it."""
    copy = SavedCopy(saved, tmp_path / "m")
    redescribed(copy, change)
    copy.refused(message)


def test_a_missing_chunk_is_refused_and_not_read_as_zeros(saved, tmp_path):
    copy = SavedCopy(saved, tmp_path / "m")
    opened = js.MarketFolder(copy.path)
    file = copy.segment / "arrays" / "points" / "0.0.0"
    data = file.read_bytes()
    file.unlink()
    copy.refused("points/0.0.0.*expected this file")
    for length in (0, 1000):  # and where it vanishes after the market was opened
        refused(lambda: opened.whole(("points",)), copy.path, "points/0.0.0")
        file.write_bytes(data[:length])
        refused(lambda: opened.whole(("points",)), copy.path, "points/0.0.0")
        file.unlink()


def numbers_of(copy, name, change):
    """Change the numbers of an array of one chunk, with right checksums everywhere."""
    (file,) = [one for one in (copy.segment / "arrays" / name).iterdir() if one.name != ".zarray"]
    values = np.fromfile(file, np.uint8 if name == "probe_chances" else np.float32)
    change(values)
    values.tofile(file)
    copy.note_files()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("points", 1e38, "points: expected at most 2e.15, got 1.0e.38 in learnware 'm0'"),
        ("points", np.nan, "points: expected finite numbers, got NaN or .* in learnware 'm0'"),
        ("weights", -1e20, "weights: expected at most"),
        ("class_vectors", 3e15, "class_vectors: expected at most"),
        ("hidden_maps", np.inf, "hidden_maps: expected finite"),
        ("origin", 1e38, "origin: expected at most 1e.15"),
        ("scales", -1, "scales: expected numbers from zero on"),
        ("scales", 2, "scales: expected what follows from the other arrays.* in learnware 'm0'"),
        ("square_norms", -1, "square_norms: expected numbers from zero on"),
        ("square_norms", 1e38, "square_norms: expected at most"),
        ("square_norms", 3, "square_norms: expected what follows from the other arrays"),
        ("self_terms", 1e30, "self_terms: expected the squared norm that the weights allow"),
        ("self_terms", -1, "self_terms: expected the squared norm that the weights allow"),
        ("self_terms", 0, "self_terms: expected what follows from the other arrays"),
        ("probe_chances", 255, "probe_chances: expected what follows from the other arrays"),
        ("has_probe", 0.5, "has_probe: expected one where there is a fidelity"),
    ],
)
def test_numbers_that_no_specification_could_give_are_refused(tmp_path, name, value, message):
    """They are refused by name, where they would make other learnwares' scores undefined."""
    described_market(probe=True, hidden=True).save(tmp_path / "saved")
    copy = SavedCopy(tmp_path / "saved", tmp_path / "m")
    numbers_of(copy, name, lambda values: values.__setitem__(slice(0, 1), value))
    copy.refused(message)
    refused(lambda: js.MarketFolder(copy.path).verify(), copy.path, message)


def conforms(market):
    """Check what the format promises of anything that is loaded."""
    assert market.ids == tuple(dict.fromkeys(market.ids))
    for learnware in market:
        spec = market[learnware]
        assert len(set(spec.class_names)) == len(spec.class_names) >= 2
        assert np.isfinite(spec.reduced_set.points).all()
        assert spec.proxy.weights.shape == (6, len(spec.class_names))


@pytest.mark.parametrize("seed", range(3))
def test_mutated_markets_are_refused_or_hold_what_the_format_promises(saved, tmp_path, seed):
    """Bytes of any file are changed, half of the time with checksums that fit to the change."""
    rng = np.random.default_rng(seed)
    for trial in range(25):
        copy = SavedCopy(saved, tmp_path / str(trial))
        files = [file for file in copy.path.rglob("*") if file.is_file()]
        file = files[rng.integers(len(files))]
        data = bytearray(file.read_bytes())
        for _ in range(rng.integers(1, 4)):
            at, kind = int(rng.integers(len(data))), rng.integers(4)
            digits = [i for i in range(len(data)) if 48 <= data[i] < 58]
            if kind == 0:
                data[at] ^= 1 << rng.integers(8)
            elif kind == 1:
                del data[at : at + int(rng.integers(1, 20))]
            elif kind == 2 and digits and file.suffix == ".json":
                data[digits[rng.integers(len(digits))]] = 48 + rng.integers(10)
            else:
                data[at:at] = data[at : at + int(rng.integers(1, 20))]
        file.write_bytes(data)
        if rng.random() < 0.5 and file.name not in ("market.json", copy.version.name):
            try:
                if file.name == "facts.json":
                    copy.write_facts(bytes(data))
                else:
                    copy.note_files()
            except ValueError:
                continue
        try:
            market = js.Market.load(copy.path)
        except FileError as error:
            assert str(error).startswith(f"{copy.path}: ")
            assert "\n" not in str(error)
        else:
            conforms(market)
        shutil.rmtree(copy.path)


def test_importing_the_package_imports_no_storage():
    code = (
        "import sys, jaxspec; "
        "print([m for m in ('orbax', 'safetensors', 'tensorstore') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr
