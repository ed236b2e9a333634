"""Emoji in five drawing styles and six renderings of them: pictures, features and their cache.

What lives here: getting the pictures with npm, merging Unicode's subcategories into ten classes,
dealing every emoji to the developers or to the users, rendering it in eleven domains, extracting
features with EfficientNet-lite0 and the cache file that the benchmarks read. May be called:
`build_cache`, `load_cache`, `transfer`, and the steps between. From the shell,
``python -m benchmarks.emoji --cache DIR`` does the whole, can be stopped and started again, and
with ``--table`` prints counts and linear probes. Only `fetch_packages` uses the network, through
npm; torch, pillow, resvg_py and sklearn are imported by the functions that need them.

Unlike in Fashion-MNIST seen in contexts, the shift between the five styles is not made here: other
hands drew the same things. Each emoji appears once in every domain, and its side holds in all of
them: no user meets a thing that a developer has seen, be it in another style.

Licences. Noto Emoji (Google): Apache-2.0. Twemoji (Twitter and contributors): CC-BY 4.0. Fluent
Emoji (Microsoft): MIT. The tables of emoji-datasource and unicode-emoji-json: MIT, from data files
under the Unicode licence. None of the pictures is kept in this repository.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fashion import (
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
    "STYLES",
    "Emoji",
    "EmojiStudy",
    "assign_sides",
    "build_cache",
    "choose_emoji",
    "count_table",
    "extract_features",
    "fetch_packages",
    "fluent_name",
    "load_cache",
    "neutral",
    "on_white",
    "read_study",
    "render",
    "transfer",
]

# Left out, beside flags, which Fluent does not draw: clock faces, geometric shapes and hearts,
# where one shape in many colours would stand on both sides; letters and keycaps; families, which
# Fluent does not draw either.
CLASSES: dict[str, tuple[str, ...]] = {
    "face": (
        "face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy "
        "face-unwell face-hat face-glasses face-concerned face-negative face-costume cat-face "
        "monkey-face"
    ).split(),
    "people": (
        "person person-activity person-fantasy person-gesture person-resting person-role "
        "person-sport person-symbol body-parts hand-fingers-closed hand-fingers-open "
        "hand-fingers-partial hand-prop hand-single-finger hands"
    ).split(),
    "animal": (
        "animal-amphibian animal-bird animal-bug animal-mammal animal-marine animal-reptile"
    ).split(),
    "food": (
        "dishware drink food-asian food-fruit food-prepared food-sweet food-vegetable"
    ).split(),
    "nature": ("plant-flower", "plant-other", "sky & weather", "place-geographic"),
    "travel": (
        "transport-air transport-ground transport-water place-building place-religious place-other "
        "place-map hotel"
    ).split(" "),
    "home": ("clothing", "household", "light & video", "lock"),
    "leisure": (
        *"sport game event award-medal music musical-instrument sound".split(),
        "arts & crafts",
    ),
    "work": (
        "book-paper computer mail medical money office phone science tool writing other-object"
    ).split(),
    "sign": (
        "arrow av-symbol currency emotion gender math other-symbol punctuation religion "
        "transport-sign warning zodiac"
    ).split(),
}
