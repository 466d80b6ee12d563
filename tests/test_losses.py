"""The losses against PyTorch and plain loops, and over several devices against one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, PartitionSpec

from ddag_jax.losses import batch_hard_triplet, cross_entropy

LABELS = np.array([0, 0, 1, 1, 2, 2, 3, 3])
BOUND = {"rtol": 1e-10, "atol": 1e-12}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def over_devices(function: Callable, devices: int) -> Callable:
    """`function(rows, labels)` on each device's share; what it gives is stacked over devices."""
    data = PartitionSpec("data")
    mapped = jax.jit(
        jax.shard_map(
            lambda *shares: jax.tree.map(lambda x: x[None], function(*shares)),
            mesh=Mesh(np.array(jax.devices()[:devices]), ("data",)),
            in_specs=data,
            out_specs=data,
            check_vma=False,
        )
    )
    return lambda *rows: jax.tree.map(np.asarray, mapped(*rows))


def test_cross_entropy_as_pytorch() -> None:
    logits = torch.tensor(3 * normal(0, 8, 5), requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS))
    theirs.backward()
    with jax.enable_x64(True):
        ours, gradient = jax.value_and_grad(cross_entropy)(
            jnp.array(logits.detach().numpy()), jnp.array(LABELS)
        )
    np.testing.assert_allclose(ours, theirs.item(), **BOUND)
    np.testing.assert_allclose(gradient, logits.grad, **BOUND)


# ----------------------------------------------------------------------------------- triplet


def torch_triplet(features: torch.Tensor, labels: np.ndarray, margin: float) -> torch.Tensor:
    """The reference's, an anchor at a time."""
    losses = []
    for anchor, label in zip(features, labels, strict=True):
        square = (anchor**2).sum() + (features**2).sum(1) - 2 * features @ anchor
        distance = square.clamp(min=1e-12).sqrt()
        same = torch.tensor(labels == label)
        losses.append(torch.relu(margin + distance[same].max() - distance[~same].min()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_triplet_as_pytorch(spread: float) -> None:
    """From well separated identities, whose hinge is mostly shut, to mixed ones."""
    x = normal(0, 4, 6)[LABELS] + spread * normal(1, 8, 6)
    tensor = torch.tensor(x, requires_grad=True)
    theirs = torch_triplet(tensor, LABELS, 0.3)
    theirs.backward()
    with jax.enable_x64(True):
        triplet = batch_hard_triplet(jnp.array(x), jnp.array(LABELS), 0.3)
        gradient = jax.grad(lambda x: batch_hard_triplet(x, jnp.array(LABELS), 0.3))(x)
    np.testing.assert_allclose(triplet, theirs.item(), **BOUND)
    np.testing.assert_allclose(gradient, tensor.grad, **BOUND)


def test_triplet_spelled_out() -> None:
    """Anchors at 0, 1 | 1.5, 4: two in order. Hinges: 0 + 0.3, 0.8, 2.3, 0.3 ..."""
    x = jnp.array([[0.0], [1.0], [1.5], [4.0]])
    triplet = batch_hard_triplet(x, jnp.array([0, 0, 1, 1]), 0.3)
    hinges = [max(0.3 + 1 - 1.5, 0), 0.3 + 1 - 0.5, 0.3 + 2.5 - 0.5, max(0.3 + 2.5 - 3, 0)]
    np.testing.assert_allclose(triplet, np.mean(hinges), rtol=1e-5)


@pytest.mark.parametrize("coincide", ["all", "positives", "negatives"])
def test_coincident_features_have_finite_gradients(coincide: str) -> None:
    """The clamp before the root: without it the gradient there is not a number."""
    x = {
        "all": np.ones((8, 3)),
        "positives": normal(0, 4, 3)[LABELS],
        "negatives": np.tile(normal(0, 2, 3), (4, 1)),
    }[coincide]
    labels = jnp.array(LABELS)
    with jax.enable_x64(True):
        loss, gradient = jax.value_and_grad(lambda x: batch_hard_triplet(x, labels, 0.3))(
            jnp.array(x)
        )
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(loss, torch_triplet(torch.tensor(x), LABELS, 0.3), rtol=1e-5)
    if coincide == "all":  # every distance is the root of the clamp
        np.testing.assert_allclose(loss, 0.3)
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("devices", [2, 4])
def test_triplet_over_devices_is_that_of_the_whole_batch(devices: int) -> None:
    """Loss and gradients; hardest negatives lie on other devices."""
    x, margin = normal(0, 8, 6), 0.3

    def on_one_device(x: jax.Array, labels: jax.Array) -> tuple:
        return jax.value_and_grad(lambda x: batch_hard_triplet(x, labels, margin, "data"))(x)

    with jax.enable_x64(True):
        losses, gradients = over_devices(on_one_device, devices)(x, LABELS)
        whole, gradient = jax.value_and_grad(
            lambda x: batch_hard_triplet(x, jnp.array(LABELS), margin)
        )(jnp.array(x))
    np.testing.assert_allclose(losses.mean(), whole, **BOUND)
    np.testing.assert_allclose(gradients.reshape(x.shape) / devices, gradient, **BOUND)
