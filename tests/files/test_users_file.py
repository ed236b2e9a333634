"""A file of many users gives back every user bit by bit, in parts, and refuses what is damaged."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from drawn_markets import D, drawn_user, space_of

import jaxspec as js
from jaxspec.files import UsersFile, is_users_file, users_file, users_layout
from jaxspec.specify import user_of

NAMES = ["abc", "ab", "xyz", "bcdefa"]


def made_users(count):
    users = {}
    for i in range(count):
        user = drawn_user(i, NAMES[i % 4], n=6 + i % 7)
        users[f"user {i} é"] = dataclasses.replace(user, labels=None) if i % 5 == 4 else user
    return users


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(users_layout, "BLOCK_USERS", 8)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("users") / "users.safetensors"
    users = made_users(30)
    assert js.save_users(path, users) == 30
    return path, users


@pytest.mark.parametrize(("first", "last"), [(0, 30), (0, 8), (3, 21), (29, 30), (25, 99), (7, 7)])
def test_any_range_gives_the_users_back_bit_by_bit(saved, first, last):
    path, users = saved
    file = UsersFile(path)
    assert len(file) == 30 and file.ids == tuple(users)
    part = file.read(first, last)
    assert part.ids == tuple(users)[first:last] and not any(part.errors)
    for i, name in enumerate(part.ids):
        got, want = user_of(part, i, file.space_name, file.space_digest), users[name]
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_the_same_users_give_the_same_bytes_from_a_mapping_and_from_a_generator(saved, tmp_path):
    path, users = saved
    js.save_users(tmp_path / "again", ((name, user) for name, user in users.items()))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["again"]


def test_safetensors_itself_reads_the_file(saved):
    from safetensors.numpy import load_file

    path, users = saved
    arrays = load_file(path)
    counts = [len(user.reduced_set.points) for user in users.values()]
    assert arrays["points"].shape == (sum(counts), D)
    np.testing.assert_array_equal(arrays["counts"], counts)


def test_only_files_of_many_users_are_taken_for_one(saved, tmp_path):
    path, users = saved
    assert is_users_file(path)
    next(iter(users.values())).save(tmp_path / "one.safetensors")
    assert not is_users_file(tmp_path / "one.safetensors")
    with pytest.raises(js.FileError, match="expected a safetensors file of many users"):
        UsersFile(tmp_path / "one.safetensors")
    for text in (b"", b"{}", b"%PDF-1.7"):
        (tmp_path / "other").write_bytes(text)
        assert not is_users_file(tmp_path / "other")
        with pytest.raises(js.FileError):
            UsersFile(tmp_path / "other")


def test_what_cannot_be_saved_is_refused_by_id_and_leaves_no_file(tmp_path):
    good, path = drawn_user(0), tmp_path / "users"
    foreign = drawn_user(1, space=space_of(js.Gaussian(bandwidth=9.0)))
    wrong = dataclasses.replace(
        good, reduced_set=js.ReducedSet(good.reduced_set.points, -good.reduced_set.weights)
    )
    for users, message in (
        ({}, "users: expected at least one user, got none"),
        ({"a": good, "b": "text"}, r"users\['b'\]: .*expected a UserSpecification, got a str"),
        ({"a": good, "b": foreign}, r"users\['b'\]: .*space"),
        ({"a": good, "b": wrong}, r"users\['b'\]: .*weights.* sum above zero"),
        ([("a", good), ("a", good)], "users: expected different ids, got 'a' twice"),
        ([good], "users: expected pairs of an id and a user"),
        ({"": good}, "users: expected ids of 1 to 1000 characters"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            js.save_users(path, users)
    assert not list(tmp_path.iterdir())


def test_a_damaged_number_spoils_its_block_and_a_damaged_table_the_file(saved, tmp_path):
    path, _ = saved
    data, broken = bytearray(path.read_bytes()), tmp_path / "broken"
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begin = 8 + length
    data[begin + header["points"]["data_offsets"][0] + 2] ^= 255
    broken.write_bytes(data)
    part = UsersFile(broken).read(0, 30)
    assert all("checksum" in error for error in part.errors[:8])
    assert not any(part.errors[8:])
    for name in users_layout.TABLES:
        changed = bytearray(path.read_bytes())
        changed[begin + header[name]["data_offsets"][0]] ^= 1
        broken.write_bytes(changed)
        if name == "checksums":
            with pytest.raises(js.FileError, match="checksum"):
                UsersFile(broken)
            continue
        with pytest.raises(js.FileError):
            UsersFile(broken)


def test_files_that_are_cut_or_changed_give_file_errors_or_errors_of_users(saved, tmp_path):
    path, _ = saved
    data, rng, broken = path.read_bytes(), np.random.default_rng(0), tmp_path / "broken"
    for trial in range(200):
        changed = bytearray(data)
        if trial % 4 == 0:
            changed = changed[: rng.integers(len(data))]
        else:
            top = 2000 if trial % 2 else len(data)
            for at in rng.integers(top, size=rng.integers(1, 4)):
                changed[at] = rng.integers(256)
        if bytes(changed) == data:
            continue
        broken.write_bytes(changed)
        try:
            part = UsersFile(broken).read(0, 30)
        except js.FileError:
            continue
        good = np.array([error is None for error in part.errors])
        assert np.isfinite(part.points[np.repeat(good, part.counts)]).all()
        assert not good.all(), trial


def test_users_whose_numbers_cannot_be_scored_have_an_error_and_others_not(saved, monkeypatch):
    path, _ = saved
    file = UsersFile(path)
    read = file._read

    def changed(opened, name, *rows):
        array = read(opened, name, *rows)
        if name == "points":
            array[0, 0] = np.nan
        if name == "labels":
            array[10] = 77
        return array

    monkeypatch.setattr(file, "_read", changed)
    monkeypatch.setattr(users_file.zlib, "crc32", lambda *_: 0)
    file._checksums = np.zeros_like(file._checksums)
    errors = file.read(0, 8).errors
    assert "points: expected finite numbers" in errors[0]
    assert "labels: expected the user's classes" in errors[1]
    assert not any(errors[2:])


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(ValueError, match="expected the name of a file, got the folder"):
        js.save_users(tmp_path, {"a": drawn_user(0)})
