"""Checks that run in processes of their own, since jax fixes the number of devices at its start.

As a program it is one of several processes: it joins the others before it imports a module of
tests, because whatever computes starts jax, and calls the module's `run_process`.
"""

import importlib
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


def outcome_of(file, names):
    """Run checks of a file on eight devices and return {check: None or its traceback}."""
    child = start(
        file, "devices", *names, flags=f"--xla_force_host_platform_device_count={DEVICES}"
    )
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


def start_process(module, port, which, processes, folder):
    """Start one of several processes, which calls `module.run_process(which, folder)`."""
    arguments = (module, port, which, processes, folder)
    return start(Path(__file__), *arguments, errors=subprocess.STDOUT)


if __name__ == "__main__":
    name, port, which, processes, folder = sys.argv[1:]
    jax.distributed.initialize(
        f"127.0.0.1:{port}", num_processes=int(processes), process_id=int(which)
    )
    importlib.import_module(name).run_process(int(which), folder)
