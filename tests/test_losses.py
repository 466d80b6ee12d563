"""The losses against PyTorch and plain loops, and over several devices against one."""

from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, PartitionSpec

from ddag_jax.config import BaselineConfig, Triplet
from ddag_jax.losses import (
    batch_hard_triplet,
    cross_entropy,
    squared_triplet,
)
from ddag_jax.methods.triplet import triplet_terms

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


# --------------------------------------------------------------------------- the other triplets

VISIBLE = np.arange(8) % 2 == 0
"""One visible and one infrared image of each of the identities in LABELS."""
THREE_VIEWS = np.tile(np.arange(4), 3), np.arange(12) < 8
"""Labels, and who is visible: two visible views and an infrared one of four identities."""


def triplet_of(kind: Triplet, alpha: float = 1.0, axis_name: str | None = None) -> Callable:
    factors = {"triplet_alpha": alpha, "triplet_gamma": 0.05} if kind == "squared" else {}
    config = BaselineConfig(triplet=kind, **factors)

    def loss(x: jax.Array, labels: jax.Array, visible: jax.Array) -> jax.Array:
        return triplet_terms(config, x, labels, visible, axis_name)["triplet"]

    return loss


def torch_means(
    x: torch.Tensor, labels: np.ndarray, alpha: float
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """An anchor at a time: mean distances to positives and negatives, by their softmaxes."""
    means = []
    for anchor, label in zip(range(len(x)), labels, strict=True):
        distance = ((x[anchor] - x) ** 2).sum(1).clamp(min=1e-12).sqrt()
        same = torch.tensor(labels == label)
        near, far = distance[same], distance[~same]
        one = (alpha * near - (alpha * near).max()).exp()
        other = (-alpha * far).exp()
        means.append(((one * near).sum() / (one.sum() + 1e-6), other @ far / (other.sum() + 1e-6)))
    return means


def torch_weighted(x: torch.Tensor, labels: np.ndarray, visible: np.ndarray) -> torch.Tensor:
    means = torch_means(x, labels, 1.0)
    return torch.stack([torch.nn.functional.softplus(p - n) for p, n in means]).mean()


def torch_squared(x: torch.Tensor, labels: np.ndarray, visible: np.ndarray) -> torch.Tensor:
    losses = []
    for p, n in torch_means(x, labels, 1.5):
        d = (0.05 * (p - n) ** 2).clamp(max=88)
        losses.append(torch.log(1 + torch.exp(d if p > n else -d)))
    return torch.stack(losses).mean()


def torch_hetero_centre(x: torch.Tensor, labels: np.ndarray, visible: np.ndarray) -> torch.Tensor:
    names = [(label, is_visible) for label in set(labels) for is_visible in (True, False)]
    centres = {
        (label, is_visible): x[(labels == label) & (visible == is_visible)].mean(0)
        for label, is_visible in names
    }
    losses = []
    for (label, is_visible), centre in centres.items():
        positive = (centre - centres[label, not is_visible]).norm()
        negative = min((centre - c).norm() for (other, _), c in centres.items() if other != label)
        losses.append(torch.relu(0.3 + positive - negative))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("labels", "visible"), [(LABELS, VISIBLE), THREE_VIEWS], ids=["2", "3 views"]
)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (triplet_of("weighted"), torch_weighted),
        (triplet_of("squared", alpha=1.5), torch_squared),
        (triplet_of("hetero-centre"), torch_hetero_centre),
    ],
    ids=["weighted", "squared", "hetero-centre"],
)
def test_the_other_triplets_as_plain_loops(
    ours: Callable, theirs: Callable, labels: np.ndarray, visible: np.ndarray
) -> None:
    x = normal(0, 4, 6)[labels] + normal(1, len(labels), 6)
    tensor = torch.tensor(x, requires_grad=True)
    expected = theirs(tensor, labels, visible)
    expected.backward()
    with jax.enable_x64(True):
        loss, gradient = jax.value_and_grad(ours)(
            jnp.array(x), jnp.array(labels), jnp.array(visible)
        )
    assert expected > 0.01
    np.testing.assert_allclose(loss, expected.item(), **BOUND)
    np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("kind", get_args(Triplet))
def test_every_triplet_over_devices_is_that_of_the_whole_batch(kind: Triplet, devices: int) -> None:
    x = normal(0, 4, 6)[LABELS] + normal(1, 8, 6)
    over_axis, alone = triplet_of(kind, axis_name="data"), triplet_of(kind)
    with jax.enable_x64(True):
        losses, gradients = over_devices(
            lambda x, labels, visible: jax.value_and_grad(over_axis)(x, labels, visible), devices
        )(x, LABELS, VISIBLE)
        whole, gradient = jax.value_and_grad(alone)(
            jnp.array(x), jnp.array(LABELS), jnp.array(VISIBLE)
        )
    np.testing.assert_allclose(losses.mean(), whole, **BOUND)
    np.testing.assert_allclose(gradients.reshape(x.shape) / devices, gradient, **BOUND)


@pytest.mark.parametrize("kind", get_args(Triplet))
@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_every_triplet_is_finite_in_float32(kind: Triplet, scale: float) -> None:
    """Where features coincide, and where a distance is beyond what an exponential can hold."""
    x = scale * normal(0, 8, 6).astype(np.float32)
    x[2] = x[3]
    loss, gradient = jax.value_and_grad(triplet_of(kind))(
        jnp.array(x), jnp.array(LABELS), jnp.array(VISIBLE)
    )
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_an_image_does_not_pull_itself() -> None:
    """Rounding in the square of its distance to itself exceeds the clamp far from the origin."""
    x = 100 + normal(0, 8, 64) / 8
    tensor = torch.tensor(x, requires_grad=True)
    torch_weighted(tensor, LABELS, VISIBLE).backward()  # from differences, which do not round
    with jax.enable_x64(True):
        gradient = jax.grad(triplet_of("weighted"))(
            jnp.array(x), jnp.array(LABELS), jnp.array(VISIBLE)
        )
    np.testing.assert_allclose(gradient, tensor.grad, rtol=0, atol=1e-8)


def test_clamped_anchors_are_counted_and_have_no_gradient() -> None:
    """Raw features: negatives so far that n is nearly 0, positives so far that every D is clamped.

    The loss stays at 88, as users of the authors' code report.
    """
    x, labels = jnp.array(30 * normal(0, 8, 6), jnp.float32), jnp.array(LABELS)
    for gamma, stuck in ((1.0, True), (1e-3, False)):
        loss, clamped = squared_triplet(x, labels, 1.0, gamma)
        gradient = jax.grad(lambda x, gamma=gamma: squared_triplet(x, labels, 1.0, gamma)[0])(x)
        assert clamped == stuck
        assert (np.abs(gradient).max() == 0) == stuck
        assert (loss == 88) == stuck
