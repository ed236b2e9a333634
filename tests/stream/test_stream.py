"""A market streamed from disk answers as the loaded one, whatever the blocks and interruptions."""

import dataclasses
import itertools
import json
import shutil
import zlib

import jax
import numpy as np
import pytest
from conftest import DIMENSION, KERNEL, SPACE, made_user, names

import jaxspec as js
from jaxspec.files import reader as market_folder
from jaxspec.files import store
from jaxspec.matching import match as matching
from jaxspec.specify.probe_proxy import ProbeProxy
from jaxspec.stream import blocks as stream_blocks
from jaxspec.stream import state as stream_state

COUNT = 23


def made_market(probes, storage="float32", count=COUNT, kernel=KERNEL, offset=0.0):
    """Random learnwares of three to five classes; every third has no probe proxy."""
    rng = np.random.default_rng(3)
    landmarks = rng.normal(size=(9, DIMENSION)).astype(np.float32) * 2 + np.float32(offset)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    specs = {}
    for i in range(count):
        size, classes = 7 + i % 4, 3 + i % 3
        probe = None
        if probes and i % 3:
            probe = ProbeProxy(landmarks, normal(9, classes), normal(classes), 0.9, "made")
        points = normal(size, DIMENSION) + 2 * normal(DIMENSION) + np.float32(offset)
        specs[f"m{i}"] = js.Specification(
            js.ReducedSet(points, (np.abs(normal(size)) + 0.1) / size),
            js.Proxy(normal(DIMENSION, classes), normal(classes)),
            kernel,
            tuple(names(classes)),
            SPACE,
            num_examples=100,
            probe=probe,
        )
    return js.Market.from_specifications(specs, storage=storage)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that gives (folder, the market loaded from it)."""
    made = {}

    def get(probes=True, storage="float32"):
        if (probes, storage) not in made:
            path = tmp_path_factory.mktemp("markets") / "market"
            made_market(probes, storage).save(path)
            made[probes, storage] = path, js.Market.load(path)
        return made[probes, storage]

    return get


def assert_as_match(found, whole, k, user=None):
    """Check a streamed answer against `match` on the loaded market."""
    pick = (lambda value: value) if user is None else (lambda value: value[user])
    order = np.argsort(-pick(whole.scores), kind="stable")[:k]
    assert found.ids == tuple(whole.ids[i] for i in order)
    classes = len(found.class_names)
    for name in ("scores", "squared_mmd", "class_similarity", "class_map"):
        want = pick(getattr(whole, name))[order]
        if want.ndim == 2:
            want = want[:, :classes]
        np.testing.assert_allclose(getattr(found, name), want, atol=1e-5)
    assert found.method == pick(whole.method) if user is not None else whole.method
    best = found.ids[0]
    assert found.explain(best)[0][:2] == whole.explain(best, user or 0)[0][:2]
    assert len(found.top_k(3)) == min(3, k)


EVERY_DAY = [("float32", True, method) for method in matching.METHODS]
EVERY_DAY += [("float32", False, "likelihood"), ("bfloat16", False, "rkme")]
EVERY_DAY += [("bfloat16", True, "likelihood"), ("int8", True, "transfer")]
EVERY_DAY += [("int8", True, "likelihood"), ("int8", False, "classwise")]
ALL_CASES = itertools.product(["float32", "bfloat16", "int8"], [False, True], matching.METHODS)


@pytest.mark.parametrize(
    ("storage", "probes", "method"),
    [
        pytest.param(*case, marks=[] if case in EVERY_DAY else pytest.mark.slow)
        for case in ALL_CASES
    ],
)
def test_a_stream_is_match_on_the_loaded_market(saved, storage, probes, method):
    path, market = saved(probes, storage)
    user = made_user(2)
    whole = js.match(market, user, method=method)
    for block_size in (None, 5):
        found = js.stream_top_k(path, user, 4, method=method, block_size=block_size)
        assert_as_match(found, whole, 4)


@pytest.mark.parametrize("block_size", [1, 8, COUNT - 1, COUNT, 100])
def test_blocks_do_not_change_the_answer(saved, block_size):
    path, market = saved()
    users = [made_user(1), made_user(2, class_names=list("wxyz")), made_user(3, classes=3)]
    found = js.stream_top_k(path, users, COUNT + 9, block_size=block_size)
    whole = js.match(market, users)
    assert [one.method for one in found] == ["likelihood", "transfer", "likelihood"]
    for i, one in enumerate(found):
        assert_as_match(one, whole, COUNT, user=i)


def test_a_batch_may_mix_all_methods_that_users_ask_for(saved):
    path, market = saved()
    silent = dataclasses.replace(made_user(4), labels=None)
    users = [made_user(1), silent, made_user(2, class_names=list("wxyz"))]
    for found, user in zip(js.stream_top_k(path, users, 3, block_size=6), users, strict=True):
        assert_as_match(found, js.match(market, user), 3)


@pytest.mark.parametrize("probes", [False, True])
def test_users_with_one_distance_to_several_peers_get_their_own(tmp_path, probes):
    """Equal embeddings, unequal probe proxies: the first in the market is the peer, as in match."""
    market = made_market(probes, count=6)
    twin = dataclasses.replace(market["m5"], reduced_set=market["m4"].reduced_set)
    market = market.remove("m5").add("twin", twin)
    market.save(tmp_path / "m")
    users = [made_user(seed) for seed in range(4)]
    whole = js.match(js.Market.load(tmp_path / "m"), users, method="likelihood")
    for i, one in enumerate(js.stream_top_k(tmp_path / "m", users, 6, block_size=4)):
        assert_as_match(one, whole, 6, user=i)


def test_a_peer_may_be_missing(tmp_path):
    """Learnwares with probes have left; the landmarks stay."""
    market = made_market(True, count=6)
    for learnware in ("m1", "m2", "m4", "m5"):
        market = market.remove(learnware)
    market.save(tmp_path / "m")
    market = js.Market.load(tmp_path / "m")
    assert market.probe is not None
    found = js.stream_top_k(tmp_path / "m", made_user(1), 2, method="likelihood")
    assert_as_match(found, js.match(market, made_user(1), method="likelihood"), 2)


@pytest.mark.parametrize("kernel", [js.Laplacian, js.InverseMultiquadric])
def test_other_kernels_and_origins_far_from_zero(tmp_path, kernel):
    market = made_market(True, count=9, kernel=kernel(bandwidth=4.0), offset=50.0)
    assert np.asarray(market.arrays.origin).any()
    market.save(tmp_path / "m")
    user = made_user(1)
    moved = js.ReducedSet(np.asarray(user.reduced_set.points) + 50, user.reduced_set.weights)
    user = dataclasses.replace(user, kernel=kernel(bandwidth=4.0), reduced_set=moved)
    found = js.stream_top_k(tmp_path / "m", user, 5, block_size=4)
    assert_as_match(found, js.match(js.Market.load(tmp_path / "m"), user), 5)


def test_markets_of_the_first_files_can_be_streamed(tmp_path, saved):
    """They had no scales and no square norms."""
    path, market = saved()
    copy = shutil.copytree(path, tmp_path / "m")
    (version,) = copy.glob("version-*")
    facts = json.loads((version / "facts.json").read_text())
    for name in ("scales", "square_norms"):
        del facts["arrays"][name]
    write_facts(copy, facts)
    found = js.stream_top_k(copy, made_user(1), 5, block_size=6)
    assert_as_match(found, js.match(market, made_user(1)), 5)


def write_facts(copy, facts):
    (version,) = copy.glob("version-*")
    data = json.dumps(facts).encode()
    (version / "facts.json").write_bytes(data)
    pointer = json.loads((copy / "market.json").read_text())
    (copy / "market.json").write_text(json.dumps({**pointer, "crc32": zlib.crc32(data)}))


def test_chunks_smaller_than_blocks_and_blocks_smaller_than_chunks(tmp_path, saved, monkeypatch):
    _, market = saved()
    monkeypatch.setattr(store, "CHUNK_BYTES", 400)
    market.save(tmp_path / "m")
    folder = market_folder.Folder(tmp_path / "m", False)
    chunk = folder.open(["points"])["points"].chunk_layout.read_chunk.shape
    assert chunk[0] < 5
    rows = np.array([20, 3, 3, 7, 0, 22])
    taken = folder.take(("points", "class_ids"), rows)
    for name, value in taken.items():
        np.testing.assert_array_equal(value, np.asarray(getattr(market.arrays, name))[rows])
    found = js.stream_top_k(tmp_path / "m", made_user(1), 5, block_size=5)
    assert_as_match(found, js.match(market, made_user(1)), 5)


def test_no_more_than_two_blocks_are_held_and_the_next_is_read_ahead(saved, monkeypatch):
    path, _ = saved()
    events = []
    finish, scored = market_folder.Folder.finish, stream_blocks._embed_block

    class Reading:
        def __init__(self, one):
            self.one = one

        def __getitem__(self, rows):
            if isinstance(rows, slice):
                events.append(("read", rows.start))
            return self.one[rows]

        def __getattr__(self, name):
            return getattr(self.one, name)

    opened = market_folder.Folder.open

    def watched(self, wanted):
        found = opened(self, wanted)
        return {k: Reading(v) if k == "points" else v for k, v in found.items()}

    monkeypatch.setattr(market_folder.Folder, "open", watched)
    monkeypatch.setattr(
        stream_blocks, "_embed_block", lambda *a: events.append(("score",)) or scored(*a)
    )
    assert finish is market_folder.Folder.finish
    js.stream_top_k(path, made_user(1), method="rkme", block_size=10)
    assert events == [("read", 0), ("read", 10), ("score",), ("read", 20), ("score",), ("score",)]


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_two_blocks_of_memory_serve_all_and_a_block_stays_while_the_next_is_read(saved, storage):
    path, market = saved(storage=storage)
    names, size = ("points", "scales", "class_ids"), 10
    blocks = market_folder.Blocks(market_folder.Folder(path, False), names, size)
    addresses = set()
    blocks.start(0)
    for first in range(0, COUNT, size):
        rows = blocks.wait()
        blocks.start(first + size)
        for one in blocks.reading:
            one.result()
        last = min(first + size, COUNT)
        for name, value in rows.items():
            assert len(value) == size
            want = np.asarray(getattr(market.arrays, name))[first:last]
            np.testing.assert_array_equal(value[: last - first], want)
            assert value.ctypes.data % 64 == 0  # else jax copies it
            addresses.add(value.ctypes.data)
    assert len(addresses) == 2 * len(names)


def test_a_block_that_the_market_does_not_fill_ends_in_no_learnwares(saved):
    path, market = saved()
    blocks = market_folder.Blocks(
        market_folder.Folder(path, False), ("weights", "class_ids"), COUNT + 5
    )
    blocks.start(COUNT - 2)
    rows = blocks.wait()
    for name, empty in (("weights", 0), ("class_ids", -1)):
        np.testing.assert_array_equal(
            rows[name][:2], np.asarray(getattr(market.arrays, name))[COUNT - 2 : COUNT]
        )
        assert (rows[name][2:] == empty).all()


def test_each_pass_reads_only_what_it_needs(saved, monkeypatch):
    path, _ = saved()
    opened, sets = market_folder.Folder.open, []

    def watched(self, wanted):
        sets.append(set(wanted))
        return opened(self, wanted)

    monkeypatch.setattr(market_folder.Folder, "open", watched)
    user = made_user(1)
    js.stream_top_k(path, user, method="rkme")
    assert all("probe_weights" not in one for one in sets)
    assert not any({"points", "class_vectors"} <= one for one in sets)
    sets.clear()
    js.stream_top_k(path, user, method="likelihood")
    first = next(one for one in sets if "square_norms" in one)
    second = next(one for one in sets if "probe_weights" in one)
    assert not first & {"class_vectors", "probe_weights", "probe_chances"}
    assert not second & {"points", "weights", "square_norms"}


def test_two_compilations_whatever_the_blocks_and_none_for_another_user(saved, compile_counter):
    path, _ = saved()
    jax.clear_caches()
    js.stream_top_k(path, made_user(1), block_size=6, method="likelihood")
    assert stream_blocks._embed_block._cache_size() == 1
    assert stream_blocks._class_block._cache_size() == 1
    with compile_counter() as counter:
        js.stream_top_k(path, made_user(2, classes=3), 5, block_size=6, method="likelihood")
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
    users = [made_user(1), made_user(2, class_names=list("wxyz"))]
    whole = js.stream_top_k(path, users, 5, block_size=6)
    resume = tmp_path / "state" / "stream.npz"
    with pytest.raises(error):
        js.stream_top_k(
            path, users, 5, block_size=6, resume=resume, progress=stop_after(blocks, error)
        )
    assert [one.name for one in resume.parent.iterdir()] == [resume.name]
    seen = []
    found = js.stream_top_k(
        path, users, 5, block_size=6, resume=resume, progress=lambda *at: seen.append(at)
    )
    assert len(seen) == 8 - blocks
    assert not seen or seen[-1] == (COUNT, COUNT)
    assert not resume.exists()
    for one, two in zip(found, whole, strict=True):
        assert one.ids == two.ids
        for name in ("scores", "squared_mmd", "class_similarity", "class_map"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_a_stream_may_go_on_with_other_blocks_and_another_k(saved, tmp_path):
    path, market = saved()
    resume = tmp_path / "stream.npz"
    with pytest.raises(Stop):
        js.stream_top_k(path, made_user(1), 2, block_size=6, resume=resume, progress=stop_after(6))
    found = js.stream_top_k(path, made_user(1), 7, block_size=5, resume=resume)
    assert_as_match(found, js.match(market, made_user(1)), 7)


def test_the_state_is_written_while_the_stream_runs(saved, tmp_path, monkeypatch):
    path, _ = saved()
    monkeypatch.setattr(stream_state, "SAVE_SECONDS", -1.0)
    resume, there = tmp_path / "stream.npz", []
    js.stream_top_k(
        path,
        made_user(1),
        block_size=6,
        resume=resume,
        progress=lambda *_: there.append(resume.stat().st_size),
    )
    assert len(there) == 8
    assert there[3] > there[0]


def test_a_state_of_something_else_is_refused_and_left_alone(saved, tmp_path):
    path, _ = saved()
    other, _ = saved(storage="int8")
    resume, user = tmp_path / "stream.npz", made_user(1)
    with pytest.raises(Stop):
        js.stream_top_k(path, user, block_size=6, resume=resume, progress=stop_after(6))
    data = resume.read_bytes()
    for said, change in (
        ("another market", {"path": other}),
        ("another users", {"user": made_user(2)}),
        ("another users", {"label_spaces": "heterogeneous", "reuse": "direct"}),
        ("another method", {"method": "transfer"}),
    ):
        asked = {"path": path, "user": user, **change}
        with pytest.raises(ValueError, match=f"stream.npz: .*{said}"):
            js.stream_top_k(**asked, resume=resume)
    assert resume.read_bytes() == data
    for damaged in (data[:-30], b"all I have", b""):
        resume.write_bytes(damaged)
        with pytest.raises(ValueError, match="stream.npz: "):
            js.stream_top_k(path, user, resume=resume)
        assert resume.read_bytes() == damaged


# Bad input


def test_nan_on_disk_is_named(saved, tmp_path, monkeypatch):
    _, market = saved()
    for field, where in (("points", COUNT - 1), ("probe_weights", 7), ("self_terms", 4)):
        broken = js.Market.from_specifications(dict(market.items()))
        values = np.array(getattr(broken.arrays, field))
        values[where] = np.nan
        broken._storage.arrays = dataclasses.replace(broken.arrays, **{field: values})
        with monkeypatch.context() as patch:
            patch.setattr(store, "_check_finite", lambda *_: None)
            broken.save(tmp_path / field)
        with pytest.raises(ValueError, match=f"{field}: {field}: expected finite numbers"):
            js.stream_top_k(tmp_path / field, made_user(1), block_size=6)


def test_nothing_of_a_block_with_nan_is_kept(saved, tmp_path, monkeypatch):
    _, market = saved()
    broken = js.Market.from_specifications(dict(market.items()))
    values = np.array(broken.arrays.points)
    values[14] = np.inf
    broken._storage.arrays = dataclasses.replace(broken.arrays, points=values)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_check_finite", lambda *_: None)
        broken.save(tmp_path / "m")
    resume, seen = tmp_path / "stream.npz", []
    for _ in range(2):  # the second call goes on from the state, and stops at the same block
        with pytest.raises(ValueError, match="points: expected finite numbers"):
            js.stream_top_k(
                tmp_path / "m",
                made_user(1),
                method="rkme",
                block_size=6,
                resume=resume,
                progress=lambda done, _: seen.append(done),
            )
        assert seen == [6, 12]
        with np.load(resume) as state:
            assert state["done"].tolist() == [12]
            assert np.isfinite(state["0 squared_mmd"]).all()


def test_damage_is_found_by_verifying(saved, tmp_path):
    path, _ = saved()
    copy = shutil.copytree(path, tmp_path / "m")
    file = next(copy.glob("version-*/arrays/commit_success.txt"))
    file.write_bytes(file.read_bytes() + b" ")
    js.stream_top_k(copy, made_user(1))
    with pytest.raises(ValueError, match="arrays: a file is missing or damaged"):
        js.stream_top_k(copy, made_user(1), verify=True)
    js.stream_top_k(path, made_user(1), verify=True)
    for file in copy.glob("version-*/arrays/**/d/*"):
        file.unlink()
    with pytest.raises(ValueError, match="m: "):
        js.stream_top_k(copy, made_user(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["ids"].__setitem__(1, "m0"), "ids: expected different"),
        (lambda f: f["class_names"].pop(), "class_ids"),
        (lambda f: f["facts"]["size"].__setitem__(0, 99), "size: expected values in"),
        (lambda f: f["facts"]["num_examples"].__setitem__(COUNT - 1, True), "num_examples: exp"),
        (lambda f: f["facts"]["fidelity"].__setitem__(7, "good"), "fidelity: expected"),
        (lambda f: f.update(kernel="Popen"), "kernel: expected one of"),
        (lambda f: f.update(probe=None), "probe: does not fit"),
        (lambda f: f["arrays"]["weights"].__setitem__(1, "int32"), "weights: expected"),
        (lambda f: f["arrays"]["class_bias"].__setitem__(0, [COUNT, 2]), "class_bias: expected"),
        (lambda f: f["arrays"]["landmarks"].__setitem__(0, [4, 6]), "expected shape"),
    ],
)
def test_facts_that_are_off_are_refused_as_by_load(saved, tmp_path, change, message):
    path, _ = saved()
    copy = shutil.copytree(path, tmp_path / "m")
    (version,) = copy.glob("version-*")
    facts = json.loads((version / "facts.json").read_text())
    change(facts)
    write_facts(copy, facts)
    with pytest.raises(ValueError, match=message) as caught:
        js.stream_top_k(copy, made_user(1))
    assert str(caught.value).startswith(f"{copy}: ")
    with pytest.raises(ValueError, match=message):
        js.Market.load(copy)


def test_arrays_that_are_not_what_the_facts_say_are_refused(saved, tmp_path):
    path, _ = saved()
    copy = shutil.copytree(path, tmp_path / "m")
    (version,) = copy.glob("version-*")
    facts = json.loads((version / "facts.json").read_text())
    for name in ("points", "class_vectors", "landmarks"):  # of one column less, all of them
        facts["arrays"][name][0][-1] -= 1
    facts["arrays"]["origin"][0][0] -= 1
    write_facts(copy, facts)
    with pytest.raises(ValueError, match="expected float32 of shape"):
        js.stream_top_k(copy, made_user(1))


def test_bad_input_is_named_as_by_match(saved, tmp_path):
    path, _ = saved()
    user = made_user(1)
    for options, message in (
        ({"k": 0}, "k: expected an integer of at least 1"),
        ({"k": True}, "k: expected an integer"),
        ({"block_size": 0}, "block_size: expected an integer of at least 1"),
        ({"method": "best"}, "method: expected one of"),
        ({"reuse": "never"}, "reuse: expected one of"),
        ({"label_spaces": "same"}, "label_spaces: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            js.stream_top_k(path, user, **options)
    with pytest.raises(ValueError, match="user: expected at least one"):
        js.stream_top_k(path, [])
    with pytest.raises(ValueError, match="'elsewhere'.*'made-features'"):
        js.stream_top_k(path, dataclasses.replace(user, feature_space="elsewhere"))
    with pytest.raises(ValueError, match="needs the labels"):
        js.stream_top_k(path, dataclasses.replace(user, labels=None), method="transfer")
    with pytest.raises(FileNotFoundError, match="nowhere: there is nothing"):
        js.stream_top_k(tmp_path / "nowhere", user)
    with pytest.raises(ValueError, match="without market.json"):
        js.stream_top_k(tmp_path, user)


def test_the_answers_market_knows_names_and_refuses_the_rest(saved):
    path, market = saved()
    found = js.stream_top_k(path, made_user(1)).market
    assert found.ids == market.ids
    assert found.class_names("m2") == market.class_names("m2")
    assert len(found) == COUNT
    assert "m3" in found
    for asks in (
        lambda: js.match(found, made_user(1)),
        lambda: found["m3"],
        lambda: found.remove("m3"),
        lambda: found.add("new", market["m3"]),
        lambda: found.calibration,
    ):
        with pytest.raises(ValueError, match="its rows are on disk; Market.load"):
            asks()
