"""How fast is a market saved, loaded and appended to, beside the disk's own sequential rate?

    python -m benchmarks.speed.market_folders [--learnwares 100000] [--output FILE]

A made market (m = 50, d = 64) is saved to a new folder and loaded again; between these the script
writes and reads one plain file of the same size as the market, in pieces of 16 MiB, with `fsync` at
the end, so that all rates are of one disk in one state. Files are read from the page cache
("warm") and after the cache was asked to forget them ("cold"). Then 100 learnwares are appended to
the folder, several times. Ratios are of the medians:

    save = rate of Market.save / sequential rate of writing, and so for load;
    append = seconds of an append / seconds of Market.save.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import jaxspec as js
from benchmarks.records import print_table, progress, write_record
from benchmarks.speed.scaling import made_learnwares

PIECE = 1 << 24
APPENDED = 100


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def write_plain(path: Path, size: int) -> None:
    """Write a file of so many bytes, and wait until it is on disk."""
    piece = np.random.default_rng(0).bytes(PIECE)
    with open(path, "wb") as file:
        for start in range(0, size, PIECE):
            file.write(piece[: size - start])
        file.flush()
        os.fsync(file.fileno())


def read_plain(path: Path) -> None:
    """Read a file to its end."""
    with open(path, "rb", buffering=0) as file:
        memory = bytearray(PIECE)
        while file.readinto(memory):
            pass


def forget(path: Path) -> None:
    """Ask the page cache to forget the files of a folder, or one file."""
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if one.is_file():
            descriptor = os.open(one, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(count: int, repeats: int, place: Path) -> dict[str, list[float]]:
    """Return the seconds of everything that is timed, and the bytes of the market on disk."""
    market = made_learnwares(count)
    more = made_learnwares(APPENDED, seed=5)
    specs = [more[name] for name in more]
    found: dict[str, list[float]] = {}

    def note(name: str, call: Callable[[], object]) -> None:
        found.setdefault(name, []).append(seconds_of(call))

    folder, plain = place / "market", place / "plain"
    for repeat in range(repeats):
        progress(f"repeat {repeat + 1} of {repeats}")
        shutil.rmtree(folder, ignore_errors=True)
        note("save", lambda: market.save(folder))
        size = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
        found.setdefault("bytes", []).append(size)
        plain.unlink(missing_ok=True)
        note("write", lambda size=size: write_plain(plain, size))
        for cache in ("warm", "cold"):
            for path in (plain, folder) if cache == "cold" else ():
                forget(path)
            note(f"read {cache}", lambda: read_plain(plain))
            note(f"load {cache}", lambda: js.Market.load(folder))
    opened = js.MarketFolder(folder)
    for repeat in range(2 * repeats + 1):
        batch = {f"more {repeat} {i}": spec for i, spec in enumerate(specs)}
        began = time.perf_counter()
        opened = opened.append(batch)
        if repeat:  # the first one compiles
            found.setdefault("append", []).append(time.perf_counter() - began)
    return found


def main() -> None:
    """Measure, print a table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learnwares", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--place", type=Path, help="a folder on the disk that is measured")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        found = measure(options.learnwares, options.repeats, Path(place))
    median = {name: float(np.median(values)) for name, values in found.items()}
    ratios = {
        "save": median["write"] / median["save"],
        "load warm": median["read warm"] / median["load warm"],
        "load cold": median["read cold"] / median["load cold"],
        "append": median["append"] / median["save"],
    }
    gigabytes = median.pop("bytes") / 1e9
    print_table(
        f"{options.learnwares} learnwares, {gigabytes:.2f} GB, medians of {options.repeats}",
        ["what", "seconds", "GB/s"],
        [[name, value, gigabytes / value] for name, value in median.items() if name != "append"],
    )
    print_table("Ratios", ["what", "ratio"], [[name, value] for name, value in ratios.items()])
    if options.output is not None:
        record = {"learnwares": options.learnwares, "seconds": found, "ratios": ratios}
        write_record(options.output, record)


if __name__ == "__main__":
    main()
