"""Convolution, pooling and batch normalisation: the one place that knows how to lower them well.

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


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """float32 for anything narrower, else `dtype`: for statistics, losses and softmaxes."""
    return jnp.promote_types(dtype, jnp.float32)


# ------------------------------------------------------------------------------- convolution


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


# Winograd's minimal filtering F(2 x 2, 3 x 3) (Lavin and Gray, CVPR 2016, section 4.1): an output
# tile of 2 x 2 from an input tile of 4 x 4 with 16 multiplications instead of 36. The matrices of
# that section, in its names; transposed, they serve the kernel's gradient too.
_B_T = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A_T = ((1, 1, 1, 0), (0, 1, -1, -1))

_WINOGRAD_CHANNELS = 64
_WINOGRAD_WORK = 5_000_000
"""Pixels of an image times channels in and out. With less, or with fewer channels, the transforms
cost as much as the products that they save."""

_Matrix = Sequence[Sequence[float]]
_Grid = Sequence[Sequence[Array]]


def _winograd_pays(x: Array, kernel: Array, stride: int, padding: int) -> bool:
    """On a CPU. Not in narrow dtypes, whose rounding the transforms would multiply; and whatever
    the batch, so that an image's features depend neither on its size nor on how many share it."""
    kh, kw, c, o = kernel.shape
    fits = (kh, kw, stride, padding) == (3, 3, 1, 1) and x.dtype == at_least_float32(x.dtype)
    work = math.prod(x.shape[1:]) * o
    return fits and min(c, o) >= _WINOGRAD_CHANNELS and work >= _WINOGRAD_WORK


def _transposed(matrix: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    return list(zip(*matrix, strict=True))


def _transform(matrix: _Matrix, grid: _Grid) -> _Grid:
    """matrix . grid . matrix^T, of arrays as entries."""

    def times(grid: _Grid) -> _Grid:
        return [
            [
                functools.reduce(jnp.add, (f * a for f, a in zip(row, column, strict=True) if f))
                for column in _transposed(grid)
            ]
            for row in matrix
        ]

    return _transposed(times(_transposed(times(grid))))


def _tiles(x: Array, size: int, before: int) -> _Grid:
    """Pixel i, j of all tiles of `size` x `size`, (tiles, c) each.

    Tiles are 2 pixels apart and cover the image; the first begins `before` pixels before it, and
    zeros lie around it.
    """
    _, h, w, c = x.shape
    down, across = -(h // -2), -(w // -2)
    after = size - 2 - before
    padding = [(before, 2 * down - h + after), (before, 2 * across - w + after)]
    # Once, not in each of the transforms that read it (parallel.py has XLA heed this).
    x = jax.lax.optimization_barrier(jnp.pad(x, [(0, 0), *padding, (0, 0)]))
    return [
        [
            x[:, i : i + 2 * down - 1 : 2, j : j + 2 * across - 1 : 2].reshape(-1, c)
            for j in range(size)
        ]
        for i in range(size)
    ]


def _products(left: _Grid, right: _Grid, product: Callable[[Array, Array], Array]) -> _Grid:
    """Entry by entry: sixteen of their own, since to stack them costs more than one call saves."""
    return [
        [product(a, b) for a, b in zip(*rows, strict=True)]
        for rows in zip(left, right, strict=True)
    ]


def _winograd(x: Array, kernels: _Grid) -> Array:
    """The convolution, its kernel transformed already."""
    b, h, w, _ = x.shape
    products = _products(_transform(_B_T, _tiles(x, 4, before=1)), kernels, jnp.dot)
    down, across = -(h // -2), -(w // -2)
    rows = [
        jnp.stack([a.reshape(b, down, across, -1) for a in row], 3)
        for row in _transform(_A_T, products)
    ]
    return jnp.stack(rows, 2).reshape(b, 2 * down, 2 * across, -1)[:, :h, :w]


def _winograd_conv(x: Array, kernel: Array) -> Array:
    return _winograd(x, _transform(_G, list(map(list, kernel))))


def _winograd_gradients(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
    # The input's: the cotangent convolved with the kernel turned about, which swaps the first and
    # last of its transforms. Turned before them, each of the sixteen would do it anew.
    kernels = _transform(_G, list(map(list, kernel)))
    turned = [[kernels[i][j].T for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]
    dx = _winograd(g, turned)

    def over_tiles(a: Array, b: Array) -> Array:
        return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())))

    inputs = _transform(_B_T, _tiles(x, 4, before=1))
    cotangents = _transform(_transposed(_A_T), _tiles(g, 2, before=0))
    dk = _transform(_transposed(_G), _products(inputs, cotangents, over_tiles))
    return dx, jnp.stack([jnp.stack(row) for row in dk])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _spatial_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    xla = functools.partial(_xla_conv, stride=stride, padding=padding)
    if not _winograd_pays(x, kernel, stride, padding):
        return xla(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_winograd_conv, default=xla)


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

    cpu = _winograd_gradients if _winograd_pays(x, kernel, stride, padding) else dots
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


# ------------------------------------------------------------------------------------ pooling

_WINDOW, _STRIDE = 3, 2


def _pool_slices(x: Array) -> list[Array]:
    """The nine shifted views whose maximum is the 3x3/2 pool of an already padded `x`."""
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
    """3x3 maximum pooling, stride 2, padding 1: ResNet's stem.

    The gradient goes to the first maximum of a window in row-major order, as in PyTorch; written
    out as nine masked slices, since XLA's select-and-scatter is several times slower on a CPU. On
    a TPU, where each slice would be a copy of its own, XLA's is the better one.
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


def stripe_matrix(height: int, parts: int, dtype: DTypeLike) -> Float[Array, "p h"]:
    """Row weights that average a map of `height` rows into `parts` stripes, with adaptive bins.

    Stripe i covers rows floor(i*h/p) ... ceil((i+1)*h/p) - 1, so stripes overlap where p does not
    divide h (PyTorch's adaptive pooling).

    >>> stripe_matrix(3, 2, jnp.float32).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    row = jnp.arange(height)[None]
    index = jnp.arange(parts)[:, None]
    start, stop = index * height // parts, -((index + 1) * height // -parts)
    return ((row >= start) & (row < stop)) / (stop - start).astype(dtype)


# ------------------------------------------------------------------------ batch normalisation


def _over_devices(value: Array, axis_name: str | None) -> Array:
    return value if axis_name is None else jax.lax.pmean(value, axis_name)


def _moments(x: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Mean and biased variance of each channel over all other axes and all devices, in one pass."""
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
    """Batch normalisation by the batch's own statistics, over all devices of `axis_name`.

    Returns the normalised `x` in its own dtype, and mean and biased variance, at least float32.
    Gradients flow through the first only. The gradient is written by hand: it reads the
    activation and its cotangent once for the two sums and once for the result.
    """
    return _normalise_batch(x, scale, bias, epsilon, axis_name)


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's arithmetic: epsilon 1e-5, momentum 0.9 in Flax's sense,
    the running variance unbiased (n / (n - 1)).

    Parameters `scale` and (with `use_bias`) `bias`; running `mean` and `var` in the collection
    `batch_stats`. In training mode the statistics are those of the whole batch over the devices of
    `axis_name`; None means that one device has it all.
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
