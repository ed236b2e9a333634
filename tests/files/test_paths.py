"""Paths wherever one is given: addresses are refused by name, and "~" is the home folder."""

import os

import jax
import pytest
from made_files import made_market, made_space, made_specification, made_user

import jaxspec as js
from jaxspec.extractors import scan_domains

FILES = {
    "Specification": js.Specification,
    "UserSpecification": js.UserSpecification,
    "Space": js.Space,
    "Market": js.Market,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("saved") / "market"
    made_market(2).save(place)
    return js.MarketFolder(place)


def calls(folder):
    """Return every public function that takes a path, as {name of the argument: functions}."""
    spec, space = made_specification(0), made_space()
    return {
        "path": [
            *(one.load for one in FILES.values()),
            *(spec.save, made_user(0).save, space.save, made_market(2).save),
            lambda path: js.to_learnware(path, spec.reduced_set, space.kernel),
            *(js.MarketFolder, js.from_learnware, js.from_learnware_folder),
        ],
        "resume": [lambda path: js.match(folder, made_user(0), k=1, resume=path)],
        "folder": [js.cache_compilations],
        "root": [scan_domains],
    }


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("gs://bucket/x", ValueError, "expected a file or folder of this machine, got the address"),
        ("", ValueError, "expected the name of a file or folder, got ''"),
        ("a\0b", ValueError, "expected the name of a file or folder"),
        (3, TypeError, "expected a string or a path, got a int"),
        (b"x", TypeError, "expected a string or a path, got a"),
    ],
)
def test_what_is_no_path_is_refused_by_argument(
    folder, path, error, message, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    cache = jax.config.jax_compilation_cache_dir
    for name, functions in calls(folder).items():
        for function in functions:
            with pytest.raises(error, match=f"{name}: {message}"):
                function(path)
    assert not os.listdir(tmp_path)
    assert jax.config.jax_compilation_cache_dir == cache


def test_a_tilde_is_the_home_folder_everywhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    space, market = made_space(), made_market(2)
    for name, thing in (
        ("spec", made_specification(0)),
        ("user", made_user(0)),
        ("space", space),
        ("market", market),
    ):
        thing.save(f"~/{name}")
        assert type(type(thing).load(f"~/{name}")) is type(thing)
    js.MarketFolder("~/market")
    (tmp_path / "home" / "sets").mkdir()
    js.to_learnware("~/sets/a.json", made_specification(0).reduced_set, space.kernel)
    js.from_learnware("~/sets/a.json")
    assert list(js.from_learnware_folder("~/sets")[0]) == ["a"]
    with pytest.raises(ValueError, match="root: expected .*home"):
        scan_domains("~/sets")
    assert os.listdir(tmp_path) == ["home"]


def test_every_load_says_what_the_file_seems_to_be(tmp_path, folder):
    (tmp_path / "x.json").write_text('{"z": 1}')
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    made_specification(0).save(tmp_path / "spec")
    for name, kind in (("x.json", "JSON"), ("x.png", "a PNG picture")):
        for load in (*(one.load for one in FILES.values()), js.MarketFolder):
            with pytest.raises(js.FileError, match=f"this seems to be {kind}"):
                load(tmp_path / name)
    with pytest.raises(js.FileError, match="contents.*a PNG picture"):
        js.from_learnware(tmp_path / "x.png")
    with pytest.raises(js.FileError, match="contents.*a safetensors file"):
        js.from_learnware(tmp_path / "spec")
    for load in (js.Market.load, js.MarketFolder):
        with pytest.raises(js.FileError, match="this seems to be a safetensors file"):
            load(tmp_path / "spec")
    with pytest.raises(js.FileError, match="kind: expected a UserSpecification, got 'Spec"):
        js.UserSpecification.load(tmp_path / "spec")
    for name, kind in (("x.json", "JSON"), ("spec", "a safetensors file")):
        with pytest.raises(js.FileError, match=f"state of an interrupted stream, got {kind}"):
            js.match(folder, made_user(0), k=1, resume=tmp_path / name)
