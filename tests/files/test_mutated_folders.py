"""Changed markets on disk are refused with a `FileError`, or are read and give finite scores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_files import REPOSITORY
from mutated_folders import save_one

READER = Path(__file__).parent / "mutated_folders.py"
SECONDS_EACH = 1.0  # for a load, a stream and a verification


def read_mutations(tmp_path, first, count):
    """Read markets in a process of its own; return how many were refused and the slowest time."""
    save_one(tmp_path / "saved")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(READER), str(tmp_path / "saved"), str(tmp_path / "work")]
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [*command, str(first), str(count)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60 + count,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, slowest = done.stdout.split()
    return int(refused), float(slowest)


def test_200_mutated_folders(tmp_path):
    refused, slowest = read_mutations(tmp_path, 0, 200)
    assert refused > 120
    assert slowest < 3 * SECONDS_EACH


@pytest.mark.slow
def test_5000_mutated_folders(tmp_path):
    refused, slowest = read_mutations(tmp_path, 1000, 5000)
    print(refused, slowest)
    assert refused > 3000
    assert slowest < 3 * SECONDS_EACH
