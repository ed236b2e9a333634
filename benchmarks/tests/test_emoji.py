"""The emoji data from small made packages: nothing is downloaded and no network runs."""

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("scipy")
from PIL import Image

from benchmarks.datasets import emoji as study
from benchmarks.datasets import emoji_drawings as drawing
from benchmarks.datasets import features as shared

THINGS = {  # subcategory -> short names
    "animal-bug": ["bug", "ant", "honeybee", "snail", "worm", "fly", "cricket"],
    "animal-bird": ["duck", "owl", "dove", "eagle"],
    "food-fruit": ["melon", "lemon", "mango", "cherries", "kiwi fruit"],
    "time": ["one o’clock"],
    "country-flag": ["flag: Norway"],
}


def entry(code, subcategory, order, **changes):
    return {
        "unified": code,
        "subcategory": subcategory,
        "sort_order": order,
        "image": f"{code.lower()}.png",
        "has_img_google": True,
        "has_img_twitter": True,
        **changes,
    }


def characters(code):
    return "".join(chr(int(part, 16)) for part in code.split("-"))


def made_table():
    """Entries, short names by characters, and Fluent's file names."""
    entries, names, drawn = [], {}, set()
    for subcategory, things in THINGS.items():
        for name in things:
            code = f"{0x1F400 + len(entries):X}"
            entries.append(entry(code, subcategory, len(entries)))
            names[characters(code)] = name
            drawn.add(name.replace(" ", "-"))
    people = {
        "1F469-200D-1F373": ("woman cook", "woman-cook-default"),
        "1F9D1-200D-1F373": ("cook", "cook-default"),
        "1F3C3-200D-2640-FE0F": ("woman running", "woman-running-default"),
        "1F3C3": ("person running", "person-running-default"),
        "1F9D9": ("mage", "person-mage-default"),
    }
    for code, (name, stem) in people.items():
        entries.append(entry(code, "person-role", len(entries)))
        names[drawing.characters_of(code)] = name
        drawn |= {stem, stem.replace("default", "dark")}
    return entries, names, drawn


def png(value):
    """A 64-pixel square of one grey on a transparent ground."""
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[16:48, 16:48] = (value, value, value, 255)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def pack(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def archives(tmp_path):
    entries, names, drawn = made_table()
    table = json.dumps(entries).encode()
    found = {}
    for style, package in (("noto", "google"), ("twemoji", "twitter")):
        files = {f"img/{package}/64/{e['image']}": png(7 * i) for i, e in enumerate(entries)}
        found[style] = pack(tmp_path / f"{style}.tgz", {"emoji.json": table, **files})
    square = (
        b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><path d="M1 1h2v2H1z"/></svg>'
    )
    icons = {
        f"icons/{folder}/{stem}.svg": square
        for folder in ("flat", "modern", "high-contrast")
        for stem in drawn
    }
    del icons["icons/high-contrast/snail.svg"]
    found["fluent"] = pack(tmp_path / "fluent.tgz", icons)
    short = json.dumps({key: {"name": name} for key, name in names.items()}).encode()
    found["names"] = pack(tmp_path / "names.tgz", {"data-by-emoji.json": short})
    return found


@pytest.fixture
def built(archives, tmp_path, monkeypatch):
    """A cache whose features are the mean colours of the renderings' 4 x 4 tiles."""

    def extract(images):
        tiles = images.reshape(len(images), 4, 24, 4, 24, 3).mean((2, 4)).reshape(len(images), -1)
        features = np.zeros((len(images), 256), np.float32)
        features[:, : tiles.shape[1]] = tiles / 255
        return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-6)

    monkeypatch.setattr(study, "fetch_packages", lambda folder: archives)
    monkeypatch.setattr(shared, "load_extractor", lambda: extract)
    monkeypatch.setattr(drawing, "draw_svg", lambda data: np.full((64, 64, 3), 200, np.uint8))
    study.build_cache(tmp_path)
    return tmp_path


def test_every_subcategory_belongs_to_one_class():
    parts = [part for parts in drawing.CLASSES.values() for part in parts.split(", ")]
    assert max(Counter(parts).values()) == 1
    assert len(drawing.CLASS_NAMES) == 10
    assert len(study.CONTEXT_NAMES) == 11


def test_subcategories_merge_and_the_rest_is_left_out():
    chosen = drawing.choose_emoji(*made_table())
    counts = Counter(drawing.CLASS_NAMES[one.label] for one in chosen)
    assert counts == {"animal": 11, "food": 5, "people": 3}


def test_of_twins_only_the_person_is_kept():
    people = [one.name for one in drawing.choose_emoji(*made_table()) if one.label == 1]
    assert people == ["cook", "person running", "mage"]


def test_a_twin_stands_in_when_the_person_is_not_drawn():
    entries, names, drawn = made_table()
    chosen = drawing.choose_emoji(entries, names, drawn - {"cook-default"})
    assert "woman cook" in [one.name for one in chosen]


def test_an_emoji_that_one_style_lacks_is_left_out():
    entries, names, drawn = made_table()
    entries[0]["has_img_twitter"] = False
    chosen = [one.name for one in drawing.choose_emoji(entries, names, drawn - {"ant"})]
    assert "bug" not in chosen
    assert "ant" not in chosen


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("person: curly hair", "person-curly-hair"),
        ("O button (blood type)", "o-button-blood-type"),
        ("piñata", "pinata"),
        ("woman’s hat", "womans-hat"),
        ("waving hand", "waving-hand-default"),
        ("elf", "person-elf-default"),
        ("enraged face", "pouting-face"),
    ],
)
def test_short_names_lead_to_fluent_files(name, stem):
    assert drawing.fluent_name(name, {stem, "something-else"}) == stem
    assert drawing.fluent_name(name, {"something-else"}) is None


def test_sides_halve_every_class_and_follow_the_seed():
    labels = np.random.default_rng(0).integers(0, 10, 501)
    sides = study.assign_sides(labels)
    counts = np.array([np.bincount(sides[labels == k], minlength=2) for k in range(10)])
    assert np.abs(counts[:, 0] - counts[:, 1]).max() <= 1
    assert abs(counts[:, 0].sum() - counts[:, 1].sum()) <= 1
    np.testing.assert_array_equal(sides, study.assign_sides(labels))
    assert (sides != study.assign_sides(labels, seed=1)).any()


def test_blending_follows_the_closed_form():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (9, 9, 4), np.uint8)
    colour, alpha = picture[..., :3].astype(float), picture[..., 3:] / 255
    expected = 255 - alpha * (255 - colour)
    assert np.abs(drawing.on_white(picture) - expected).max() <= 0.5 + 1e-9
    picture[..., 3] = 0
    assert (drawing.on_white(picture) == 255).all()
    picture[..., 3] = 255
    np.testing.assert_array_equal(drawing.on_white(picture), picture[..., :3])


@pytest.mark.parametrize("context", study.CONTEXT_NAMES)
def test_renderings_repeat_and_blank_paper_stays_blank(context):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    shown = study.render(picture, context, 5)
    assert shown.shape == (96, 96, 3)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown, study.render(picture, context, 5))
    paper = study.render(np.full((64, 64, 3), 255, np.uint8), context, 5)
    assert (paper == (0 if "inverted" in context else 255)).all()


def test_small_keeps_the_amount_of_ink():
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[16:48, 16:48] = 0
    ink = [
        (255.0 - study.render(picture, c, 3).astype(float)).sum()
        for c in ("twemoji", "twemoji small")
    ]
    assert ink[1] == pytest.approx(ink[0] / 4, rel=0.02)


def test_svg_is_drawn_on_white():
    pytest.importorskip("resvg_py")
    square = (
        b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><path d="M1 1h2v2H1z"/></svg>'
    )
    expected = np.full((64, 64, 3), 255, np.uint8)
    expected[16:48, 16:48] = 0
    np.testing.assert_array_equal(drawing.draw_svg(square), expected)


def test_drawings_come_from_the_archives(archives):
    chosen, drawings = drawing.read_drawings(archives)
    assert "snail" not in [one.name for one in chosen]
    ant = next(one for one in chosen if one.name == "ant")
    for style in ("noto", "twemoji"):
        picture = drawings[style](ant)
        assert (picture[16:48, 16:48] == 7).all()
        assert (picture[:16] == 255).all()


def test_no_emoji_stands_on_both_sides(built):
    loaded = study.load_cache(built)
    pairs = set(zip(loaded.emoji.tolist(), loaded.side.tolist(), strict=True))
    assert len(pairs) == len(loaded.emoji_names)
    seen = np.bincount(loaded.emoji * 11 + loaded.contexts)
    assert (seen == 1).all()


def test_cache_holds_one_row_an_emoji_and_domain(built):
    loaded = study.load_cache(built)
    rows = 11 * len(loaded.emoji_names)
    assert loaded.features.shape == (rows, 256)
    assert loaded.features.dtype == np.float16
    assert loaded.images.shape == (rows, 28, 28, 3)
    assert loaded.images.dtype == loaded.labels.dtype == loaded.contexts.dtype == np.uint8
    assert loaded.class_names == drawing.CLASS_NAMES
    assert loaded.context_names == study.CONTEXT_NAMES
    assert study.load_cache(built, images=False).images is None
    counts = study.count_table(loaded)
    assert counts.shape == (11, 10, 2)
    assert counts.sum() == rows
    assert (counts == counts[0]).all()
    assert counts[0, 2].sum() == 10  # animals, without the snail


def test_a_stopped_extraction_goes_on_with_the_missing_domain(built, archives, monkeypatch):
    first = study.load_cache(built)
    (built / "emoji_study.npz").unlink()
    next(built.glob("emoji_domains/*/noto_edges.npz")).unlink()
    calls = []
    extract = shared.load_extractor()
    monkeypatch.setattr(
        shared, "load_extractor", lambda: lambda images: calls.append(1) or extract(images)
    )
    study.build_cache(built)
    assert len(calls) == 1
    np.testing.assert_array_equal(study.load_cache(built).features, first.features)


def test_a_missing_cache_says_how_to_build_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m benchmarks\.datasets\.emoji"):
        study.load_cache(tmp_path)


def test_missing_npm_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="npm is not installed"):
        drawing.fetch_packages(tmp_path)


def test_linear_probes_learn_what_is_the_same_in_every_domain():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(40) % 10, 11)
    features = 3 * np.eye(10)[labels] + rng.normal(0, 0.1, (440, 10))
    made = study.EmojiStudy(
        features=features.astype(np.float16),
        images=None,
        labels=labels.astype(np.uint8),
        contexts=np.repeat(np.arange(11), 40).astype(np.uint8),
        emoji=np.tile(np.arange(40), 11),
        side=np.tile(study.assign_sides(np.arange(40) % 10), 11),
        class_names=drawing.CLASS_NAMES,
        context_names=study.CONTEXT_NAMES,
        emoji_names=tuple(map(str, range(40))),
    )
    assert (study.transfer(made) == 1).all()
