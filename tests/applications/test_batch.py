"""A batch job answers as `match` does, whatever the place, the batches, files and interruptions."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import alike
from drawn_markets import drawn, drawn_market, drawn_user, near_user, one_width, space_of

import jaxspec as js
from jaxspec.applications import batch as batches
from jaxspec.applications import batch_journal as journals
from jaxspec.matching import many

NAMES = ["abc", "bcdefa", "xyz", "ab"]
COUNT = 26
TESTS = Path(__file__).parents[1]


def made_users():
    users = {f"u{i:02d}": drawn_user(i, NAMES[i % 4], n=6 + i % 7) for i in range(COUNT - 2)}
    users["near"] = near_user(drawn(4), names="ef")
    users["last"] = drawn_user(98, "ab")
    return users


USERS = made_users()


@pytest.fixture(scope="module", autouse=True)
def fewer_programs():
    with one_width():
        yield


@pytest.fixture(scope="module")
def market():
    return drawn_market()


@pytest.fixture(scope="module")
def folder(market, tmp_path_factory):
    path = tmp_path_factory.mktemp("markets") / "market"
    market.save(path)
    return js.MarketFolder(path, block_size=8)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    path = tmp_path_factory.mktemp("users") / "users.safetensors"
    js.save_users(path, USERS)
    return path


@pytest.fixture(scope="module")
def wanted(market):
    return dict(zip(USERS, js.match(market, list(USERS.values()), k=5), strict=True))


def assert_answers(got, wanted):
    for i, user in enumerate(got.users):
        want, count = wanted[user], int(got.counts[i])
        assert tuple(got.ids[i, :count]) == want.ids
        assert all(one is None for one in got.ids[i, count:])
        np.testing.assert_allclose(got.scores[i, :count], want.scores, atol=1e-5)
        np.testing.assert_allclose(got.squared_mmd[i, :count], want.squared_mmd, atol=1e-5)
        assert np.isnan(got.scores[i, count:]).all() and np.isnan(got.squared_mmd[i, count:]).all()
        found = (got.methods[i], got.reuses[i], got.label_spaces[i], got.notes[i], got.errors[i])
        assert found == (want.method, want.reuse, want.label_spaces, want.notes, None)


def assert_same(got, want):
    for field in dataclasses.fields(got):
        one, other = getattr(got, field.name), getattr(want, field.name)
        if isinstance(one, tuple):
            assert one == other
        elif one.dtype == np.float32:
            np.testing.assert_allclose(one, other, atol=1e-6)
        else:
            np.testing.assert_array_equal(one, other)


# The same answers


@pytest.mark.parametrize("place", alike("market", "folder", "index"))
def test_a_job_answers_as_match_does_in_the_order_of_the_users(
    place, market, folder, stacked, wanted
):
    where = {"market": market, "index": js.Index.build(market), "folder": folder}[place]
    got = js.match_many(where, stacked, k=5, batch_size=8)
    assert got.users == tuple(USERS) and got.failed == 0
    assert_answers(got, wanted)
    assert [one for one, _ in got.top_k(3, 2)] == [one for one, _ in wanted["u03"].top_k(2)]


def test_mappings_pairs_sequences_generators_and_files_give_the_same_answers(
    market, stacked, wanted, tmp_path
):
    for name, user in USERS.items():
        user.save(tmp_path / "all" / f"{name}.safetensors")
    kinds = [USERS, list(USERS.items()), (pair for pair in USERS.items()), tmp_path / "all"]
    kinds.append([str(stacked)])
    for users in kinds:
        assert_answers(js.match_many(market, users, k=5, batch_size=8), wanted)
    numbered = js.match_many(market, iter(USERS.values()), k=5, batch_size=8)
    assert numbered.users == tuple(map(str, range(COUNT)))
    assert_answers(dataclasses.replace(numbered, users=tuple(USERS)), wanted)
    single = [tmp_path / "all" / "u00.safetensors", tmp_path / "all" / "u07.safetensors"]
    assert js.match_many(market, single, k=5, batch_size=8).users == ("u00", "u07")


@pytest.mark.parametrize(
    "method",
    ["rkme", *(pytest.param(one, marks=pytest.mark.slow) for one in ("classwise", "transfer"))],
)
def test_options_are_those_of_match(method, market):
    among = np.arange(len(market)) % 3 == 1
    options = dict(method=method, reuse="fine-tune", label_spaces="heterogeneous", among=among)
    want = js.match(market, list(USERS.values()), k=9, **options)
    got = js.match_many(market, USERS, k=9, batch_size=8, **options)
    assert got.counts.max() == 7
    assert_answers(got, dict(zip(USERS, want, strict=True)))


def test_more_than_there_is_can_be_asked_for(market):
    few = dict(list(USERS.items())[:3])
    got = js.match_many(market, few, k=1000, batch_size=8)
    assert got.ids.shape == (3, 1000) and (got.counts == len(market)).all()


def test_no_learnware_is_left_and_the_answer_says_so(market, folder):
    for where in (market, folder):
        got = js.match_many(where, USERS, k=3, among=np.zeros(len(market), bool))
        assert (got.counts == 0).all() and got.failed == 0
        assert all("`among` leaves out all" in notes[-1] for notes in got.notes)


def test_no_batch_compiles_anything_that_the_one_before_did_not(market, stacked):
    js.match_many(market, stacked, k=5, batch_size=8)
    before = many.start_best.dispatch(js.Market)  # the place, so that this is the same function
    from jaxspec.scoring.sharded import _best

    known = _best._cache_size()
    few = {f"other {i}": drawn_user(200 + i, NAMES[i % 2], n=5 + i) for i in range(11)}
    for count in (1, 3, 11):
        js.match_many(market, dict(list(few.items())[:count]), k=5, batch_size=8)
    assert _best._cache_size() == known and before is not None


def test_nobody_asks_and_everybody_is_answered(market):
    got = js.match_many(market, {}, k=4)
    assert len(got) == 0 and got.ids.shape == (0, 4)


# Users that cannot be asked


def bad_users():
    foreign = drawn_user(5, space=space_of(js.Gaussian(bandwidth=9.0)))
    return {"u00": USERS["u00"], "text": "no user", "foreign": foreign, "u01": USERS["u01"]}


def test_a_user_that_cannot_be_asked_has_a_row_with_an_error_and_stops_nobody(market, wanted):
    got = js.match_many(market, bad_users(), k=5, batch_size=8)
    assert got.failed == 2 and got.users == ("u00", "text", "foreign", "u01")
    assert "expected a UserSpecification, got a str" in got.errors[1]
    assert "space" in got.errors[2] and got.notes[2] == () and got.counts[2] == 0
    rest = js.match_many(market, {"u00": USERS["u00"], "u01": USERS["u01"]}, k=5, batch_size=8)
    assert_answers(rest, wanted)
    np.testing.assert_array_equal(got.ids[[0, 3]], rest.ids)
    with pytest.raises(ValueError, match=r"users\['text'\]: .*got a str"):
        js.match_many(market, bad_users(), k=5, batch_size=8, errors="raise")


def test_a_score_that_needs_labels_is_an_error_of_users_without(market):
    users = {"quiet": dataclasses.replace(USERS["u00"], labels=None), "u00": USERS["u00"]}
    got = js.match_many(market, users, k=5, batch_size=8, method="likelihood")
    assert got.failed == 1 and "needs the labels" in got.errors[0] and got.counts[1] == 5


def test_a_wrong_file_among_users_is_a_row_with_an_error(market, tmp_path, wanted):
    for name in ("u00", "u01", "u02"):
        USERS[name].save(tmp_path / f"{name}.safetensors")
    (tmp_path / "u01.safetensors").write_bytes(b"%PDF-1.7")
    drawn(3).save(tmp_path / "model.safetensors")
    got = js.match_many(market, tmp_path, k=5, batch_size=8)
    assert got.users == ("model", "u00", "u01", "u02") and got.failed == 2
    assert "PDF" in got.errors[2] and "UserSpecification" in got.errors[0]
    assert_answers(js.match_many(market, [tmp_path / "u00.safetensors"], k=5, batch_size=8), wanted)


def test_what_is_wrong_for_all_users_is_an_error_at_once(market, stacked, tmp_path):
    other = js.Market(space_of(js.Gaussian(bandwidth=9.0)))
    spec = drawn(1, space=space_of(js.Gaussian(bandwidth=9.0)))
    (tmp_path / "empty").mkdir()
    for arguments, options, error, message in (
        ((other, stacked), {}, ValueError, "where: expected at least one learnware"),
        ((other.add({"a": spec}), stacked), {}, js.FileError, "space_digest: expected"),
        ((market, 3), {}, TypeError, "users: expected specifications of users"),
        ((market, tmp_path / "empty"), {}, js.FileError, r"expected files \*.safetensors"),
        ((market, tmp_path / "none"), {}, FileNotFoundError, "nothing at this path"),
        ((market, [stacked, stacked]), {}, ValueError, "users: expected different ids, got"),
        ((market, stacked), {"k": 0}, ValueError, "k: "),
        ((market, stacked), {"batch_size": 0}, ValueError, "batch_size: "),
        ((market, stacked), {"among": "licence = MIT"}, ValueError, "among: "),
        ((market, stacked), {"errors": "ignore"}, ValueError, "errors: expected 'keep' or"),
        ((market, stacked), {"output": tmp_path / "a.csv"}, ValueError, "output: expected a file"),
    ):
        with pytest.raises(error, match=message):
            js.match_many(*arguments, **options)


def test_an_error_of_the_users_own_generator_is_raised(market):
    def users():
        yield "u00", USERS["u00"]
        raise OSError("the data base is gone")

    with pytest.raises(OSError, match="the data base is gone"):
        js.match_many(market, users(), batch_size=8)


# Files of answers


@pytest.mark.parametrize("name", ["answers.npz", "answers.parquet", "answers"])
def test_answers_on_disk_are_those_in_memory(name, market, stacked, tmp_path):
    if name != "answers.npz":
        pytest.importorskip("pyarrow")
    users = {**USERS, **bad_users()}
    want = js.match_many(market, users, k=5, batch_size=8)
    told = []
    report = js.match_many(
        market,
        users,
        k=5,
        batch_size=8,
        output=tmp_path / name,
        progress=lambda *at: told.append(at),
    )
    assert (report.users, report.failed, report.resumed) == (len(users), 2, 0)
    assert report.output == tmp_path / name
    assert_same(js.read_answers(tmp_path / name), want)
    assert told[0] == (0, len(users)) and told[-1] == (len(users) - 2, len(users))
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_a_parquet_table_has_the_columns_that_the_documentation_names(market, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    js.match_many(market, bad_users(), k=3, batch_size=8, output=tmp_path / "a.parquet")
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    names = ["user", "ids", "scores", "squared_mmd", "method", "reuse", "label_spaces"]
    names += ["notes", "error"]
    assert list(rows[0]) == names
    assert len(rows[0]["ids"]) == len(rows[0]["scores"]) == 3 and rows[0]["error"] is None
    assert rows[1]["ids"] == [] and "got a str" in rows[1]["error"] and rows[1]["method"] is None


# Interruptions


class Stop(Exception):
    pass


def stopped_job(market, users, output, after, **options):
    """Run a job that its progress stops after so many users."""

    def progress(done, total):
        if done >= after:
            raise Stop

    with pytest.raises(Stop):
        js.match_many(market, users, output=output, progress=progress, **options)


@pytest.mark.parametrize("kind", alike("stacked", "mapping"))
@pytest.mark.parametrize("name", alike("answers.npz", "answers"))
def test_a_job_goes_on_where_it_was_interrupted(kind, name, market, stacked, tmp_path, monkeypatch):
    if name == "answers":
        pytest.importorskip("pyarrow")
    users, output = (stacked if kind == "stacked" else USERS), tmp_path / name
    monkeypatch.setattr(batches, "LARGEST_PART", 1)
    options = dict(k=5, batch_size=8)
    stopped_job(market, users, output, 17, **options)
    journal = json.loads((journals.parts_folder(output) / "journal.json").read_text())
    done = sum(part["users"] for part in journal["parts"])
    assert done == 16
    asked = []
    start = many.start_best

    def counted(where, query):
        asked.extend(place for group in query.prepared for place in group.places)
        return start(where, query)

    monkeypatch.setattr(many, "start_best", counted)
    told = []
    report = js.match_many(
        market, users, output=output, progress=lambda *at: told.append(at), **options
    )
    assert report.resumed == done and report.users == COUNT
    assert len(asked) == COUNT - done  # nobody was answered twice
    assert told[0] == (done, COUNT)
    assert_same(js.read_answers(output), js.match_many(market, USERS, **options))


def test_a_job_that_asks_something_else_is_not_mixed_with_an_interrupted_one(
    market, stacked, tmp_path, monkeypatch
):
    output = tmp_path / "answers.npz"
    monkeypatch.setattr(batches, "LARGEST_PART", 1)
    stopped_job(market, stacked, output, 17, k=5, batch_size=8)
    fewer = dict(list(USERS.items())[1:])
    for where, users, options, message in (
        (market, stacked, {"k": 6}, "another k: '5', now '6'"),
        (market, stacked, {"method": "rkme"}, "another method: 'the best one'"),
        (market, stacked, {"among": np.arange(len(market)) > 3}, "another among: 'all'"),
        (market, stacked, {"label_spaces": "homogeneous"}, "another label_spaces"),
        (market.remove(["m3"]), stacked, {}, "another market"),
        (market.update({"m3": drawn(77)}), stacked, {}, "another market"),
        (market, fewer, {}, "other users in part 0"),
    ):
        with pytest.raises(js.FileError, match=message):
            js.match_many(where, users, output=output, **{"k": 5, "batch_size": 8, **options})
    report = js.match_many(market, fewer, k=2, output=output, resume=False)
    assert report.users == COUNT - 1 and report.resumed == 0


def test_two_jobs_do_not_write_to_one_output(market, stacked, tmp_path):
    pytest.importorskip("fcntl")
    output = tmp_path / "answers.npz"
    with (
        journals.only_job(output),
        pytest.raises(js.FileError, match="another batch job is writing to this output"),
    ):
        js.match_many(market, stacked, output=output)


def test_a_folder_with_other_files_is_left_alone(market, stacked, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(js.FileError, match="expected an empty folder, or one with the answers"):
        js.match_many(market, stacked, output=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


JOB = """
import sys, time
sys.path[:0] = sys.argv[3:]
import jaxspec as js
from jaxspec.applications import batch
from drawn_markets import drawn_market, one_width
batch.LARGEST_PART = 1
with one_width():
    js.match_many(drawn_market(), sys.argv[1], k=5, batch_size=8, output=sys.argv[2],
                  progress=lambda done, total: (print(done, flush=True), time.sleep(0.1)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_job_that_is_killed_goes_on_without_answering_twice(ending, market, stacked, tmp_path):
    output = tmp_path / "answers.npz"
    command = [sys.executable, "-c", JOB, stacked, output, TESTS, TESTS.parent]
    child = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for line in child.stdout:
        if int(line) >= 17:
            os.kill(child.pid, ending)
            break
    child.communicate(timeout=60)
    assert child.returncode != 0 and not output.exists()
    time.sleep(0.1)
    report = js.match_many(market, stacked, k=5, batch_size=8, output=output)
    assert 0 < report.resumed < COUNT and report.users == COUNT
    assert_same(js.read_answers(output), js.match_many(market, USERS, k=5, batch_size=8))
