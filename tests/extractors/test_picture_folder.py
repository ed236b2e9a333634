"""Folder tables and loading, on small trees of pictures that the tests draw."""

import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from jaxspec.extractors import load_pictures, scan_domains

Image = pytest.importorskip("PIL.Image")


def save_picture(path, colour=(0, 0, 0), size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def tree(tmp_path):
    """Two domains that share one class, with clutter, written in no particular order."""
    save_picture(tmp_path / "sketch" / "dog" / "b.png", (0, 255, 0))
    save_picture(tmp_path / "Real World" / "dog" / "z.JPG", (255, 0, 0))
    save_picture(tmp_path / "sketch" / "ant" / "a.jpeg", (0, 0, 255))
    save_picture(tmp_path / "sketch" / "dog" / "a.png", (10, 20, 30))
    save_picture(tmp_path / "sketch" / "dog" / ".hidden.png")
    save_picture(tmp_path / ".cache" / "dog" / "a.png")
    save_picture(tmp_path / "sketch" / ".thumbnails" / "a.png")
    (tmp_path / "sketch" / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / "sketch_train.txt").write_text("a split file, as DomainNet has them")
    (tmp_path / "sketch" / "empty class").mkdir()
    (tmp_path / "empty domain").mkdir()
    return tmp_path


def test_scan_lists_every_picture_once_sorted_by_domain_class_and_name(tree):
    folder = scan_domains(tree)
    assert folder.domain_names == ("Real World", "sketch")
    assert folder.class_names == ("ant", "dog")
    names = ["Real World/dog/z.JPG", "sketch/ant/a.jpeg", "sketch/dog/a.png", "sketch/dog/b.png"]
    assert folder.paths == tuple(str(tree / name) for name in names)
    assert folder.domains.tolist() == [0, 1, 1, 1]
    assert folder.classes.tolist() == [1, 0, 1, 1]
    assert len(folder) == 4


def test_scan_indices_agree_with_the_paths(tree):
    folder = scan_domains(str(tree))
    for path, domain, label in zip(folder.paths, folder.domains, folder.classes, strict=True):
        inside = path.removeprefix(str(tree)).split("/")[1:3]
        assert inside == [folder.domain_names[domain], folder.class_names[label]]


def test_scan_follows_links_to_folders_and_pictures(tree, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "sketch").symlink_to(tree / "sketch", target_is_directory=True)
    assert len(scan_domains(linked)) == 3


def test_the_table_cannot_be_changed(tree):
    folder = scan_domains(tree)
    with pytest.raises(AttributeError):
        folder.paths = ()
    with pytest.raises(ValueError, match="read-only"):
        folder.domains[0] = 1


def test_scan_refuses_a_root_that_is_missing_or_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"root: expected .*got .*absent.*no such folder"):
        scan_domains(tmp_path / "absent")
    save_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no such folder"):
        scan_domains(tmp_path / "a.png")


@pytest.mark.parametrize("folder", ["", "domain", "domain/class"])
def test_scan_refuses_a_tree_without_pictures(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match="root: expected pictures at root/domain/class/picture"):
        scan_domains(tmp_path)


@pytest.mark.parametrize(
    ("misplaced", "reason"),
    [
        ("a.png", "a picture at another depth"),
        ("domain/a.png", "a picture at another depth"),
        ("domain/class/context/a.png", "a folder inside a class folder"),
    ],
)
def test_scan_refuses_pictures_at_another_depth_and_names_one(tmp_path, misplaced, reason):
    save_picture(tmp_path / "domain" / "class" / "good.png")
    save_picture(tmp_path / misplaced)
    with pytest.raises(ValueError, match=reason) as caught:
        scan_domains(tmp_path)
    assert str(tmp_path / misplaced.removesuffix("/a.png")) in str(caught.value)


def test_loaded_pictures_have_their_colours_in_the_order_of_the_indices(tree):
    folder = scan_domains(tree)
    pictures = load_pictures(folder, [3, 0, 2, 3], 16)
    assert pictures.shape == (4, 16, 16, 3)
    assert pictures.dtype == np.uint8
    expected = np.array([(0, 255, 0), (255, 0, 0), (10, 20, 30), (0, 255, 0)])
    tolerance = 2  # JPEG does not keep colours exactly
    assert np.abs(pictures.astype(int) - expected[:, None, None]).max() <= tolerance


def test_the_whole_picture_is_resized(tmp_path):
    path = tmp_path / "domain" / "class" / "halves.png"
    save_picture(path, (0, 0, 0), size=(400, 100))
    halves = Image.open(path)
    halves.paste((200, 200, 200), (200, 0, 400, 100))
    halves.save(path)
    (square,) = load_pictures(scan_domains(tmp_path), [0], 32)
    assert (square[:, :15] == 0).all()
    assert (square[:, 17:] == 200).all()


def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    path = tmp_path / "domain" / "class" / "noise.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(path)
    loaded = load_pictures(scan_domains(tmp_path), [0], 24)
    np.testing.assert_array_equal(loaded, pixels[None])


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK", "LA"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    path = tmp_path / "domain" / "class" / f"white.{suffix}"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (9, 9), (255, 255, 255)).convert(mode).save(path)
    loaded = load_pictures(scan_domains(tmp_path), [0], 8)
    assert (loaded == 255).all()


def test_no_indices_load_no_pictures(tree):
    folder = scan_domains(tree)
    assert load_pictures(folder, [], 8).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("damage", ["noise", "empty", "truncated.jpg", "truncated.png", "16 bit"])
def test_corrupt_pictures_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "domain" / "class" / f"bad.{'jpg' if 'jpg' in damage else 'png'}"
    path.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    if damage == "16 bit":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(path)
    else:
        content = path.read_bytes()
        damaged = {"noise": b"\x00\x01" * 50, "empty": b""}.get(damage, content[:1000])
        path.write_bytes(damaged)
    folder = scan_domains(tmp_path)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_pictures(folder, [0], 16)
    assert str(path) in str(caught.value)


def test_a_picture_that_vanished_is_named(tree):
    folder = scan_domains(tree)
    (tree / "sketch" / "ant" / "a.jpeg").unlink()
    with pytest.raises(FileNotFoundError, match="a.jpeg"):
        load_pictures(folder, [1], 8)


@pytest.mark.parametrize(
    ("indices", "size", "error", "message"),
    [
        ([4], 8, ValueError, r"indices: expected rows of 0\.\.3, got 4"),
        ([0, -1], 8, ValueError, r"indices: expected rows of 0\.\.3, got -1"),
        ([0.0], 8, TypeError, "indices: expected integers, got dtype float64"),
        ([True, False], 8, TypeError, "indices: expected integers, got dtype bool"),
        ([[0]], 8, ValueError, r"indices: expected shape \(n,\), got \(1, 1\)"),
        (0, 8, ValueError, r"indices: expected shape \(n,\)"),
        ([0], 0, ValueError, "size: expected at least 1, got 0"),
        ([0], 8.0, TypeError, "size: expected an integer, got 8.0"),
    ],
)
def test_bad_indices_and_sizes_are_refused_by_name(tree, indices, size, error, message):
    with pytest.raises(error, match=message):
        load_pictures(scan_domains(tree), indices, size)


def test_without_pillow_the_error_names_the_extra(tree, monkeypatch):
    folder = scan_domains(tree)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"Pillow: pip install .*\[bench\]"):
        load_pictures(folder, [0], 8)


@pytest.mark.parametrize("level", ["domain", "class"])
def test_folders_of_both_unicode_forms_are_one_domain_or_class(tmp_path, level):
    composed = unicodedata.normalize("NFC", "Caf\u00e9")
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    for name, file_name in ((decomposed, "a.png"), (composed, "b.png")):
        inner = f"{name}/cup" if level == "domain" else f"photo/{name}"
        save_picture(tmp_path / inner / file_name)
    if (
        len(list(tmp_path.rglob("*.png"))) < 2
        or len({p.parent for p in tmp_path.rglob("*.png")}) < 2
    ):
        pytest.skip("this file system keeps one form only")
    folder = scan_domains(tmp_path)
    names = folder.domain_names if level == "domain" else folder.class_names
    assert names == (composed,)
    assert [path[-5:] for path in folder.paths] == ["a.png", "b.png"]
    assert folder.domains.tolist() == folder.classes.tolist() == [0, 0]
    assert load_pictures(folder, [0, 1], 8).shape == (2, 8, 8, 3)


def test_decomposed_names_come_back_composed_and_order_as_composed(tmp_path):
    for class_name in ("e\u0301tui", "eel", "zoo"):
        save_picture(tmp_path / "photo" / class_name / "a.png")
    folder = scan_domains(tmp_path)
    assert folder.class_names == ("eel", "zoo", "\u00e9tui")
    assert folder.classes.tolist() == [0, 1, 2]


def test_class_names_that_differ_in_case_or_spaces_stay_apart_with_a_warning(tmp_path):
    save_picture(tmp_path / "photo" / "Alarm Clock" / "a.png")
    save_picture(tmp_path / "sketch" / "alarmclock" / "a.png")
    with pytest.warns(UserWarning, match="'Alarm Clock' and 'alarmclock'"):
        folder = scan_domains(tmp_path)
    assert folder.class_names == ("Alarm Clock", "alarmclock")


def quarters(side=64):
    """A picture whose four quarters have four colours, so that no turn leaves it unchanged."""
    pixels = np.zeros((side, side, 3), np.uint8)
    half = side // 2
    pixels[:half, :half] = (220, 20, 20)
    pixels[:half, half:] = (20, 220, 20)
    pixels[half:, :half] = (20, 20, 220)
    pixels[half:, half:] = (220, 220, 20)
    return pixels


# Orientation: what undoes it, from the definition in the EXIF standard (tag 0x0112).
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_are_turned_upright_as_their_exif_orientation_says(tmp_path, orientation, suffix):
    path = tmp_path / "photo" / "class" / f"a.{suffix}"
    path.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quarters()).save(path, exif=exif)
    (loaded,) = load_pictures(scan_domains(tmp_path), [0], 64)
    expected = UPRIGHT[orientation](quarters()).astype(int)
    inside = np.ones(64, bool)
    inside[24:40] = False  # JPEG mixes colours across the edges
    difference = np.abs(loaded.astype(int) - expected)[inside][:, inside]
    assert difference.max() <= (12 if suffix == "jpg" else 0)


@pytest.mark.parametrize("background", [None, (255, 255, 255), (10, 200, 30)])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "one colour"])
def test_transparent_pixels_show_the_background(tmp_path, kind, background):
    path = tmp_path / "photo" / "class" / "a.png"
    path.parent.mkdir(parents=True)
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:8] = 255
    grey = np.where(alpha > 0, 100, 0).astype(np.uint8)
    if kind == "RGBA":
        Image.fromarray(np.dstack([grey, grey, grey, alpha])).save(path)
    elif kind == "LA":
        Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).save(path)
    elif kind == "palette":
        Image.fromarray(grey).convert("P").save(path, transparency=0)
    else:
        Image.fromarray(np.dstack([grey] * 3)).save(path, transparency=(0, 0, 0))
    options = {} if background is None else {"background": background}
    (loaded,) = load_pictures(scan_domains(tmp_path), [0], 16, **options)
    assert (loaded[:8] == 100).all()
    assert (loaded[8:] == (background or (255, 255, 255))).all()


def test_half_transparent_pixels_are_composed_linearly(tmp_path):
    path = tmp_path / "photo" / "class" / "a.png"
    path.parent.mkdir(parents=True)
    Image.new("RGBA", (8, 8), (0, 100, 200, 64)).save(path)
    (loaded,) = load_pictures(scan_domains(tmp_path), [0], 8, background=(40, 80, 120))
    share = 64 / 255
    expected = share * np.array([0, 100, 200]) + (1 - share) * np.array([40, 80, 120])
    assert np.abs(loaded - expected).max() <= 1


@pytest.mark.parametrize(
    ("background", "error"),
    [((0, 0), TypeError), ((0.5, 0, 0), TypeError), ((0, 0, 256), ValueError), ("red", TypeError)],
)
def test_a_background_that_is_not_a_colour_is_refused_by_name(tree, background, error):
    with pytest.raises(error, match="background: expected .*, got"):
        load_pictures(scan_domains(tree), [0], 8, background=background)


def test_masked_indices_are_refused_by_name(tree):
    with pytest.raises(ValueError, match="indices: .* got a masked array"):
        load_pictures(scan_domains(tree), np.ma.array([0, 1], mask=[False, True]), 8)


def test_importing_the_extractors_loads_neither_pillow_nor_torch():
    script = "import sys, jaxspec.extractors; print(sorted({'PIL', 'torch'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
