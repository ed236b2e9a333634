"""Objects that save themselves by formats that another package registers."""

import dataclasses

import pytest

from jaxspec.base import Persistent, register_format


@dataclasses.dataclass(frozen=True)
class Note(Persistent):
    text: str


class LongNote(Note):
    pass


class Sealed(LongNote):
    pass


class Unregistered(Persistent):
    pass


def save_text(note, path):
    path.write_text(note.text)


def load_text(path, cls):
    return cls(path.read_text())


register_format(Note, save=save_text, load=load_text)
register_format(
    Sealed,
    save=lambda note, path: path.write_text(note.text[::-1]),
    load=lambda path, cls: cls(path.read_text()[::-1]),
)


@pytest.mark.parametrize("cls", [Note, LongNote, Sealed])
def test_what_is_saved_comes_back_as_the_class_that_loads_it(tmp_path, cls):
    path = tmp_path / "note"
    cls("words").save(path)
    found = cls.load(str(path))
    assert type(found) is cls
    assert found.text == "words"


def test_the_nearest_format_is_used(tmp_path):
    LongNote("ab").save(tmp_path / "long")
    Sealed("ab").save(tmp_path / "sealed")
    assert (tmp_path / "long").read_text() == "ab"
    assert (tmp_path / "sealed").read_text() == "ba"


def test_a_class_without_a_format_is_named(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(TypeError, match="Unregistered: expected a class with a registered file"):
        Unregistered().save(tmp_path / "x")
    with pytest.raises(TypeError, match="Unregistered: expected a class with a registered file"):
        Unregistered.load(tmp_path / "x")
    with pytest.raises(TypeError, match="cls: expected a class, got"):
        register_format("Note", save=save_text, load=load_text)


def test_an_object_of_another_class_is_refused(tmp_path):
    class Odd(Persistent):
        pass

    register_format(Odd, save=save_text, load=lambda path, cls: 3)
    (tmp_path / "x").touch()
    with pytest.raises(TypeError, match="expected a Odd, got a int"):
        Odd.load(tmp_path / "x")


def test_paths_are_checked_before_the_format_is_called(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at this path"):
        Note.load(tmp_path / "absent")
    with pytest.raises(ValueError, match="path: expected a file or folder of this machine"):
        Note("a").save("gs://bucket/note")
    with pytest.raises(TypeError, match="path: expected a string or a path, got a int"):
        Note("a").save(3)


def test_a_subclass_may_have_slots(tmp_path):
    @dataclasses.dataclass(frozen=True, slots=True)
    class Small(Persistent):
        text: str

    register_format(Small, save=save_text, load=load_text)
    Small("b").save(tmp_path / "b")
    assert Small.load(tmp_path / "b") == Small("b")
    assert not hasattr(Small("b"), "__dict__")
