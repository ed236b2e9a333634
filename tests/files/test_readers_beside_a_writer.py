"""Readers beside a writer that commits all the time: no error, and never a torn version."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_writer import small_space, small_specification
from made_files import REPOSITORY

import jaxspec as js

READER = Path(__file__).parent / "reading_process.py"


def named(number, serial):
    return {f"m{serial}-{number}": small_specification(number)}


def write_for(path, seconds):
    """Commit all kinds of changes for some seconds, and return how many there were."""
    folder, until, commits = js.MarketFolder(path), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        before = folder
        if commits % 20 == 19:
            folder = folder.compact()
        elif commits % 50 == 30:
            js.Market(small_space(), named(3, commits) | named(4, commits)).save(path)
            folder = js.MarketFolder(path)
        elif commits % 5 == 4 and len(folder) > 3:
            folder = folder.remove(folder.ids[:2])
        else:
            folder = folder.append(named(100 + commits, commits))
        before.close()
        commits += 1
    return commits


def run_readers(path, kinds, seconds):
    js.MarketFolder.create(path, small_space(), named(1, 0) | named(2, 0)).close()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    readers = [
        subprocess.Popen(
            [sys.executable, str(READER), str(path), str(seconds), kind],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for kind in kinds
    ]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n", reader.stderr.read()
    commits, counts = write_for(path, seconds), []
    for reader in readers:
        out, errors = reader.communicate(timeout=120)
        assert reader.returncode == 0, errors
        counts.append([int(number) for number in out.split()])
    return commits, counts


def assert_nothing_is_left(path):
    folder = js.MarketFolder(path)
    folder.close()
    folder = folder.compact()
    assert len(list((path / "segments").iterdir())) == 1
    assert len(list((path / "versions").iterdir())) == 1


def test_three_readers_beside_a_writer(tmp_path):
    commits, counts = run_readers(tmp_path / "m", ["match", "verify", "load"], 3)
    assert commits > 3
    assert all(count > 0 for count, _ in counts)
    assert_nothing_is_left(tmp_path / "m")


@pytest.mark.slow
def test_eight_readers_beside_a_writer_for_a_minute(tmp_path):
    kinds = ["match", "verify", "load", "rows", "match", "verify", "load", "rows"]
    commits, counts = run_readers(tmp_path / "m", kinds, 60)
    print(commits, counts)
    assert commits > 60
    assert all(count > 10 for count, _ in counts)
    assert_nothing_is_left(tmp_path / "m")
