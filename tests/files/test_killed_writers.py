"""Whatever happens to a writer, what it acknowledged last is there, complete and verified."""

import builtins
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from killed_writer import CHANGES, change, small_space, small_specification
from made_files import REPOSITORY

import jaxspec as js
from jaxspec.base import FileError

CHILD = Path(__file__).parent / "killed_writer.py"


def created(path, count=5):
    specs = {f"m{i}": small_specification(i) for i in range(count)}
    return js.MarketFolder.create(path, small_space(), specs)


@contextlib.contextmanager
def starter():
    """Yield a process that starts writers, as `killed_writer` describes."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, str(CHILD)], env=environment, **pipes)
    try:
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=60)


def assert_as_acknowledged(path, last):
    """Check that the last acknowledged version, or the one after it, is in force and complete."""
    with js.MarketFolder(path, verify=True) as folder:
        folder.verify()
        version, ids = last.split(" ")
        history = [one.name for one in folder.history()]
        assert history.index(folder.version) - history.index(version) in (0, 1)
        with js.MarketFolder(path, version=version) as acknowledged:
            assert acknowledged.ids == tuple(ids.split(","))


def assert_no_litter(path):
    """Check that a folder holds exactly what its versions need."""
    folder = js.MarketFolder(path)
    history = {one.name for one in folder.history()}
    assert {one.stem for one in (path / "versions").iterdir()} == history
    needed = set()
    for name in history:
        with js.MarketFolder(path, version=name) as version:
            needed |= {one.name for one in version._view.opened.manifest.segments}
    assert {one.name for one in (path / "segments").iterdir()} == needed
    assert not [one for one in path.rglob("*") if one.name.endswith(".tmp")]
    assert len(list((path / "spaces").iterdir())) == 1


def killed_after(writers, path, seed, seconds):
    """Start a writer, kill it some seconds after its first change, and return what it printed."""
    writers.stdin.write(f"{path} {seed} {1000 * seed}\n")
    writers.stdin.flush()
    child = int(writers.stdout.readline())
    lines = []
    while (line := writers.stdout.readline()) != "ended\n":
        assert line, "the process that starts writers has ended"
        if not lines:
            timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
            timer.start()
        lines.append(line)
    timer.join()
    return lines


def kill_again_and_again(path, kills, seed, longest):
    """Kill writers at random instants, and check what each of them leaves."""
    rng = random.Random(seed)
    created(path).close()
    commits = 0
    with starter() as writers:
        for kill in range(kills):
            lines = killed_after(writers, path, seed + kill, rng.uniform(0, longest))
            commits += len(lines)
            assert_as_acknowledged(path, lines[-1].strip())
    folder = js.MarketFolder(path)
    folder = folder.append({"the last": small_specification(7)})
    assert "the last" in folder
    assert_no_litter(path)
    return commits


def test_killed_writers_leave_what_they_acknowledged_and_no_litter(tmp_path):
    assert kill_again_and_again(tmp_path / "m", 25, seed=1, longest=0.2) > 25


@pytest.mark.slow
def test_500_killed_writers(tmp_path):
    assert kill_again_and_again(tmp_path / "m", 500, seed=2, longest=0.5) > 500


class Fault(OSError):
    pass


FAULTY = [(os, "replace"), (os, "fsync"), (builtins, "open"), (os, "mkdir")]
EVERY_DAY = {"append": (1, 2, 3, 9), "compact": (2,)}


def faulty(function, counter, at):
    def called(*arguments, **options):
        counter[0] += 1
        if counter[0] == at:
            raise Fault(28, "no space left on device")
        return function(*arguments, **options)

    return called


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        *EVERY_DAY.items(),
        *(pytest.param(kind, range(1, 60), marks=pytest.mark.slow) for kind in CHANGES),
    ],
)
def test_a_fault_anywhere_leaves_what_was_acknowledged(tmp_path, monkeypatch, kind, times):
    """The n-th call of a function that writes fails, until there are not so many."""
    base = tmp_path / "base"
    folder = created(base)
    folder = folder.append({"n": small_specification(50)}).remove(["m1"])
    folder.close()
    shutil.copytree(base, tmp_path / "changed")
    wanted = change(js.MarketFolder(tmp_path / "changed"), kind, 60).ids
    faults = 0
    for place, (owner, name) in enumerate(FAULTY):
        for at in times:
            path = tmp_path / f"{place} {at}"
            shutil.copytree(base, path)
            folder, counter = js.MarketFolder(path), [0]
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, faulty(getattr(owner, name), counter, at))
                try:
                    after = change(folder, kind, 60)
                except FileError as error:
                    faults += 1
                    assert str(error).startswith(f"{path}: ")
                    after = None
            with js.MarketFolder(path, verify=True) as found:
                if after is not None:
                    assert found.version == after.version
                    assert found.ids == after.ids
                    after.close()
                elif found.version == folder.version:
                    assert found.ids == folder.ids
                else:  # it failed after the new version was in force
                    assert found.ids == wanted
            folder.close()
            js.MarketFolder(path).append({"later": small_specification(61)}).close()
            assert_no_litter(path)
            shutil.rmtree(path)
            if counter[0] < at:
                break
    assert faults >= 3


FULL = """
import sys, resource
sys.path.insert(0, sys.argv[2])
import jaxspec as js
from killed_writer import small_specification
folder = js.MarketFolder(sys.argv[1])
for limit in (0, 300, 20_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        folder.append({f"x{i}": small_specification(i) for i in range(1000)})
    except js.FileError as error:
        print("refused", limit, error)
"""


def test_a_full_disk_leaves_the_market_as_it_was(tmp_path):
    """No file may become larger than a limit, and writing beyond it fails as on a full disk."""
    path = tmp_path / "m"
    before = created(path)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", FULL, str(path), str(CHILD.parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("refused") == 3, done.stderr
    with js.MarketFolder(path, verify=True) as found:
        assert found.ids == before.ids
    js.MarketFolder(path).append({"later": small_specification(61)}).close()
    assert_no_litter(path)
