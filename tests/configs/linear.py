"""`debug` with the method of tests/linear_method.py in the network's place."""

import dataclasses

from ddag_jax.config import Config
from ddag_jax.io.config_file import load_config
from tests.linear_method import LinearConfig  # not defined here: this file is executed each time


def get_config() -> Config:
    """Three epochs of four steps."""
    return dataclasses.replace(load_config("debug"), model=LinearConfig())
