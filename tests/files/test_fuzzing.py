"""Thousands of mutated files: nothing but `FileError`, bounded time and memory, no NaN score.

The files come from `mutations.py`; `read_mutants.py` reads them in processes of its own. A failure
names numbers: `python tests/files/read_mutants.py NUMBER 1 FOLDER` repeats one.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mutations
import numpy as np
import pytest

import jaxspec as js

HERE = Path(__file__).parent


def read_mutants(first, count, folder, seconds):
    """Let a process read files `first` to `first + count`, and return (counts, failures)."""
    command = [sys.executable, HERE / "read_mutants.py", str(first), str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"files {first}..{first + count}: {done.stderr[-2000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    return Counter(result["counts"]), result["failures"]


def check(counts, failures, total):
    assert not failures, failures[:20]
    read = {name: n for name, n in counts.items() if name.endswith((": accepted", ": refused"))}
    assert sum(read.values()) == total
    ways = {name.partition(":")[0] for name in read}
    assert ways == {"damaged", *(way.__name__ for way in mutations.WAYS)}  # all of them occurred
    assert counts["admitted"] > 0
    assert counts["questions"] > 0


def test_three_hundred_mutated_files_do_no_harm(tmp_path):
    check(*read_mutants(0, 300, tmp_path, 120), 300)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_files_do_no_harm(tmp_path):
    counts, failures, size = Counter(), [], 5_000
    for first in range(1_000, 101_000, size):
        more, failed = read_mutants(first, size, tmp_path, 1_800)
        counts, failures = counts + more, failures + failed
    check(counts, failures, 100_000)


def test_the_same_number_gives_the_same_file():
    rows = np.random.default_rng(3).normal(size=(12, 4))
    space = js.Space("strangers", js.Gaussian(bandwidth=2.0), dimension=4, probe=rows)
    for number in range(40):
        assert mutations.mutant(number, space) == mutations.mutant(number, space)
