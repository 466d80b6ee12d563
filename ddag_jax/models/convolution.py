"""2-D convolution, in the form that measured fastest on each platform.

Arrays are NHWC and kernels HWIO. Padding is explicit, as in PyTorch ("SAME" differs at stride 2).
`jax.lax.platform_dependent` chooses the form when a computation is lowered, so that a step compiled
for a TPU on a machine without one has the TPU's form.
"""

import functools
import itertools
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
    """Return the input's gradient, [b, h, w, c], by XLA: the fastest of those measured on a CPU."""
    x = jax.ShapeDtypeStruct(tuple(x_shape), g.dtype)
    (dx,) = jax.linear_transpose(lambda x: _xla_conv(x, kernel, stride, padding), x)(g)
    return dx


def _dot_input_gradient(
    x_shape: Sequence[int], kernel: Array, g: Array, stride: int, padding: int
) -> Array:
    """Return the input's gradient, [b, h, w, c], as one matrix product, whose rows are added up."""
    kh, kw, c, o = kernel.shape
    b, h, w, _ = x_shape
    _, ho, wo, _ = g.shape
    rows = (g.reshape(-1, o) @ kernel.reshape(-1, o).T).reshape(b, ho, wo, kh, kw, c)
    span_h, span_w = stride * (ho - 1) + 1, stride * (wo - 1) + 1
    dx = jnp.zeros((b, h + 2 * padding, w + 2 * padding, c), g.dtype)
    for i, j in itertools.product(range(kh), range(kw)):
        dx = dx.at[:, i : i + span_h : stride, j : j + span_w : stride].add(rows[:, :, :, i, j])
    return dx[:, padding : padding + h, padding : padding + w]


def _xla_kernel_gradient(
    x: Array, g: Array, kernel_shape: Sequence[int], stride: int, padding: int
) -> Array:
    kernel = jax.ShapeDtypeStruct(tuple(kernel_shape), x.dtype)
    (dk,) = jax.linear_transpose(lambda k: _xla_conv(x, k, stride, padding), kernel)(g)
    return dk


def _dot_kernel_gradient(
    x: Array, g: Array, kernel_shape: Sequence[int], stride: int, padding: int
) -> Array:
    """Return the kernel's gradient, [kh, kw, c, o], as kh matrix products: on a CPU, XLA's own
    convolution is slow for it."""
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
        # XLA's strided one takes up to eighty times as long in float64.
        slow = g.dtype == jnp.float64 and stride > 1
        input_gradient = _dot_input_gradient if slow else _input_gradient
        return input_gradient(x.shape, kernel, g, stride, padding), dk

    cpu = winograd_gradients if winograd_pays(x, kernel, stride, padding) else dots
    gradients: tuple[Array, Array] = jax.lax.platform_dependent(x, kernel, g, cpu=cpu, default=xla)
    return gradients


_spatial_conv.defvjp(_spatial_conv_fwd, _spatial_conv_bwd)


def _dot_conv(x: Array, kernel: Array, stride: int) -> Array:
    return jnp.dot(x[:, ::stride, ::stride], kernel[0, 0])


def _gpu_pointwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    """Apply a 1x1 kernel as a matrix product, unless its operand would be a strided slice.

    While XLA of jaxlib 0.11.2 fuses such a slice with the product, it ends the process for some
    sizes (openxla/xla issue 47381: "Check failed: subdim_size_accumulator == dim_size").
    """
    return _dot_conv(x, kernel, stride) if stride == 1 else _xla_conv(x, kernel, stride, padding=0)


def _gpu_pointwise_conv_apart(x: Array, kernel: Array, stride: int) -> Array:
    """Apply a 1x1 kernel, for a batch normalisation in training mode.

    XLA joins the normalisation's two sums in one kernel, but not if the array is the output of a
    matrix product that it generated itself: then each sum reads it. Behind a barrier, which is
    removed after fusion and costs nothing, it does. The barrier is behind the product's rows: with
    one behind the map, XLA found no tiles for the next product of 256 images.
    """
    if stride > 1:
        return _gpu_pointwise_conv(x, kernel, stride)
    rows = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0])
    return jax.lax.optimization_barrier(rows).reshape(*x.shape[:-1], -1)


def _pointwise_conv_by_platform(
    x: Array, kernel: Array, stride: int, gpu: Callable[..., Array]
) -> Array:
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_dot_conv, stride=stride),
        tpu=functools.partial(_xla_conv, stride=stride, padding=0),
        default=functools.partial(gpu, stride=stride),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pointwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    return _pointwise_conv_by_platform(x, kernel, stride, _gpu_pointwise_conv)


def _pointwise_conv_fwd(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    y = _pointwise_conv_by_platform(x, kernel, stride, _gpu_pointwise_conv_apart)
    return y, (x, kernel)


def _dot_gradients(x: Array, kernel: Array, g: Array, stride: int) -> tuple[Array, Array]:
    """Return the gradients of `_dot_conv`: of the input, [b, h, w, c], and of the kernel.

    The kernel's is inputᵀ · cotangent. Automatic differentiation gives cotangentᵀ · input, for
    which XLA transposes every cotangent, element by element, on a CPU.
    """
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
        default=automatic(functools.partial(_gpu_pointwise_conv, stride=stride)),
    )
    return gradients


_pointwise_conv.defvjp(_pointwise_conv_fwd, _pointwise_conv_bwd)


# Jitted, so that layers of one shape are traced once: a quarter of the time to trace a step.
@functools.partial(jax.jit, static_argnames=("stride", "padding"))
def conv2d(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"], *, stride: int, padding: int
) -> Float[Array, "b ho wo o"]:
    """Convolve with the same stride and zero padding in both directions, as PyTorch's `conv2d`.

    A 1x1 kernel is applied as a matrix product, except on a TPU and, with a stride, on a GPU. This
    halves a ResNet-50 step on a CPU and makes no difference on a GPU; on a TPU, product and
    convolution need different layouts, so that a product between 3x3 convolutions would need
    copies. On a CPU, wide 3x3 convolutions use Winograd's filtering (`winograd.py`).

    Args:
        x: input, [b, h, w, c], of the kernel's dtype.
        kernel: weights, [kh, kw, c, o].
        stride: step in pixels.
        padding: zeros added to each side.

    Returns:
        The output in the dtype of `x`, with ho = (h + 2 padding - kh) // stride + 1, wo likewise.
    """
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return _pointwise_conv(x, kernel, stride)
    return _spatial_conv(x, kernel, stride, padding)


def _resnet_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Draw a kernel, [kh, kw, c, o], from N(0, 2 / (kh kw o)).

    The draw is flat and reshaped, with the same values: XLA unrolls the loops of a small 4-D draw
    on a CPU, and takes a second to compile it.
    """
    kh, kw, _, out = shape
    flat = jax.random.normal(key, (math.prod(shape),), dtype)
    return flat.reshape(shape) * (2 / (kh * kw * out)) ** 0.5


class Conv(nn.Module):
    """2-D convolution without bias, with `kernel_size // 2` zeros of padding.

    The kernel is initialised from N(0, 2 / (k² o)) for kernel size k and o output channels, as in
    ResNet (He et al., 2015). It is stored in at least float32 and applied in `dtype`, which is the
    dtype of the output.
    """

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
