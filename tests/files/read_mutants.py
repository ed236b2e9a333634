"""A process that reads mutated files, under limits, and says in JSON what became of them.

Run as `python read_mutants.py FIRST COUNT FOLDER`. Whatever is accepted goes into a market beside
honest learnwares and is matched, or asks such a market. Called by `test_fuzzing.py`.
"""

import json
import os
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import jax
import mutations
import numpy as np

import jaxspec as js
from jaxspec.base import FileError
from jaxspec.specify import ProbeProxy

MEMORY_MIB = 64  # above three times the size of the file
SECONDS = 1.0  # of processor time, for one file
BATCH = 8  # accepted specifications in one market, and users in one question
METHODS = ("rkme", "classwise", "likelihood", "transfer")
CLASSES = {
    "Specification": js.Specification,
    "UserSpecification": js.UserSpecification,
    "Space": js.Space,
}


class Found:
    """What went wrong, and counts of what became of the files."""

    def __init__(self):
        self.counts, self.failures = Counter(), []

    def fail(self, number, what):
        self.failures.append([number, what[:300]])


def made_space():
    rows = np.random.default_rng(3).normal(size=(mutations.LANDMARKS, mutations.FEATURES))
    return js.Space("strangers", js.Gaussian(bandwidth=2.0), dimension=4, probe=rows)


def read_all(first, count, folder, space, found):
    """Read files and return those that were accepted, as {kind: {number: object}}."""
    path = Path(folder) / "x.safetensors"
    accepted = {kind: {} for kind in mutations.KINDS}
    for number in range(first, first + count):
        kind, way, data = mutations.mutant(number, space)
        path.write_bytes(data)
        before = reset_peak()
        started = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, 5.0)
        try:
            accepted[kind][number] = CLASSES[kind].load(path)
            found.counts[f"{way}: accepted"] += 1
        except FileError as error:
            found.counts[f"{way}: refused"] += 1
            text = str(error)
            if not text.startswith(f"{path}: ") or "\n" in text or len(text) > 900:
                found.fail(number, f"message: {text}")
        except BaseException as error:
            found.fail(number, f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        seconds = time.process_time() - started
        if seconds > SECONDS:
            found.fail(number, f"time: {seconds:.2f} s for {len(data)} bytes")
        if before is not None:
            grown = peak() - before
            found.counts["largest growth, KiB"] = max(
                found.counts["largest growth, KiB"], grown >> 10
            )
            if grown > 3 * len(data) + (MEMORY_MIB << 20):
                found.fail(number, f"memory: {grown >> 20} MiB for {len(data)} bytes")
    return accepted


def reset_peak():
    """Let the system forget the peak, and return what is resident; None if it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return peak()
    except OSError:
        return None


def peak():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


def honest_specification(seed, space):
    """Return a sound specification of random numbers, with all parts that its space allows."""
    rng = np.random.default_rng([1, seed])
    arrays = mutations.arrays_of("Specification", space, rng)
    return js.Specification(
        js.ReducedSet(arrays["reduced_set.points"], arrays["reduced_set.weights"]),
        js.Proxy(arrays["proxy.weights"], arrays["proxy.bias"]),
        class_names=tuple(mutations.NAMES),
        space_name=space.name,
        space_digest=space.digest,
        probe_proxy=None if space.probe is None else probe_proxy_of(arrays),
        representation=arrays["representation"],
        num_examples=90,
    )


def probe_proxy_of(arrays):
    return ProbeProxy(*(arrays[f"probe_proxy.{name}"] for name in ("weights", "bias", "fidelity")))


def user_of(space, names):
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(9, mutations.FEATURES)).astype(np.float32)
    labels = np.arange(9) % 3
    return js.specify_user(space, rows, labels, class_names=names)


def check_scores(space, accepted, found):
    """Put accepted specifications into markets, and let accepted users ask one."""
    honest = {f"honest {s}": honest_specification(s, space) for s in range(6)}
    market = js.Market(space, honest)
    users = [user_of(space, mutations.NAMES), user_of(space, ["x", "y", "z"])]
    fillers = {f"filler {s}": honest_specification(s, space) for s in range(BATCH)}
    wanted = scores_of(market.add(fillers), users)
    specs = list(accepted["Specification"].items())
    for start in range(0, len(specs), BATCH):
        check_batch(market, users, dict(specs[start : start + BATCH]), wanted, found)
    asking = [
        (number, one)
        for number, one in accepted["UserSpecification"].items()
        if len(one.class_names) <= 8 and len(one.reduced_set.weights) <= 64  # one shape to compile
    ]
    for start in range(0, len(asking), BATCH):
        check_users(market, dict(asking[start : start + BATCH]), found)


def scores_of(market, users):
    return {
        method: np.stack([one.scores for one in js.match(market, users, method=method)])
        for method in METHODS
    }


def check_batch(market, users, batch, wanted, found):
    strangers = {}
    for number, spec in batch.items():
        try:
            market.add({f"stranger {number}": spec})
        except (TypeError, ValueError) as error:
            found.counts["not admitted"] += 1
            if "stranger" not in str(error):
                found.fail(number, f"admission without the id: {error}")
        except Exception as error:
            found.fail(number, f"admission: {type(error).__name__}: {error}")
        else:
            strangers[f"stranger {number}"] = spec
    found.counts["admitted"] += len(strangers)
    fillers = {f"filler {s}": honest_specification(s, market.space) for s in range(BATCH)}
    fillers = dict(list(fillers.items())[len(strangers) :])
    grown = market.add({**strangers, **fillers})
    names = list(batch)
    try:
        scores = scores_of(grown, users)
    except Exception as error:
        found.fail(names[0], f"match: {type(error).__name__}: {error}")
        return
    for method in METHODS:
        if not np.isfinite(scores[method]).all():
            bad = [grown.ids[i] for i in np.argwhere(~np.isfinite(scores[method]))[:, 1]]
            found.fail(int(bad[0].split()[-1]), f"{method}: not finite for {sorted(set(bad))}")
    honest = slice(0, len(market))
    same = grown.shared.layout == market.shared.layout
    for method in ("rkme", "classwise"):
        one, two = scores[method][:, honest], wanted[method][:, honest]
        if (one != two).any() if same else not np.allclose(one, two, atol=1e-5):
            found.fail(names[0], f"{method}: honest scores differ by {np.abs(one - two).max()}")


def check_users(market, batch, found):
    users = list(batch.values())
    for method in METHODS:
        able = [one for one in users if one.labels is not None or method in ("rkme", "classwise")]
        if not able:
            continue
        try:
            answers = [match_or_none(market, one, method, found) for one in able]
        except Exception as error:
            found.fail(next(iter(batch)), f"user: {type(error).__name__}: {error}")
            continue
        for (number, _), answer in zip(batch.items(), answers, strict=False):
            if answer is not None and not np.isfinite(answer.scores).all():
                found.fail(number, f"user: {method} is not finite")


def match_or_none(market, user, method, found):
    try:
        found.counts["questions"] += 1
        return js.match(market, user, method=method)
    except (TypeError, ValueError) as error:
        found.counts["questions refused"] += 1
        assert str(error).startswith("user"), error
        return None


def check_spaces(accepted, found):
    """An accepted space has a market whose scores are finite."""
    for number, space in accepted["Space"].items():
        if space.dimension != mutations.FEATURES:
            continue
        if space.probe is not None and len(space.probe) != mutations.LANDMARKS:
            continue  # its shapes would be compiled anew
        try:
            specs = {f"m{s}": honest_specification(s, space) for s in range(2)}
            user = honest_user(space)
            market = js.Market(space, specs)
            for method in METHODS:
                answer = js.match(market, user, method=method)
                if not np.isfinite(answer.scores).all():
                    found.fail(number, f"space: {method} is not finite: {answer.scores}")
        except Exception as error:
            found.fail(number, f"space: {type(error).__name__}: {error}")
        found.counts["spaces in use"] += 1


def honest_user(space):
    arrays = mutations.arrays_of("UserSpecification", space, np.random.default_rng(4))
    return js.UserSpecification(
        js.ReducedSet(arrays["reduced_set.points"], arrays["reduced_set.weights"]),
        js.Proxy(arrays["proxy.weights"], arrays["proxy.bias"]),
        arrays["labels"],
        class_names=tuple(mutations.NAMES),
        space_name=space.name,
        space_digest=space.digest,
    )


def out_of_time(*_):
    raise TimeoutError("5 s of processor time")


def main(first, count, folder):
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGVTALRM, out_of_time)
    space, found = made_space(), Found()
    for kind in mutations.KINDS:  # libraries are loaded before memory is measured
        path = os.path.join(folder, "honest.safetensors")
        honest = mutations.packed(
            mutations.document_of(kind, space),
            mutations.arrays_of(kind, space, np.random.default_rng(0)),
        )
        Path(path).write_bytes(honest)
        CLASSES[kind].load(path)
    started = time.perf_counter()
    accepted = read_all(first, count, folder, space, found)
    found.counts["seconds of reading"] = round(time.perf_counter() - started, 1)
    check_scores(space, accepted, found)
    found.counts["seconds until scored"] = round(time.perf_counter() - started, 1)
    check_spaces(accepted, found)
    found.counts["seconds"] = round(time.perf_counter() - started, 1)
    found.counts["seconds of processor"] = round(time.process_time(), 1)
    print(json.dumps({"counts": found.counts, "failures": found.failures}))


if __name__ == "__main__":
    limit = 12 << 30  # of address space: XLA reserves much that it never uses
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    jax.config.update("jax_platforms", "cpu")
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
