"""A folder of small files, made once by the command itself, and functions that run commands."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from jaxspec.applications.command.app import app

NAMES = ["bird", "cat", "dog"]
CENTRES = np.random.default_rng(5).normal(size=(3, 4)) * 3


def task(seed, shift, n=60):
    """Return features (n, 4) and labels (n,) of three classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return (CENTRES[labels] + shift + rng.normal(size=(n, 4))).astype(np.float32), labels


def outputs(features, shift):
    """Return the probabilities (n, 3) of a model that knows the centres."""
    distances = ((features[:, None] - CENTRES - shift) ** 2).sum(axis=2)
    powers = np.exp(-(distances - distances.min(axis=1, keepdims=True)) / 4)
    return powers / powers.sum(axis=1, keepdims=True)


def run(*arguments, code=0, env=None):
    """Run one command line and return its result; the exit code must be `code`."""
    result = CliRunner().invoke(app, [str(one) for one in arguments], env=env)
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result


def run_json(*arguments, code=0):
    """Run one command line with --json and return the document on stdout."""
    return json.loads(run(*arguments, "--json", code=code).stdout)


@functools.cache
def made_files():
    """Return a folder of files that no test changes, made once.

    It holds a space, three specifications, a user's data in three forms, and a market.
    """
    folder = Path(tempfile.mkdtemp(prefix="jaxspec-command-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    probe = np.concatenate([task(9, shift, 32)[0] for shift in (0.0, 2.0)])
    np.savez(folder / "public.npz", features=probe)
    space = folder / "made.space.safetensors"
    run("space", "create", "made-4", folder / "public.npz", "--probe", folder / "public.npz",
        "-o", space)  # fmt: skip
    for seed, (name, shift) in enumerate({"north": 0.0, "east": 1.0, "south": 3.0}.items()):
        Z, labels = task(seed, shift)
        np.savez(folder / f"{name}.npz", features=Z, labels=labels, class_names=NAMES,
                 teacher=outputs(Z, shift), probe_outputs=outputs(probe, shift))  # fmt: skip
        run("specify", space, folder / f"{name}.npz", "-o", folder / f"{name}.safetensors",
            "--size", 8, "--about", "licence=MIT", "--about", f"rank={seed}")  # fmt: skip
    Z, labels = task(20, 0.9, 30)
    np.savez(folder / "mine.npz", features=Z, labels=labels, class_names=NAMES)
    np.savez(folder / "texts.npz", Z=Z, y=np.array(NAMES)[labels])
    rows = [
        ",".join([*map(repr, map(float, row)), NAMES[k]]) for row, k in zip(Z, labels, strict=True)
    ]
    (folder / "mine.csv").write_text("\n".join(["a,b,c,d,kind", *rows]) + "\n")
    run("market", "create", folder / "market.jax", space,
        *(folder / f"{name}.safetensors" for name in ("north", "east", "south")))  # fmt: skip
    return folder
