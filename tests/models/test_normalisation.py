"""Batch normalisation against PyTorch, in float64, on one device and over several."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, PartitionSpec
from torch import nn

from ddag_jax.models.normalisation import BatchNorm, normalise_batch
from tests.models.torch_modules import assert_close, normal, to_ours, to_torch


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
            x = 2 + 3 * normal(10 + step, 2, 3, 2, 3)  # 12 values a channel: n / (n - 1) matters
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
    """Output, gradients and running statistics; the caller sums the parameters' gradients."""
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
    """4,096 values, whose sum bfloat16 could not represent."""
    x = jnp.array(3 + normal(0, 4096, 2), jnp.bfloat16)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)
    y, changed = apply_norm(norm, variables, x, True)
    wide = np.asarray(x, np.float64)
    chex.assert_type(y, jnp.bfloat16)
    chex.assert_type(jax.tree.leaves((variables, changed)), jnp.float32)
    stats = changed["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * wide.var(0, ddof=1), rtol=1e-5)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-4)


def test_batch_norm_of_one_value_a_channel() -> None:
    """n / (n - 1) is undefined for n = 1; the running variance stays finite."""
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
