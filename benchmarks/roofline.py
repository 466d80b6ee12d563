"""Roofline of a training step: the work of each operation, and the least time that it takes.

An operation takes at least the time of its arithmetic at the device's peak rate or of its memory
traffic at the device's bandwidth, whichever is longer. Operations are counted as if each ran by
itself, in the compute dtype:

- A convolution reads its input and its kernel and writes its output, forward. The gradient of its
  input and that of its kernel cost the same again, each. Images have no gradient.
- A batch normalisation reads its input twice (statistics first) and writes its output, forward;
  backward, it reads input and gradient twice and writes a gradient. ReLU and the addition of a
  shortcut are fused with it; the shortcut is read, in both directions.
- The optimiser reads parameter, gradient and momentum and writes two of them, in float32.

Pooling, augmentation, heads and losses are not counted: together they are a few per cent.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.workload import CLASSES
from ddag_jax.config import Config, DDAGConfig
from ddag_jax.methods.ddag.method import DDAG
from ddag_jax.models import convolution, normalisation, resnet
from ddag_jax.models.precision import network_dtype


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates, from the manufacturer's data sheet."""

    flops: float
    """Dense, in bfloat16, per second."""
    bandwidth: float
    """Bytes per second."""


CHIPS = {"NVIDIA H200": Chip(989e12, 4.8e12), "NVIDIA H100 80GB HBM3": Chip(989e12, 3.35e12)}
"""Chips by JAX's `device_kind`."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes read and written by one operation."""

    flops: float
    bytes: float

    def seconds(self, chip: Chip) -> float:
        """Return the least time on a chip."""
        return max(self.flops / chip.flops, self.bytes / chip.bandwidth)


def training_step(config: Config) -> list[Work]:
    """Return the operations of a training step, in no particular order."""
    found: list[Work] = []
    assert isinstance(config.model, DDAGConfig)
    model = DDAG(config.model, CLASSES).network
    width = jnp.dtype(config.model.compute_dtype).itemsize

    def count_convolution(x: Any, kernel: Any, *, stride: int, padding: int) -> jax.Array:
        y: jax.Array = original(x, kernel, stride=stride, padding=padding)
        work = Work(
            2 * y.size * math.prod(kernel.shape[:3]), (x.size + kernel.size + y.size) * width
        )
        passes = 2 if x.shape[-1] == 3 else 3
        found.extend([work] * passes)
        return y

    def count_normalisation(x: Any, *others: Any) -> Any:
        if x.ndim == 4:
            found.extend([Work(0, 3 * x.size * width), Work(0, 5 * x.size * width)])
        return normalise(x, *others)

    def count_addition(*arguments: Any) -> jax.Array:
        x: jax.Array = shortcut(*arguments)
        found.extend([Work(0, x.size * width)] * 2)
        return x

    original: Callable[..., jax.Array] = convolution.conv2d
    normalise, shortcut = normalisation.normalise_batch, resnet.shortcut
    training, data = config.training, config.data
    half = training.identities_per_batch * training.images_per_identity
    images: Any = jax.ShapeDtypeStruct(
        (half, data.image_height, data.image_width, 3), network_dtype(config.model.compute_dtype)
    )
    labels: Any = jax.ShapeDtypeStruct((2 * half,), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images, images, labels, None)
    with (
        mock.patch.object(convolution, "conv2d", count_convolution),
        mock.patch.object(normalisation, "normalise_batch", count_normalisation),
        mock.patch.object(resnet, "shortcut", count_addition),
    ):
        jax.eval_shape(
            lambda *given: model.apply(*given, None, mutable=["batch_stats"]),
            variables,
            images,
            images,
            labels,
        )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    found.append(Work(0, 5 * 4 * parameters))
    return found


def stated_seconds(images: int, chip: Chip) -> float:
    """Return the time of a bfloat16 step that the targets refer to: 1.97 TFLOP and then 22.9 GB
    for 64 images; 6.8 ms on an H200."""
    return images / 64 * (1.97e12 / chip.flops + 22.9e9 / chip.bandwidth)
