"""The names of `jaxspec.evaluation` under their former address."""

from jaxspec.evaluation import *  # noqa: F403
