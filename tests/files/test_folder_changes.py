"""A market on disk that changes: what is in it, what is kept of its past, and who may change it."""

import datetime
import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import alike
from killed_writer import small_space, small_specification
from made_files import REPOSITORY, assert_same, made_space, made_specification, made_user, refused

import jaxspec as js
from jaxspec.files.folders import changes
from jaxspec.market import ROW_ARRAYS, SCHEMA


def small(*numbers):
    return {f"m{number}": small_specification(number) for number in numbers}


def small_folder(path, *numbers, **options):
    return js.MarketFolder.create(path, small_space(), small(*numbers), **options)


def small_user(seed=0):
    rng = np.random.default_rng(seed)
    return js.specify_user(
        small_space(), rng.normal(size=(20, 4)), np.arange(20) % 2, class_names=["a", "b"]
    )


def segments_of(path):
    return sorted(one.name for one in (path / "segments").iterdir())


@pytest.mark.parametrize("precision", alike("float32", "int8"))
def test_a_folder_that_changed_holds_what_a_market_that_changed_holds(tmp_path, precision):
    """Learnwares of many sizes and with and without optional parts, in segments of their own."""
    space, options = made_space(), {"precision": precision}

    def some(*seeds):
        return {
            f"m{seed}": made_specification(
                seed, 2 + seed % 4, 5 + seed % 5, probe=seed % 3 > 0, hidden=seed in (4, 9)
            )
            for seed in seeds
        }

    market = js.Market(space, some(0, 3), **options)
    folder = js.MarketFolder.create(tmp_path / "m", space, some(0, 3), **options)
    for seeds in ((1, 2), (4,), (5, 6, 7), (8,), (9,)):
        market, folder = market.add(some(*seeds)), folder.append(some(*seeds))
    for gone in (["m1", "m4"], ["m0"]):
        market, folder = market.remove(gone), folder.remove(gone)
    new = {"m2": made_specification(20, 3, 11, probe=True), "m6": made_specification(21)}
    market, folder = market.update(new), folder.update(new)
    market, folder = market.add(some(1)), folder.append(some(1))
    assert len(folder.segments) == 6
    for one in (folder, js.MarketFolder(tmp_path / "m"), folder.compact()):
        one.verify()
        assert one.ids == market.ids
        assert len(one) == len(market)
        assert [one.class_names(name) for name in one] == [market.class_names(n) for n in market]
        loaded = one.load()
        assert loaded.ids == market.ids
        for learnware in market:
            assert_same(loaded[learnware], market[learnware])
        found = js.match(one, made_user(1), k=4, method="rkme")
        whole = js.match(market, made_user(1), k=4, method="rkme")
        assert found.ids == whole.ids
        np.testing.assert_allclose(found.scores, whole.scores, atol=1e-5)
    assert folder.compact().segments == (len(market),)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_blocks_and_rows_do_not_show_where_segments_end(tmp_path, size):
    space = made_space()
    folder = js.MarketFolder.create(tmp_path / "m", space)
    for first in range(0, 12, 3):
        folder = folder.append(
            {
                f"m{seed}": made_specification(seed, 2 + first, 4 + first, probe=first == 6)
                for seed in range(first, first + 3)
            }
        )
    folder = folder.remove(["m1", "m3", "m4", "m5", "m10"])
    assert folder.segments == (2, 3, 2)  # a segment of which nothing is left is left out
    names = [name for name in ROW_ARRAYS if SCHEMA[name].saved]
    whole, loaded = folder.whole(names), folder.load()
    blocks = folder.blocks(names, size)
    for first in range(0, len(folder), size):
        blocks.start(first)
        rows, length = blocks.wait(), min(size, len(folder) - first)
        for name, value in rows.items():
            np.testing.assert_array_equal(value[:length], whole[name][first : first + length])
    at = np.array([6, 0, 3, 3, 2])
    for name, value in folder.rows(names, at).items():
        np.testing.assert_array_equal(value, whole[name][at])
        stored = np.asarray(getattr(loaded.arrays, name))[loaded.rows]
        np.testing.assert_array_equal(whole[name], stored)


def test_history_tells_what_happened_and_every_version_can_be_read(tmp_path):
    before = datetime.datetime.now(datetime.timezone.utc)
    folder = small_folder(tmp_path / "m", 0, 1)
    versions = [folder.ids]
    for change, arguments in (
        ("append", (small(2), "two")),
        ("update", ({"m0": small_specification(9)}, "")),
        ("remove", (["m1"], "gone")),
    ):
        folder = getattr(folder, change)(arguments[0], note=arguments[1])
        versions.append(folder.ids)
    history = folder.history()
    assert [one.change for one in history] == ["create with 2", "append 1", "update 1", "remove 1"]
    assert [one.note for one in history] == ["", "two", "", "gone"]
    assert [one.count for one in history] == [2, 3, 3, 2]
    assert before < history[0].time < history[-1].time
    for one, ids in zip(history, versions, strict=True):
        with js.MarketFolder(tmp_path / "m", version=one.name) as opened:
            assert opened.version == one.name
            assert opened.ids == ids
            opened.verify()
    assert versions[2] == ("m1", "m2", "m0")
    back = folder.rollback(history[1].name, note="back")
    assert back.ids == versions[1]
    assert_same(back.load()["m0"], js.Market(small_space(), small(0))["m0"])
    assert back.history()[-1].change == f"rollback to {history[1].name}"
    assert back.append(small(5)).ids == (*versions[1], "m5")
    for name in ("version-000099", "", "../x"):
        refused(lambda name=name: folder.rollback(name), tmp_path / "m", "version: expected one")
        refused(
            lambda name=name: js.MarketFolder(tmp_path / "m", version=name),
            tmp_path / "m",
            "version: expected one that is kept",
        )


def test_a_commit_writes_what_is_new_and_compaction_forgets(tmp_path):
    path = tmp_path / "m"
    folder = small_folder(path, *range(6))
    kept = {one: one.stat().st_mtime_ns for one in path.rglob("segments/**/*")}
    folder = folder.append(small(10, 11)).remove(["m2"]).update({"m3": small_specification(5)})
    assert {one: one.stat().st_mtime_ns for one in kept} == kept
    assert segments_of(path) == ["segment-000001", "segment-000002", "segment-000004"]
    folder.close()
    folder = folder.compact(keep=2)
    assert [one.change for one in folder.history()] == ["update 1", "compact"]
    assert len(segments_of(path)) == 4
    folder = folder.compact()
    assert [one.change for one in folder.history()] == ["compact"]
    gc.collect()  # what was opened before is closed
    folder.close()
    folder = folder.compact()
    assert len(segments_of(path)) == len(list((path / "versions").iterdir())) == 1
    facts = (path / "segments" / segments_of(path)[0] / "facts.json").read_text()
    assert '"m2"' not in facts


def test_small_segments_are_merged_so_that_there_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "FAN_OUT", 3)
    folder = small_folder(tmp_path / "m", *range(30))
    most = 0
    for number in range(30, 57):
        folder = folder.append(small(number))
        most = max(most, len(folder.segments))
    folder = folder.remove(["m31", "m44"]).update({"m40": small_specification(1)})
    assert most <= 7
    assert sum(folder.segments) == len(folder) == 55
    assert folder.segments[0] == 30
    wanted = [f"m{i}" for i in range(57) if i not in (31, 44, 40)]
    assert folder.ids == (*wanted, "m40")
    folder.verify()
    loaded = folder.load()
    for number in (0, 32, 55):
        wanted = js.Market(small_space(), small(number))[f"m{number}"]
        assert_same(loaded[f"m{number}"], wanted)


def test_appends_compile_nothing_new(tmp_path, compile_counter):
    folder = small_folder(tmp_path / "m", 0, 1)
    folder = folder.append(small(2))
    with compile_counter() as counter:
        for number in range(3, 7):
            folder = folder.append(small(number))
        folder = folder.update({"m0": small_specification(8)}).remove(["m3"])
    assert counter.count == 0


def test_an_empty_market_is_filled_and_emptied(tmp_path):
    folder = js.MarketFolder.create(tmp_path / "m", small_space())
    assert len(folder) == 0
    assert len(folder.load()) == 0
    folder.verify()
    with pytest.raises(ValueError, match="market"):
        js.match(folder, small_user(), k=1)
    folder = folder.append(small(1)).remove(["m1"])
    assert len(folder) == len(folder.load()) == 0
    assert folder.compact().append(small(2, 3)).ids == ("m2", "m3")


def test_changes_are_made_to_the_version_in_force(tmp_path):
    one = small_folder(tmp_path / "m", 0, 1)
    other = js.MarketFolder(tmp_path / "m")
    grown = one.append(small(2))
    assert other.ids == ("m0", "m1")
    assert other.append(small(3)).ids == ("m0", "m1", "m2", "m3")
    assert grown.remove(["m3"]).ids == ("m0", "m1", "m2")
    with pytest.raises(ValueError, match="'m2' is in the market already"):
        other.append(small(2))
    assert (one.ids, grown.ids) == (("m0", "m1"), ("m0", "m1", "m2"))
    assert "m2" in grown
    assert "m2" not in one
    assert one.most_shared_names(["a", "c"]) == 1


def test_changes_that_cannot_be_made_change_nothing(tmp_path):
    folder = small_folder(tmp_path / "m", 0, 1)
    elsewhere = made_specification(0)
    for call, error, message in (
        (lambda: folder.append(small(1)), ValueError, "id: 'm1' is in the market already"),
        (lambda: folder.append({"x": elsewhere}), ValueError, "made-features"),
        (lambda: folder.append([1]), TypeError, "specifications: expected a mapping"),
        (lambda: folder.append(small(7), note=3), TypeError, "note: expected a string"),
        (lambda: folder.append(small(7), note="x" * 1001), ValueError, "note: expected at most"),
        (lambda: folder.update(small(7)), KeyError, "no learnware 'm7' in this market of 2"),
        (lambda: folder.remove(["m0", "m7"]), KeyError, "no learnware 'm7'"),
        (lambda: folder.remove("m0"), TypeError, "ids: expected a sequence"),
        (lambda: folder.compact(keep=0), ValueError, "keep: expected at least 1, got 0"),
        (lambda: js.MarketFolder(tmp_path / "m", version=3), TypeError, "version: expected a str"),
        (lambda: js.MarketFolder.create(tmp_path / "n", 3), TypeError, "space: expected a Space"),
    ):
        with pytest.raises(error, match=message):
            call()
    refused(lambda: small_folder(tmp_path / "m", 0), tmp_path / "m", "expected a new folder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("all I have")
    refused(lambda: small_folder(tmp_path / "other", 0), tmp_path / "other", "thesis")
    assert not (tmp_path / "n").exists()
    assert len(folder.history()) == 1
    assert folder.append({}) is folder.remove([]) is folder


HOLDER = """
import sys, pathlib
from jaxspec.files.folders.commits import writing
with writing(pathlib.Path(sys.argv[1])):
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_at_once_and_a_killed_one_leaves_no_lock(tmp_path):
    folder = small_folder(tmp_path / "m", 0)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "m")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder = subprocess.Popen(command, env=environment, **pipes)
    try:
        assert holder.stdout.readline() == "writing\n"
        message = f"expected that nobody else writes to it, but process {holder.pid} on .* does"
        for call in (
            lambda: folder.append(small(1)),
            lambda: folder.remove(["m0"]),
            lambda: folder.compact(),
            lambda: folder.load().save(tmp_path / "m"),
        ):
            refused(call, tmp_path / "m", message)
        assert js.MarketFolder(tmp_path / "m").ids == ("m0",)  # readers do not mind
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    assert folder.append(small(1)).ids == ("m0", "m1")


def test_a_reader_reads_its_version_to_the_end(tmp_path):
    path = tmp_path / "m"
    first = small_folder(path, *range(8))
    unread = js.MarketFolder(path)
    user, names = small_user(), ("points", "weights")
    before, whole = js.match(first, user, k=8), first.whole(names)
    js.Market(small_space(), small(30, 31)).save(path)  # drops all earlier versions
    for number in range(40, 42):
        js.MarketFolder(path).append(small(number)).close()
    js.MarketFolder(path).compact().close()
    after = js.match(first, user, k=8)
    assert after.ids == before.ids
    np.testing.assert_array_equal(after.scores, before.scores)
    for name, value in first.whole(names).items():
        np.testing.assert_array_equal(value, whole[name])
    assert first.load().ids == tuple(f"m{i}" for i in range(8))
    first.verify()
    gc.collect()  # what was opened in between is closed
    folder = js.MarketFolder(path)
    folder.close()
    folder = folder.compact()
    assert len(segments_of(path)) == 2
    first.close()
    unread.close()
    folder.close()
    folder.compact()
    assert len(segments_of(path)) == 1
    with pytest.raises(js.FileError, match="points"):  # and not zeros
        unread.whole(names)
    refused(lambda: js.match(js.MarketFolder(path, version=first.version), user, k=1), path, "kept")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_one_may_not_write_to_can_be_read(tmp_path):
    path = tmp_path / "m"
    folder = small_folder(path, 0, 1)
    for one in [path, *path.rglob("*")]:
        one.chmod(0o500 if one.is_dir() else 0o400)
    assert js.match(js.MarketFolder(path, verify=True), small_user(), k=1).ids
    refused(lambda: folder.append(small(3)), path, "PermissionError")
