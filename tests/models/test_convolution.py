"""Convolution and its gradients against PyTorch, in float64, and its lowering by platform."""

import functools

import chex
import jax
import jax.export
import jax.numpy as jnp
import pytest
import torch
from torch import nn

from ddag_jax.models import convolution
from ddag_jax.models.convolution import conv2d
from tests.models.torch_modules import assert_close, normal, to_ours, to_torch


@pytest.mark.parametrize("size", [(8, 6), (9, 7), (8, 7)], ids=["even", "odd", "mixed"])
@pytest.mark.parametrize(
    ("kernel_size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)], ids=str
)
def test_convolution_as_pytorch(kernel_size: int, stride: int, size: tuple[int, int]) -> None:
    padding = kernel_size // 2
    x = normal(0, 2, *size, 3)
    kernel = normal(1, kernel_size, kernel_size, 3, 4)
    x_torch = to_torch(x).requires_grad_()
    kernel_torch = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    theirs = nn.functional.conv2d(x_torch, kernel_torch, stride=stride, padding=padding)
    g = normal(2, *to_ours(theirs).shape)
    theirs.backward(to_torch(g))

    @jax.jit
    def ours(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        y, pull = jax.vjp(functools.partial(conv2d, stride=stride, padding=padding), x, kernel)
        return y, *pull(g)

    with jax.enable_x64(True):
        y, dx, dk = ours(x, kernel, g)
        chex.assert_type([y, dx, dk], jnp.float64)
    assert_close(y, to_ours(theirs))
    assert_close(dx, to_ours(x_torch.grad))
    assert_close(dk, kernel_torch.grad.numpy().transpose(2, 3, 1, 0))


@pytest.mark.parametrize("size", [(8, 6), (9, 7)], ids=["even", "odd"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (7, 2)], ids=str)
def test_both_kernel_gradients_agree(kernel_size: int, stride: int, size: tuple[int, int]) -> None:
    """The CPU's kernel gradient, and the one that all other platforms use."""
    with jax.enable_x64(True):
        x = jnp.array(normal(0, 2, *size, 3))
        shape = (kernel_size, kernel_size, 3, 4)
        kernel = jnp.array(normal(1, *shape))
        y = conv2d(x, kernel, stride=stride, padding=kernel_size // 2)
        arguments = (x, jnp.array(normal(2, *y.shape)), shape, stride, kernel_size // 2)
        ours, default = (
            jax.jit(f, static_argnums=(2, 3, 4))(*arguments)
            for f in (convolution._dot_kernel_gradient, convolution._xla_kernel_gradient)
        )
    assert_close(ours, default)


def test_lowering_follows_the_platform_compiled_for() -> None:
    """Output and both gradients are convolutions; on a CPU, the kernel gradient is not."""
    gradients = jax.jit(
        jax.grad(lambda x, k: conv2d(x, k, stride=1, padding=1).sum(), argnums=(0, 1))
    )
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 2))

    def convolutions(platform: str) -> int:
        exported = jax.export.export(gradients, platforms=[platform])(x, kernel)
        return exported.mlir_module().count("stablehlo.convolution")

    assert convolutions("cpu") + 1 == convolutions("tpu") == convolutions("cuda")


@pytest.mark.parametrize(("stride", "products"), [(1, 3), (2, 0)])
def test_on_a_gpu_no_product_has_a_strided_operand(stride: int, products: int) -> None:
    """XLA ends the process at some of those; output and both gradients are convolutions instead."""

    @jax.jit
    def gradients(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        y, pull = jax.vjp(functools.partial(conv2d, stride=stride, padding=0), x, kernel)
        return y, *pull(g)

    x, kernel = jnp.zeros((1, 8, 4, 2)), jnp.zeros((1, 1, 2, 2))
    g = jnp.zeros((1, 8 // stride, 4 // stride, 2))
    module = jax.export.export(gradients, platforms=["cuda"])(x, kernel, g).mlir_module()
    assert module.count("stablehlo.dot_general") == products
    assert module.count("stablehlo.convolution") == 3 - products
    assert "stablehlo.slice" not in module


@pytest.mark.parametrize(("platform", "barriers"), [("cuda", 1), ("tpu", 0), ("cpu", 0)])
def test_a_gpu_has_a_barrier_behind_a_product_in_training_only(
    platform: str, barriers: int
) -> None:
    """Once, behind the output: elsewhere, and in an evaluation, it would keep XLA from fusing."""

    def training(x: jax.Array, kernel: jax.Array) -> tuple:
        y, pull = jax.vjp(functools.partial(conv2d, stride=1, padding=0), x, kernel)
        return y, *pull(y)

    def evaluation(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(x, kernel, stride=1, padding=0)

    x, kernel = jnp.zeros((1, 8, 4, 2)), jnp.zeros((1, 1, 2, 2))
    for function, expected in ((training, barriers), (evaluation, 0)):
        module = jax.export.export(jax.jit(function), platforms=[platform])(x, kernel).mlir_module()
        assert module.count("stablehlo.optimization_barrier") == expected
