"""Our side of the comparisons with PyTorch: the step of train.py, the embedding of evaluate.py."""

from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from benchmarks.workload import CLASSES, GRAPH_WEIGHT, STEPS, Noise
from ddag_jax.build import build_embed, build_model, build_optimizer, build_train_step
from ddag_jax.config import Config
from ddag_jax.losses import Losses
from ddag_jax.methods.ddag.model import initialise
from ddag_jax.parallel import (
    AXIS,
    Mesh,
    device_mesh,
    map_embed,
    map_train_step,
    replicate,
    shard,
)
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.types import Batch, Embeddings


def one_device() -> Mesh:
    return device_mesh(list(device_mesh().devices.flat)[:1])


def random_variables(config: Config) -> dict[str, Any]:
    """Return variables initialised as by train.py."""
    size = config.data.image_height, config.data.image_width
    return initialise(build_model(config, CLASSES), jax.random.key(0), *size)


class Training:
    """The mapped training step, including augmentation, repeated on one batch on the device."""

    def __init__(self, config: Config, variables: dict[str, Any], noise: Noise) -> None:
        mesh = one_device()
        model, optimizer = build_model(config, CLASSES, AXIS), build_optimizer(config, STEPS)
        self.step: Any = map_train_step(build_train_step(config, model, optimizer, STEPS), mesh)
        self.batch = shard(Batch(*noise), mesh)
        state = new_state(variables, optimizer, graph_weight=GRAPH_WEIGHT, seed=0)
        self.state: TrainState = replicate(state, mesh)

    def __call__(self, steps: int = 1) -> Losses:
        """So many steps further; the losses of the last, when all is done."""
        for _ in range(steps):
            self.state, losses = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, losses))
        return losses


class Embedding:
    """The mapped embedding of images on the host."""

    def __init__(self, config: Config, variables: dict[str, Any]) -> None:
        self.mesh = one_device()
        self.embed = map_embed(build_embed(build_model(config, CLASSES), flip=False), self.mesh)
        self.variables = replicate(variables, self.mesh)

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"], modality: str) -> Embeddings:
        embedded: Embeddings = self.embed(self.variables, shard(images, self.mesh), modality)
        return jax.block_until_ready(embedded)
