"""The losses against PyTorch and plain loops, and over several devices against one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, PartitionSpec

from ddag_jax.losses import (
    batch_hard_triplet,
    cross_entropy,
    ddag_losses,
    dynamic_graph_weight,
    graph_loss,
)
from ddag_jax.types import TrainingOutput

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


def correct_anchors(features: np.ndarray, labels: np.ndarray) -> int:
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    return sum(
        distance[i, labels != labels[i]].min() >= distance[i, labels == labels[i]].max()
        for i in range(len(labels))
    )


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_triplet_as_pytorch(spread: float) -> None:
    """From well separated identities, whose hinge is mostly shut, to mixed ones."""
    x = normal(0, 4, 6)[LABELS] + spread * normal(1, 8, 6)
    tensor = torch.tensor(x, requires_grad=True)
    theirs = torch_triplet(tensor, LABELS, 0.3)
    theirs.backward()
    with jax.enable_x64(True):
        triplet = batch_hard_triplet(jnp.array(x), jnp.array(LABELS), 0.3)
        gradient = jax.grad(lambda x: batch_hard_triplet(x, jnp.array(LABELS), 0.3).loss)(x)
    np.testing.assert_allclose(triplet.loss, theirs.item(), **BOUND)
    np.testing.assert_allclose(gradient, tensor.grad, **BOUND)
    assert int(triplet.correct) == correct_anchors(x, LABELS)


def test_triplet_spelled_out() -> None:
    """Anchors at 0, 1 | 1.5, 4: two in order. Hinges: 0 + 0.3, 0.8, 2.3, 0.3 ..."""
    x = jnp.array([[0.0], [1.0], [1.5], [4.0]])
    triplet = batch_hard_triplet(x, jnp.array([0, 0, 1, 1]), 0.3)
    hinges = [max(0.3 + 1 - 1.5, 0), 0.3 + 1 - 0.5, 0.3 + 2.5 - 0.5, max(0.3 + 2.5 - 3, 0)]
    np.testing.assert_allclose(triplet.loss, np.mean(hinges), rtol=1e-5)
    assert int(triplet.correct) == 2


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
        loss, gradient = jax.value_and_grad(lambda x: batch_hard_triplet(x, labels, 0.3).loss)(
            jnp.array(x)
        )
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(loss, torch_triplet(torch.tensor(x), LABELS, 0.3), rtol=1e-5)
    if coincide == "all":  # every distance is the root of the clamp
        np.testing.assert_allclose(loss, 0.3)
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("devices", [2, 4])
def test_triplet_over_devices_is_that_of_the_whole_batch(devices: int) -> None:
    """Loss, gradients and count; hardest negatives lie on other devices."""
    x, margin = normal(0, 8, 6), 0.3

    def on_one_device(x: jax.Array, labels: jax.Array) -> tuple:
        def loss(x: jax.Array) -> tuple:
            triplet = batch_hard_triplet(x, labels, margin, "data")
            return triplet.loss, triplet.correct

        (value, correct), gradient = jax.value_and_grad(loss, has_aux=True)(x)
        return value, correct, gradient

    with jax.enable_x64(True):
        losses, correct, gradients = over_devices(on_one_device, devices)(x, LABELS)
        whole = batch_hard_triplet(jnp.array(x), jnp.array(LABELS), margin)
        gradient = jax.grad(lambda x: batch_hard_triplet(x, jnp.array(LABELS), margin).loss)(x)
    np.testing.assert_allclose(losses.mean(), whole.loss, **BOUND)
    assert int(correct.sum()) == int(whole.correct)
    np.testing.assert_allclose(gradients.reshape(x.shape) / devices, gradient, **BOUND)


# ------------------------------------------------------------------------------------- graph


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_graph_loss(reduction: str, devices: int) -> None:
    """The devices' mean, as the step takes it, is the whole batch's mean or sum."""
    log_probs = np.log(np.random.default_rng(0).dirichlet(np.ones(5), 8))
    picked = -log_probs[np.arange(8), LABELS]
    with jax.enable_x64(True):
        shares = over_devices(lambda *rows: graph_loss(*rows, reduction, "data"), devices)(
            log_probs, LABELS
        )
        alone = graph_loss(jnp.array(log_probs), jnp.array(LABELS), reduction)
    expected = getattr(np, reduction)(picked)
    np.testing.assert_allclose(shares.mean(), expected, **BOUND)
    np.testing.assert_allclose(alone, expected, **BOUND)


# ------------------------------------------------------------------------------------- total


def output(part: bool, graph: bool) -> TrainingOutput:
    log_probs = np.log(np.random.default_rng(0).dirichlet(np.ones(5), 8))
    return TrainingOutput(
        normal(0, 8, 6),
        normal(1, 8, 5),
        normal(2, 8, 5) if part else None,
        log_probs if graph else None,
    )


@pytest.mark.parametrize("part", [True, False], ids=["P", "no P"])
@pytest.mark.parametrize("graph", [True, False], ids=["G", "no G"])
def test_total(part: bool, graph: bool) -> None:
    """Eq. 10 and 11: what is left out counts nothing, and L_P is then L_b."""
    given = output(part, graph)
    with jax.enable_x64(True):
        labels = jnp.array(LABELS)
        losses = ddag_losses(given, labels, jnp.array(0.4), margin=0.3, graph_reduction="mean")
        identity = cross_entropy(given.global_logits, labels)
        triplet = batch_hard_triplet(given.pooled, labels, 0.3).loss
        parts = cross_entropy(given.part_logits, labels) if part else 0.0
        graphs = graph_loss(given.graph_log_probs, labels, "mean") if graph else 0.0
    without_graph = float(identity) + float(triplet) + float(parts)
    expected = [identity, triplet, parts, graphs, without_graph]
    np.testing.assert_allclose(losses[:5], expected, **BOUND)
    np.testing.assert_allclose(losses.total, without_graph + 0.4 * float(graphs), **BOUND)
    assert float(losses.graph_weight) == 0.4


def test_no_gradient_through_the_coefficient() -> None:
    given = TrainingOutput(*map(jnp.array, output(True, True)))

    def total(weight: jax.Array, log_probs: jax.Array) -> jax.Array:
        return ddag_losses(
            given._replace(graph_log_probs=log_probs),
            jnp.array(LABELS),
            weight,
            margin=0.3,
            graph_reduction="mean",
        ).total

    by_weight, by_graph = jax.grad(total, argnums=(0, 1))(jnp.array(0.4), given.graph_log_probs)
    assert by_weight == 0
    np.testing.assert_allclose(by_graph[np.arange(8), LABELS], -0.4 / 8, rtol=1e-5)


def test_dynamic_weight() -> None:
    np.testing.assert_allclose(dynamic_graph_weight(jnp.array([1.0, 9.0])[1]), 0.1, rtol=1e-6)
