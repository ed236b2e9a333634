"""A saved market read in parts: the same numbers as the loaded one, and refusal by name."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from made_files import (
    REPOSITORY,
    SavedCopy,
    made_market,
    made_space,
    made_specification,
    made_user,
    refused,
)

import jaxspec as js
from jaxspec.market import ROW_ARRAYS, SCHEMA
from jaxspec.specify import About

COUNT = 37
ROW_NAMES = [name for name in ROW_ARRAYS if SCHEMA[name].saved]


def many(precision="float32", **parts):
    space = made_space()
    specs = {
        f"m{s}": made_specification(
            s, classes=2 + s % 3, size=5 + s % 4, about=About({"number": s}), **parts
        )
        for s in range(COUNT)
    }
    return js.Market(space, specs, precision=precision)


@pytest.fixture(scope="module")
def market():
    return many(probe=True, hidden=True).remove(["m3", "m20"])


@pytest.fixture(scope="module")
def folder(market, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "market"
    market.save(path)
    return js.MarketFolder(path)


def stored_rows(market, name):
    return np.asarray(getattr(market.arrays, name))[market.rows]


def test_it_says_of_itself_what_the_market_says(market, folder):
    assert len(folder) == len(market) == COUNT - 2
    assert folder.ids == tuple(folder) == market.ids
    assert "m1" in folder
    assert "m3" not in folder
    assert 3 not in folder
    assert folder.space == market.space
    assert folder.precision == market.precision
    assert folder.dimension == market.dimension
    assert folder.kernel == market.kernel or type(folder.kernel) is type(market.kernel)
    assert folder.probed
    np.testing.assert_array_equal(folder.origin, market.arrays.origin)
    for learnware in market:
        assert folder.class_names(learnware) == market.class_names(learnware)
    with pytest.raises(KeyError, match="no learnware 'm3' in this market of 35"):
        folder.class_names("m3")
    for names in (("class a",), ("class a", "class c", "x"), ("x", "y")):
        assert folder.most_shared_names(names) == market.most_shared_names(names)
    np.testing.assert_array_equal(folder.about["number"], market.about["number"])
    text = repr(folder)
    assert "35 learnwares" in text
    assert "made-features" in text
    assert "float32" in text


def test_fixed_arrays_are_those_of_the_market(market, folder):
    arrays = market.arrays
    for name in ("landmarks", "whitening", "origin"):
        assert isinstance(folder.fixed[name], np.ndarray)
        np.testing.assert_array_equal(folder.fixed[name], getattr(arrays, name))
    kernel = folder.fixed["kernel"]
    assert type(kernel) is type(arrays.kernel)
    assert np.asarray(kernel.bandwidth).dtype == np.float32
    assert float(kernel.bandwidth) == float(arrays.kernel.bandwidth)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_rows_in_any_order_are_those_of_the_market(tmp_path, precision):
    market = many(precision, probe=True)
    market.save(tmp_path / "m")
    folder = js.MarketFolder(tmp_path / "m", verify=True)
    at = np.array([36, 0, 5, 5, 17, 1, 36])
    rows = folder.rows([*ROW_NAMES, "class_grams"], at)
    whole = folder.whole(ROW_NAMES)
    assert set(rows) == {name for name in ROW_NAMES if folder.has_array(name)}
    assert not folder.has_array("hidden_maps")
    assert not folder.has_array("class_grams")
    for name in rows:
        wanted = stored_rows(market, name)
        if name == "class_ids":  # numbers of names may differ; the ledger knows them
            assert (whole[name] >= 0).tolist() == (wanted >= 0).tolist()
            continue
        assert rows[name].dtype == whole[name].dtype == wanted.dtype
        np.testing.assert_array_equal(rows[name], wanted[at])
        np.testing.assert_array_equal(whole[name], wanted)
    one = folder.rows(("points", "weights"), np.array([2]))
    np.testing.assert_array_equal(one["weights"], stored_rows(market, "weights")[[2]])


def test_bytes_per_learnware_are_those_of_its_rows(folder):
    names = ("points", "weights", "class_ids", "class_grams")
    rows = folder.rows(names, np.array([0]))
    assert folder.row_bytes(names) == sum(value.nbytes for value in rows.values())


@pytest.mark.parametrize("size", [1, 4, 35, 64])
def test_blocks_one_after_the_other_are_the_market(market, folder, size):
    names, seen = ("points", "weights", "has_probe"), 0
    blocks = folder.blocks(names, size)
    blocks.start(0)
    while seen < len(folder):
        rows = blocks.wait()
        length = min(size, len(folder) - seen)
        blocks.start(seen + length)  # while this block is in use
        for name in names:
            assert rows[name].shape[0] == size
            assert rows[name].ctypes.data % 64 == 0
            wanted = stored_rows(market, name)[seen : seen + length]
            np.testing.assert_array_equal(rows[name][:length], wanted)
        folder.check({name: value[:length] for name, value in rows.items()})
        seen += length


def test_rows_beyond_the_end_of_a_market_are_unused_rows(folder):
    blocks = folder.blocks(("class_ids", "weights"), 64)
    blocks.start(0)
    rows = blocks.wait()
    assert (rows["class_ids"][len(folder) :] == -1).all()
    assert not rows["weights"][len(folder) :].any()


def test_numbers_that_are_not_finite_are_refused_by_name(folder):
    for value in (np.nan, np.inf, -np.inf):
        rows = {"points": np.zeros((2, 3, 6), np.float32)}
        rows["points"][1, 2, 3] = value
        refused(lambda rows=rows: folder.check(rows), folder.path, "points: expected finite")
    rows = {"weights": np.full((2, 3), 1e20, np.float32), "self_terms": np.ones(2, np.float32)}
    refused(lambda: folder.check(rows), folder.path, "weights: expected at most 2e.15")


def test_a_market_without_a_probe_has_none_of_its_arrays(tmp_path):
    made_market(space=made_space(False)).save(tmp_path / "m")
    folder = js.MarketFolder(tmp_path / "m")
    assert not folder.probed
    assert folder.fixed["landmarks"].shape == (0, 6)
    assert folder.fixed["whitening"].shape == (0, 0)
    assert set(folder.whole(("probe_weights", "weights"))) == {"weights"}


def test_the_version_names_what_is_read(tmp_path):
    market = made_market()
    market.save(tmp_path / "m")
    one, two = js.MarketFolder(tmp_path / "m"), js.MarketFolder(tmp_path / "m")
    assert one.version == two.version
    market.save(tmp_path / "m")
    assert js.MarketFolder(tmp_path / "m").version != one.version


def test_damaged_numbers_are_refused_when_they_are_read(tmp_path, market):
    market.save(tmp_path / "m")
    copy = SavedCopy(tmp_path / "m", tmp_path / "n")
    file = copy.segment / "arrays" / "points" / "0.0.0"
    numbers = np.fromfile(file, np.float32)
    numbers[70] = np.nan
    numbers.tofile(file)
    refused(lambda: js.MarketFolder(copy.path, verify=True), copy.path, "its checksum is wrong")
    message = "points: expected finite numbers, got NaN or infinity in learnware 'm1'"
    refused(lambda: js.MarketFolder(copy.path).whole(ROW_NAMES), copy.path, message)
    file.write_bytes(file.read_bytes()[:-4])
    refused(lambda: js.MarketFolder(copy.path), copy.path, "points/0.0.0: expected .* bytes")


def test_what_is_no_market_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        js.MarketFolder(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="path: expected a string or a path, got a int"):
        js.MarketFolder(3)
    with pytest.raises(ValueError, match="path: "):
        js.MarketFolder("gs://bucket/market")
    with pytest.raises(ValueError, match="block_size: expected at least 1, got 0"):
        js.MarketFolder(tmp_path, block_size=0)
    with pytest.raises(TypeError, match="block_size: expected an integer"):
        js.MarketFolder(tmp_path, block_size=1.5)
    refused(lambda: js.MarketFolder(tmp_path), tmp_path, "without market.json")
    made_user(0).save(tmp_path / "user")
    refused(lambda: js.MarketFolder(tmp_path / "user"), tmp_path / "user", "a safetensors file")


CHANGED = """
import sys
import jaxspec as js
from jaxspec.base import FileError
path = sys.argv[1]
try:
    js.MarketFolder(path).whole(("points",))
except FileError as error:
    print(error)
"""


def test_a_description_of_terabytes_does_not_end_the_process(tmp_path):
    made_market().save(tmp_path / "m")
    copy = SavedCopy(tmp_path / "m", tmp_path / "n")
    file = copy.segment / "arrays" / "points" / ".zarray"
    described = json.loads(file.read_text())
    described.update(shape=[2**40, 10, 6], chunks=[2**40, 10, 6])
    file.write_text(json.dumps(described))
    copy.note_files()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", CHANGED, str(copy.path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "points/.zarray: expected shape" in done.stdout
