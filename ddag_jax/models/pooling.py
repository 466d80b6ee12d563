"""Max-pooling of the stem, pooling of the last feature map, and its averages over stripes."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddag_jax.models.precision import at_least_float32

_WINDOW, _STRIDE = 3, 2


def _pool_slices(x: Array) -> list[Array]:
    """Return the nine slices of a padded `x` whose maximum is its 3x3 pool of stride 2."""
    h, w = ((size - _WINDOW) // _STRIDE + 1 for size in x.shape[1:3])
    span_h, span_w = _STRIDE * (h - 1) + 1, _STRIDE * (w - 1) + 1
    return [
        x[:, i : i + span_h : _STRIDE, j : j + span_w : _STRIDE]
        for i in range(_WINDOW)
        for j in range(_WINDOW)
    ]


def _pad_for_pool(x: Array) -> Array:
    lowest = jnp.array(-jnp.inf, x.dtype)
    return jax.lax.pad(x, lowest, [(0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)])


def _sliced_max_pool(x: Array) -> Array:
    return functools.reduce(jnp.maximum, _pool_slices(_pad_for_pool(x)))


def _xla_max_pool(x: Array) -> Array:
    window, strides = (1, _WINDOW, _WINDOW, 1), (1, _STRIDE, _STRIDE, 1)
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


@jax.custom_vjp
def max_pool_3x3_2(x: Float[Array, "b h w c"]) -> Float[Array, "b ho wo c"]:
    """Max-pool with window 3x3, stride 2 and padding 1, as in ResNet's stem.

    The gradient goes to the first maximum of a window in row-major order, as in PyTorch. It is
    computed from nine masked slices, since XLA's select-and-scatter is several times slower on a
    CPU; on a TPU, where each slice would be a copy, from XLA's.

    Returns:
        The maxima in the dtype of `x`, with ho = (h + 1) // 2 and wo = (w + 1) // 2.
    """
    return jax.lax.platform_dependent(x, tpu=_xla_max_pool, default=_sliced_max_pool)


def _max_pool_fwd(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = max_pool_3x3_2(x)
    return y, (x, y)


def _sliced_max_pool_gradient(x: Array, y: Array, g: Array) -> Array:
    padded = _pad_for_pool(x)
    taken = jnp.zeros(y.shape, bool)
    dx = jnp.zeros(padded.shape, g.dtype)
    h, w = y.shape[1:3]
    for index, view in enumerate(_pool_slices(padded)):
        i, j = divmod(index, _WINDOW)
        hit = (view == y) & ~taken
        taken |= hit
        dx += jax.lax.pad(
            jnp.where(hit, g, 0),
            jnp.array(0, g.dtype),
            [
                (0, 0, 0),
                (i, padded.shape[1] - i - _STRIDE * (h - 1) - 1, _STRIDE - 1),
                (j, padded.shape[2] - j - _STRIDE * (w - 1) - 1, _STRIDE - 1),
                (0, 0, 0),
            ],
        )
    return dx[:, 1:-1, 1:-1]


def _xla_max_pool_gradient(x: Array, y: Array, g: Array) -> Array:
    (dx,) = jax.vjp(_xla_max_pool, x)[1](g)
    return dx


def _max_pool_bwd(saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    x, y = saved
    dx = jax.lax.platform_dependent(
        x, y, g, tpu=_xla_max_pool_gradient, default=_sliced_max_pool_gradient
    )
    return (dx,)


max_pool_3x3_2.defvjp(_max_pool_fwd, _max_pool_bwd)


class Pooling(nn.Module):
    """The pooled feature of a feature map, at least float32.

    Attributes:
        kind: "mean"; "gem", the generalised mean (mean of x^p + 1e-12)^(1/p) of AGW's code; or
            "gem-learnable", (mean of max(x, 1e-6)^p)^(1/p) with the parameter `power`, p, as in
            AGW's paper (Eq. 3).
        power: p; where it is learnable, its initial value.
    """

    kind: str = "mean"
    power: float = 3.0

    @nn.compact
    def __call__(self, feature_map: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
        x = feature_map.astype(at_least_float32(feature_map.dtype))
        if self.kind == "mean":
            return x.mean((1, 2))
        if self.kind == "gem":
            # An integer power is a product, in place of an exponential and a logarithm.
            power = int(self.power) if self.power == int(self.power) else self.power
            return ((x**power).mean((1, 2)) + 1e-12) ** (1 / self.power)
        p = self.param("power", nn.initializers.constant(self.power), (), x.dtype)
        # By logarithms: from p = 6.4 on, float32 has no 1e-6^p, and a channel of zeros no gradient.
        logarithms = p * jnp.log(jnp.maximum(x, 1e-6))
        positions = x.shape[1] * x.shape[2]
        return jnp.exp((jax.nn.logsumexp(logarithms, (1, 2)) - math.log(positions)) / p)


def stripe_matrix(height: int, parts: int, dtype: DTypeLike) -> Float[Array, "p h"]:
    """Return the row weights that average a map of `height` rows in `parts` stripes.

    Stripe i has the rows floor(i h / p) to ceil((i + 1) h / p) - 1, so that stripes overlap where p
    does not divide h, as in PyTorch's adaptive average pooling.

    >>> stripe_matrix(3, 2, jnp.float32).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    row = jnp.arange(height)[None]
    index = jnp.arange(parts)[:, None]
    start, stop = index * height // parts, -((index + 1) * height // -parts)
    return ((row >= start) & (row < stop)) / (stop - start).astype(dtype)
