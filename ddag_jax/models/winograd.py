"""3x3 convolution and its gradients by Winograd's minimal filtering, for CPUs.

F(2 x 2, 3 x 3) of Lavin and Gray (CVPR 2016, section 4.1) computes an output tile of 2 x 2 from an
input tile of 4 x 4 with 16 multiplications instead of 36. In float32, on the layers of ResNet-50,
its rounding error is 0.4 to 2.1 times the plain convolution's (tests/models/test_winograd.py).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddag_jax.models.precision import at_least_float32

# The matrices of that section, under its names. Transposed, they also give the kernel's gradient.
_B_T = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A_T = ((1, 1, 1, 0), (0, 1, -1, -1))

_WINOGRAD_CHANNELS = 64
_WINOGRAD_WORK = 5_000_000
"""Pixels of an image times input and output channels. Below it, or below _WINOGRAD_CHANNELS, the
transforms cost as much as the products that they save."""

_Matrix = Sequence[Sequence[float]]
_Grid = Sequence[Sequence[Array]]


def winograd_pays(x: Array, kernel: Array, stride: int, padding: int) -> bool:
    """Return whether Winograd's filtering is faster for this convolution on a CPU.

    False for dtypes below float32, whose rounding error the transforms would multiply. Independent
    of the batch size, so that an image's features do not depend on the batch.
    """
    kh, kw, c, o = kernel.shape
    fits = (kh, kw, stride, padding) == (3, 3, 1, 1) and x.dtype == at_least_float32(x.dtype)
    work = math.prod(x.shape[1:]) * o
    return fits and min(c, o) >= _WINOGRAD_CHANNELS and work >= _WINOGRAD_WORK


def _transposed(matrix: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    return list(zip(*matrix, strict=True))


def _transform(matrix: _Matrix, grid: _Grid) -> _Grid:
    """Return matrix · grid · matrixᵀ, where the entries of `grid` are arrays."""

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
    """Return pixel (i, j) of all tiles of `size` x `size` pixels, [tiles, c] each.

    The tiles start 2 pixels apart and cover the image, padded with zeros; the first starts `before`
    pixels outside it.
    """
    _, h, w, c = x.shape
    down, across = -(h // -2), -(w // -2)
    after = size - 2 - before
    padding = [(before, 2 * down - h + after), (before, 2 * across - w + after)]
    # Computed once, not in each of the transforms (parallel.py makes XLA keep the barrier on CPUs).
    x = jax.lax.optimization_barrier(jnp.pad(x, [(0, 0), *padding, (0, 0)]))
    return [
        [
            x[:, i : i + 2 * down - 1 : 2, j : j + 2 * across - 1 : 2].reshape(-1, c)
            for j in range(size)
        ]
        for i in range(size)
    ]


def _products(left: _Grid, right: _Grid, product: Callable[[Array, Array], Array]) -> _Grid:
    """Return the products entry by entry: stacking the sixteen costs more than it saves."""
    return [
        [product(a, b) for a, b in zip(*rows, strict=True)]
        for rows in zip(left, right, strict=True)
    ]


def _winograd(x: Array, kernels: _Grid) -> Array:
    """Return the convolution, [b, h, w, o], given the transformed kernel."""
    b, h, w, _ = x.shape
    products = _products(_transform(_B_T, _tiles(x, 4, before=1)), kernels, jnp.dot)
    down, across = -(h // -2), -(w // -2)
    rows = [
        jnp.stack([a.reshape(b, down, across, -1) for a in row], 3)
        for row in _transform(_A_T, products)
    ]
    return jnp.stack(rows, 2).reshape(b, 2 * down, 2 * across, -1)[:, :h, :w]


def winograd_conv(x: Array, kernel: Array) -> Array:
    """Return the convolution with stride 1 and padding 1.

    Args:
        x: input, [b, h, w, c].
        kernel: weights, [3, 3, c, o], of the same dtype.

    Returns:
        The output, [b, h, w, o], of the same dtype.
    """
    return _winograd(x, _transform(_G, list(map(list, kernel))))


def winograd_gradients(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
    """Return the gradients of `winograd_conv` with respect to input and kernel.

    Args:
        x: input, [b, h, w, c].
        kernel: weights, [3, 3, c, o].
        g: cotangent of the output, [b, h, w, o].

    Returns:
        The gradients of `x` and `kernel`, in their shapes.
    """
    # The input's gradient convolves the cotangent with the kernel rotated by 180 degrees. Rotating
    # swaps the first and last of the transforms; rotating before them would be done sixteen times.
    kernels = _transform(_G, list(map(list, kernel)))
    turned = [[kernels[i][j].T for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]
    dx = _winograd(g, turned)

    def over_tiles(a: Array, b: Array) -> Array:
        return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())))

    inputs = _transform(_B_T, _tiles(x, 4, before=1))
    cotangents = _transform(_transposed(_A_T), _tiles(g, 2, before=0))
    dk = _transform(_transposed(_G), _products(inputs, cotangents, over_tiles))
    return dx, jnp.stack([jnp.stack(row) for row in dk])
