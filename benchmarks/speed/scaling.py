"""How does the time of a query scale over devices and over processes?

    python -m benchmarks.speed.scaling --output benchmarks/results/scaling.json

The query asks a made market (`benchmarks.markets.made_market`, m = 50, d = 64) for the best ten by
embeddings ("rkme") and by the default score, for 1 and 16 users. Cases:

    devices    a market spread over K = 1, 2, 4, 8 devices: strong (N learnwares in all) and weak
               (N / 8 per device). On processors these are host devices, in one child process per
               K; elsewhere the first K of the devices there are. The market on one device takes
               turns with it.
    processes  the same N learnwares over 1, 2, 4 local processes with `jax.distributed`, on the CPU

The fold is t1 / tK of the fastest repeats, and K t1 / tK for weak scaling: work per second beside
that of one device, which another child measured. "to one device" is the ratio within the same
child, so that another load falls on both. efficiency = fold / ideal, where ideal is min(K, cores)
on processors and K elsewhere. XLA gives one device the threads of all cores: as far as these are
busy already ("cores busy", processor seconds per second of all processes), spreading that costs
nothing has a fold of 1.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import jaxspec as js
from benchmarks.markets import made_market
from benchmarks.records import merge_results, print_table, progress
from benchmarks.speed.children import Record, answer, machine_of_children, run_children
from benchmarks.speed.timing import time_in_turns

__all__ = ["QUERIES", "best_ids", "made_learnwares", "made_users", "milliseconds_of"]

MODULE = "benchmarks.speed.scaling"
POINTS, DIMENSION, BEST = 50, 64, 10
DEVICES, PROCESSES = (1, 2, 4, 8), (1, 2, 4)
QUERIES: dict[str, tuple[str | None, int]] = {
    "rkme, 1 user": ("rkme", 1),
    "default, 1 user": (None, 1),
    "rkme, 16 users": ("rkme", 16),
    "default, 16 users": (None, 16),
}


# What a child does; markets and users are the same in every process.


def made_users() -> list[js.UserSpecification]:
    """Return the sixteen users."""
    return made_market.make_users(made_market.make_world(DIMENSION), 16, size=POINTS)


def made_learnwares(count: int, **options: Any) -> js.Market:
    """Return a market of `count` learnwares."""
    progress(f"making {count} learnwares")
    world = made_market.make_world(DIMENSION)
    return made_market.make_market(world, count, size=POINTS, **options)


def best_ids(where: Any, users: Sequence[Any], query: str, **options: Any) -> list[tuple[str, ...]]:
    """Return the ids of the best ten for every user of a query."""
    method, count = QUERIES[query]
    found = js.match(where, list(users[:count]), k=BEST, method=method, **options)
    return [tuple(one.ids) for one in found]


def on_mesh(job: Record) -> Record:
    """Time a market spread over devices: {learnwares: {query: record}}.

    The devices are those of this process, where the market on one device takes turns with it; or
    one device of each of several processes, of which this is one.
    """
    if "port" in job:
        address = f"127.0.0.1:{job['port']}"
        jax.distributed.initialize(address, num_processes=job["parts"], process_id=job["which"])
    mesh = Mesh(np.array(jax.devices()[: job["parts"]]), ("market",))
    if mesh.size != job["parts"]:
        raise RuntimeError(f"parts: expected {job['parts']} devices, got {mesh.size}")
    users, found = made_users(), {}
    for learnwares in job["learnwares"]:
        plain = made_learnwares(learnwares)
        spread, of_size = plain.shard(mesh), {}
        markets = {"spread": spread, **({} if "port" in job else {"one device": plain})}
        for query in job["queries"]:
            progress(f"{learnwares} learnwares, {query}")
            calls = {
                name: lambda _, one=one, query=query: best_ids(one, users, query)
                for name, one in markets.items()
            }
            # No budget: processes that wait for each other have to make the same calls.
            rows = time_in_turns(calls, job["repeats"], budget=float("inf"))
            same = best_ids(spread, users, query) == best_ids(plain, users, query)
            times = {name: row.record() for name, row in rows.items()}
            of_size[query] = {**times, "same_ids": same}
        found[str(learnwares)] = of_size
    return found


# Cases: from the settings and the machine to what was measured.


def scaled(found: Mapping[int, Any], cores: int, *, weak: bool = False) -> list[Record]:
    """Return a row for every query and K with its fold and efficiency; found[K][query]."""
    rows = []
    for query, first in found[1].items():
        for parts, records in found.items():
            fold = first["spread"]["min_s"] / records[query]["spread"]["min_s"]
            fold, ideal = fold * (parts if weak else 1), min(parts, cores)
            figures = {"fold": fold, "ideal": ideal, "efficiency": fold / ideal}
            if whole := records[query].get("one device"):
                figures["to one device"] = whole["min_s"] / records[query]["spread"]["min_s"]
            rows.append({"query": query, "parts": parts, **figures, **records[query]})
    return rows


def devices(settings: Record, machine: Record) -> Record:
    """Measure strong and weak scaling over the devices of one process."""
    on_processor, count = machine["backend"] == "cpu", settings["learnwares"]
    strong, weak = {}, {}
    for parts in settings["devices"]:
        if not on_processor and parts > machine["devices"]:
            continue
        progress(f"devices: {parts}")
        shared = count // max(DEVICES) * parts
        flags = os.environ.get("XLA_FLAGS", "")
        forced = f"{flags} --xla_force_host_platform_device_count={parts}"
        job = {**settings, "parts": parts, "learnwares": sorted({count, shared})}
        variables = {"XLA_FLAGS": forced} if on_processor else {}
        (found,) = run_children(MODULE, "on_mesh", [job], **variables)
        strong[parts], weak[parts] = found[str(count)], found[str(shared)]
    cores = machine["cores"] if on_processor else max(DEVICES)
    return {"strong": scaled(strong, cores), "weak": scaled(weak, cores, weak=True)}


def processes(settings: Record, machine: Record) -> Record:
    """Measure strong scaling over local processes."""
    count, strong = settings["learnwares"], {}
    for parts in settings["processes"]:
        progress(f"processes: {parts}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = {**settings, "parts": parts, "learnwares": [count], "port": port}
        jobs = [{**job, "which": which} for which in range(parts)]
        found = run_children(MODULE, "on_mesh", jobs, JAX_PLATFORMS="cpu")
        replies = [one[str(count)] for one in found]
        for query, first in replies[0].items():  # all wait for each other: the times of any do
            first["spread"]["cores_busy"] = sum(r[query]["spread"]["cores_busy"] for r in replies)
            first["same_ids"] = all(reply[query]["same_ids"] for reply in replies)
        strong[parts] = replies[0]
    return {"strong": scaled(strong, machine["cores"])}


def milliseconds_of(times: Record | None) -> str | None:
    """Return the minimum and the median of a record of times as text, in milliseconds."""
    return f"{times['min_s'] * 1e3:.1f} / {times['median_s'] * 1e3:.1f}" if times else None


def show(case: str, found: Record, machine: Record) -> None:
    """Print what a case measured."""
    count, repeats = found["settings"]["learnwares"], found["settings"]["repeats"]
    how = f"ms, minimum / median of {repeats}; {machine['cores']} cores"
    sizes = {"strong": f"{count} learnwares", "weak": f"{count // max(DEVICES)} per device"}
    figures = ("fold", "ideal", "efficiency", "to one device")
    for kind, size in sizes.items():
        rows = [
            [
                f"{row['query']}, {row['parts']}",
                milliseconds_of(row["spread"]),
                milliseconds_of(row.get("one device")),
                *(row.get(name) for name in figures),
                row["spread"]["cores_busy"],
                "yes" if row["same_ids"] else "NO",
            ]
            for row in found.get(kind, ())
        ]
        headers = [f"query, {case}", "spread", "one device", *figures, "cores busy", "same ids"]
        if rows:
            print_table(f"{case}, {kind}: {size}, {how}", headers, rows)


def main() -> None:
    """Run the cases that are asked for."""
    cases = {"devices": devices, "processes": processes}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(cases))
    parser.add_argument("--learnwares", type=int, help="N; 20,000, or 1,000 with --quick")
    parser.add_argument("--repeats", type=int, help="5, or 3 with --quick")
    parser.add_argument("--queries", nargs="+", choices=list(QUERIES), default=list(QUERIES))
    parser.add_argument("--quick", action="store_true", help="small, first and last of each list")
    parser.add_argument("--output", type=Path, help="JSON; cases not asked for stay as they were")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        answer(options.child, {"on_mesh": on_mesh})
        return
    count = options.learnwares or (1000 if options.quick else 20_000)
    repeats = options.repeats or (3 if options.quick else 5)
    if count < 64 or repeats < 1:
        parser.error("expected at least 64 learnwares and 1 repeat")
    lists: dict[str, Any] = {"queries": options.queries, "devices": DEVICES, "processes": PROCESSES}
    if options.quick:
        lists = {name: sorted({one[0], one[-1]}, key=one.index) for name, one in lists.items()}
    settings = {"learnwares": count, "repeats": repeats, "points": POINTS, "dimension": DIMENSION}
    settings |= {"k": BEST, **lists}
    machine = machine_of_children(MODULE)
    for case in options.cases:
        found = {"settings": settings, **cases[case](settings, machine)}
        show(case, found, machine)
        if options.output:
            merge_results(options.output, {case: found})


if __name__ == "__main__":
    main()
