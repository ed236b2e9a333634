"""Paths, and files that are written completely or not at all."""

import os
import pickle
from pathlib import Path

import pytest

from jaxspec.base import FileError, as_path, existing_path, reading, write_atomically

ADDRESSES = [
    "gs://bucket/x",
    "s3://bucket/x",
    "hdfs://host/x",
    "https://host/x",
    "file:///x",
    "abfs+x://b",
    Path("gs://bucket/x"),
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_refused_by_name_and_make_no_folder(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for use in (as_path, existing_path, lambda path: write_atomically(path, b"")):
        with pytest.raises(ValueError, match="path: expected a file or folder of this machine"):
            use(address)
    with pytest.raises(ValueError, match="^folder: expected"):
        as_path(address, name="folder")
    assert not list(tmp_path.iterdir())


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/x") == tmp_path / "x"
    assert as_path(Path("~") / "x") == tmp_path / "x"
    write_atomically("~/a/x", b"1")
    assert existing_path("~/a/x").read_bytes() == b"1"
    with pytest.raises(ValueError, match="path: expected a path with a known home folder"):
        as_path("~nobody-of-this-name/x")


@pytest.mark.parametrize("path", ["C:/x", "C:\\x", "a:b", "x", "./x", "a b/\u00e9", "/tmp/x~"])
def test_other_names_stay_as_they_are(path):
    assert as_path(path) == Path(path)


def test_what_is_no_path_is_refused():
    for path in (3, None, ["x"], b"x"):
        with pytest.raises(TypeError, match="path: expected a string or a path"):
            as_path(path)
    for path in ("", "a\0b"):
        with pytest.raises(ValueError, match="path: expected the name of a file or folder"):
            as_path(path)
    with pytest.raises(FileNotFoundError, match="absent: there is nothing at this path"):
        existing_path("absent")


def test_a_file_is_replaced_in_one_step_and_left_alone_by_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"newer")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


def test_whatever_a_damaged_file_brings_about_is_one_error_that_names_it():
    for error, words in [
        (KeyError("a"), "x.bin: KeyError: 'a'"),
        (ValueError("first\nsecond"), "x.bin: first"),
        (ZeroDivisionError(), "x.bin: ZeroDivisionError: "),
        (
            FileError(field="points", expected="shape (3,)", got=(2,)),
            "x.bin: points: expected shape (3,), got (2,)",
        ),
    ]:
        with pytest.raises(FileError) as caught, reading("x.bin"):
            raise error
        assert str(caught.value) == words
        assert isinstance(caught.value, ValueError)
    with pytest.raises(KeyboardInterrupt), reading("x.bin"):
        raise KeyboardInterrupt
    with pytest.raises(ImportError), reading("x.bin"):
        raise ImportError("safetensors")


def test_an_error_that_names_a_file_keeps_its_name():
    with pytest.raises(FileError, match="^inner: damaged$"), reading("outer"), reading("inner"):
        raise FileError(message="damaged")
    error = FileError("x", field="ids", expected="strings", got="numbers")
    assert error.field == "ids"
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.path) == ("x: ids: expected strings, got numbers", "x")
