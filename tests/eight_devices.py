"""Checks that run in a process of their own, since jax fixes the number of devices at its start."""

import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import jax

DEVICES, TIMEOUT = 8, 1200
TESTS = Path(__file__).parent


def environment(flags=""):
    paths = [TESTS, *(TESTS / name for name in ("scoring", "index")), TESTS.parent]
    before = os.environ.get("PYTHONPATH", "")
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([*map(str, paths), before]).rstrip(os.pathsep),
        # Programs that run once: compiling them with less care halves the time of these files.
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 {flags}",
    }


def start(file, *arguments, flags="", errors=None):
    return subprocess.Popen(
        [sys.executable, str(file), *map(str, arguments)],
        env=environment(flags),
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )


def outcome_of(file):
    """Run a file's checks on eight devices and return {check: None or its traceback}."""
    child = start(file, "devices", flags=f"--xla_force_host_platform_device_count={DEVICES}")
    try:
        printed, _ = child.communicate(timeout=TIMEOUT)
    finally:
        child.kill()
    assert child.returncode == 0
    return json.loads(printed.splitlines()[-1])


def run_checks(checks):
    """Run checks {name: function}, and print their outcomes for `outcome_of`."""
    assert jax.device_count() == DEVICES
    outcome = {}
    for name, check in checks.items():
        began = time.perf_counter()
        try:
            check()
            outcome[name] = None
        except Exception:
            outcome[name] = traceback.format_exc()
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    print(json.dumps(outcome))
