"""The linear classifier of identities, and how its input is scaled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddag_jax.models.precision import at_least_float32


class Classifier(nn.Module):
    """Linear layer without bias, drawn from N(0, 0.001)."""

    classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b y"]:
        wide = at_least_float32(self.dtype)
        kernel = self.param(
            "kernel", nn.initializers.normal(0.001), (x.shape[-1], self.classes), wide
        )
        return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=wide)


def neck_scale(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Draw the initial scale of a neck, the batch normalisation before a classifier: N(1, 0.01)."""
    return 1 + 0.01 * jax.random.normal(key, shape, dtype)


def unit_rows(x: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """Scale rows to unit length; a row shorter than 1e-12 stays shorter.

    >>> unit_rows(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
    return x / jnp.maximum(norm, 1e-12)
