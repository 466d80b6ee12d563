"""Max-pooling and stripe averages against PyTorch, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch import nn

from ddag_jax.models.pooling import Pooling, max_pool_3x3_2, stripe_matrix
from tests.models.torch_modules import assert_close, normal, to_ours, to_torch


@pytest.mark.parametrize("values", ["ties", "negative", "normal", "relu"])
@pytest.mark.parametrize("size", [(8, 6), (9, 7), (5, 8)], ids=["even", "odd", "mixed"])
def test_max_pool_as_pytorch(size: tuple[int, int], values: str) -> None:
    """All cotangents differ, so that a gradient sent to the wrong one of equal maxima is found."""
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


@pytest.mark.parametrize("power", [3.0, 2.5])
@pytest.mark.parametrize("kind", ["gem", "gem-learnable"])
def test_gem_by_its_definition(kind: str, power: float) -> None:
    """Also where a channel is 0 all over, as ReLU leaves some: value and gradient are finite."""
    x = np.maximum(normal(0, 2, 4, 3, 5), 0)
    x[0, :, :, 1] = 0
    with jax.enable_x64(True):
        pooling = Pooling(kind, power)
        variables = pooling.init(jax.random.key(0), jnp.asarray(x))
        gradient = jax.grad(lambda x: (pooling.apply(variables, x) ** 2).sum())(jnp.asarray(x))
        ours = pooling.apply(variables, jnp.asarray(x))
    if kind == "gem":
        assert not variables
        expected = ((x**power).mean((1, 2)) + 1e-12) ** (1 / power)
    else:
        assert float(variables["params"]["power"]) == power
        expected = (np.maximum(x, 1e-6) ** power).mean((1, 2)) ** (1 / power)
    assert_close(ours, expected)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("power", [1.0, 8.0])
def test_learnable_gem_has_gradients_in_float32(power: float) -> None:
    """Where a channel is 0 all over, also if 1e-6 to that power is below the smallest number."""
    x = jnp.asarray(np.maximum(normal(0, 2, 4, 3, 5), 0), jnp.float32).at[0, :, :, 1].set(0)
    value, gradients = jax.value_and_grad(
        lambda p, x: Pooling("gem-learnable").apply({"params": {"power": p}}, x).sum(), (0, 1)
    )(power, x)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_the_power_learns() -> None:
    pooling, x = Pooling("gem-learnable"), jnp.asarray(np.abs(normal(0, 2, 4, 3, 5)))
    gradient = jax.grad(lambda p: pooling.apply({"params": {"power": p}}, x).sum())(3.0)
    assert gradient > 0  # a higher power is nearer to the maximum
