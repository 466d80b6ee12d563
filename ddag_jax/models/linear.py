"""The 1x1 convolution with bias of the attention modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddag_jax.models.precision import at_least_float32


def _torch_uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike, fan_in: int) -> Array:
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """A 1x1 convolution with bias, initialised as in PyTorch: U(-1, 1) / sqrt(fan-in) for both."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... o"]:
        c, wide = x.shape[-1], at_least_float32(self.dtype)
        kernel = self.param("kernel", _torch_uniform, (c, self.features), wide, c)
        bias = self.param("bias", _torch_uniform, (self.features,), wide, c)
        return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)
