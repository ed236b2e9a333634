"""How fast is a market on disk searched, block by block, and does reading overlap with scoring?

    python -m benchmarks.speed.streaming --output benchmarks/results/streaming.json

A made market (m = 50, d = 64) lies in a folder, in float32 and in int8. For every query the script
times the stream at the default block size (0) and at a quarter of the market; the reading of the
same arrays in the same blocks; the query to the loaded market ("score"); and "open", the reading of
ids and other facts. With the files in the page cache ("warm"), reading is work of the processor;
without ("cold": before every call the cache is asked to forget them), it waits for the disk.

    overlap = (open + read + score - stream) / min(read, score)

is 1 if the shorter of the two is hidden, and negative where the stream takes longer than all parts
after each other. A process that only streams tells the peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jaxspec as js
from benchmarks.records import merge_results, print_table, progress
from benchmarks.speed.children import Record, answer, machine_of_children, run_children
from benchmarks.speed.scaling import (
    BEST,
    DIMENSION,
    POINTS,
    QUERIES,
    best_ids,
    made_learnwares,
    made_users,
    milliseconds_of,
)
from benchmarks.speed.timing import time_in_turns
from jaxspec.market import ROW_ARRAYS
from jaxspec.matching import prepare_query
from jaxspec.stream.blocks import StreamedGroup, passes_of
from jaxspec.stream.stream import block_size

MODULE = "benchmarks.speed.streaming"
PARTS = 4  # a block is one of so many parts of the market, beside the default
PRECISIONS, CACHES = ("float32", "int8"), ("warm", "cold")
TIMES = ("open", "read", "score", "stream")


def arrays_read(folder: js.MarketFolder, users: list[Any], query: str) -> tuple[str, ...]:
    """Return which arrays the stream reads for a query, all in its only pass."""
    method, count = QUERIES[query]
    groups = prepare_query(folder, users[:count], k=BEST, method=method).groups()
    represented = folder.has_array("hidden_maps")
    (names,) = passes_of([StreamedGroup(one, folder.probed, represented) for one in groups])
    return names


def read_alone(folder: js.MarketFolder, names: tuple[str, ...], size: int) -> None:
    """Read arrays as the stream does, block by block and one ahead, and do nothing with them."""
    blocks = folder.blocks(names, size)
    blocks.start(0)
    for first in range(0, len(folder), size):
        blocks.wait()
        blocks.start(first + size)


def forget(path: Path) -> None:
    """Ask the page cache to forget the files of a folder, where the system can be asked."""
    for one in path.rglob("*"):
        if one.is_file() and hasattr(os, "posix_fadvise"):
            with open(one, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def stream_times(job: Record) -> Record:
    """Save a market and time the stream beside its parts: {query, cache, block: record}."""
    path, users, found = Path(job["path"]), made_users(), {}
    made_learnwares(job["learnwares"], precision=job["precision"]).save(path)
    market, folder = js.Market.load(path), js.MarketFolder(path)

    def ask(query: str, size: int) -> list[tuple[str, ...]]:
        return best_ids(js.MarketFolder(path, block_size=size or None), users, query)

    for query in job["queries"]:
        names = arrays_read(folder, users, query)
        default = block_size(folder, [names])
        wanted = best_ids(market, users, query)
        calls: dict[str, Callable[[int], Any]] = {
            "open": lambda _: js.MarketFolder(path),
            "score": lambda _, query=query: best_ids(market, users, query),
        }
        for size in job["blocks"]:
            read = partial(read_alone, folder, names, size or default)
            calls[f"read {size}"] = lambda _, read=read: read()
            calls[f"stream {size}"] = lambda _, query=query, size=size: ask(query, size)
        for cache in CACHES:
            progress(f"{query}, {cache}")
            before = partial(forget, path) if cache == "cold" else lambda: None
            rows = time_in_turns(calls, job["repeats"], budget=float("inf"), before=before)
            times = {name: row.record() for name, row in rows.items()}
            for size in job["blocks"]:
                parts = {name: times.get(name) or times[f"{name} {size}"] for name in TIMES}
                begin, read_s, score, stream = (parts[name]["min_s"] for name in TIMES)
                overlap = (begin + read_s + score - stream) / min(read_s, score)
                same = ask(query, size) == wanted
                found[f"{query}, {cache}, {size}"] = {**parts, "overlap": overlap, "same_ids": same}
    return found


def stream_peak(job: Record) -> Record:
    """Stream once; return the peak memory of the process before and after, in bytes."""
    user = made_users()[0]
    folder = js.MarketFolder(job["path"], block_size=job["block"] or None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    js.match(folder, user, k=BEST)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = folder.row_bytes(ROW_ARRAYS) * len(folder)
    return {"before": before, "peak": after, "above": after - before, "rows": rows}


def measure(settings: Record, precision: str) -> Record:
    """Measure a market of one precision on disk."""
    with tempfile.TemporaryDirectory() as folder:
        job = {**settings, "precision": precision, "path": str(Path(folder) / "market")}
        progress(f"times, {precision}")
        (times,) = run_children(MODULE, "stream_times", [job])
        memory = {}
        for size in settings["blocks"]:
            progress(f"peak memory, {precision}, blocks of {size}")
            (memory[str(size)],) = run_children(MODULE, "stream_peak", [{**job, "block": size}])
    return {"settings": settings, "times": times, "memory": memory}


def show(precision: str, found: Record, machine: Record) -> None:
    """Print what was measured for one precision."""
    count, repeats = found["settings"]["learnwares"], found["settings"]["repeats"]
    rows = [
        [
            name,
            *(milliseconds_of(one[part]) for part in TIMES),
            one["overlap"],
            one["stream"]["cores_busy"],
            "yes" if one["same_ids"] else "NO",
        ]
        for name, one in found["times"].items()
    ]
    headers = ["query, cache, block", *TIMES, "overlap", "cores busy", "same ids"]
    how = f"ms, minimum / median of {repeats}; {machine['cores']} cores"
    print_table(f"{precision}: {count} learnwares, {how}", headers, rows)
    memory = found["memory"].items()
    rows = [[size, *(f"{held / 2**20:.0f}" for held in one.values())] for size, one in memory]
    headers = ["block", "before the stream", "peak", "above", "rows of the market"]
    print_table(f"{precision}: peak resident MiB; default score, 1 user", headers, rows)


def main() -> None:
    """Measure the precisions that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--learnwares", type=int, help="20,000, or 1,000 with --quick")
    parser.add_argument("--repeats", type=int, help="5, or 3 with --quick")
    parser.add_argument("--queries", nargs="+", choices=list(QUERIES), default=list(QUERIES))
    parser.add_argument("--quick", action="store_true", help="small, first and last query")
    parser.add_argument("--output", type=Path, help="JSON; precisions not asked for stay")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        answer(options.child, {"stream_times": stream_times, "stream_peak": stream_peak})
        return
    count = options.learnwares or (1000 if options.quick else 20_000)
    queries = options.queries[:: max(1, len(options.queries) - 1)]
    settings = {
        "learnwares": count,
        "repeats": options.repeats or (3 if options.quick else 5),
        "queries": queries if options.quick else options.queries,
        "blocks": [0, count // PARTS],
        "points": POINTS,
        "dimension": DIMENSION,
        "k": BEST,
    }
    machine = machine_of_children(MODULE)
    for precision in options.precisions:
        found = measure(settings, precision)
        show(precision, found, machine)
        if options.output:
            merge_results(options.output, {precision: found})


if __name__ == "__main__":
    main()
