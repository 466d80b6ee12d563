"""The baseline is DDAG with both branches off, bit for bit."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest

from ddag_jax.config import BaselineConfig
from ddag_jax.methods.base import Method, View
from ddag_jax.methods.baseline import Baseline
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.training.step import make_update
from tests.models import tiny
from tests.programs import compiled

STEPS = 2


def views(seed: int) -> tuple[View, View]:
    batch = tiny.batch(seed=seed)
    labels = jnp.asarray(batch.labels.repeat(2))
    images = (x.reshape(-1, *x.shape[2:]) / 255.0 for x in (batch.visible, batch.infrared))
    visible, infrared = (jnp.asarray(x, jnp.float32) for x in images)
    return View("visible", visible, labels), View("infrared", infrared, labels)


def trained(method: Method) -> tuple[TrainState, list[Any]]:
    """Return the state after two updates from the same key, and what each update reported."""
    update = make_update(
        method, tiny.optimizer(), axis_name=None, steps_per_epoch=STEPS, nonfinite_limit=1
    )
    update = compiled(update)
    size = tiny.HEIGHT, tiny.WIDTH
    variables = jax.jit(method.init, static_argnums=1)(jax.random.key(3), size)
    state, reported = new_state(variables, tiny.optimizer(), method.memory(), jax.random.key(0)), []
    for seed in range(STEPS):
        state, outcome, gradients = update(state, views(seed), None)
        reported.append((outcome, gradients))
    return state, reported


@pytest.fixture(scope="module")
def ddag() -> Method:
    return tiny.method(part_attention=False, graph_attention=False)


@pytest.fixture(scope="module")
def baseline() -> Method:
    return Baseline(BaselineConfig(backbone="resnet18", width=8), tiny.CLASSES)


@pytest.mark.slow
def test_fresh_variables_are_the_same(ddag: Method, baseline: Method) -> None:
    size = tiny.HEIGHT, tiny.WIDTH
    one, other = (method.init(jax.random.key(3), size) for method in (ddag, baseline))
    chex.assert_trees_all_equal(one, other)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")  # what XLA fuses decides how the two round
def test_updates_and_embeddings_are_the_same(ddag: Method, baseline: Method) -> None:
    assert (ddag.features, baseline.features) == (("global",), ("pooled", "global"))
    (one, reported), (other, expected) = trained(ddag), trained(baseline)
    for (outcome, gradients), (expected_outcome, expected_gradients) in zip(
        reported, expected, strict=True
    ):
        for name in ("identity", "triplet", "total"):
            chex.assert_trees_all_equal(outcome.terms[name], expected_outcome.terms[name])
        assert outcome.terms["part"] == outcome.terms["graph"] == 0
        chex.assert_trees_all_equal(gradients, expected_gradients)
    for name in ("step", "params", "batch_stats", "opt_state", "skipped_in_row"):
        chex.assert_trees_all_equal(getattr(one, name), getattr(other, name))
    assert one.skipped_in_row == 0

    variables = {"params": one.params, "batch_stats": one.batch_stats}
    for view in views(STEPS):
        found, embedded = (
            compiled(method.embed, static_argnums=2)(variables, view.images, view.modality)
            for method in (ddag, baseline)
        )
        assert set(embedded) == set(baseline.features)
        chex.assert_trees_all_equal(found["global"], embedded["global"])


@pytest.mark.slow
@pytest.mark.parametrize("non_local", ["one", "half"])
def test_agw_in_bfloat16_is_close_to_float32(non_local: Any) -> None:
    """As vectors. Non-local blocks are cubic in their input, and triple the rounding before them.

    Computing the blocks themselves in float32 leaves the differences as they are.
    """
    fields: Any = {"backbone": "resnet18", "width": 8, "pooling": "gem", "non_local": non_local}
    visible, infrared = views(0)
    outputs = []
    for dtype in ("float32", "bfloat16"):
        method = Baseline(BaselineConfig(**fields, compute_dtype=dtype), tiny.CLASSES)
        variables = tiny.random_variables(method)
        output, changed = jax.jit(functools.partial(method.network.apply, mutable=["batch_stats"]))(
            variables, visible.images, infrared.images
        )
        assert {leaf.dtype.name for leaf in jax.tree.leaves(changed)} == {"float32"}
        outputs.append(output)
    for wide, narrow in zip(*outputs, strict=True):
        assert narrow.dtype == jnp.float32
        difference = jnp.linalg.norm(wide - narrow) / jnp.linalg.norm(wide)
        assert 0 < difference < 0.2
