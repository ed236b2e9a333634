"""How a query's time scales over devices, over processes, and over blocks of a market on disk.

    python -m benchmarks.speed.scaling --output benchmarks/results/scaling.json

Cases; learnwares are made (`benchmarks.markets.made_market`, m = 50, d = 64), the query is `js.top_k` for
the best ten by embeddings ("rkme") and by the default score, for 1 and 16 users:

    devices    a market spread over K = 1, 2, 4, 8 devices: strong (N learnwares in all) and weak
               (N / 8 a device). On a CPU these are host devices, one child process a K; otherwise
               the first K of the devices that there are. In turn with it, the market unsharded.
    processes  the same N learnwares over 1, 2, 4 local processes with `jax.distributed`, on the CPU
    stream     `js.stream_top_k` from a folder, in float32 and int8, at the default block size (0)
               and at a quarter of the market, on the default device, beside reading the same
               arrays in the same blocks alone and `js.top_k` on the loaded market; "open" is
               reading what is no row: ids and facts. With files in the page cache ("warm"), where
               reading is processor work, and without ("cold": the page cache is asked before
               every call to forget the market's files), where it waits for the disk.
               overlap = (open + read + score - stream) / min(read, score): 1 if the shorter is
               hidden, negative if the stream takes longer than all after each other. And the peak
               memory of a process that does nothing but stream.

Folds and overlaps are of the fastest repeats. fold = t1 / tK, for weak scaling K t1 / tK: work a
second beside one device's, which another child measured; "to unsharded" is unsharded / spread of
the same child, so that another load falls on both. efficiency = fold / ideal, where ideal = min(K,
cores) on a CPU, else K. On a CPU the baseline is multi-threaded: XLA gives one device the threads
of all cores. As far as these are at work already ("cores busy": processor seconds a second, of all
processes; another load lowers it), spreading that costs nothing has a fold of 1. Local processes
share the cores, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import jaxspec as js
from benchmarks.markets import made_market
from benchmarks.speed import machine
from benchmarks.speed.yardstick import Timed, print_table, progress, take_turns, write_json
from jaxspec.files.reader import Blocks, Folder
from jaxspec.market.market import ROW_FIELDS
from jaxspec.stream.blocks import CLASSES, EMBEDDING
from jaxspec.stream.stream import BLOCK_BYTES

POINTS, DIMENSION, K = 50, 64, 10
DEVICES, PROCESSES = (1, 2, 4, 8), (1, 2, 4)
BLOCK_PARTS = 4  # of a market on disk: a block is one of so many, beside the default (0)
STORAGES, CACHES = ("float32", "int8"), ("warm", "cold")
QUERIES: dict[str, tuple[str | None, int]] = {
    "rkme, 1 user": ("rkme", 1),
    "default, 1 user": (None, 1),
    "rkme, 16 users": ("rkme", 16),
    "default, 16 users": (None, 16),
}
TIMES = ("open", "read", "score", "stream")
LIMIT_S = 1800.0  # for a child
Record = dict[str, Any]


# What a child does, by name in a job; markets and users are the same in every process


def make_users() -> list[js.UserSpecification]:
    return made_market.make_users(made_market.make_world(DIMENSION), 16, size=POINTS)


def make_market(learnwares: int, **options: Any) -> js.Market:
    progress(f"making {learnwares} learnwares")
    world = made_market.make_world(DIMENSION)
    return made_market.make_market(world, learnwares, size=POINTS, **options)


def best_ids(market: js.Market, users: Sequence[Any], query: str) -> list[tuple[str, ...]]:
    """Return the ids of the best ten for every user of a query."""
    method, count = QUERIES[query]
    return [one.ids for one in js.top_k(market, users[:count], K, method=method)]


def times_of(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int,
    before: Callable[[], Any] = lambda: None,
) -> dict[str, Record]:
    """Return what `take_turns` records of calls that wait for their results, and cores busy.

    `before` comes before every call and is not timed.
    """

    def with_processor(call: Callable[[], Any], _: int) -> Timed:
        before()
        processor, began = time.process_time(), time.perf_counter()
        call()
        return Timed(time.process_time() - processor, time.perf_counter() - began)

    timed = {name: partial(with_processor, call) for name, call in calls.items()}
    # No budget: processes that wait for each other have to make the same calls.
    rows = take_turns(timed, repeats, budget=float("inf")).items()
    busy = {name: sum(row.results) / sum(row.seconds) for name, row in rows}
    return {name: {**row.record(), "cores_busy": busy[name]} for name, row in rows}


def on_mesh(job: Record) -> Record:
    """Time a market spread over devices: {learnwares: {query: record}}.

    They are of this process, and it takes turns with the market unsharded; or one of each of
    several processes, of which this is one.
    """
    if "port" in job:
        address = f"127.0.0.1:{job['port']}"
        jax.distributed.initialize(address, num_processes=job["parts"], process_id=job["which"])
    mesh = Mesh(np.array(jax.devices()[: job["parts"]]), ("market",))
    if mesh.size != job["parts"]:
        raise RuntimeError(f"expected {job['parts']} devices, got {mesh.size}")
    users, found = make_users(), {}
    for learnwares in job["learnwares"]:
        plain = make_market(learnwares)
        spread, of_size = plain.shard(mesh), {}
        markets = {"spread": spread, **({} if "port" in job else {"unsharded": plain})}
        for query in job["queries"]:
            progress(f"{learnwares} learnwares, {query}")
            calls = {name: partial(best_ids, one, users, query) for name, one in markets.items()}
            times = times_of(calls, job["repeats"])
            same = best_ids(spread, users, query) == best_ids(plain, users, query)
            of_size[query] = {**times, "same_ids": same}
        found[str(learnwares)] = of_size
    return found


def read_alone(folder: Folder, names: Sequence[str], size: int) -> None:
    """Read arrays as the stream does, block by block and one ahead, and do nothing with them."""
    blocks = Blocks(folder, names, size)
    blocks.start(0)
    for first in range(0, len(folder.market), size):
        blocks.wait()
        blocks.start(first + size)


def forget(path: Path) -> None:
    """Ask the page cache to forget a folder's files; where it cannot be asked, they stay there."""
    for one in path.rglob("*"):
        if one.is_file() and hasattr(os, "posix_fadvise"):
            with open(one, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def on_disk(job: Record) -> Record:
    """Save a market and time the stream beside its parts: {query, cache, block: record}."""
    path, everybody, found = Path(job["path"]), make_users(), {}
    make_market(job["learnwares"], storage=job["storage"]).save(path)
    market, folder = js.Market.load(path), Folder(path, False)
    for query in job["queries"]:
        method, count = QUERIES[query]
        # What the stream reads of a market without probe proxies, in one pass.
        names = EMBEDDING if method == "rkme" else (*EMBEDDING, *CLASSES)
        default = BLOCK_BYTES // folder.row_bytes(names)
        ask = partial(js.stream_top_k, path, everybody[:count], K, method=method)
        wanted = best_ids(market, everybody, query)
        calls: dict[str, Callable[[], Any]] = {
            "open": partial(Folder, path, False),
            "score": partial(best_ids, market, everybody, query),
        }
        for size in job["blocks"]:
            calls[f"read {size}"] = partial(read_alone, folder, names, size or default)
            calls[f"stream {size}"] = partial(ask, block_size=size or None)
        for cache in CACHES:
            progress(f"{query}, {cache}")
            before = partial(forget, path) if cache == "cold" else lambda: None
            times = times_of(calls, job["repeats"], before)
            for size in job["blocks"]:
                parts = {name: times.get(name) or times[f"{name} {size}"] for name in TIMES}
                begin, read, score, stream = (parts[name]["min_s"] for name in TIMES)
                overlap = (begin + read + score - stream) / min(read, score)
                same = [one.ids for one in ask(block_size=size or None)] == wanted
                record = {**parts, "overlap": overlap, "same_ids": same}
                found[f"{query}, {cache}, {size}"] = record
    return found


def stream_peak(job: Record) -> Record:
    """Stream once; return the process's peak memory before and after, and the rows', in bytes."""
    user = make_users()[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    js.stream_top_k(job["path"], user, K, block_size=job["block"] or None)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    folder = Folder(Path(job["path"]), False)
    rows = folder.row_bytes(ROW_FIELDS) * len(folder.market)
    return {"before": before, "peak": after, "above": after - before, "rows": rows}


TASKS: dict[str, Callable[[Record], Record]] = {
    **{one.__name__: one for one in (on_mesh, on_disk, stream_peak)},
    "describe": lambda _: machine.describe(),
}

# How children are started. The parent starts no backend of jax, which could take an accelerator's
# memory, and makes no market: on Linux a child's peak memory begins with that of its parent.


def run_children(task: str, jobs: Sequence[Record], **environment: str) -> list[Record]:
    """Run one child a job, all at once, and return what they found; what the first says is shown.

    Raises:
        RuntimeError: a child failed or took too long, with the end of what it said.
    """
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / f"{which}.txt" for which in range(len(jobs))]
        replies = [path.with_suffix(".json") for path in said]
        call = [sys.executable, "-m", "benchmarks.speed.scaling", "--child"]
        where, variables = Path(__file__).parents[2], {**os.environ, **environment}
        try:
            for job, path, reply in zip(jobs, said, replies, strict=True):
                whole = [*call, json.dumps({**job, "task": task, "reply": str(reply)})]
                with open(path, "wb") as out:
                    child = subprocess.Popen(
                        whole, cwd=where, env=variables, stdout=out, stderr=out
                    )
                children.append(child)
            until, running = time.monotonic() + LIMIT_S, True
            with open(said[0], errors="replace") as shown:
                while running:
                    time.sleep(0.1)
                    ends = [child.poll() for child in children]
                    running, late = None in ends, time.monotonic() > until
                    print(shown.read(), end="", file=sys.stderr, flush=True)
                    if any(ends) or (running and late):  # the others may wait for one that failed
                        failed = [i for i, end in enumerate(ends) if end or (late and end is None)]
                        why = [f"child {i}: {said[i].read_text()[-4000:]}" for i in failed]
                        ended = f"{task} ended with {ends}" + f", over {LIMIT_S:.0f} s" * late
                        raise RuntimeError("\n".join([ended, *why]))
        finally:
            for child in children:
                child.kill()
                child.wait()
        return [json.loads(path.read_text()) for path in replies]


# Cases: from the settings and what `describe` says to what was measured


def scaled(found: Mapping[int, Any], cores: int, *, weak: bool = False) -> list[Record]:
    """Return a row for every query and K with its fold and efficiency; found[K][query]."""
    rows = []
    for query, first in found[1].items():
        for parts, records in found.items():
            fold = first["spread"]["min_s"] / records[query]["spread"]["min_s"]
            fold, ideal = fold * (parts if weak else 1), min(parts, cores)
            figures = {"fold": fold, "ideal": ideal, "efficiency": fold / ideal}
            if whole := records[query].get("unsharded"):
                figures["to unsharded"] = whole["min_s"] / records[query]["spread"]["min_s"]
            rows.append({"query": query, "parts": parts, **figures, **records[query]})
    return rows


def devices(settings: Record, about: Record) -> Record:
    """Strong and weak scaling over the devices of one process."""
    cpu, count, strong, weak = about["backend"] == "cpu", settings["learnwares"], {}, {}
    for parts in settings["devices"]:
        if not cpu and parts > about["devices"]:
            continue
        progress(f"devices: {parts}")
        shared = count // max(DEVICES) * parts
        forced = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={parts}"
        job = {**settings, "parts": parts, "learnwares": sorted({count, shared})}
        (found,) = run_children("on_mesh", [job], **({"XLA_FLAGS": forced} if cpu else {}))
        strong[parts], weak[parts] = found[str(count)], found[str(shared)]
    cores = about["cores"] if cpu else max(DEVICES)
    return {"strong": scaled(strong, cores), "weak": scaled(weak, cores, weak=True)}


def processes(settings: Record, about: Record) -> Record:
    """Strong scaling over local processes."""
    count, strong = settings["learnwares"], {}
    for parts in settings["processes"]:
        progress(f"processes: {parts}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            job = {**settings, "parts": parts, "learnwares": [count], "port": free.getsockname()[1]}
        jobs = [{**job, "which": which} for which in range(parts)]
        replies = [one[str(count)] for one in run_children("on_mesh", jobs, JAX_PLATFORMS="cpu")]
        for query, first in replies[0].items():  # all wait for each other: the times are of any
            first["spread"]["cores_busy"] = sum(r[query]["spread"]["cores_busy"] for r in replies)
            first["same_ids"] = all(reply[query]["same_ids"] for reply in replies)
        strong[parts] = replies[0]
    return {"strong": scaled(strong, about["cores"])}


def stream(settings: Record, _: Record) -> Record:
    """A market on disk, block by block."""
    times, memory = {}, {}
    for storage in settings["storages"]:
        with tempfile.TemporaryDirectory() as folder:
            job = {**settings, "storage": storage, "path": str(Path(folder) / "market")}
            progress(f"stream: times, {storage}")
            (found,) = run_children("on_disk", [job])
            times.update({f"{storage}, {name}": one for name, one in found.items()})
            for size in settings["blocks"]:
                progress(f"stream: peak memory, {storage}, blocks of {size}")
                (one,) = run_children("stream_peak", [{**job, "block": size}])
                memory[f"{storage}, {size}"] = one
    return {"times": times, "memory": memory}


def show(case: str, found: Record, about: Record) -> None:
    """Print what a case measured."""
    count, repeats = found["settings"]["learnwares"], found["settings"]["repeats"]
    how = f"ms, minimum / median of {repeats}; {about['cores']} cores"

    def ms(times: Record | None) -> str | None:
        return f"{times['min_s'] * 1e3:.1f} / {times['median_s'] * 1e3:.1f}" if times else None

    share = f"{count // max(DEVICES)} learnwares a device"
    for kind, size in (("strong", f"{count} learnwares"), ("weak", share)):
        if kind in found:
            figures = ("fold", "ideal", "efficiency", "to unsharded")
            rows = [
                [f"{row['query']}, {row['parts']}", ms(row["spread"]), ms(row.get("unsharded"))]
                + [*(row.get(name) for name in figures), row["spread"]["cores_busy"]]
                + ["yes" if row["same_ids"] else "NO"]
                for row in found[kind]
            ]
            headers = [f"query, {case}", "spread", "unsharded", *figures, "cores busy", "same ids"]
            print_table(f"{case}, {kind}: {size}, {how}", headers, rows)
    if case == "stream":
        rows = [
            [name, *(ms(one[part]) for part in TIMES), one["overlap"]]
            + [one["stream"]["cores_busy"], "yes" if one["same_ids"] else "NO"]
            for name, one in found["times"].items()
        ]
        headers = ["query, cache, block", *TIMES, "overlap", "cores busy", "same ids"]
        print_table(f"stream: {count} learnwares, {how}", headers, rows)
        memory = found["memory"].items()
        rows = [[size, *(f"{held / 2**20:.0f}" for held in one.values())] for size, one in memory]
        headers = ["storage, block", "before the stream", "peak", "above", "the market's rows"]
        print_table("stream: peak resident MiB; default score, 1 user", headers, rows)


def main() -> None:
    cases = {one.__name__: one for one in (devices, processes, stream)}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(cases))
    parser.add_argument("--learnwares", type=int, help="N; 20,000, or 1,000 with --quick")
    parser.add_argument("--repeats", type=int, help="5, or 3 with --quick")
    parser.add_argument("--queries", nargs="+", choices=list(QUERIES), help="all, or less if quick")
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=list(STORAGES))
    parser.add_argument("--quick", action="store_true", help="small, first and last of each list")
    parser.add_argument("--output", type=Path, help="JSON; cases not asked for stay as they were")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if job := options.child:
        Path(job["reply"]).write_text(json.dumps(TASKS[job["task"]](job)))
        return
    quick, count, repeats = options.quick, options.learnwares, options.repeats
    count = (1000 if quick else 20_000) if count is None else count
    repeats = (3 if quick else 5) if repeats is None else repeats
    if count < 64 or repeats < 1:
        parser.error("expected at least 64 learnwares and 1 repeat")
    lists = {"queries": list(QUERIES), "devices": DEVICES, "processes": PROCESSES}
    if quick:
        lists = {name: [one[0], one[-1]] for name, one in lists.items()}
    lists |= {"blocks": [0, count // BLOCK_PARTS], "storages": options.storages}
    lists["queries"] = options.queries or lists["queries"]
    settings = {"learnwares": count, "repeats": repeats, "points": POINTS, "dimension": DIMENSION}
    settings |= {"k": K, **lists}
    (about,) = run_children("describe", [{}])
    results = {}
    for case in options.cases:
        results[case] = {"settings": settings, **cases[case](settings, about)}
        show(case, results[case], about)
    if options.output:
        kept = json.loads(options.output.read_text()) if options.output.exists() else {}
        write_json(options.output, {"results": {**kept.get("results", {}), **results}})


if __name__ == "__main__":
    main()
