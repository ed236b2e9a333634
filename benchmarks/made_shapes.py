"""The old address of `benchmarks.markets.made_shapes`, until its readers name the new one."""

from benchmarks.markets.made_shapes import *  # noqa: F403
