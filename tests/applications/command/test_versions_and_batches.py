"""Versions of a market, filters, indexes, batches and admission."""

import shutil

import numpy as np
import pytest
from made_commands import made_files, run, run_json

import jaxspec as js


@pytest.fixture
def market(tmp_path):
    """Return a market of one's own, to change."""
    return shutil.copytree(made_files() / "market.jax", tmp_path / "market.jax")


def test_a_market_goes_back_to_an_old_version_and_forgets_others(market, tmp_path):
    shutil.copy(made_files() / "north.safetensors", tmp_path / "west.safetensors")
    run("market", "add", market, tmp_path / "west.safetensors", "--note", "from the west")
    run("market", "remove", market, "south", "east")
    versions = run_json("market", "history", market)["versions"]
    assert [one["learnwares"] for one in versions] == [3, 4, 2]
    assert versions[1]["note"] == "from the west"
    printed = run("market", "history", market, env={"COLUMNS": "60"}).stdout
    assert "append 1: from" in printed
    assert "the west" in printed
    run("market", "rollback", market, "no-version", code=2)
    back = run_json("market", "rollback", market, versions[0]["name"])
    assert back["learnwares"] == 3
    assert js.Market.load(market).ids == ("north", "east", "south")
    assert run_json("market", "verify", market)["sound"] is True
    run("market", "compact", market)
    versions = run_json("market", "history", market)["versions"]
    assert [one["learnwares"] for one in versions] == [3]


def test_a_saved_index_gives_the_answers_of_its_market(market):
    assert run_json("index", "build", market)["learnwares"] == 3
    ask = ["match", market, made_files() / "mine.npz"]
    ids = [[one["id"] for one in run_json(*ask, *how)["learnwares"]] for how in ((), ("--index",))]
    assert ids[0] == ids[1]
    assert "--stream" in run(*ask, "--index", "--stream", code=2).stderr


def test_learnwares_are_chosen_by_their_metadata(market):
    where = ["--where", "rank >= 1 and licence in (MIT, Apache-2.0)"]
    listed = run_json("market", "list", market, *where)
    assert (listed["count"], listed["selected"]) == (3, 2)
    assert [one["id"] for one in listed["learnwares"]] == ["east", "south"]
    for how in ([], ["--stream"]):
        found = run_json("match", market, made_files() / "mine.npz", *where, *how)
        assert sorted(one["id"] for one in found["learnwares"]) == ["east", "south"]
    nothing = run_json("match", market, made_files() / "mine.npz", "--where", "licence = GPL")
    assert nothing["learnwares"] == []
    assert any("left" in note for note in nothing["notes"])
    assert "--where" in run("market", "list", market, "--where", "rank >>> 1", code=2).stderr


def test_a_batch_answers_each_user_as_match_does_and_counts_those_it_cannot(market, tmp_path):
    users = tmp_path / "users"
    users.mkdir()
    for name in ("one", "two"):
        run("specify", made_files() / "made.space.safetensors", made_files() / "mine.npz", "--user",
            "-o", users / f"{name}.safetensors")  # fmt: skip
    output = tmp_path / "answers.npz"
    done = run_json("batch", market, users, "-k", 2, "-o", output)
    assert (done["users"], done["failed"]) == (2, 0)
    best = run_json("match", market, users / "one.safetensors", "-k", 2)["learnwares"]
    with np.load(output, allow_pickle=False) as answers:
        assert answers["ids"].tolist() == [[one["id"] for one in best]] * 2
    assert "--force" in run("batch", market, users, "-o", output, code=2).stderr
    assert ".parquet" in run("batch", market, users, "-o", tmp_path / "a.txt", code=2).stderr
    shutil.copy(made_files() / "north.safetensors", users / "wrong.safetensors")
    failed = run_json("batch", market, users, "-k", 2, "-o", output, "--force", code=3)
    assert (failed["users"], failed["failed"]) == (3, 1)


def test_admission_refuses_a_copy_and_a_dry_run_changes_nothing(market, tmp_path):
    shutil.copy(made_files() / "north.safetensors", tmp_path / "copy.safetensors")
    add = ["market", "add", market, tmp_path / "copy.safetensors"]
    tried = run_json(*add, "--dry-run", code=3)
    assert list(tried["refused"]) == ["copy"]
    assert tried["added"] == []
    assert "refused copy: " in run(*add, "--policy", "default", code=3).stdout
    assert "--policy" in run(*add, "--policy", "luck=1", code=2).stderr
    assert len(js.Market.load(market)) == 3
    assert run_json(*add, "--policy", "suspicious=warn")["added"] == ["copy"]
    assert len(js.Market.load(market)) == 4


def test_an_audit_compares_recorded_outputs_with_what_was_published(market, tmp_path):
    files = made_files()
    assert run_json("market", "audit", market)["suspicious"] == {}
    folder = tmp_path / "answers"
    folder.mkdir()
    for name, owner in (("north", "north"), ("east", "south")):
        with np.load(files / f"{owner}.npz") as data:
            answers = data["probe_outputs"]
        # The model of "east" has other answers than it published.
        np.save(folder / f"{name}.npy", answers if name == owner else answers[:, ::-1])
    found = run_json("market", "audit", market, "--outputs", folder, code=3)
    assert (found["ran"], found["verified"], list(found["refused"])) == (2, ["north"], ["east"])
    np.save(folder / "east.npy", np.zeros((3, 3)))
    assert (
        "one per row of the probe"
        in run("market", "audit", market, "--outputs", folder, code=3).stderr
    )
    (folder / "east.npy").rename(folder / "nobody.npy")
    assert "nobody" in run("market", "audit", market, "--outputs", folder, code=3).stderr
