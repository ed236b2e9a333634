"""The names of `jaxspec.reuse` under their former address."""

from jaxspec.reuse import *  # noqa: F403
