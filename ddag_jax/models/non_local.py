"""The non-local block of AGW (Wang et al., CVPR 2018, with dot products and no softmax)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddag_jax.models.linear import Linear
from ddag_jax.models.normalisation import BatchNorm
from ddag_jax.models.precision import at_least_float32


class NonLocal(nn.Module):
    """z = BN(W y) + x with y_i = sum over j of (theta_i . phi_j) g_j / N, over the N positions.

    `theta`, `phi` and `g` are 1x1 convolutions to `width` channels, `w` is one back to those of x.
    Scale and shift of the batch normalisation start at 0, so that the block starts as the identity.
    The output has the input's shape and dtype.
    """

    width: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        wide = at_least_float32(self.dtype)
        theta, phi, g = (Linear(self.width, self.dtype, name=name)(x) for name in _PROJECTIONS)
        # Without a softmax the products may be taken from the right: no matrix of N x N.
        summed = jnp.einsum("bhwi,bhwj->bij", phi, g, preferred_element_type=wide)
        mean = (summed / (x.shape[1] * x.shape[2])).astype(self.dtype)
        y = jnp.einsum("bhwi,bij->bhwj", theta, mean)
        y = Linear(x.shape[-1], self.dtype, name="w")(y)
        norm = BatchNorm(scale_init=nn.initializers.zeros, axis_name=self.axis_name, name="bn")
        return x + norm(y, train)


_PROJECTIONS = ("theta", "phi", "g")


def inner_width(kind: str, channels: int) -> int:
    """Return the inner width of a block: 1 for "one" (AGW's code), half the channels for "half".

    >>> inner_width("one", 512), inner_width("half", 512)
    (1, 256)
    """
    return {"one": 1, "half": channels // 2}[kind]
