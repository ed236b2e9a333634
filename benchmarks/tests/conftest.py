"""Fixtures of the benchmarks' tests."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def release_compiled_code():
    """Forget what a file compiled: Linux limits the memory mappings of a process to 65,530."""
    yield
    jax.clear_caches()


class CompileCounter:
    """Counts the compilations by XLA between `with` and the end of the block."""

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
