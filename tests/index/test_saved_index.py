"""An index that was saved beside its market searches as before, whatever happened since."""

import json

import numpy as np
import pytest
from made_index import COUNT, PROBED, drawn, drawn_user

import jaxspec as js
from jaxspec.base import FileError
from jaxspec.index import index as indexes
from jaxspec.scoring import METHODS


@pytest.fixture(autouse=True)
def small_markets(monkeypatch):
    """Let markets of a few dozen learnwares be searched through their codes."""
    monkeypatch.setattr(indexes, "SMALL_MARKET", 8)
    monkeypatch.setattr(indexes, "MIN_CANDIDATES", 4)
    monkeypatch.setattr(indexes, "EXACT_FRACTION", 2.0)


@pytest.fixture(scope="module")
def index():
    specs = {f"m{i}": drawn(i) for i in range(3 * COUNT)}
    found = js.Index.build(js.Market(PROBED, specs).remove(["m4"]))
    found._filter(METHODS["likelihood"], by_name=True)
    return found


def codes_of(index):
    rows, stored = index.market.rows, index._codes.stored
    return [np.asarray(one)[rows] for one in (stored.values, stored.scales)]


def test_it_comes_back_with_its_codes_filters_and_answers(index, tmp_path):
    index.save(tmp_path / "m")
    back = js.Index.load(tmp_path / "m")
    assert back.market.ids == index.market.ids
    for one, two in zip(codes_of(back), codes_of(index), strict=True):
        np.testing.assert_array_equal(one, two)
    (fitted,), (wanted,) = back._codes.filters.values(), index._codes.filters.values()
    np.testing.assert_array_equal(fitted.weights, wanted.weights)
    np.testing.assert_array_equal(fitted.depths, wanted.depths)
    assert (fitted.count, fitted.length) == (wanted.count, wanted.length - 1)
    for recall in (0.5, 0.99):
        assert back.candidates(3, recall=recall) == index.candidates(3, recall=recall)
    one, two = (js.match(where, drawn_user(1), k=3) for where in (back, index))
    assert one.ids == two.ids
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-6)


def test_it_is_kept_current_by_changes_of_its_market(index, tmp_path, monkeypatch):
    path = tmp_path / "m"
    index.save(path)
    folder = js.MarketFolder(path).append({f"new {i}": drawn(100 + i) for i in range(3)})
    folder = folder.remove(["m0", "m9"]).update({"m7": drawn(200)}).compact()
    encoded, encode = [], indexes.Codes._encode

    def noted(self, market, start, progress):
        encoded.append(market.length - start)
        return encode(self, market, start, progress)

    monkeypatch.setattr(indexes.Codes, "_encode", noted)
    back = js.Index.load(path)
    assert encoded == [4]  # only what came since
    assert back.market.ids == folder.ids
    again = js.Index(back.market, indexes.Codes(back.market, like=back._codes))
    (values, scales), (wanted, wanted_scales) = codes_of(back), codes_of(again)
    assert np.abs(values.astype(int) - wanted).max() <= 1
    np.testing.assert_allclose(scales, wanted_scales, rtol=1e-4)
    (fitted,) = back._codes.filters.values()
    assert fitted.length == len(folder) - 4  # later ones are candidates for everybody
    assert fitted.depths.tolist() == next(iter(index._codes.filters.values())).depths.tolist()
    before = [one.name for one in folder.history()]
    back.save(path)  # the market is there already
    assert [one.name for one in folder.history()] == before
    assert len(list((path / "extensions").iterdir())) == 1
    assert js.Index.load(path)._codes.fitted_length == back._codes.fitted_length


def test_it_goes_with_the_market_it_is_of(index, tmp_path):
    path = tmp_path / "m"
    index.save(path)
    js.MarketFolder(path).append({"new": drawn(100)}).close()
    index.save(path)  # of the market without the new one
    assert "new" not in js.Index.load(path).market
    index.market.save(path)
    with pytest.raises(FileError, match="extensions: expected one of the kind 'index', got none"):
        js.Index.load(path)


def test_what_is_no_index_is_refused_by_name(index, tmp_path):
    path = tmp_path / "m"
    index.save(path)
    (folder,) = (path / "extensions").iterdir()
    file = folder / "facts.json"
    data = file.read_bytes()
    facts = json.loads(data)
    facts["facts"]["fitted_length"] = 3
    file.write_text(json.dumps(facts))
    with pytest.raises(FileError, match="facts.json: its checksum is wrong"):
        js.Index.load(path)
    file.write_bytes(data)
    chunk = next(one for one in (folder / "arrays" / "scales").iterdir() if "z" not in one.name)
    chunk.write_bytes(b"\xff" * chunk.stat().st_size)
    with pytest.raises(FileError, match="scales.*checksum is wrong"):
        js.Index.load(path)
    chunk.write_bytes(b"")
    with pytest.raises(FileError, match="scales.* bytes"):
        js.Index.load(path)
    js.MarketFolder(path).append({"new": drawn(100)})  # the market itself is not concerned
