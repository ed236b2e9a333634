"""Emoji in five drawing styles and six renderings of them: pictures, features and their cache.

What lives here: getting the pictures with npm, merging Unicode's subcategories into ten classes,
dealing every emoji to the developers or to the users, rendering it in eleven domains, extracting
features with EfficientNet-lite0 and the cache file that the benchmarks read. May be called:
`build_cache`, `load_cache`, `transfer`, and the steps between. From the shell,
``python -m benchmarks.datasets.emoji --cache DIR`` does the whole, can be stopped and started again, and
with ``--table`` prints counts and linear probes. Only `fetch_packages` uses the network, through
npm; torch, pillow, resvg_py and sklearn are imported by the functions that need them.

Unlike the contexts of `benchmarks.datasets.fashion`, the shift between the five styles is not made here:
other hands drew the same things. Each emoji appears once in every domain, and its side holds in
all of them: no user meets a thing that a developer has seen, be it in another style.

Licences. Noto Emoji (Google): Apache-2.0. Twemoji (Twitter and contributors): CC-BY 4.0. Fluent
Emoji (Microsoft): MIT. The tables of emoji-datasource and unicode-emoji-json: MIT, made from data
files under the Unicode licence. This repository keeps none of the pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import time
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.datasets.fashion import (
    SIDE,
    default_cache,
    load_extractor,
    principal_projection,
    thumbnail,
)

__all__ = [
    "CLASSES",
    "CLASS_NAMES",
    "CONTEXT_NAMES",
    "Emoji",
    "EmojiStudy",
    "assign_sides",
    "build_cache",
    "choose_emoji",
    "count_table",
    "draw_svg",
    "extract_features",
    "fetch_packages",
    "fluent_name",
    "load_cache",
    "neutral",
    "on_white",
    "read_drawings",
    "read_png",
    "render",
    "transfer",
]

# Merged subcategories of Unicode. Left out: flags, letters and keycaps; clock faces ("time"),
# "geometric" and "heart", where one shape in many colours would stand on both sides; "family",
# which Fluent does not draw.
CLASSES = {
    "face": "face-smiling, face-affection, face-tongue, face-hand, face-neutral-skeptical, "
    "face-sleepy, face-unwell, face-hat, face-glasses, face-concerned, face-negative, "
    "face-costume, cat-face, monkey-face",
    "people": "person, person-activity, person-fantasy, person-gesture, person-resting, "
    "person-role, person-sport, person-symbol, body-parts, hand-fingers-closed, "
    "hand-fingers-open, hand-fingers-partial, hand-prop, hand-single-finger, hands",
    "animal": "animal-amphibian, animal-bird, animal-bug, animal-mammal, animal-marine, "
    "animal-reptile",
    "food": "dishware, drink, food-asian, food-fruit, food-prepared, food-sweet, food-vegetable",
    "nature": "plant-flower, plant-other, sky & weather, place-geographic",
    "travel": "transport-air, transport-ground, transport-water, place-building, "
    "place-religious, place-other, place-map, hotel",
    "home": "clothing, household, light & video, lock",
    "leisure": "sport, game, event, award-medal, arts & crafts, music, musical-instrument, sound",
    "work": "book-paper, computer, mail, medical, money, office, phone, science, tool, writing, "
    "other-object",
    "sign": "arrow, av-symbol, currency, emotion, gender, math, other-symbol, punctuation, "
    "religion, transport-sign, warning, zodiac",
}
CLASS_NAMES = tuple(CLASSES)
_CLASS_OF = {part: k for k, parts in enumerate(CLASSES.values()) for part in parts.split(", ")}

# npm packages with the versions that the study was measured on.
_PACKAGES = {
    "noto": ("emoji-datasource-google", "16.0.0"),
    "twemoji": ("emoji-datasource-twitter", "16.0.0"),
    "fluent": ("fluentui-emoji", "1.3.0"),
    "names": ("unicode-emoji-json", "0.9.0"),
}
_FLUENT = {
    "fluent flat": "flat",
    "fluent modern": "modern",
    "fluent high contrast": "high-contrast",
}
# Fluent's files follow the short names of Unicode 13; these have changed since.
_FLUENT_RENAMED = {
    "black-bird": "blackbird",
    "enraged-face": "pouting-face",
    "face-with-crossed-out-eyes": "knocked-out-face",
    "phoenix": "phoenix-bird",
    "smiling-face-with-open-hands": "hugging-face",
}
SEED = 20230712
DRAWN = 64  # pixels a side of Noto and Twemoji; Fluent is brought to the same, to be as sharp


@dataclass(frozen=True)
class Emoji:
    """One thing that every style draws.

    Attributes:
        name: Unicode's short name.
        label: position in `CLASS_NAMES`.
        png: file name in Noto and Twemoji.
        svg: file name in Fluent.
    """

    name: str
    label: int
    png: str
    svg: str


@dataclass(frozen=True)
class EmojiStudy:
    """The cache in memory: 11 domains of the same E emoji, row ``domain * E + emoji``.

    Attributes:
        features: (N, 256) float16, columns by falling variance; a market uses the first 64.
        images: (N, 28, 28, 3) uint8 renderings, or None when they were not asked for.
        labels: (N,) uint8, positions in `class_names`.
        contexts: (N,) uint8, positions in `context_names`.
        emoji: (N,) int32, positions in `emoji_names`.
        side: (N,) uint8, 0 for the developers' emoji and 1 for the users'.
        class_names: the ten classes.
        context_names: the eleven domains.
        emoji_names: E short names.
    """

    features: np.ndarray
    images: np.ndarray | None
    labels: np.ndarray
    contexts: np.ndarray
    emoji: np.ndarray
    side: np.ndarray
    class_names: tuple[str, ...]
    context_names: tuple[str, ...]
    emoji_names: tuple[str, ...]


# Packages -----------------------------------------------------------------------------------


def fetch_packages(folder: Path) -> dict[str, Path]:
    """Let npm put the packages' archives into a folder; those that lie there are kept.

    Returns:
        the paths of the archives, under "noto", "twemoji", "fluent" and "names".

    Raises:
        FileNotFoundError: when an archive is missing and npm is not installed.
        subprocess.CalledProcessError: when npm fails.
    """
    folder = Path(folder)
    archives = {key: folder / f"{name}-{version}.tgz" for key, (name, version) in _PACKAGES.items()}
    for key, (name, version) in _PACKAGES.items():
        if archives[key].exists():
            continue
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError(f"{archives[key].name} is missing and npm is not installed")
        unfinished = folder / "unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        print(f"npm pack {name}@{version}", flush=True)
        command = [npm, "pack", f"{name}@{version}", "--ignore-scripts", "--loglevel", "error"]
        subprocess.run(command, cwd=unfinished, check=True, stdout=subprocess.DEVNULL)
        (unfinished / archives[key].name).replace(archives[key])  # present only when whole
    return archives


def _members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Files of an npm archive by their path in the package."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if member.isfile() and wanted(name):
                found[name] = tar.extractfile(member).read()
    return found


# Emoji --------------------------------------------------------------------------------------


def _sequence(code: str) -> str:
    """The characters of ``"2708-FE0F"``, bare."""
    return _bare("".join(chr(int(part, 16)) for part in code.split("-")))


def _bare(characters: str) -> str:
    """Leave out the marks that ask for a coloured picture: tables do not agree on them."""
    return characters.replace("\ufe0f", "")


def _plain(code: str) -> str:
    """Code points without joiners and without the mark that asks for a coloured picture."""
    return "-".join(part for part in code.upper().split("-") if part not in ("200D", "FE0F"))


def neutral(code: str) -> str:
    """What the twins of a person have in common: code points without man, woman and direction.

    >>> neutral("1F3C3-200D-2640-FE0F-200D-27A1-FE0F") == neutral("1F3C3")
    True
    >>> neutral("1F468-200D-1F373") == neutral("1F469-200D-1F373") == neutral("1F9D1-200D-1F373")
    True
    """
    first, *rest = ("1F9D1" if p in ("1F468", "1F469") else p for p in _plain(code).split("-"))
    return "-".join([first, *(part for part in rest if part not in ("2640", "2642", "27A1"))])


def fluent_name(name: str, drawn: Collection[str]) -> str | None:
    """Fluent's file name, without suffix, for a short name of Unicode; None if it has no drawing.

    Args:
        name: such as ``"person: curly hair"``.
        drawn: the file names there are. Those with skin tones have "-default" for the yellow one.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    plain = re.sub("[^a-z0-9]+", "-", re.sub("[.'\"()!:,]", "", plain.replace("&", "and")))
    plain = plain.strip("-")
    plain = _FLUENT_RENAMED.get(plain, plain)
    # The fantasy figures are "mage", but "person-mage".
    candidates = (stem + end for stem in (plain, f"person-{plain}") for end in ("", "-default"))
    return next((candidate for candidate in candidates if candidate in drawn), None)


def choose_emoji(
    entries: Sequence[Mapping], names: Mapping[str, str], drawn: Collection[str]
) -> tuple[Emoji, ...]:
    """The emoji of the ten classes that every style draws, one of all its twins and skins.

    Args:
        entries: the table of emoji-datasource.
        names: Unicode's short name of every emoji, by its characters.
        drawn: file names, without suffix, in all of Fluent's styles.

    Returns:
        emoji in Unicode's order. Of a person, a man and a woman who do the same, looking left or
        right, only the person (else the first of them that is drawn).
    """
    best: dict[str, tuple[bool, int, Emoji]] = {}
    for entry in entries:
        name = names.get(_sequence(entry["unified"]))
        label = _CLASS_OF.get(entry["subcategory"])
        if name is None or label is None:
            continue
        svg = fluent_name(name, drawn)
        if svg is None or not (entry["has_img_google"] and entry["has_img_twitter"]):
            continue
        key, order = neutral(entry["unified"]), entry["sort_order"]
        rank = (key != _plain(entry["unified"]), order)
        if key not in best or rank < best[key][:2]:
            best[key] = (*rank, Emoji(name, label, entry["image"], svg))
    return tuple(emoji for _, _, emoji in sorted(best.values(), key=lambda found: found[1]))


def assign_sides(labels: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Deal the emoji to developers (0) and users (1) at random, every class in halves.

    Args:
        labels: (E,) class of every emoji.
        seed: of the shuffle.

    Returns:
        sides (E,) uint8. Within a class, and in all, the two counts differ by at most one.
    """
    rng = np.random.default_rng(seed)
    sides = np.empty(len(labels), np.uint8)
    start = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        sides[rows] = (start + np.arange(len(rows))) % 2
        start += len(rows)
    return sides


# Drawings -----------------------------------------------------------------------------------


def on_white(picture: np.ndarray) -> np.ndarray:
    """Blend (h, w, 4) uint8 RGBA, alpha not premultiplied, into white paper: (h, w, 3) uint8."""
    alpha = picture[..., 3:].astype(np.float64) / 255
    return np.round(alpha * picture[..., :3] + (1 - alpha) * 255).astype(np.uint8)


def _resize(picture: np.ndarray, side: int, method: str) -> np.ndarray:
    from PIL import Image

    resampling = Image.Resampling[method]
    return np.asarray(Image.fromarray(picture).resize((side, side), resampling))


def read_png(data: bytes) -> np.ndarray:
    """A PNG file's bytes -> (64, 64, 3) uint8 on white."""
    from PIL import Image

    picture = on_white(np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")))
    return picture if picture.shape[:2] == (DRAWN, DRAWN) else _resize(picture, DRAWN, "LANCZOS")


def draw_svg(data: bytes) -> np.ndarray:
    """An SVG file's bytes -> (64, 64, 3) uint8 on white.

    By resvg, since cairosvg leaves out the blurs and shadows that make Fluent's modern style; at
    twice the size, since resvg does not smooth the edges of what it filters.
    """
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(
        svg_string=data.decode(), width=2 * DRAWN, height=2 * DRAWN, skip_system_fonts=True
    )
    picture = on_white(np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA")))
    return _resize(picture, DRAWN, "BOX")


def read_drawings(
    archives: Mapping[str, Path],
) -> tuple[tuple[Emoji, ...], dict[str, Callable[[Emoji], np.ndarray]]]:
    """Choose the emoji that the archives hold.

    Returns:
        the emoji, and for each style a function from an emoji to its (64, 64, 3) uint8 picture.
    """
    sheets, table = {}, b"[]"
    for style, package in (("noto", "google"), ("twemoji", "twitter")):
        folder = f"img/{package}/{DRAWN}/"
        files = _members(
            archives[style], lambda n, folder=folder: n.startswith(folder) or n == "emoji.json"
        )
        table = files.pop("emoji.json")
        sheets[style] = {name.removeprefix(folder): data for name, data in files.items()}
    icons = _members(archives["fluent"], lambda name: name.startswith("icons/"))
    stems = [
        {Path(name).stem for name in icons if name.startswith(f"icons/{folder}/")}
        for folder in _FLUENT.values()
    ]
    names = _members(archives["names"], lambda name: name == "data-by-emoji.json")
    short = {
        _bare(characters): entry["name"]
        for characters, entry in json.loads(names["data-by-emoji.json"]).items()
    }
    drawings: dict[str, Callable[[Emoji], np.ndarray]] = {
        style: lambda emoji, files=files: read_png(files[emoji.png])
        for style, files in sheets.items()
    }
    for style, folder in _FLUENT.items():
        drawings[style] = lambda emoji, folder=folder: draw_svg(
            icons[f"icons/{folder}/{emoji.svg}.svg"]
        )
    return choose_emoji(json.loads(table), short, set.intersection(*stems)), drawings


# Rendering ----------------------------------------------------------------------------------


def _as_drawn(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return picture


def _grey(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Luminance in three equal channels."""
    luminance = np.round(picture @ np.array([0.299, 0.587, 0.114]))
    return np.repeat(luminance[..., None], 3, axis=-1).astype(np.uint8)


def _edges(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pencil sketch: the size of the strongest channel's gradient, dark on white."""
    from scipy import ndimage

    channels = np.moveaxis(picture / 255, -1, 0)
    size = np.max([ndimage.gaussian_gradient_magnitude(c, sigma=1.0) for c in channels], axis=0)
    dark = np.clip(size / max(np.quantile(size, 0.98), 1e-3), 0, 1)
    return np.repeat(np.round(255 * (1 - dark))[..., None], 3, axis=-1).astype(np.uint8)


def _inverted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - picture


def _pixelated(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _resize(_resize(picture, 16, "BOX"), SIDE, "NEAREST")


def _rotated(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An eighth of a turn to the left, made smaller so that no corner is lost."""
    from PIL import Image

    turned = Image.fromarray(picture).rotate(
        45, Image.Resampling.BICUBIC, expand=True, fillcolor=(255, 255, 255)
    )
    return np.asarray(turned.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _small(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half the size, anywhere on the paper."""
    side = SIDE // 2
    top, left = rng.integers(0, SIDE - side + 1, 2)
    paper = np.full_like(picture, 255)
    paper[top : top + side, left : left + side] = _resize(picture, side, "BOX")
    return paper


_Renderer = Callable[[np.ndarray, np.random.Generator], np.ndarray]
_CONTEXTS: dict[str, tuple[str, _Renderer]] = {
    "noto": ("noto", _as_drawn),
    "twemoji": ("twemoji", _as_drawn),
    "fluent flat": ("fluent flat", _as_drawn),
    "fluent modern": ("fluent modern", _as_drawn),
    "fluent high contrast": ("fluent high contrast", _as_drawn),
    "noto edges": ("noto", _edges),
    "noto rotated": ("noto", _rotated),
    "twemoji inverted": ("twemoji", _inverted),
    "twemoji small": ("twemoji", _small),
    "fluent flat grey": ("fluent flat", _grey),
    "fluent modern pixelated": ("fluent modern", _pixelated),
}
CONTEXT_NAMES = tuple(_CONTEXTS)


def render(picture: np.ndarray, context: str, index: int, *, seed: int = SEED) -> np.ndarray:
    """Show one drawing in one domain.

    Args:
        picture: (64, 64, 3) uint8 in the domain's style, on white.
        context: one of `CONTEXT_NAMES`.
        index: the emoji's position; with `seed` it fixes every random choice.
        seed: of the study.

    Returns:
        (96, 96, 3) uint8, the same bytes on every call.
    """
    rng = np.random.default_rng([seed, index])
    return _CONTEXTS[context][1](_resize(picture, SIDE, "BICUBIC"), rng)


# Features -----------------------------------------------------------------------------------


def extract_features(
    emoji: Sequence[Emoji],
    drawings: Mapping[str, Callable[[Emoji], np.ndarray]],
    folder: Path,
    *,
    batch: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    """Render every emoji in every domain and extract its features, resuming where it stopped.

    Args:
        emoji: E emoji.
        drawings: for each style, a function from an emoji to its picture.
        folder: keeps one file a domain. Files of other emoji or renderings lie in another
            subfolder, so that they are never mixed.
        batch: pictures that go through the network at once.

    Returns:
        features (11 E, 1280) float32, rows of unit length, and images (11 E, 28, 28, 3) uint8.
    """
    folder = Path(folder) / _fingerprint(emoji, drawings)
    folder.mkdir(parents=True, exist_ok=True)
    extract, parts = None, []
    for context, (style, _) in _CONTEXTS.items():
        path = folder / f"{context.replace(' ', '_')}.npz"
        if not path.exists():
            extract = extract or load_extractor()
            began = time.perf_counter()
            rendered = np.stack(
                [render(drawings[style](one), context, i) for i, one in enumerate(emoji)]
            )
            features = [extract(rendered[a : a + batch]) for a in range(0, len(emoji), batch)]
            images = np.stack([thumbnail(image) for image in rendered])
            unfinished = path.with_suffix(".part")
            with unfinished.open("wb") as file:
                np.savez(file, features=np.concatenate(features), images=images)
            unfinished.replace(path)  # a domain exists only when it is whole
            rate = len(emoji) / (time.perf_counter() - began)
            print(f"{context}: {len(emoji)} pictures, {rate:.0f}/s", flush=True)
        with np.load(path, allow_pickle=False) as part:
            parts.append((part["features"], part["images"]))
    features, images = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(images)


def _fingerprint(
    emoji: Sequence[Emoji], drawings: Mapping[str, Callable[[Emoji], np.ndarray]]
) -> str:
    """Sixteen hexadecimal digits that change when the emoji or any rendering do."""
    digest = hashlib.sha256(repr((SEED, CONTEXT_NAMES, tuple(emoji))).encode())
    for index, one in enumerate(emoji[:3]):
        for context, (style, _) in _CONTEXTS.items():
            digest.update(render(drawings[style](one), context, index).tobytes())
    return digest.hexdigest()[:16]


# The cache ----------------------------------------------------------------------------------


def build_cache(cache: Path | None = None) -> Path:
    """Make ``emoji_study.npz`` in the cache folder; an existing file is kept.

    It holds the arrays of `EmojiStudy` and the projection, `feature_mean` (1280,) and
    `feature_directions` (1280, 256), which takes new pictures to the same features.

    Args:
        cache: folder; `benchmarks.datasets.fashion.default_cache` when None.

    Returns:
        the path of the file.
    """
    folder = default_cache() if cache is None else Path(cache)
    path = folder / "emoji_study.npz"
    if path.exists():
        return path
    emoji, drawings = read_drawings(fetch_packages(folder / "emoji_packages"))
    raw, images = extract_features(emoji, drawings, folder / "emoji_domains")
    mean, directions = principal_projection(raw)
    domains, labels = len(CONTEXT_NAMES), np.array([one.label for one in emoji], np.uint8)
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(
            file,
            features=((raw - mean) @ directions).astype(np.float16),
            images=images,
            labels=np.tile(labels, domains),
            contexts=np.repeat(np.arange(domains, dtype=np.uint8), len(emoji)),
            emoji=np.tile(np.arange(len(emoji), dtype=np.int32), domains),
            side=np.tile(assign_sides(labels), domains),
            class_names=np.array(CLASS_NAMES),
            context_names=np.array(CONTEXT_NAMES),
            emoji_names=np.array([one.name for one in emoji]),
            feature_mean=mean,
            feature_directions=directions,
        )
    unfinished.replace(path)
    return path


def load_cache(cache: Path | None = None, *, images: bool = True) -> EmojiStudy:
    """Read the cache that `build_cache` made.

    Args:
        cache: folder; `benchmarks.datasets.fashion.default_cache` when None.
        images: whether to read the renderings.

    Raises:
        FileNotFoundError: when it has not been built.
    """
    path = (default_cache() if cache is None else Path(cache)) / "emoji_study.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; python -m benchmarks.datasets.emoji builds it")
    with np.load(path, allow_pickle=False) as file:
        arrays = ("features", "labels", "contexts", "emoji", "side")
        names = ("class_names", "context_names", "emoji_names")
        return EmojiStudy(
            images=file["images"] if images else None,
            **{name: file[name] for name in arrays},
            **{name: tuple(file[name].tolist()) for name in names},
        )


# What is in it ------------------------------------------------------------------------------


def count_table(study: EmojiStudy) -> np.ndarray:
    """Pictures per domain, class and side, (11, 10, 2) integers."""
    shape = len(study.context_names), len(study.class_names), 2
    cells = np.ravel_multi_index((study.contexts, study.labels, study.side), shape)
    return np.bincount(cells, minlength=np.prod(shape)).reshape(shape)


def transfer(study: EmojiStudy, dimensions: int = 64) -> np.ndarray:
    """Accuracy of linear probes between domains, (11, 11): row fitted on, column tested on.

    Fitted on the developers' emoji, tested on the users': logistic regression on the first
    `dimensions` columns of the features, L2 with C = 0.1.
    """
    from sklearn.linear_model import LogisticRegression

    features = study.features[:, :dimensions].astype(np.float32)
    domains = range(len(study.context_names))
    accuracy = np.empty((len(domains),) * 2)
    for source in domains:
        fit = (study.contexts == source) & (study.side == 0)
        probe = LogisticRegression(C=0.1, max_iter=2000).fit(features[fit], study.labels[fit])
        for target in domains:
            test = (study.contexts == target) & (study.side == 1)
            accuracy[source, target] = probe.score(features[test], study.labels[test])
    return accuracy


def _print_tables(study: EmojiStudy) -> None:
    counts = count_table(study)[0]
    print("\nemoji of every domain   developers users")
    for name, (developers, users) in zip(study.class_names, counts, strict=True):
        print(f"{name:24}{developers:10d}{users:6d}")
    print(f"{'all':24}{counts[:, 0].sum():10d}{counts[:, 1].sum():6d}")
    print("\nlinear probes, % right: row fitted on developers, column tested on users")
    print(" " * 24 + "".join(f"{k:4d}" for k in range(len(study.context_names))))
    for k, (name, row) in enumerate(zip(study.context_names, transfer(study), strict=True)):
        print(f"{k:2d} {name:21}" + "".join(f"{100 * value:4.0f}" for value in row))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the emoji study cache.")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the cache")
    parser.add_argument("--table", action="store_true", help="print counts and linear probes")
    arguments = parser.parse_args()
    path = build_cache(arguments.cache)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")
    if arguments.table:
        _print_tables(load_cache(arguments.cache, images=False))


if __name__ == "__main__":
    main()
