"""Each command does its work, and says the same in a table and in one JSON document."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from made_commands import NAMES, made_files, run, run_json, task

import jaxspec as js
from jaxspec.applications.command.pictures import read_pictures
from jaxspec.applications.command.progress import Stages
from jaxspec.applications.command.session import Session


@pytest.fixture
def files():
    return made_files()


@pytest.fixture
def market(files, tmp_path):
    """Return a market of one's own, to change."""
    return shutil.copytree(files / "market.jax", tmp_path / "market.jax")


def test_a_space_has_the_median_bandwidth_of_the_public_features(files):
    public = np.load(files / "public.npz")["features"]
    space = js.Space.load(files / "made.space.safetensors")
    distances = np.sqrt(((public[:, None] - public) ** 2).sum(axis=2))
    expected = np.median(distances[np.triu_indices(len(public), 1)])
    assert abs(float(space.kernel.bandwidth) / expected - 1) < 0.01
    assert np.array_equal(space.probe, public)
    shown = run_json("space", "show", files / "made.space.safetensors")
    assert shown["digest"] == space.digest
    assert shown["probe_rows"] == 64


def test_a_bandwidth_and_a_kernel_can_be_given(files, tmp_path):
    output = tmp_path / "s.safetensors"
    run("space", "create", "other", files / "mine.csv", "--kernel", "laplacian",
        "--bandwidth", 2.5, "-o", output, code=3)  # its last column holds names  # fmt: skip
    run("space", "create", "other", files / "public.npz", "--kernel", "laplacian",
        "--bandwidth", 2.5, "-o", output)  # fmt: skip
    space = js.Space.load(output)
    assert isinstance(space.kernel, js.Laplacian)
    assert float(space.kernel.bandwidth) == 2.5
    assert space.probe is None


def test_a_specification_is_that_of_the_library_and_the_same_bytes_each_time(files, tmp_path):
    arrays = np.load(files / "north.npz")
    space = js.Space.load(files / "made.space.safetensors")
    expected = js.specify(
        space,
        arrays["features"],
        arrays["labels"],
        class_names=NAMES,
        teacher=arrays["teacher"],
        probe_outputs=arrays["probe_outputs"],
        size=8,
        about={"licence": "MIT", "rank": 0},
    )
    expected.save(tmp_path / "expected.safetensors")
    there = (files / "north.safetensors").read_bytes()
    assert there == (tmp_path / "expected.safetensors").read_bytes()


def test_inspect_says_what_each_kind_of_file_holds(files, tmp_path):
    user = tmp_path / "user.safetensors"
    run("specify", files / "made.space.safetensors", files / "mine.npz", "--user",
        "--no-share-labels", "-o", user)  # fmt: skip
    kinds = {
        files / "made.space.safetensors": "Space",
        files / "north.safetensors": "Specification",
        user: "UserSpecification",
        files / "market.jax": "Market",
    }
    for path, kind in kinds.items():
        document = run_json("inspect", path)
        assert document["kind"] == kind
        assert kind in run("inspect", path).stdout
    spec = run_json("inspect", files / "north.safetensors")
    assert spec["class_names"] == NAMES
    assert spec["about"] == {"licence": "MIT", "rank": 0}
    assert (spec["points"], spec["dimension"], spec["examples"]) == (8, 4, 60)
    assert run_json("inspect", user)["labels_shared"] is False
    assert run_json("inspect", files / "market.jax")["learnwares"] == 3


@pytest.mark.parametrize("data", ["mine.npz", "texts.npz", "mine.csv", "user.safetensors"])
def test_match_answers_as_the_library_whatever_form_the_users_data_have(files, tmp_path, data):
    space = js.Space.load(files / "made.space.safetensors")
    Z, labels = task(20, 0.9, 30)
    user = js.specify_user(space, Z, labels, class_names=NAMES)
    user.save(tmp_path / "user.safetensors")
    expected = js.match(js.Market.load(files / "market.jax"), user, k=10)
    path = tmp_path / data if data.startswith("user") else files / data
    options = ["--labels", "kind"] if data.endswith(".csv") else []
    document = run_json("match", files / "market.jax", path, *options)
    assert [one["id"] for one in document["learnwares"]] == list(expected.ids)
    assert [one["rank"] for one in document["learnwares"]] == [1, 2, 3]
    found = [one["score"] for one in document["learnwares"]]
    np.testing.assert_allclose(found, expected.scores, rtol=1e-4)
    assert document["notes"] == list(expected.notes)
    assert (document["method"], document["reuse"]) == ("likelihood", "direct")


def test_options_of_match_reach_the_library(files, monkeypatch):
    asked, answer = [], js.match

    def recorded(where, user, **options):
        asked.append((where, options))
        return answer(
            js.Market.load(files / "market.jax"), user, k=options["k"]
        )  # compiled already

    monkeypatch.setattr(js, "match", recorded)
    ask = ["match", files / "market.jax", files / "mine.npz"]
    document = run_json(*ask, "-k", 2, "--reuse", "fine-tune", "--method", "rkme", "--stream")
    assert len(document["learnwares"]) == 2
    where, options = asked[0]
    assert isinstance(where, js.MarketFolder)
    assert (options["k"], options["reuse"], options["method"]) == (2, "fine-tune", "rkme")
    run(*ask, "--label-spaces", "homogeneous")
    where, options = asked[1]
    assert isinstance(where, js.Market)
    assert (options["k"], options["label_spaces"]) == (10, "homogeneous")
    assert (options["reuse"], options["method"], options["among"]) == (None, None, None)


@pytest.mark.slow
def test_a_streamed_market_gives_the_answers_of_one_in_memory(files):
    ask = ["match", files / "market.jax", files / "mine.npz", "-k", 2]
    streamed, held = run_json(*ask, "--stream"), run_json(*ask)
    assert [one["id"] for one in streamed["learnwares"]] == [
        one["id"] for one in held["learnwares"]
    ]


def test_match_explains_a_learnware_that_is_not_among_the_best(files):
    ask = ["match", files / "market.jax", files / "mine.npz", "-k", 1, "--explain", "south"]
    document = run_json(*ask)
    assert document["learnwares"][0]["id"] != "south"
    assert document["explain"]["id"] == "south"
    assert [one["user"] for one in document["explain"]["classes"]] == NAMES
    assert "class of south" in run(*ask).stdout


def test_a_class_that_no_learnware_has_is_a_warning(files, tmp_path):
    Z, labels = task(20, 0.9, 30)
    np.savez(tmp_path / "near.npz", features=Z, labels=labels, class_names=["bird", "cat", "Dog"])
    ask = ["match", files / "market.jax", tmp_path / "near.npz"]
    assert any("Dog" in one for one in run_json(*ask)["warnings"])
    assert "warning: " in run(*ask).stderr


def test_a_market_grows_changes_and_shrinks(files, market, tmp_path):
    shutil.copy(files / "north.safetensors", tmp_path / "west.safetensors")
    added = run_json("market", "add", market, tmp_path / "west.safetensors", "--note", "new")
    assert (added["added"], added["learnwares"]) == (["west"], 4)
    updated = run_json("market", "update", market, files / "east.safetensors")
    assert (updated["updated"], updated["learnwares"]) == (["east"], 4)
    removed = run_json("market", "remove", market, "south", "west")
    assert removed["learnwares"] == 2
    listed = run_json("market", "list", market)
    assert sorted(one["id"] for one in listed["learnwares"]) == ["east", "north"]
    assert listed["learnwares"][0]["about"]["licence"] == "MIT"
    assert run_json("market", "verify", market)["sound"] is True
    assert run_json("market", "info", market)["learnwares"] == 2


def test_ids_come_from_stems_paths_or_metadata(files, tmp_path):
    space, specs = files / "made.space.safetensors", tmp_path / "specs"
    specs.mkdir()
    for name in ("north", "east"):
        shutil.copy(files / f"{name}.safetensors", specs)
    shutil.copy(space, specs / "a.space.safetensors")  # passed over
    for id_from, expected in {
        "stem": ["east", "north"],
        "path": [f"{specs.as_posix()}/east", f"{specs.as_posix()}/north"],
        "about:rank": ["1", "0"],
    }.items():
        output = tmp_path / f"market-{id_from.partition(':')[0]}"
        made = run_json("market", "create", output, space, specs, "--id-from", id_from)
        assert made["ids"] == expected
        assert list(js.Market.load(output).ids) == expected


def test_a_new_market_replaces_an_old_one_only_by_force(files, market):
    space, spec = files / "made.space.safetensors", files / "north.safetensors"
    assert "--force" in run("market", "create", market, space, spec, code=2).stderr
    assert len(js.Market.load(market)) == 3
    run("market", "create", market, space, spec, "--force")
    assert js.Market.load(market).ids == ("north",)
    assert [one.name for one in market.parent.iterdir()] == ["market.jax"]


@pytest.fixture
def photos(tmp_path):
    """Return a folder with two classes of pictures of 2 x 2 pixels, dark ones and bright ones."""
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name, shade in {"dark": 40, "bright": 200}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(shade - 20, shade + 20, (2, 2, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_pictures_in_class_folders_are_data_by_an_extractor_of_ones_own(
    files, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shades.py").write_text(
        "def four(pictures):\n    return pictures.reshape(len(pictures), 4, 3).mean(axis=2) / 255\n"
    )
    output = tmp_path / "photos.safetensors"
    ask = ["specify", files / "made.space.safetensors", photos, "-o", output, "--size", 8]
    assert "--extractor" in run(*ask, code=2).stderr
    assert "nothing" in run(*ask, "--extractor", "nothing:here", code=2).stderr
    run(*ask, "--extractor", "shades:four", "--picture-size", 2)
    spec = js.Specification.load(output)
    assert spec.class_names == ("bright", "dark")
    brightness = np.average(spec.reduced_set.points.mean(axis=1), weights=spec.reduced_set.weights)
    assert abs(brightness - 120 / 255) < 0.05


def test_pixels_are_projected_by_a_fitted_projection(photos, tmp_path):
    from jaxspec.extractors import center_and_project

    session = Session(json=False, quiet=True, stages=Stages(False))
    options = {"extractor": "pixels", "side": 2}
    raw = read_pictures(session, photos, projection=None, **options)
    assert raw.features.shape == (60, 12)
    assert raw.class_names == ("bright", "dark")
    assert (raw.features[raw.labels == 1].max() < 0.3) and raw.features[raw.labels == 0].min() > 0.6
    fitted = center_and_project(raw.features, components=3)
    np.savez(tmp_path / "map.npz", **dataclasses.asdict(fitted))
    projected = read_pictures(session, photos, projection=tmp_path / "map.npz", **options)
    expected = fitted.scale * (raw.features - fitted.origin) @ fitted.directions
    np.testing.assert_allclose(projected.features, expected, atol=1e-5)


def test_quiet_prints_nothing(files):
    result = run("match", files / "market.jax", files / "mine.npz", "--quiet")
    assert result.stdout == result.stderr == ""


def test_json_of_every_command_is_one_document_that_names_its_warnings(files, market):
    commands = [
        ["space", "show", files / "made.space.safetensors"],
        ["inspect", files / "north.safetensors"],
        ["market", "list", market],
        ["market", "info", market],
        ["market", "verify", market],
        ["match", market, files / "mine.npz"],
    ]
    for one in commands:
        result = run(*one, "--json")
        assert json.loads(result.stdout)["warnings"] == []
        assert result.stderr == ""
