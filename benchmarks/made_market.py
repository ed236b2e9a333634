"""The old address of `benchmarks.markets.made_market`, until its readers name the new one."""

from benchmarks.markets.made_market import *  # noqa: F403
