"""Markets on disk with one thing changed, with or without checksums that fit, and what reads them.

As a program it reads as many such markets as it is told, in one process, so that an abort is seen,
and prints what happened: how many were refused and how many were read.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from made_files import SavedCopy, made_space, made_specification, made_user

import jaxspec as js
from jaxspec.base import FileError

VALUES = [-1, 0, 1, 2**31, 2**53, 1e300, "", "x", None, True, [], {}, [[]], "../x", "a" * 2000]
FLOATS = [np.nan, np.inf, 1e38, -1e38, 1e-40, 1e20, 0.0]
USERS = 2


def mutated(data, rng):
    """Return bytes with a few changes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not data:
            return b"{"
        at, kind = int(rng.integers(len(data))), rng.integers(5)
        if kind == 0:
            data[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 20))]
        elif kind == 2:
            data[at:at] = data[at : at + int(rng.integers(1, 20))]
        elif kind == 3:
            del data[at:]
        else:
            data[at : at + 1] = b"9"
    return bytes(data)


def changed_value(document, rng):
    """Change one value at any depth of a JSON document, in place."""
    places, waiting = [], [document]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one))
        for key in keys:
            places.append((one, key))
            if isinstance(one[key], dict | list):
                waiting.append(one[key])
    if not places:
        return
    owner, key = places[rng.integers(len(places))]
    kind, value = rng.integers(4), owner[key]
    if kind == 0 and type(value) in (int, float):
        owner[key] = type(value)(value + rng.integers(-3, 4))
    elif kind == 1:
        del owner[key]
    else:
        owner[key] = VALUES[rng.integers(len(VALUES))]


def change_anything(copy, rng):
    """Change one thing of a copy of a market, half of the time so that checksums fit."""
    kind = rng.integers(8)
    if kind == 0:
        files = [file for file in copy.path.rglob("*") if file.is_file()]
        file = files[rng.integers(len(files))]
        file.write_bytes(mutated(file.read_bytes(), rng))
    elif kind == 1:
        copy.facts(lambda facts: changed_value(facts, rng))
    elif kind == 2:
        copy.manifest(lambda manifest: changed_value(manifest, rng))
    elif kind == 3:
        copy.contents(lambda contents: changed_value(contents, rng))
    elif kind == 4:
        arrays = list((copy.segment / "arrays").iterdir())
        file = arrays[rng.integers(len(arrays))] / ".zarray"
        described = json.loads(file.read_text())
        changed_value(described, rng)
        file.write_text(json.dumps(described))
        copy.note_files()
    elif kind == 5:
        files = [copy.space, *(file for file in copy.segment.rglob("*") if file.is_file())]
        file = files[rng.integers(len(files))]
        file.write_bytes(mutated(file.read_bytes(), rng))
        copy.note_files()
    elif kind == 6:
        files = [file for file in copy.segment.rglob("*") if file.is_file()]
        files[rng.integers(len(files))].unlink()
    else:
        files = [file for file in copy.segment.glob("arrays/*/*") if file.name != ".zarray"]
        file = files[rng.integers(len(files))]
        numbers = np.frombuffer(file.read_bytes(), np.uint8).copy()
        if len(numbers) % 4 == 0:
            value = np.float32(FLOATS[rng.integers(len(FLOATS))])
            numbers.view(np.float32)[rng.integers(len(numbers) // 4)] = value
        file.write_bytes(numbers.tobytes())
        copy.note_files()


def read_all_ways(path, users):
    """Read a market in every way; return whether it was accepted by all of them."""
    accepted = 0
    scores = []
    for read in (
        lambda: js.match(js.Market.load(path), users, k=3, method="rkme"),
        lambda: js.match(js.MarketFolder(path), users, k=3, method="rkme"),
        lambda: js.MarketFolder(path).verify(),
    ):
        try:
            scores.append(read())
            accepted += 1
        except FileError as error:
            assert "\n" not in str(error), error
    for found in [one for one in scores if one is not None]:
        for match in found:
            assert np.isfinite(match.scores).all(), match.scores
            assert np.isfinite(match.squared_mmd).all()
    return accepted == 3


def main(saved, work, first, count):
    users = [made_user(seed) for seed in range(USERS)]
    read_all_ways(Path(saved), users)  # compiles
    refused, slowest = 0, 0.0
    for seed in range(int(first), int(first) + int(count)):
        rng = np.random.default_rng(seed)
        copy = SavedCopy(Path(saved), Path(work) / str(seed))
        try:
            change_anything(copy, rng)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            shutil.rmtree(copy.path)  # what was to be changed has no checksum to fit
            continue
        began = time.perf_counter()
        try:
            refused += not read_all_ways(copy.path, users)
        except BaseException:
            print("seed", seed, file=sys.stderr, flush=True)
            raise
        slowest = max(slowest, time.perf_counter() - began)
        shutil.rmtree(copy.path)
    print(refused, round(slowest, 3), flush=True)


def save_one(path):
    """Save a market of four learnwares with all optional parts."""
    specs = {f"m{s}": made_specification(s, probe=True, hidden=True) for s in range(4)}
    js.Market(made_space(), specs).save(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
