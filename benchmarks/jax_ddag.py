"""Our side of the comparisons with PyTorch: the step of train.py, the embedding of evaluate.py."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from benchmarks.workload import CLASSES, GRAPH_WEIGHT, STEPS, Noise
from ddag_jax.config import BaselineConfig, Config
from ddag_jax.evaluation.embed import make_embed
from ddag_jax.methods.base import Variables, View
from ddag_jax.methods.baseline import Baseline
from ddag_jax.methods.build import build_method
from ddag_jax.parallel import (
    AXIS,
    Mesh,
    device_mesh,
    map_embed,
    map_train_step,
    replicate,
    shard,
)
from ddag_jax.training.build import build_optimizer, build_train_step
from ddag_jax.training.flat import state_forms
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.types import Batch


def one_device() -> Mesh:
    return device_mesh(list(device_mesh().devices.flat)[:1])


def random_variables(config: Config) -> dict[str, Any]:
    """Return variables initialised as by train.py."""
    size = config.data.image_height, config.data.image_width
    method = build_method(config.model, CLASSES)
    return jax.jit(method.init, static_argnums=1)(jax.random.key(0), size)


class Training:
    """The mapped training step, including augmentation, repeated on one batch on the device."""

    def __init__(self, config: Config, variables: dict[str, Any], noise: Noise) -> None:
        mesh = one_device()
        method, optimizer = (
            build_method(config.model, CLASSES, AXIS),
            build_optimizer(config, STEPS),
        )
        step = build_train_step(config, method, optimizer, STEPS, AXIS)
        self.step: Any = map_train_step(step, mesh)
        self.batch = shard(Batch(*noise), mesh)
        memory = method.memory()
        if "graph_weight" in memory:
            memory |= {"graph_weight": jnp.float32(GRAPH_WEIGHT)}
        state = new_state(variables, optimizer, memory, jax.random.key(0))
        for_step, _ = state_forms(mesh)
        self.state: TrainState = for_step(replicate(state, mesh))

    def __call__(self, steps: int = 1) -> dict[str, jax.Array]:
        """Take `steps` steps, wait for them, and return the last one's loss terms."""
        for _ in range(steps):
            self.state, outcome = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, outcome))
        terms: dict[str, jax.Array] = outcome.terms
        return terms


@dataclasses.dataclass(frozen=True)
class NoNetwork(Baseline):
    """A method whose step is the augmentation and little else: it reads every pixel once."""

    def init(self, key: jax.Array, image_size: tuple[int, int]) -> dict[str, Any]:
        return {"params": {"scale": jnp.ones(())}, "batch_stats": {}}

    def loss(self, variables: Variables, views: tuple[View, ...], memory: Any, keys: Any) -> Any:
        mean = sum(view.images.mean() for view in views)
        return variables["params"]["scale"] * mean, {"mean": mean}, {}


class NoNetworkConfig(BaselineConfig):
    """For `build_method`."""

    def build(self, classes: int, axis_name: str | None) -> NoNetwork:
        return NoNetwork(self, classes, axis_name)


class Embedding:
    """The mapped embedding of images on the host."""

    def __init__(self, config: Config, variables: dict[str, Any]) -> None:
        self.mesh = one_device()
        self.embed = map_embed(
            make_embed(build_method(config.model, CLASSES), flip=False), self.mesh
        )
        self.variables = replicate(variables, self.mesh)

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"], modality: str) -> dict[str, jax.Array]:
        embedded = self.embed(self.variables, shard(images, self.mesh), modality)
        return jax.block_until_ready(embedded)
