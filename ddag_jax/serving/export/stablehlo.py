"""A stream as a StableHLO module for CPUs, GPUs and TPUs, by `jax.export`.

The artefact is what `jax.export.Exported.serialize` returns. To run it, nothing of this package is
needed, only jax, and flatbuffers, which jax.export reads with:

    feature = jax.export.deserialize(bytearray(content)).call(images)

The metadata is the `fun_name` of the exported function, as JSON.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers  # noqa: F401  # jax.export reads and writes with it, and imports it late
import jax
import jax.export  # an attribute of jax only once it is imported
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from ddag_jax.io.files import parse_json
from ddag_jax.serving.export.network import Stream, embed

PLATFORMS = ("cpu", "cuda", "tpu")
_EXACT = jax.lax.Precision.HIGHEST
"""float32 products: GPUs would round their operands to TF32, TPUs to bfloat16."""


class JaxOperations:
    """The operations of network.py on JAX's arrays. A map is [b, h, w, c].

    Each is lowered to plain StableHLO, alike for every platform: where jax has a rule for each, the
    branches of its `stablehlo.case` are equal.
    """

    def to_float32(self, x: UInt8[Array, "*n"]) -> Float32[Array, "*n"]:
        return x.astype(jnp.float32)

    def mirror(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        return jnp.flip(images, 2)  # a slice would be a gather where the batch is free

    def images_to_map(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        return images

    def convolve(
        self,
        x: Float[Array, "b h w c"],
        kernel: Float32[np.ndarray, "k k c o"],
        bias: Float32[np.ndarray, " o"],
        stride: int,
    ) -> Float[Array, "b ho wo o"]:
        y = jax.lax.conv_general_dilated(
            x,
            jnp.asarray(kernel),
            window_strides=(stride, stride),
            padding=[(len(kernel) // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_EXACT,
        )
        return y + bias

    def max_pool(self, x: Float[Array, "b h w c"]) -> Float[Array, "b ho wo c"]:
        return jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )

    def relu(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.maximum(x, 0)

    def map_to_cells(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n c"]:
        return x.reshape(x.shape[0], -1, x.shape[3])

    def cells_to_map(
        self, cells: Float[Array, "b n c"], like: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        return cells.reshape(like.shape)

    def matmul(self, x: Any, y: Any) -> Array:
        return jnp.matmul(x, y, precision=_EXACT)

    def transpose(self, x: Float[Array, "b n c"]) -> Float[Array, "b c n"]:
        return x.swapaxes(1, 2)

    def flatten(self, x: Float[Array, "b n c"]) -> Float[Array, "b d"]:
        return x.reshape(x.shape[0], -1)

    def concatenate(self, values: Sequence[Array], axis: int) -> Array:
        return jnp.concatenate(values, axis)

    def halves(self, x: Float[Array, "k c"]) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
        pair = x.reshape(2, x.shape[0] // 2, x.shape[1])
        first, last = (jax.lax.index_in_dim(pair, i, keepdims=False) for i in (0, 1))
        return first, last

    def mean(self, x: Float[Array, "b n c"]) -> Float[Array, "b c"]:
        return x.mean(1)

    def log_sum_exp(self, x: Float[Array, "b n c"]) -> Float[Array, "b c"]:
        return jax.nn.logsumexp(x, 1)

    def softmax(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jax.nn.softmax(x, -1)

    def exp(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.exp(x)

    def log(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.log(x)

    def maximum(self, x: Float[Array, "*n"], least: float) -> Float[Array, "*n"]:
        return jnp.maximum(x, least)

    def length(self, x: Float[Array, "b c"]) -> Float[Array, "b 1"]:
        return jnp.sqrt(jnp.sum(jnp.square(x), 1, keepdims=True))


def serialize(stream: Stream, metadata: Mapping[str, Any]) -> bytes:
    """Return the artefact of a stream: one module for all `PLATFORMS`, any number of images.

    Args:
        stream: what to export.
        metadata: what JSON can represent, read again by `read_metadata`.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *stream.image_size, 3), jnp.uint8)
    function = functools.partial(embed, JaxOperations(), stream)
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(images)
    named = dataclasses.replace(exported, fun_name=json.dumps(metadata))
    return bytes(named.serialize())


def load(content: bytes) -> Callable[[UInt8[np.ndarray, "b h w 3"]], Float32[np.ndarray, "b d"]]:
    """Return the function of an artefact, compiled for each number of images at its first call."""
    call = jax.jit(jax.export.deserialize(bytearray(content)).call)
    return lambda images: np.asarray(call(images))


def read_metadata(content: bytes) -> Any:
    """Return the metadata of an artefact. Raises ValueError if it has none."""
    return parse_json(jax.export.deserialize(bytearray(content)).fun_name)
