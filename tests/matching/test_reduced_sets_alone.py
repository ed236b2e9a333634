"""A market of reduced sets without proxies, such as a folder of `learnware` files gives."""

import copy
import dataclasses
import pickle

import jax
import numpy as np
import pytest
from conftest import KERNEL, SPACE, made_specification, made_user
from oracles import oracle_squared_mmd

import jaxspec as js
from jaxspec.base import FileError

METHODS = ("rkme", "classwise", "likelihood", "transfer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of RKME files, two of them in sub-folders."""
    place = tmp_path_factory.mktemp("learnwares")
    for s in range(4):
        file = place / (f"m{s}.json" if s < 2 else f"m{s}/stat.json")
        file.parent.mkdir(exist_ok=True)
        js.to_learnware(file, made_specification(s).reduced_set, KERNEL, num_examples=120)
    (place / "readme.txt").write_text("not read")
    return place


@pytest.fixture(scope="module")
def sets(folder):
    return js.from_learnware_folder(folder)[0]


@pytest.fixture(scope="module")
def bare(sets):
    return js.Market.from_reduced_sets(SPACE, sets)


def test_a_folder_of_learnware_files_is_read_with_its_kernel(folder):
    sets, kernel = js.from_learnware_folder(folder)
    assert list(sets) == ["m0", "m1", "m2/stat", "m3/stat"]
    np.testing.assert_allclose(kernel.bandwidth, KERNEL.bandwidth, rtol=1e-6)
    np.testing.assert_array_equal(
        np.float32(sets["m2/stat"].points), made_specification(2).reduced_set.points
    )


@pytest.mark.parametrize("k", [None, 2])
def test_match_answers_by_rkme_and_says_so(bare, k):
    user = made_user(1)
    found = js.match(bare, user, k=k)
    assert found.method == "rkme"
    assert "only the reduced sets are known" in found.notes[0]
    specs = [made_specification(s) for s in range(4)]
    want = np.array([oracle_squared_mmd(KERNEL, spec, user) for spec in specs])
    places = [list(bare).index(one) for one in found.ids]
    np.testing.assert_allclose(found.squared_mmd, want[places], atol=1e-5)
    assert found.top_k(1)[0][0] == list(bare)[want.argmin()]
    assert str(found)
    assert found.explain(found.ids[0])[0][1] is None


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_score_that_needs_proxies_is_refused_by_name(bare, method):
    with pytest.raises(ValueError, match=f"method: '{method}' needs the learnwares' proxies"):
        js.match(bare, made_user(1), method=method)


def test_learnwares_with_and_without_proxies_live_side_by_side(bare):
    mixed = bare.add({"with proxy": made_specification(0)})
    user = made_user(0)
    for method in METHODS:
        found = js.match(mixed, user, method=method)
        assert np.isfinite(found.scores).all()
        if method != "rkme":
            assert "4 of 5 learnwares have no proxy, such as 'm0'" in found.notes[-1]
    assert js.match(mixed, user).method == "likelihood"
    assert js.match(mixed, user, k=1).ids == ("with proxy",)
    rest = mixed.remove(["with proxy"])  # again without any
    assert js.match(rest, user).method == "rkme"
    assert mixed.remove(bare.ids).without_proxy() == ()
    # An honest learnware's own scores do not depend on those without a proxy.
    alone = js.match(js.Market(SPACE, {"a": made_specification(0)}), user, method="classwise")
    both = js.match(mixed, user, method="classwise")
    np.testing.assert_allclose(both.scores[-1], alone.scores[0], atol=1e-6)


def test_a_specification_without_a_proxy_comes_back(bare, tmp_path):
    spec = bare["m2/stat"]
    assert spec.proxy is None
    assert spec.class_names == ()
    assert "no proxy" in repr(spec)
    spec.save(tmp_path / "x.safetensors")
    for again in (
        js.Specification.load(tmp_path / "x.safetensors"),
        pickle.loads(pickle.dumps(spec)),
        copy.deepcopy(spec),
    ):
        assert again.proxy is None
        assert jax.tree.structure(again) == jax.tree.structure(spec)
        np.testing.assert_array_equal(again.reduced_set.points, spec.reduced_set.points)


def test_an_index_of_reduced_sets_answers_the_same(bare):
    index = js.Index.build(bare)
    found = js.match(index, made_user(1), k=2)
    assert found.ids == js.match(bare, made_user(1), k=2).ids
    assert found.method == "rkme"
    with pytest.raises(ValueError, match="method: 'likelihood' needs"):
        js.match(index, made_user(1), k=2, method="likelihood")


def test_a_saved_market_of_reduced_sets_is_loaded_and_streamed(bare, tmp_path):
    bare.save(tmp_path / "market")
    for again in (js.Market.load(tmp_path / "market"), js.MarketFolder(tmp_path / "market")):
        found = js.match(again, made_user(1), k=2)
        assert found.ids == js.match(bare, made_user(1), k=2).ids
        assert found.method == "rkme"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a", "b")}, "expected a ReducedSet and a Proxy"),
        ({"proxy": made_specification(0).proxy}, "class_names: expected at least two classes"),
    ],
)
def test_half_a_proxy_is_refused(bare, change, message):
    broken = dataclasses.replace(bare["m0"], **change)
    with pytest.raises((TypeError, ValueError), match="'new'.*" + message):
        bare.add({"new": broken})


def test_files_that_do_not_fit_together_are_refused_by_name(tmp_path, folder):
    phi = made_specification(0).reduced_set
    js.to_learnware(tmp_path / "a.json", phi, KERNEL)
    js.to_learnware(tmp_path / "b.json", phi, js.Gaussian(bandwidth=1.0))
    with pytest.raises(
        FileError, match=r"b\.json: gamma: expected 0.0555556 as in 'a.json', got 0"
    ):
        js.from_learnware_folder(tmp_path)
    narrow = js.ReducedSet(phi.points[:, :3], phi.weights)
    js.to_learnware(tmp_path / "b.json", narrow, KERNEL)
    with pytest.raises(FileError, match=r"b\.json: z: expected 6 features as in 'a.json', got 3"):
        js.from_learnware_folder(tmp_path)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(FileError, match=r"b\.json: type: expected this field"):
        js.from_learnware_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="expected files whose names end in .json"):
        js.from_learnware_folder(tmp_path / "empty")
    with pytest.raises(FileError, match="expected a folder, got a file; from_learnware reads it"):
        js.from_learnware_folder(folder / "m0.json")
    with pytest.raises(FileError, match="from_learnware_folder reads all files"):
        js.from_learnware(folder)


@pytest.mark.parametrize("wrong", [[1], "a", None])
def test_what_is_no_mapping_of_reduced_sets_is_refused(wrong):
    with pytest.raises(TypeError, match="reduced_sets: expected a mapping"):
        js.Market.from_reduced_sets(SPACE, wrong)
    with pytest.raises(TypeError, match="'a': expected a ReducedSet"):
        js.Market.from_reduced_sets(SPACE, {"a": wrong})
