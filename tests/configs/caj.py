"""`debug` with CAJ's network, triplet loss and three views."""

import dataclasses

from ddag_jax.config import Config
from ddag_jax.io.config_file import load_config


def get_config() -> Config:
    """Three epochs of four steps."""
    debug, caj = load_config("debug"), load_config("caj")
    return dataclasses.replace(
        debug,
        augment=dataclasses.replace(caj.augment, padding=debug.augment.padding),
        model=dataclasses.replace(caj.model, backbone="resnet18", width=8),
        training=dataclasses.replace(debug.training, views=caj.training.views),
    )
