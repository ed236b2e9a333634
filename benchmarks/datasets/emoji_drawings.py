"""Emoji as five drawing styles show them: packages, choice of the emoji, pictures on white paper.

`fetch_packages` gets the archives with npm, which is the only use of the network; `read_drawings`
chooses the emoji that all styles draw and gives their pictures. pillow and resvg_py are imported by
the functions that need them.

Licences. Noto Emoji (Google): Apache-2.0. Twemoji (Twitter and contributors): CC-BY 4.0. Fluent
Emoji (Microsoft): MIT. The tables of emoji-datasource and unicode-emoji-json: MIT, made from data
files under the Unicode licence. This repository keeps none of the pictures.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = [
    "CLASSES",
    "CLASS_NAMES",
    "DRAWN",
    "Drawing",
    "Emoji",
    "characters_of",
    "choose_emoji",
    "draw_svg",
    "fetch_packages",
    "fluent_name",
    "neutral",
    "on_white",
    "read_drawings",
    "read_png",
    "resize",
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
DRAWN = 64  # pixels per side of Noto and Twemoji; Fluent is drawn at the same size, as sharp


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


Drawing = Callable[[Emoji], np.ndarray]  # (64, 64, 3) uint8 on white


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
        (unfinished / archives[key].name).replace(archives[key])  # there only when complete
    return archives


def _members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the files of an npm archive by their path in the package."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if member.isfile() and wanted(name):
                found[name] = tar.extractfile(member).read()
    return found


# Emoji --------------------------------------------------------------------------------------


def characters_of(code: str) -> str:
    """Return the characters of a code such as ``"2708-FE0F"``, without variation marks."""
    return _bare("".join(chr(int(part, 16)) for part in code.split("-")))


def _bare(characters: str) -> str:
    """Remove the marks that ask for a coloured picture, since tables do not agree on them."""
    return characters.replace("\ufe0f", "")


def _plain(code: str) -> str:
    """Return code points without joiners and without the marks for a coloured picture."""
    return "-".join(part for part in code.upper().split("-") if part not in ("200D", "FE0F"))


def neutral(code: str) -> str:
    """Return the code points of a person without man, woman and direction, which twins share.

    >>> neutral("1F3C3-200D-2640-FE0F-200D-27A1-FE0F") == neutral("1F3C3")
    True
    >>> neutral("1F468-200D-1F373") == neutral("1F469-200D-1F373") == neutral("1F9D1-200D-1F373")
    True
    """
    first, *rest = ("1F9D1" if p in ("1F468", "1F469") else p for p in _plain(code).split("-"))
    return "-".join([first, *(part for part in rest if part not in ("2640", "2642", "27A1"))])


def fluent_name(name: str, drawn: Collection[str]) -> str | None:
    """Return the file name of Fluent, without suffix, for a short name; None if it has no drawing.

    Args:
        name: such as ``"person: curly hair"``.
        drawn: the file names there are; with skin tones, the yellow one ends in "-default".
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    plain = re.sub("[^a-z0-9]+", "-", re.sub("[.'\"()!:,]", "", plain.replace("&", "and")))
    plain = plain.strip("-")
    plain = _FLUENT_RENAMED.get(plain, plain)
    # The file of the fantasy figure "mage" is called "person-mage", for example.
    candidates = (stem + end for stem in (plain, f"person-{plain}") for end in ("", "-default"))
    return next((candidate for candidate in candidates if candidate in drawn), None)


def choose_emoji(
    entries: Sequence[Mapping], names: Mapping[str, str], drawn: Collection[str]
) -> tuple[Emoji, ...]:
    """Return the emoji of the ten classes that every style draws, one of its twins and skins.

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
        name = names.get(characters_of(entry["unified"]))
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


# Drawings -----------------------------------------------------------------------------------


def on_white(picture: np.ndarray) -> np.ndarray:
    """Blend (h, w, 4) uint8 RGBA, alpha not premultiplied, into white paper: (h, w, 3) uint8."""
    alpha = picture[..., 3:].astype(np.float64) / 255
    return np.round(alpha * picture[..., :3] + (1 - alpha) * 255).astype(np.uint8)


def resize(picture: np.ndarray, side: int, method: str) -> np.ndarray:
    from PIL import Image

    resampling = Image.Resampling[method]
    return np.asarray(Image.fromarray(picture).resize((side, side), resampling))


def read_png(data: bytes) -> np.ndarray:
    """Return the picture of a PNG file, (64, 64, 3) uint8 on white."""
    from PIL import Image

    picture = on_white(np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")))
    return picture if picture.shape[:2] == (DRAWN, DRAWN) else resize(picture, DRAWN, "LANCZOS")


def draw_svg(data: bytes) -> np.ndarray:
    """Return the picture of an SVG file, (64, 64, 3) uint8 on white.

    Drawn by resvg, since cairosvg leaves out the blurs and shadows of the modern style of Fluent,
    and at twice the size, since resvg does not smooth the edges of filtered shapes.
    """
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(
        svg_string=data.decode(), width=2 * DRAWN, height=2 * DRAWN, skip_system_fonts=True
    )
    picture = on_white(np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA")))
    return resize(picture, DRAWN, "BOX")


def read_drawings(
    archives: Mapping[str, Path],
) -> tuple[tuple[Emoji, ...], dict[str, Drawing]]:
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
    drawings: dict[str, Drawing] = {
        style: lambda emoji, files=files: read_png(files[emoji.png])
        for style, files in sheets.items()
    }
    for style, folder in _FLUENT.items():
        drawings[style] = lambda emoji, folder=folder: draw_svg(
            icons[f"icons/{folder}/{emoji.svg}.svg"]
        )
    return choose_emoji(json.loads(table), short, set.intersection(*stems)), drawings
