"""The kind of device that jax computes on, by which block sizes are chosen.

The only place in the package that asks for it, so that tests can replace it.
"""

from __future__ import annotations

import jax

__all__ = ["device_kind", "on_processor"]


def on_processor() -> bool:
    """Tell whether jax's default device is the host's processor, not an accelerator.

    A processor is fastest with blocks that stay in its cache, an accelerator with few large steps.
    """
    return jax.default_backend() == "cpu"


def device_kind() -> str:
    """Return "processor" or "accelerator", the keys of tables of block sizes."""
    return "processor" if on_processor() else "accelerator"
