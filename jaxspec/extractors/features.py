"""The names of `jaxspec.extractors` under their former address."""

from jaxspec.extractors import *  # noqa: F403
