"""DDAG's loss: Eq. 9 to 11."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.config import DDAGConfig
from ddag_jax.losses import batch_hard_triplet, cross_entropy
from ddag_jax.methods.ddag.losses import dynamic_graph_weight, graph_loss, loss_terms
from ddag_jax.methods.ddag.network import TrainingOutput
from tests.test_losses import BOUND, LABELS, VISIBLE, normal, over_devices

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
        jnp.array(log_probs) if graph else None,
    )


@pytest.mark.parametrize("part", [True, False], ids=["P", "no P"])
@pytest.mark.parametrize("graph", [True, False], ids=["G", "no G"])
def test_total(part: bool, graph: bool) -> None:
    """Eq. 10 and 11: what is left out counts nothing, and L_P is then L_b."""
    with jax.enable_x64(True):
        given = output(part, graph)
        labels = jnp.array(LABELS)
        total, terms = loss_terms(given, labels, VISIBLE, jnp.array(0.4), DDAGConfig())
        identity = cross_entropy(given.global_logits, labels)
        triplet = batch_hard_triplet(given.pooled, labels, 0.3)
        parts = cross_entropy(given.part_logits, labels) if part else 0.0
        graphs = graph_loss(given.graph_log_probs, labels, "mean") if graph else 0.0
    without_graph = float(identity) + float(triplet) + float(parts)
    expected = {
        "identity": identity,
        "triplet": triplet,
        "part": parts,
        "graph": graphs,
        "without_graph": without_graph,
        "graph_weight": 0.4,
    }
    assert list(terms) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, **BOUND, err_msg=name)
    np.testing.assert_allclose(total, without_graph + 0.4 * float(graphs), **BOUND)


def test_no_gradient_through_the_coefficient() -> None:
    given = TrainingOutput(*map(jnp.array, output(True, True)))

    def total(weight: jax.Array, log_probs: jax.Array) -> jax.Array:
        total, _ = loss_terms(
            given._replace(graph_log_probs=log_probs),
            jnp.array(LABELS),
            VISIBLE,
            weight,
            DDAGConfig(),
        )
        return total

    by_weight, by_graph = jax.grad(total, argnums=(0, 1))(jnp.array(0.4), given.graph_log_probs)
    assert by_weight == 0
    np.testing.assert_allclose(by_graph[np.arange(8), LABELS], -0.4 / 8, rtol=1e-5)


def test_dynamic_weight() -> None:
    np.testing.assert_allclose(dynamic_graph_weight(jnp.array([1.0, 9.0])[1]), 0.1, rtol=1e-6)
