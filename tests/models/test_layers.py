"""Convolution, pooling and batch normalisation against PyTorch, in float64."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, PartitionSpec
from torch import nn

from ddag_jax.models import convolution, winograd
from ddag_jax.models.convolution import conv2d
from ddag_jax.models.normalisation import BatchNorm, normalise_batch
from ddag_jax.models.pooling import max_pool_3x3_2, stripe_matrix
from tests.models.torch_modules import assert_close, to_ours, to_torch


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# ------------------------------------------------------------------------------- convolution


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
        assert {y.dtype, dx.dtype, dk.dtype} == {jnp.dtype(jnp.float64)}
    assert_close(y, to_ours(theirs))
    assert_close(dx, to_ours(x_torch.grad))
    assert_close(dk, kernel_torch.grad.numpy().transpose(2, 3, 1, 0))


@pytest.mark.parametrize("size", [(8, 6), (9, 7)], ids=["even", "odd"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (7, 2)], ids=str)
def test_both_kernel_gradients_agree(kernel_size: int, stride: int, size: tuple[int, int]) -> None:
    """That of a CPU, and that of every other platform, which no CPU runs of itself."""
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


@pytest.mark.parametrize("size", [(48, 26), (37, 35), (36, 37)], ids=["even", "odd", "mixed"])
def test_winograd_as_pytorch(size: tuple[int, int]) -> None:
    """Of as many channels as it takes, for a CPU, in float64: the same but for rounding."""
    x, kernel = normal(0, 2, *size, 64), normal(1, 3, 3, 64, 96)
    assert winograd.winograd_pays(jnp.array(x), jnp.array(kernel), 1, 1)
    x_torch = to_torch(x).requires_grad_()
    kernel_torch = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    theirs = nn.functional.conv2d(x_torch, kernel_torch, padding=1)
    g = normal(2, *to_ours(theirs).shape)
    theirs.backward(to_torch(g))

    with jax.enable_x64(True):
        convolve = functools.partial(conv2d, stride=1, padding=1)
        y, pull = jax.vjp(convolve, jnp.array(x), jnp.array(kernel))
        dx, dk = pull(jnp.array(g))
    assert_close(y, to_ours(theirs))
    assert_close(dx, to_ours(x_torch.grad))
    assert_close(dk, kernel_torch.grad.numpy().transpose(2, 3, 1, 0))


def test_winograd_rounds_as_a_convolution_does() -> None:
    """In float32, on the published network's widest 3x3 convolution: within a few times the
    rounding of the plain one."""
    x, kernel = normal(0, 1, 18, 9, 512), normal(1, 3, 3, 512, 512)
    exact = nn.functional.conv2d(to_torch(x), torch.tensor(kernel.transpose(3, 2, 0, 1)), padding=1)
    narrow = jnp.array(x, jnp.float32), jnp.array(kernel, jnp.float32)
    assert winograd.winograd_pays(*narrow, 1, 1)
    fast, plain = (
        np.abs(np.asarray(convolve(*narrow, 1, 1)) - to_ours(exact)).max()
        for convolve in (convolution._spatial_conv, convolution._xla_conv)
    )
    assert fast < 8 * plain


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


def test_lowering_follows_the_platform_compiled_for() -> None:
    """Not the platform compiled on: elsewhere than on a CPU all three are convolutions."""
    gradients = jax.jit(
        jax.grad(lambda x, k: conv2d(x, k, stride=1, padding=1).sum(), argnums=(0, 1))
    )
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 2))

    def convolutions(platform: str) -> int:
        exported = jax.export.export(gradients, platforms=[platform])(x, kernel)
        return exported.mlir_module().count("stablehlo.convolution")

    assert convolutions("cpu") + 1 == convolutions("tpu") == convolutions("cuda")


# ------------------------------------------------------------------------------------ pooling


@pytest.mark.parametrize("values", ["ties", "negative", "normal", "relu"])
@pytest.mark.parametrize("size", [(8, 6), (9, 7), (5, 8)], ids=["even", "odd", "mixed"])
def test_max_pool_as_pytorch(size: tuple[int, int], values: str) -> None:
    """Every contribution to the gradient is another number, so a wrong winner of a tie shows."""
    x = {
        "ties": lambda x: np.round(x),
        "negative": lambda x: -1 - np.abs(x),  # below the padding, were it zeros
        "normal": lambda x: x,
        "relu": lambda x: np.maximum(x, 0),
    }[values](normal(0, 2, *size, 3))
    x_torch = to_torch(x).requires_grad_()
    theirs = nn.functional.max_pool2d(x_torch, 3, 2, 1)
    g = normal(1, *to_ours(theirs).shape)
    theirs.backward(to_torch(g))
    with jax.enable_x64(True):
        y, pull = jax.jit(lambda x: jax.vjp(max_pool_3x3_2, x))(x)
        (dx,) = jax.jit(pull)(jnp.array(g))
    np.testing.assert_array_equal(y, to_ours(theirs))
    assert_close(dx, to_ours(x_torch.grad))


@pytest.mark.parametrize(
    ("height", "parts"), [(18, 3), (18, 4), (9, 2), (7, 3), (5, 4), (3, 5)], ids=str
)
def test_stripes_as_pytorch(height: int, parts: int) -> None:
    x = normal(0, 2, height, 3, 4)
    theirs = nn.functional.adaptive_avg_pool2d(to_torch(x), (parts, 1))
    with jax.enable_x64(True):
        ours = jnp.einsum("ph,bhc->bpc", stripe_matrix(height, parts, jnp.float64), x.mean(2))
    assert_close(ours, to_ours(theirs)[:, :, 0])


# ------------------------------------------------------------------------ batch normalisation


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply_norm(norm: BatchNorm, variables: dict, x: jax.Array, train: bool) -> tuple:
    return norm.apply(variables, x, train, mutable=["batch_stats"])


@pytest.mark.parametrize("use_bias", [True, False])
def test_batch_norm_as_pytorch(use_bias: bool) -> None:
    """Three batches in training mode, then one in evaluation mode."""
    scale, bias = normal(0, 3), normal(1, 3) * use_bias
    module = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor(scale))
        module.bias.copy_(torch.tensor(bias))
    params = {"scale": scale} | ({"bias": bias} if use_bias else {})
    norm = BatchNorm(use_bias=use_bias)
    with jax.enable_x64(True):
        stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
        for step in range(3):
            x = 2 + 3 * normal(10 + step, 2, 3, 2, 3)  # 12 values a channel: unbiased shows
            theirs = module(to_torch(x))
            ours, changed = apply_norm(norm, {"params": params, "batch_stats": stats}, x, True)
            stats = changed["batch_stats"]
            assert_close(ours, to_ours(theirs))
            assert_close(stats["mean"], module.running_mean)
            assert_close(stats["var"], module.running_var)
        module.eval()
        ours, changed = apply_norm(norm, {"params": params, "batch_stats": stats}, x, False)
        assert_close(ours, to_ours(module(to_torch(x))))
        np.testing.assert_array_equal(changed["batch_stats"]["mean"], stats["mean"])


def torch_norm_gradients(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, g: np.ndarray) -> list:
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, scale, bias)]
    y = nn.functional.batch_norm(tensors[0], None, None, *tensors[1:], training=True)
    y.backward(torch.tensor(g))
    return [y.detach(), *(tensor.grad for tensor in tensors)]


def norm_and_gradients(
    x: jax.Array, scale: jax.Array, bias: jax.Array, g: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, ...]:
    y, pull = jax.vjp(lambda *a: normalise_batch(*a, 1e-5, axis_name)[0], x, scale, bias)
    return y, *pull(g)


def test_batch_norm_gradients_as_pytorch() -> None:
    arguments = 1 + normal(0, 12, 3), normal(1, 3), normal(2, 3), normal(3, 12, 3)
    with jax.enable_x64(True):
        ours = jax.jit(norm_and_gradients)(*arguments)
    for one, other in zip(ours, torch_norm_gradients(*arguments), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("devices", [2, 4])
def test_batch_norm_over_devices_is_that_of_the_whole_batch(devices: int) -> None:
    """Values, gradients, running statistics; the parameters' gradients are summed by the caller."""
    arguments = 1 + normal(0, 12, 3), normal(1, 3), normal(2, 3), normal(3, 12, 3)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    data, whole = PartitionSpec("data"), PartitionSpec()
    norm = BatchNorm(axis_name="data")

    def on_one_device(x: jax.Array, scale: jax.Array, bias: jax.Array, g: jax.Array) -> tuple:
        y, dx, *dparams = norm_and_gradients(x, scale, bias, g, "data")
        variables = {
            "params": {"scale": scale, "bias": bias},
            "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
        }
        stats = norm.apply(variables, x, True, mutable=["batch_stats"])[1]["batch_stats"]
        return y, dx, *jax.lax.psum(dparams, "data"), stats["mean"], stats["var"]

    with jax.enable_x64(True):
        *ours, mean, var = jax.jit(
            jax.shard_map(
                on_one_device,
                mesh=mesh,
                in_specs=(data, whole, whole, data),
                out_specs=(data, data, whole, whole, whole, whole),
                check_vma=False,
            )
        )(*arguments)
    for one, other in zip(ours, torch_norm_gradients(*arguments), strict=True):
        assert_close(one, other)
    assert_close(mean, 0.1 * arguments[0].mean(0))
    assert_close(var, 0.9 + 0.1 * arguments[0].var(0, ddof=1))


def test_batch_norm_statistics_of_bfloat16_are_float32() -> None:
    """Means and squares of 4,096 values that bfloat16 could not add up."""
    x = jnp.array(3 + normal(0, 4096, 2), jnp.bfloat16)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)
    y, changed = apply_norm(norm, variables, x, True)
    wide = np.asarray(x, np.float64)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, changed))} == {
        jnp.dtype(jnp.float32)
    }
    stats = changed["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * wide.var(0, ddof=1), rtol=1e-5)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-4)


def test_batch_norm_of_one_value_a_channel() -> None:
    """n / (n - 1) has no meaning there: the running variance stays finite."""
    _, changed = apply_norm(
        BatchNorm(),
        {
            "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
            "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
        },
        jnp.ones((1, 3)),
        True,
    )
    np.testing.assert_allclose(changed["batch_stats"]["var"], 0.9)
