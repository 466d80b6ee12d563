"""Convolution, lowered for each platform as measured to be best.

Layout is NHWC, kernels HWIO. Padding is explicit, as PyTorch pads ("SAME" differs at stride 2).
Whatever is specific to a platform is chosen by `jax.lax.platform_dependent`, when a computation is
lowered for that platform: a step compiled for a TPU on a CPU machine gets the TPU's lowering.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddag_jax.models.precision import at_least_float32
from ddag_jax.models.winograd import winograd_conv, winograd_gradients, winograd_pays


def _xla_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _input_gradient(
    x_shape: Sequence[int], kernel: Array, g: Array, stride: int, padding: int
) -> Array:
    """Gradient of a convolution's input: XLA's own, the best of those measured on a CPU."""
    x = jax.ShapeDtypeStruct(tuple(x_shape), g.dtype)
    (dx,) = jax.linear_transpose(lambda x: _xla_conv(x, kernel, stride, padding), x)(g)
    return dx


def _xla_kernel_gradient(
    x: Array, g: Array, kernel_shape: Sequence[int], stride: int, padding: int
) -> Array:
    kernel = jax.ShapeDtypeStruct(tuple(kernel_shape), x.dtype)
    (dk,) = jax.linear_transpose(lambda k: _xla_conv(x, k, stride, padding), kernel)(g)
    return dk


def _dot_kernel_gradient(
    x: Array, g: Array, kernel_shape: Sequence[int], stride: int, padding: int
) -> Array:
    """Kernel gradient as `height` matrix products: XLA's CPU convolution is slow at this one."""
    kh, kw, c, o = kernel_shape
    b, ho, wo, _ = g.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    span_w, span_h = stride * (wo - 1) + 1, stride * (ho - 1) + 1
    shifts = jnp.concatenate([x[:, :, i : i + span_w : stride] for i in range(kw)], axis=-1)
    g = g.reshape(b * ho * wo, o)
    rows = [
        jnp.dot(shifts[:, i : i + span_h : stride].reshape(b * ho * wo, kw * c).T, g)
        for i in range(kh)
    ]
    return jnp.stack(rows).reshape(kh, kw, c, o)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _spatial_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    xla = functools.partial(_xla_conv, stride=stride, padding=padding)
    if not winograd_pays(x, kernel, stride, padding):
        return xla(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=winograd_conv, default=xla)


def _spatial_conv_fwd(
    x: Array, kernel: Array, stride: int, padding: int
) -> tuple[Array, tuple[Array, Array]]:
    return _spatial_conv(x, kernel, stride, padding), (x, kernel)


def _spatial_conv_bwd(
    stride: int, padding: int, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved

    def xla(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        dk = _xla_kernel_gradient(x, g, kernel.shape, stride, padding)
        return _input_gradient(x.shape, kernel, g, stride, padding), dk

    def dots(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        dk = _dot_kernel_gradient(x, g, kernel.shape, stride, padding)
        return _input_gradient(x.shape, kernel, g, stride, padding), dk

    cpu = winograd_gradients if winograd_pays(x, kernel, stride, padding) else dots
    gradients: tuple[Array, Array] = jax.lax.platform_dependent(x, kernel, g, cpu=cpu, default=xla)
    return gradients


_spatial_conv.defvjp(_spatial_conv_fwd, _spatial_conv_bwd)


def _dot_conv(x: Array, kernel: Array, stride: int) -> Array:
    return jnp.dot(x[:, ::stride, ::stride], kernel[0, 0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pointwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    return jax.lax.platform_dependent(
        x,
        kernel,
        tpu=functools.partial(_xla_conv, stride=stride, padding=0),
        default=functools.partial(_dot_conv, stride=stride),
    )


def _pointwise_conv_fwd(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _pointwise_conv(x, kernel, stride), (x, kernel)


def _dot_gradients(x: Array, kernel: Array, g: Array, stride: int) -> tuple[Array, Array]:
    """Of `_dot_conv`, the kernel's as input times cotangent: differentiated automatically it is
    the other way round, for which a CPU first transposes every cotangent, entry by entry."""
    c, o = kernel.shape[2:]
    rows = x[:, ::stride, ::stride].reshape(-1, c)
    flat = g.reshape(-1, o)
    dk = jax.lax.dot_general(rows, flat, (((0,), (0,)), ((), ())))
    (dx,) = jax.linear_transpose(lambda x: _dot_conv(x, kernel, stride), x)(g)
    return dx, dk.reshape(kernel.shape)


def _pointwise_conv_bwd(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    def automatic(convolve: Callable[[Array, Array], Array]) -> Callable[..., Any]:
        return lambda x, kernel, g: jax.vjp(convolve, x, kernel)[1](g)

    gradients: tuple[Array, Array] = jax.lax.platform_dependent(
        *saved,
        g,
        cpu=functools.partial(_dot_gradients, stride=stride),
        tpu=automatic(functools.partial(_xla_conv, stride=stride, padding=0)),
        default=automatic(functools.partial(_dot_conv, stride=stride)),
    )
    return gradients


_pointwise_conv.defvjp(_pointwise_conv_fwd, _pointwise_conv_bwd)


# jit, so that a layer of a shape seen before is not traced again: a quarter of the time to trace.
@functools.partial(jax.jit, static_argnames=("stride", "padding"))
def conv2d(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"], *, stride: int, padding: int
) -> Float[Array, "b ho wo o"]:
    """Convolution with the same `stride` and zero `padding` on every side, as PyTorch's `conv2d`.

    A 1x1 kernel is a matrix product: that alone halves a ResNet-50 step on a CPU, and a GPU does
    not mind. A TPU computes both alike, but from operands laid out differently: among 3x3 kernels
    a convolution spares it the copies in between.
    """
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return _pointwise_conv(x, kernel, stride)
    return _spatial_conv(x, kernel, stride, padding)


def _resnet_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """N(0, sqrt(2 / (k^2 * out))), drawn flat: the same values, but XLA needs a second on a CPU to
    compile a draw of a small 4-D shape, whose loops it unrolls."""
    kh, kw, _, out = shape
    flat = jax.random.normal(key, (math.prod(shape),), dtype)
    return flat.reshape(shape) * (2 / (kh * kw * out)) ** 0.5


class Conv(nn.Module):
    """2-D convolution without bias, drawn from N(0, sqrt(2 / (k^2 * out))) as ResNet does it."""

    features: int
    kernel_size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b ho wo o"]:
        k = self.kernel_size
        kernel = self.param(
            "kernel",
            _resnet_normal,
            (k, k, x.shape[-1], self.features),
            at_least_float32(self.dtype),
        )
        return conv2d(
            x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=k // 2
        )
