"""A market streamed from disk answers as the loaded one, whatever the blocks and interruptions."""

import dataclasses
import itertools

import drawn_markets as made
import jax
import numpy as np
import pytest
from conftest import alike
from drawn_markets import (
    COUNT,
    SPACE,
    NearAndAlike,
    assert_best_of,
    drawn,
    drawn_market,
    drawn_user,
    one_width,
)

import jaxspec as js
from jaxspec.base import FileError, bucket
from jaxspec.files.folders import contents as reader
from jaxspec.scoring import METHODS
from jaxspec.stream import blocks as stream_blocks
from jaxspec.stream import state as stream_state
from jaxspec.stream import stream


@pytest.fixture(autouse=True, scope="module")
def fewer_programs():
    with one_width():
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that gives (folder, the market loaded from it)."""
    known = {}

    def get(probes=True, precision="float32"):
        if (probes, precision) not in known:
            path = tmp_path_factory.mktemp("markets") / "market"
            drawn_market(probe=probes, precision=precision).save(path)
            known[probes, precision] = path, js.Market.load(path)
        return known[probes, precision]

    return get


def streamed(path, user, k=COUNT, *, block_size=None, verify=False, **options):
    folder = js.MarketFolder(path, block_size=block_size, verify=verify)
    return js.match(folder, user, k=k, **options)


EVERY_DAY = [("float32", True, method) for method in METHODS]
EVERY_DAY += [("float32", False, "likelihood"), ("bfloat16", False, "rkme")]
EVERY_DAY += [("bfloat16", True, "likelihood"), ("int8", True, "transfer")]
EVERY_DAY += [("int8", True, "likelihood"), ("int8", False, "classwise")]
ALL_CASES = itertools.product(["float32", "bfloat16", "int8"], [False, True], METHODS)


@pytest.mark.parametrize(
    ("precision", "probes", "method"),
    [
        pytest.param(*case, marks=[] if case in EVERY_DAY else pytest.mark.slow)
        for case in ALL_CASES
    ],
)
def test_a_stream_is_match_on_the_loaded_market(saved, precision, probes, method):
    path, market = saved(probes, precision)
    user = drawn_user(2)
    whole = js.match(market, user, method=method)
    for block_size in (None, 5):
        found = streamed(path, user, 4, method=method, block_size=block_size)
        assert_best_of(found, whole, 4)
        assert found.notes == whole.notes
        for one, other in zip(
            found.explain(found.ids[0]), whole.explain(found.ids[0]), strict=True
        ):
            assert one[:2] == other[:2]
            assert one[2] == pytest.approx(other[2], abs=1e-5)


@pytest.mark.parametrize("label_spaces", ["homogeneous", "heterogeneous"])
def test_label_spaces_and_reuse_are_resolved_as_by_match(saved, label_spaces):
    path, market = saved()
    for reuse in ("direct", "fine-tune"):
        options = {"reuse": reuse, "label_spaces": label_spaces}
        whole = js.match(market, drawn_user(2), **options)
        found = streamed(path, drawn_user(2), 5, block_size=6, **options)
        assert_best_of(found, whole, 5)
        assert (found.reuse, found.label_spaces) == (reuse, label_spaces)


@pytest.mark.parametrize("block_size", alike(8, 1, COUNT - 1, COUNT, 100))
def test_blocks_do_not_change_the_answer(saved, block_size):
    path, market = saved()
    users = [drawn_user(1), drawn_user(2, "wxyz"), drawn_user(3, "ab")]
    found = streamed(path, users, COUNT + 9, block_size=block_size)
    assert [one.method for one in found] == ["likelihood", "transfer", "likelihood"]
    for one, whole in zip(found, js.match(market, users), strict=True):
        assert len(one) == COUNT
        assert_best_of(one, whole, COUNT)


def test_a_batch_may_mix_all_methods_that_users_get(saved):
    path, market = saved()
    silent = dataclasses.replace(drawn_user(4), labels=None)
    users = [drawn_user(1), silent, drawn_user(2, "wxyz")]
    for found, user in zip(streamed(path, users, 3, block_size=6), users, strict=True):
        assert_best_of(found, js.match(market, user), 3)


@dataclasses.dataclass(frozen=True)
class Agreeing:
    """A score of somebody else that needs the users' peers."""

    name: str = "agreeing"
    needs: tuple[str, ...] = ("agreement", "reliability", "share")

    def __call__(self, evidence):
        return evidence.reliability * evidence.agreement + evidence.share + evidence.closeness


@pytest.mark.parametrize("method", [NearAndAlike(), Agreeing(), js.Likelihood(weight=0.1)])
def test_own_scores_are_those_of_match(saved, method):
    path, market = saved()
    users = [drawn_user(1), made.near_user(drawn(4), names="ef")]
    found = streamed(path, users, 6, method=method, block_size=8)
    for one, whole in zip(found, js.match(market, users, method=method), strict=True):
        assert one.method == method.name
        assert_best_of(one, whole, 6)


def test_some_of_the_learnwares_may_be_chosen_from(saved):
    path, market = saved()
    among = np.arange(COUNT) % 4 == 1
    whole = js.match(market, drawn_user(1), among=among)
    found = streamed(path, drawn_user(1), 12, among=among, block_size=5)
    assert len(found) == among.sum()
    assert_best_of(found, whole, 12)
    folder = js.MarketFolder(path)
    none = js.match(folder, drawn_user(1), k=3, among=np.zeros(COUNT, bool))
    assert len(none) == 0


@pytest.mark.parametrize("chosen", ["one", "no probes", "half", "few"])
def test_peers_are_among_the_learnwares_to_choose_from(saved, chosen):
    """The nearest learnware of all is left out, or none of the rest has a probe proxy."""
    path, market = saved()
    at = np.arange(COUNT)
    among = {"one": at == 5, "no probes": at % 3 == 0, "half": at % 2 == 1, "few": at % 10 == 3}
    users = [made.near_user(drawn(4), names="ef"), made.near_user(drawn(7), names="bc")]
    whole = js.match(market, users, method="likelihood", among=among[chosen])
    found = streamed(path, users, 12, method="likelihood", among=among[chosen], block_size=8)
    for one, other in zip(found, whole, strict=True):
        assert len(one) == min(12, among[chosen].sum())
        assert_best_of(one, other, 12)


def test_a_state_of_other_learnwares_to_choose_from_is_refused(saved, tmp_path):
    path, _ = saved()
    among = np.arange(COUNT) % 2 == 1
    resume = tmp_path / "state"

    def progress(done, total):
        raise KeyboardInterrupt

    options = dict(method="likelihood", block_size=8, resume=resume)
    with pytest.raises(KeyboardInterrupt):
        streamed(path, drawn_user(1), 3, among=among, progress=progress, **options)
    with pytest.raises(FileError, match="this state is of another among"):
        streamed(path, drawn_user(1), 3, **options)


def test_scores_that_are_not_numbers_are_never_among_the_best(saved):
    path, market = saved()

    @dataclasses.dataclass(frozen=True)
    class Undefined:
        name: str = "undefined"
        needs: tuple[str, ...] = ("closeness",)

        def __call__(self, evidence):
            return jax.numpy.log(evidence.closeness - 0.3)

    whole = js.match(market, drawn_user(1), method=Undefined())
    known = np.isfinite(whole.scores)
    assert 0 < known.sum() < COUNT
    found = streamed(path, drawn_user(1), int(known.sum()), method=Undefined(), block_size=5)
    assert np.isfinite(found.scores).all()
    assert set(found.ids) == {name for name, one in zip(whole.ids, known, strict=True) if one}


@pytest.mark.parametrize("probes", [False, True])
def test_users_with_one_distance_to_several_peers_get_their_own(tmp_path, probes):
    """Equal embeddings, unequal probe proxies: the first in the market is the peer, as in match."""
    specs = {f"m{i}": drawn(i, probe=probes) for i in range(5)}
    specs["twin"] = dataclasses.replace(drawn(7, probe=probes), reduced_set=drawn(4).reduced_set)
    js.Market(SPACE, specs).save(tmp_path / "m")
    users = [made.near_user(drawn(4), seed, "ef") for seed in range(4)]
    whole = js.match(js.Market.load(tmp_path / "m"), users, method="likelihood")
    found = streamed(tmp_path / "m", users, 6, block_size=4, method="likelihood")
    for one, other in zip(found, whole, strict=True):
        assert_best_of(one, other, 6)


def test_a_peer_may_be_missing(tmp_path):
    """Learnwares with probe proxies have left; their arrays stay."""
    market = drawn_market(7).remove(["m1", "m2", "m4", "m5"])
    market.save(tmp_path / "m")
    loaded = js.Market.load(tmp_path / "m")
    user = drawn_user(1, "ab")
    found = streamed(tmp_path / "m", user, 2, method="likelihood")
    assert_best_of(found, js.match(loaded, user, method="likelihood"), 2)
    assert_best_of(found, js.match(market, user, method="likelihood"), 2)


@pytest.mark.parametrize("kernel", alike(js.Laplacian, js.InverseMultiquadric))
def test_other_kernels_and_origins_far_from_zero(tmp_path, kernel):
    space = made.space_of(kernel(4.0), offset=50.0)
    market = drawn_market(9, space=space, offset=50.0)
    assert np.abs(market.origin).min() > 10
    market.save(tmp_path / "m")
    user = drawn_user(1, space=space, offset=50.0)
    found = streamed(tmp_path / "m", user, 5, block_size=4)
    assert_best_of(found, js.match(js.Market.load(tmp_path / "m"), user), 5)


def test_no_more_than_two_blocks_are_held_and_the_next_is_read_ahead(saved, monkeypatch):
    path, _ = saved()
    events, scored, start = [], stream.score_block, reader.Blocks.start

    def watched_start(self, first):
        if first < self.count:
            events.append(("read", first))
        return start(self, first)

    def watched_score(*arguments):
        events.append(("score",))
        return scored(*arguments)

    monkeypatch.setattr(reader.Blocks, "start", watched_start)
    monkeypatch.setattr(stream, "score_block", watched_score)
    streamed(path, drawn_user(1), method="rkme", block_size=10)
    assert events == [("read", 0), ("read", 10), ("score",), ("read", 20), ("score",), ("score",)]


def test_each_pass_reads_only_what_it_needs(saved, monkeypatch):
    path, _ = saved()
    opened, passes = js.MarketFolder.blocks, []

    def watched(self, names, size):
        passes.append(set(names))
        return opened(self, names, size)

    monkeypatch.setattr(js.MarketFolder, "blocks", watched)
    streamed(path, drawn_user(1), method="rkme")
    (only,) = passes
    assert only == {"points", "scales", "square_norms", "weights", "self_terms"}
    passes.clear()
    streamed(path, drawn_user(1), method="likelihood")
    first, second = passes
    assert first == only
    assert {"class_vectors", "class_ids", "probe_weights", "probe_chances"} <= second
    assert not second & (first | {"hidden_maps"})
    passes.clear()
    streamed(path, drawn_user(1), method="transfer")
    (only,) = passes
    assert {"points", "class_vectors", "hidden_maps"} <= only
    assert "probe_chances" not in only


def test_blocks_take_some_32_mebibytes_or_what_the_folder_says(saved, monkeypatch):
    path, _ = saved()
    names = [("points", "weights")]
    width = js.MarketFolder(path).row_bytes(names[0])
    monkeypatch.setattr(stream, "BLOCK_BYTES", 4 * width + 1)
    assert stream.block_size(js.MarketFolder(path), names) == 4
    assert stream.block_size(js.MarketFolder(path, block_size=9), names) == 9
    # A small market is one block, as long as one of few sizes.
    assert stream.block_size(js.MarketFolder(path, block_size=900), names) == bucket(COUNT)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1)
    assert stream.block_size(js.MarketFolder(path), names) == 1


def test_two_compilations_whatever_the_blocks_and_none_for_another_user(saved, compile_counter):
    path, _ = saved()
    jax.clear_caches()
    streamed(path, drawn_user(1), block_size=6, method="likelihood")
    assert stream_blocks._embed_block._cache_size() == 1
    assert stream_blocks._class_block._cache_size() == 1
    other = drawn_user(2, "abcd", n=30)
    with compile_counter() as counter:
        streamed(path, other, block_size=6, method="likelihood", label_spaces="homogeneous")
    assert counter.count == 0


# Interruptions


class Stop(Exception):
    pass


def stop_after(blocks, error=Stop):
    seen = []

    def progress(done, count):
        seen.append((done, count))
        if len(seen) == blocks:
            raise error

    return progress


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("blocks", [1, 4, 6, 8])  # of four in the first and four in the second pass
def test_an_interrupted_stream_goes_on_where_it_stopped(saved, tmp_path, blocks, error):
    path, _ = saved()
    users = [drawn_user(1), drawn_user(2, "wxyz")]
    uninterrupted = streamed(path, users, 5, block_size=6)
    resume = tmp_path / "state" / "stream.npz"
    options = {"k": 5, "block_size": 6, "resume": resume}
    with pytest.raises(error):
        streamed(path, users, **options, progress=stop_after(blocks, error))
    assert [one.name for one in resume.parent.iterdir()] == [resume.name]
    seen = []
    found = streamed(path, users, **options, progress=lambda *at: seen.append(at))
    assert len(seen) == 8 - blocks
    assert seen[-1:] == [(COUNT, COUNT)] * (blocks < 8)
    assert seen == sorted(seen)
    assert not resume.exists()
    for one, two in zip(found, uninterrupted, strict=True):
        assert one.ids == two.ids
        for name in ("scores", "squared_mmd", "class_similarity", "class_map"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_a_stream_may_go_on_with_other_blocks_and_another_k(saved, tmp_path):
    path, market = saved()
    resume = tmp_path / "stream.npz"
    with pytest.raises(Stop):
        streamed(path, drawn_user(1), 2, block_size=6, resume=resume, progress=stop_after(6))
    found = streamed(path, drawn_user(1), 7, block_size=5, resume=resume)
    assert_best_of(found, js.match(market, drawn_user(1)), 7)


def test_the_state_is_written_while_the_stream_runs(saved, tmp_path, monkeypatch):
    path, _ = saved()
    monkeypatch.setattr(stream_state, "SAVE_SECONDS", -1.0)
    resume, sizes = tmp_path / "stream.npz", []
    streamed(
        path,
        drawn_user(1),
        block_size=6,
        resume=resume,
        progress=lambda *_: sizes.append(resume.stat().st_size),
    )
    assert len(sizes) == 8
    assert sizes[3] > sizes[0]


def test_a_state_of_something_else_is_refused_and_left_alone(saved, tmp_path):
    path, _ = saved()
    other, _ = saved(precision="int8")
    resume, user = tmp_path / "stream.npz", drawn_user(1)
    with pytest.raises(Stop):
        streamed(path, user, block_size=6, resume=resume, progress=stop_after(6))
    data = resume.read_bytes()
    for said, change in (
        ("another market", {"path": other}),
        ("another users", {"user": drawn_user(2)}),
        ("another users", {"label_spaces": "heterogeneous", "reuse": "direct"}),
        ("another method", {"method": "transfer"}),
        ("another method", {"method": js.Likelihood(weight=0.5)}),
    ):
        asked = {"path": path, "user": user, **change}
        with pytest.raises(FileError, match=f"stream.npz: .*{said}"):
            streamed(**asked, resume=resume)
    assert resume.read_bytes() == data
    for damaged in (data[:-30], b"all I have", b""):
        resume.write_bytes(damaged)
        with pytest.raises(FileError, match=r"stream.npz: "):
            streamed(path, user, resume=resume)
        assert resume.read_bytes() == damaged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(done=np.array([99, 0])), "done: expected 2 counts up to 21"),
        (lambda f: f.update(done=np.array([6, 12])), "done: expected"),
        (lambda f: f.update({"0 closeness": f["0 closeness"][:3]}), "closeness: expected float32"),
        (lambda f: f.update({"0 closeness": f["0 closeness"] * np.nan}), "closeness: expected fin"),
        (lambda f: f.pop("0 squared_mmd"), "0 squared_mmd"),
    ],
)
def test_a_state_with_wrong_numbers_is_refused(saved, tmp_path, change, message):
    path, _ = saved()
    resume, user = tmp_path / "stream.npz", drawn_user(1)
    with pytest.raises(Stop):
        streamed(path, user, block_size=6, resume=resume, progress=stop_after(6))
    with np.load(resume) as file:
        fields = dict(file)
    change(fields)
    np.savez(resume, **fields)
    with pytest.raises(FileError, match=message):
        streamed(path, user, resume=resume)


# Bad input


def with_numbers(rows, name, at, value):
    """Return rows of a market of which one learnware has wrong numbers."""
    if name not in rows:
        return rows
    changed = rows[name].copy()
    changed[at] = value
    return {**rows, name: changed}


@pytest.mark.parametrize(
    ("name", "at", "method"),
    [("points", COUNT - 1, "rkme"), ("probe_weights", 7, "likelihood"), ("self_terms", 4, "rkme")],
)
def test_nan_on_disk_is_named(saved, monkeypatch, name, at, method):
    path, _ = saved()
    wait, seen = reader.Blocks.wait, []

    def damaged(self):
        first = 6 * len(seen) if name != "probe_weights" else 6 * (len(seen) - 4)
        seen.append(1)
        rows = wait(self)
        return with_numbers(rows, name, at - first, np.nan) if 0 <= at - first < 6 else rows

    monkeypatch.setattr(reader.Blocks, "wait", damaged)
    with pytest.raises(FileError, match=f"{name}: expected finite numbers") as caught:
        streamed(path, drawn_user(1), block_size=6, method=method)
    assert str(caught.value).startswith(f"{path}: ")


def test_nothing_of_a_block_with_nan_is_kept(saved, tmp_path, monkeypatch):
    path, _ = saved()
    wait, firsts, start = reader.Blocks.wait, {}, reader.Blocks.start

    def noted(self, first):
        firsts.setdefault(id(self), []).append(first)
        return start(self, first)

    def damaged(self):
        rows, first = wait(self), firsts[id(self)][-1]
        return with_numbers(rows, "points", 14 - first, np.inf) if first == 12 else rows

    monkeypatch.setattr(reader.Blocks, "start", noted)
    monkeypatch.setattr(reader.Blocks, "wait", damaged)
    resume, seen = tmp_path / "stream.npz", []
    for _ in range(2):  # the second call goes on from the state, and stops at the same block
        with pytest.raises(FileError, match="points: expected finite numbers"):
            streamed(
                path,
                drawn_user(1),
                method="rkme",
                block_size=6,
                resume=resume,
                progress=lambda done, _: seen.append(done),
            )
        assert seen == [6, 12]
        with np.load(resume) as state:
            assert state["done"].tolist() == [12]
            assert np.isfinite(state["0 squared_mmd"]).all()


def test_bad_input_is_named_as_by_match(saved):
    path, _ = saved()
    user = drawn_user(1)
    for options, error, message in (
        ({"k": None}, ValueError, "k: expected a number .* MarketFolder is streamed, got None"),
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"k": True}, TypeError, "k: expected an integer"),
        ({"method": "best"}, ValueError, "method: expected one of"),
        ({"method": NearAndAlike(needs=("speed",))}, ValueError, "method.needs: expected names of"),
        ({"reuse": "never"}, ValueError, "reuse: expected one of"),
        ({"label_spaces": "same"}, ValueError, "label_spaces: expected one of"),
        ({"among": [1, 0]}, TypeError, "among: expected a boolean mask"),
        ({"resume": 3}, TypeError, "resume: expected a string or a path"),
    ):
        with pytest.raises(error, match=message):
            streamed(path, user, **options)
    with pytest.raises(ValueError, match="user: expected at least one"):
        streamed(path, [])
    elsewhere = dataclasses.replace(user, space_name="elsewhere", space_digest="another")
    with pytest.raises(ValueError, match="'elsewhere'.*'drawn'"):
        streamed(path, elsewhere)
    with pytest.raises(ValueError, match="needs the labels"):
        streamed(path, dataclasses.replace(user, labels=None), method="transfer")


def test_the_market_on_disk_stays_as_it_was(saved, tmp_path):
    path, _ = saved()

    def state():
        files = sorted(one for one in path.rglob("*") if one.is_file())
        return [(one, one.stat().st_mtime_ns, one.read_bytes()) for one in files]

    before = state()
    streamed(path, drawn_user(1), block_size=6, resume=tmp_path / "stream.npz", verify=True)
    assert state() == before


def test_a_folder_that_grows_by_one_compiles_nothing_new(tmp_path, compile_counter):
    specs = {f"m{i}": drawn(i) for i in range(20)}
    folder = js.MarketFolder.create(tmp_path / "m", SPACE, specs)
    user = drawn_user(2)
    js.match(folder, user, k=3)
    grown = folder.append({"new": drawn(30)})
    with compile_counter() as counter:
        found = js.match(grown, user, k=21)
    assert counter.count == 0
    assert_best_of(found, js.match(grown.load(), user), 21)
