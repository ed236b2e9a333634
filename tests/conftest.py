"""Small tasks that several test files share."""

import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxspec as js

sys.path.insert(0, str(Path(__file__).parents[1]))  # the wheel holds no benchmarks

DIMENSION = 6
KERNEL = js.Gaussian(bandwidth=3.0)
SPACE = js.Space("made-features", KERNEL, dimension=DIMENSION)


def pytest_configure(config):
    """Let the processes of one run share what they compile: files ask for the same functions.

    By the environment, so that workers and the processes that tests start find it too.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="jaxspec-tests-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    seconds = float(os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def alike(first, *others):
    """Return parameters of which the first is always tested, and the others with the slow tests."""
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


def made_task(seed, n=120, classes=4, spread=0.7):
    """Return features (n, d) of Gaussian classes around centres that the seed draws, and labels."""
    centres = np.random.default_rng(seed).normal(size=(12, DIMENSION)) * 2
    rng = np.random.default_rng(1000 + seed + n)
    labels = np.arange(n) % classes
    features = centres[labels] + spread * rng.normal(size=(n, DIMENSION))
    return features.astype(np.float32), labels


def names(classes):
    return [f"class {chr(97 + k)}" for k in range(classes)]


def made_probe(rows=200):
    """Return unlabelled features (rows, d) of all seeds' regions."""
    return np.concatenate([made_task(seed, n=rows // 4)[0] for seed in range(4)])


@functools.cache
def probed_space():
    """Return a space with a probe set; `SPACE` has none."""
    return js.Space("made-features-with-probe", KERNEL, dimension=DIMENSION, probe=made_probe())


@functools.cache
def made_specification(seed, classes=4, size=10, **options):
    features, labels = made_task(seed, classes=classes)
    return js.specify(
        SPACE,
        features,
        labels,
        class_names=names(classes),
        key=jax.random.key(seed),
        size=size,
        **options,
    )


def made_user(seed, classes=4, per_class=10, class_names=None, space=SPACE, **options):
    features, labels = made_task(seed, n=per_class * classes, classes=classes)
    return js.specify_user(
        space, features, labels, class_names=class_names or names(classes), **options
    )


@pytest.fixture(autouse=True, scope="module")
def release_compiled_code():
    """Forget what a file compiled: a process may hold so many memory mappings and no more.

    Every executable takes some; Linux allows 65,530 (vm.max_map_count), and LLVM aborts there.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def market():
    """Six learnwares of four classes each, the learnware `m<seed>` made from task `seed`."""
    return js.Market(SPACE, {f"m{s}": made_specification(s) for s in range(6)})


class CompileCounter:
    """Counts compilations by XLA between `with` and the end of the block."""

    def __init__(self):
        self.count = 0

    def _listen(self, event, _duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1

    def __enter__(self):
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)


@pytest.fixture
def compile_counter():
    return CompileCounter
