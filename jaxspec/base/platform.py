"""What kind of device work is sized for: one place to ask."""

from __future__ import annotations

import jax

__all__ = ["device_kind", "on_processor"]


def on_processor() -> bool:
    """Tell whether jax's default device is the host's processor and no accelerator.

    A processor wants blocks that stay in its cache, an accelerator few long launches.
    """
    return jax.default_backend() == "cpu"


def device_kind() -> str:
    """Return "processor" or "accelerator", to look sizes up by."""
    return "processor" if on_processor() else "accelerator"
