"""Winograd's filtering against PyTorch in float64, its float32 rounding, and where it is used."""

import functools
from collections.abc import Callable

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from ddag_jax.models import convolution, winograd
from ddag_jax.models.convolution import conv2d
from tests.models.torch_modules import assert_close, normal, to_ours, to_torch

ROUNDING = 4.0
"""Bound of the ratio of rounding errors, Winograd's to the plain convolution's. Measured on a CPU
with AVX-512: 0.4 to 2.1, growing with the number of channels."""

RESNET50 = [(72, 36, 64), (36, 18, 128), (18, 9, 256), (18, 9, 512)]
"""Height, width and channels of the 3x3 convolutions of stride 1 in stages 1 to 4 of ResNet-50, for
images of 288 x 144 pixels."""


def convolution_and_gradients(
    convolve: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    g: jax.Array,
) -> tuple[jax.Array, ...]:
    """Return output, input gradient and kernel gradient."""
    y, pull = jax.vjp(convolve, x, kernel)
    return y, *pull(g)


@pytest.mark.parametrize("size", [(48, 26), (37, 35), (36, 37)], ids=["even", "odd", "mixed"])
def test_winograd_as_pytorch(size: tuple[int, int]) -> None:
    x, kernel = normal(0, 2, *size, 64), normal(1, 3, 3, 64, 96)
    assert winograd.winograd_pays(jnp.array(x), jnp.array(kernel), 1, 1)
    x_torch = to_torch(x).requires_grad_()
    kernel_torch = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    theirs = nn.functional.conv2d(x_torch, kernel_torch, padding=1)
    g = normal(2, *to_ours(theirs).shape)
    theirs.backward(to_torch(g))
    convolve = functools.partial(conv2d, stride=1, padding=1)
    with jax.enable_x64(True):
        arrays = (jnp.array(array) for array in (x, kernel, g))
        y, dx, dk = convolution_and_gradients(convolve, *arrays)
    assert_close(y, to_ours(theirs))
    assert_close(dx, to_ours(x_torch.grad))
    assert_close(dk, kernel_torch.grad.numpy().transpose(2, 3, 1, 0))


@pytest.mark.parametrize(("height", "width", "channels"), RESNET50, ids=str)
def test_winograd_rounds_as_the_plain_convolution(height: int, width: int, channels: int) -> None:
    """Compare both float32 errors, relative to float64, on inputs such as training has: activations
    after ReLU and kernels as they are initialised."""
    x = np.maximum(normal(0, 2, height, width, channels), 0).astype(np.float32)
    kernel = normal(1, 3, 3, channels, channels) * (2 / (9 * channels)) ** 0.5
    arrays = x, kernel.astype(np.float32), normal(2, *x.shape).astype(np.float32)
    assert winograd.winograd_pays(jnp.array(x), jnp.array(arrays[1]), 1, 1)

    ways = {
        "plain": functools.partial(convolution._xla_conv, stride=1, padding=1),
        "winograd": functools.partial(conv2d, stride=1, padding=1),
    }
    with jax.enable_x64(True):
        plain = jax.jit(functools.partial(convolution_and_gradients, ways["plain"]))
        exact = plain(*(array.astype(np.float64) for array in arrays))
        chex.assert_type(exact, np.float64)

    def errors(way: str) -> list[float]:
        found = jax.jit(functools.partial(convolution_and_gradients, ways[way]))(*arrays)
        chex.assert_type(found, np.float32)
        return [
            float(np.linalg.norm(np.float64(one) - np.asarray(true)) / np.linalg.norm(true))
            for one, true in zip(found, exact, strict=True)
        ]

    ratios = np.divide(errors("winograd"), errors("plain"))
    assert (ratios < ROUNDING).all(), f"output, input and kernel gradient: {ratios}"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_winograd_is_for_wide_maps_on_a_cpu(dtype: jnp.dtype) -> None:
    def convolutions(platform: str, channels: int) -> int:
        x = jax.ShapeDtypeStruct((1, 36, 36, channels), dtype)
        kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), dtype)
        function = jax.jit(functools.partial(conv2d, stride=1, padding=1))
        exported = jax.export.export(function, platforms=[platform])(x, kernel)
        return exported.mlir_module().count("stablehlo.convolution")

    assert convolutions("cpu", 64) == (0 if dtype == jnp.float32 else 1)
    assert convolutions("cpu", 32) == convolutions("tpu", 64) == convolutions("cuda", 64) == 1
