"""Batch normalisation over the batch of all devices."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddag_jax.models.precision import at_least_float32


def _over_devices(value: Array, axis_name: str | None) -> Array:
    return value if axis_name is None else jax.lax.pmean(value, axis_name)


def _moments(x: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Return mean and biased variance of each channel, over all other axes and all devices, [c]."""
    wide = x.astype(at_least_float32(x.dtype))
    axes = tuple(range(x.ndim - 1))
    both = jnp.stack([wide.mean(axes), jnp.square(wide).mean(axes)])
    mean, square = _over_devices(both, axis_name)
    return mean, jnp.maximum(square - jnp.square(mean), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise_batch(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None
) -> tuple[Array, Array, Array]:
    return _normalise_batch_fwd(x, scale, bias, epsilon, axis_name)[0]


def _normalise_batch_fwd(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    mean, variance = _moments(x, axis_name)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (x * (scale * inverse) + (bias - mean * scale * inverse)).astype(x.dtype)
    return (y, mean, variance), (x, scale, mean, inverse)


def _normalise_batch_bwd(
    epsilon: float,
    axis_name: str | None,
    saved: tuple[Array, ...],
    cotangents: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse = saved
    g = cotangents[0].astype(mean.dtype)
    axes = tuple(range(x.ndim - 1))
    centred = (x.astype(mean.dtype) - mean) * inverse
    bias_gradient = g.sum(axes)
    scale_gradient = (g * centred).sum(axes)
    count = x.size // x.shape[-1]
    means = _over_devices(jnp.stack([bias_gradient, scale_gradient]) / count, axis_name)
    dx = (scale * inverse) * (g - means[0] - centred * means[1])
    return (
        dx.astype(x.dtype),
        scale_gradient.astype(scale.dtype),
        bias_gradient.astype(scale.dtype),
    )


_normalise_batch.defvjp(_normalise_batch_fwd, _normalise_batch_bwd)


@functools.partial(jax.jit, static_argnames=("epsilon", "axis_name"))
def normalise_batch(
    x: Float[Array, "... c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float,
    axis_name: str | None,
) -> tuple[Float[Array, "... c"], Float[Array, " c"], Float[Array, " c"]]:
    """Normalise a batch by its own statistics, over all devices of `axis_name`.

    Its gradient is written by hand: it reads the activation and its cotangent once for two sums and
    once for the result. Only the normalised batch has a gradient, not the statistics.

    Args:
        x: this device's part of the batch, [..., c].
        scale: factor of each channel, at least float32.
        bias: offset of each channel, at least float32.
        epsilon: added to the variance.
        axis_name: mapped axis of the devices; None if one device has the whole batch.

    Returns:
        The normalised batch in the dtype of `x`; mean and biased variance, [c], at least float32.
    """
    return _normalise_batch(x, scale, bias, epsilon, axis_name)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015) with PyTorch's arithmetic.

    The running variance is unbiased, n / (n - 1) times the batch's; a momentum of 0.9 is 0.1 in
    PyTorch's terms. The parameters are `scale` and, with `use_bias`, `bias`; the collection
    `batch_stats` has the running `mean` and `var`; all are at least float32. In training mode the
    statistics are those of the whole batch, over the devices of `axis_name` (None: one device has
    the whole batch); in evaluation mode, the running ones. The output has the input's dtype.
    """

    use_bias: bool = True
    scale_init: Callable[..., Array] = jax.nn.initializers.ones
    axis_name: str | None = None
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Float[Array, "... c"], train: bool) -> Float[Array, "... c"]:
        c = (x.shape[-1],)
        dtype = at_least_float32(x.dtype)
        scale = self.param("scale", self.scale_init, c, dtype)
        if self.use_bias:
            bias = self.param("bias", jax.nn.initializers.zeros, c, dtype)
        else:
            bias = jnp.zeros(c, dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, c, dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, c, dtype)
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            return (x * factor + (bias - running_mean.value * factor)).astype(x.dtype)
        y, mean, variance = normalise_batch(x, scale, bias, self.epsilon, self.axis_name)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            if self.axis_name is not None:
                count *= jax.lax.axis_size(self.axis_name)
            unbiased = variance * (count / max(count - 1, 1))
            for running, value in ((running_mean, mean), (running_var, unbiased)):
                running.value = self.momentum * running.value + (1 - self.momentum) * value
        return y
