"""A method that compiles in a second, for tests of what surrounds the network.

It depends on everything that a run must keep or repeat exactly: parameters of both learning rates,
running statistics, a memory that enters the loss, and the random numbers of each image.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ddag_jax.losses import cross_entropy
from ddag_jax.methods.base import View

CONFIG = str(Path(__file__).parent / "configs" / "linear.py")
"""`debug` with this method, for the command line."""


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """Linear classifiers of the pixels."""

    width: int = 64
    """Of both features."""
    dropout: float = 0.1
    """Probability of dropping a pixel."""

    def build(self, classes: int, axis_name: str | None) -> "Linear":
        return Linear(self, classes, axis_name)


@dataclasses.dataclass(frozen=True)
class Linear:
    """`global` is linear in the pixels, `part` in `global`; one classifier reads both."""

    config: LinearConfig
    classes: int
    axis_name: str | None = None

    @property
    def features(self) -> tuple[str, ...]:
        return ("global", "part")

    def init(self, key: jax.Array, image_size: tuple[int, int]) -> dict[str, Any]:
        pixels, width = 3 * image_size[0] * image_size[1], self.config.width
        shapes = {
            "two_stream": (pixels, width),
            "part": (width, width),
            "classifier": (width, self.classes),
        }
        keys = jax.random.split(key, len(shapes))
        params = {
            name: {"kernel": jax.random.normal(key, shape) / shape[0] ** 0.5}
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return {"params": params, "batch_stats": {"two_stream": {"mean": jnp.zeros(pixels)}}}

    def memory(self) -> dict[str, jax.Array]:
        """`weight` is that of the part loss in this epoch; `loss_sum` decides the next one's."""
        return {"weight": jnp.ones(()), "loss_sum": jnp.zeros(())}

    def loss(
        self, variables: Any, views: tuple[View, ...], memory: Any, keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        images = jnp.concatenate([view.images for view in views])
        labels = jnp.concatenate([view.labels for view in views])
        size = images.shape[1:]
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.config.dropout, size))
        features = self._features(variables, jnp.where(keep(keys), images, 0))
        classifier = variables["params"]["classifier"]["kernel"]
        identity, part = (cross_entropy(x @ classifier, labels) for x in features.values())
        terms = {"identity": identity, "part": part, "weight": memory["weight"]}
        batch = images.reshape(len(images), -1).mean(0)
        if self.axis_name is not None:
            batch = jax.lax.pmean(batch, self.axis_name)
        mean = 0.9 * variables["batch_stats"]["two_stream"]["mean"] + 0.1 * batch
        total = identity + memory["weight"] * part
        return total, terms, {"two_stream": {"mean": mean}}

    def _features(self, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        params = variables["params"]
        rows = images.reshape(len(images), -1)
        centred = (rows - variables["batch_stats"]["two_stream"]["mean"]) / rows.shape[1] ** 0.5
        features = centred @ params["two_stream"]["kernel"]
        return {"global": features, "part": features @ params["part"]["kernel"]}

    def remember(
        self,
        memory: Any,
        terms: Mapping[str, jax.Array],
        counted: jax.Array,
        epoch_ends: jax.Array,
    ) -> dict[str, jax.Array]:
        loss_sum = memory["loss_sum"] + jnp.where(counted, terms["identity"], 0)
        return {
            "weight": jnp.where(epoch_ends, 1 / (1 + loss_sum), memory["weight"]),
            "loss_sum": jnp.where(epoch_ends, 0, loss_sum),
        }

    def epoch_figures(self, memory: Any) -> dict[str, jax.Array]:
        return {"next_weight": memory["weight"]}

    def embed(self, variables: Any, images: jax.Array, modality: str) -> dict[str, jax.Array]:
        return {
            name: rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
            for name, rows in self._features(variables, images).items()
        }
