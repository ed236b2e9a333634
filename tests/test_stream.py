"""A market on disk scored block by block equals the loaded one, and a stopped run goes on."""

import json
import zlib

import numpy as np
import pytest
from conftest import made_specification, made_user
from test_probe import specification_with_probe

import jaxspec as js
from jaxspec import scoring, stream


@pytest.fixture(scope="module", params=["plain", "probe", "int8"])
def saved(request, tmp_path_factory):
    make = made_specification if request.param == "plain" else specification_with_probe
    market = js.Market.from_specifications({f"m{s}": make(s) for s in range(7)})
    if request.param == "int8":
        market = market.stored_as("int8")
    path = tmp_path_factory.mktemp("stream") / "market"
    market.save(path)
    return path, market


@pytest.mark.parametrize("method", scoring.METHODS)
def test_it_equals_the_market_in_memory(saved, method):
    path, market = saved
    users = [made_user(1), made_user(2, classes=3)]
    for block_size in (2, 100):
        found = js.stream_top_k(path, users, 3, method=method, block_size=block_size)
        for one, want in zip(found, js.top_k(market, users, 3, method=method), strict=True):
            assert one.ids == want.ids
            np.testing.assert_allclose(one.scores, want.scores, atol=1e-5)
            np.testing.assert_allclose(one.squared_mmd, want.squared_mmd, atol=1e-5)
            np.testing.assert_allclose(one.class_similarity, want.class_similarity, atol=1e-5)
            np.testing.assert_array_equal(one.class_map, want.class_map)
            first, second = one.explain(one.ids[0]), want.explain(want.ids[0])
            assert [row[:2] for row in first] == [row[:2] for row in second]


def test_a_stopped_run_goes_on_where_it_was(saved, tmp_path, monkeypatch):
    path, market = saved
    user, state, seen = made_user(1), tmp_path / "state", []

    def stop(done, total):
        seen.append(done)
        if len(seen) == 6:  # of four blocks in each of two passes
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        js.stream_top_k(path, user, 2, block_size=2, progress=stop, resume=state)
    assert [one.name for one in tmp_path.iterdir()] == ["state.likelihood"]
    with pytest.raises(ValueError, match="resume: .* another market, other users"):
        js.stream_top_k(path, made_user(2), 2, block_size=2, resume=state)
    rest = []
    found = js.stream_top_k(
        path, user, 2, block_size=2, progress=lambda *at: rest.append(at), resume=state
    )
    assert rest == [(6, 7), (7, 7)]
    assert found.ids == js.top_k(market, user, 2).ids
    assert not list(tmp_path.iterdir())


def test_blocks_are_of_one_shape_and_compile_once(saved, compile_counter):
    path, _ = saved
    js.stream_top_k(path, made_user(1), 2, block_size=2)
    with compile_counter() as counter:
        js.stream_top_k(path, made_user(2, classes=3), 2, block_size=2)
    assert counter.count == 0


def test_a_damaged_or_missing_market_is_refused(saved, tmp_path):
    path, _ = saved
    with pytest.raises(FileNotFoundError, match="nothing at this path"):
        js.stream_top_k(tmp_path / "none", made_user(1))
    with pytest.raises(ValueError, match="k: expected an integer"):
        js.stream_top_k(path, made_user(1), 0)
    with pytest.raises(ValueError, match="block_size: expected an integer"):
        js.stream_top_k(path, made_user(1), block_size=0)
    with pytest.raises(ValueError, match="feature space"):
        other = made_user(1)
        js.stream_top_k(path, js.specify_user(
            np.asarray(other.reduced_set.points), np.asarray(other.labels),
            class_names=other.class_names, kernel=other.kernel, feature_space="elsewhere",
        ))  # fmt: skip


def test_the_header_and_on_request_all_files_are_checked(tmp_path):
    market = js.Market.from_specifications({f"m{s}": made_specification(s) for s in range(3)})
    market.save(tmp_path / "m")
    js.stream_top_k(tmp_path / "m", made_user(1), verify=True)
    version = next((tmp_path / "m").glob("version-*"))
    (version / "arrays" / "more").write_text("x")
    with pytest.raises(ValueError, match="missing or damaged"):
        js.stream_top_k(tmp_path / "m", made_user(1), verify=True)
    (version / "arrays" / "more").unlink()
    facts = json.loads((version / "facts.json").read_text())
    facts["arrays"]["weights"][0] = [3, 99]
    text = json.dumps(facts).encode()
    (version / "facts.json").write_bytes(text)
    pointer = json.loads((tmp_path / "m" / "market.json").read_text())
    pointer["crc32"] = zlib.crc32(text)
    (tmp_path / "m" / "market.json").write_text(json.dumps(pointer))
    with pytest.raises(ValueError, match="expected shape"):
        js.stream_top_k(tmp_path / "m", made_user(1))


def test_a_block_that_is_not_finite_is_refused(tmp_path, monkeypatch):
    market = js.Market.from_specifications({f"m{s}": made_specification(s) for s in range(3)})
    market.save(tmp_path / "m")
    real = stream._OnDisk.ask

    class Broken:
        def result(self):
            return np.full((3, 10), np.nan, np.float32)

    def ask(self, at, fields):
        found = real(self, at, fields)
        return {**found, "weights": Broken()} if "weights" in found else found

    monkeypatch.setattr(stream._OnDisk, "ask", ask)
    with pytest.raises(ValueError, match="m: weights: expected finite numbers"):
        js.stream_top_k(tmp_path / "m", made_user(1))
