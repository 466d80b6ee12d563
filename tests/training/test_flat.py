"""The state as a few vectors: the same values, names and optimiser."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax import parallel
from ddag_jax.models.two_stream import BACKBONE
from ddag_jax.training.flat import Flat, as_tree, flatten, formed_like, state_forms, unflatten
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.training.step import make_train_step
from tests.models import tiny


@pytest.fixture(scope="module")
def state() -> TrainState:
    method = tiny.method()
    variables = jax.tree.map(jnp.asarray, tiny.random_variables(method))
    state = new_state(variables, tiny.optimizer(), method.memory(), jax.random.key(0))
    # Momentum as after a step: different in every element.
    rng = np.random.default_rng(1)
    momentum = jax.tree.map(lambda x: x + rng.normal(size=x.shape), state.opt_state)
    return state.replace(opt_state=momentum)


def test_a_flat_state_is_the_same_state(state: TrainState) -> None:
    """To the last bit, with the names and the order of the tree."""
    flat = flatten(state)
    chex.assert_trees_all_equal(unflatten(flat), state)
    assert jax.tree.structure(unflatten(flat)) == jax.tree.structure(state)
    chex.assert_trees_all_equal(unflatten(state), state)


def test_a_part_is_a_vector(state: TrainState) -> None:
    """Parameters, statistics and momentum: as many arrays as parts."""
    flat = flatten(state)
    for name in ("params", "batch_stats"):
        parts, tree = getattr(flat, name), getattr(state, name)
        assert isinstance(parts, Flat)
        assert parts.parts.keys() == tree.keys()
        for part, vector in parts.parts.items():
            assert vector.shape == (sum(leaf.size for leaf in jax.tree.leaves(tree[part])),)
    momentum = [x for x in jax.tree.leaves(flat.opt_state) if x.ndim]
    assert [x.shape for x in momentum] == [x.shape for x in jax.tree.leaves(flat.params)]
    arrays = len(jax.tree.leaves(state)), len(jax.tree.leaves(flat))
    assert arrays[1] < arrays[0] / 8


def test_a_part_keeps_its_path(state: TrainState) -> None:
    """By which the optimiser knows the backbone."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(flatten(state).params)]
    assert [path[0].key for path in paths] == sorted(state.params)
    assert BACKBONE in state.params


def test_the_order_of_a_dictionary_does_not_matter() -> None:
    one = {"b": {"y": jnp.arange(3.0), "x": jnp.ones((2, 2))}, "a": {"z": jnp.zeros(1)}}
    other = {"a": one["a"], "b": {"x": one["b"]["x"], "y": one["b"]["y"]}}
    assert jax.tree.structure(Flat.of(one)) == jax.tree.structure(Flat.of(other))
    chex.assert_trees_all_equal(Flat.of(one).parts["b"], jnp.array([1.0, 1, 1, 1, 0, 1, 2]))


def test_a_part_of_several_dtypes_stays() -> None:
    tree = {"a": {"x": jnp.ones(2), "n": jnp.arange(2)}, "b": {"x": jnp.ones((2, 3))}, "c": {}}
    flat = Flat.of(tree)
    assert [x.shape for x in jax.tree.leaves(flat)] == [(2,), (2,), (6,)]
    chex.assert_trees_all_equal(flat.tree(), tree)


def test_a_tree_takes_the_form_of_another() -> None:
    tree = {"a": {"x": jnp.ones((2, 2))}}
    assert formed_like(tree, tree) is tree
    assert as_tree(tree) is tree
    chex.assert_trees_all_equal(as_tree(formed_like(Flat.of(tree), tree)), tree)


def test_a_step_takes_one_trace(state: TrainState) -> None:
    """A flat state that was made anew, as after a checkpoint, has the same structure."""
    trace = chex.assert_max_traces(lambda x: x, n=1)
    function = jax.jit(trace)
    function(flatten(state))
    function(flatten(unflatten(flatten(state))))


@pytest.mark.parametrize("flat", [False, True])
def test_the_step_decides_by_its_devices(
    state: TrainState, monkeypatch: pytest.MonkeyPatch, flat: bool
) -> None:
    mesh = parallel.device_mesh(jax.devices()[:2])
    if flat:
        monkeypatch.setattr("ddag_jax.training.flat.flat_state_pays", lambda mesh: True)
    for_step, for_reading = state_forms(mesh)
    state = parallel.replicate(state, mesh)
    taken: Any = for_step(state)
    assert isinstance(taken.params, Flat) == flat
    back = for_reading(taken)
    chex.assert_trees_all_equal(back, state)
    for leaf in jax.tree.leaves(back):
        assert len(leaf.sharding.device_set) == 2
        assert leaf.is_fully_replicated


def test_a_flat_step_has_an_operation_for_a_part_where_a_tree_has_one_for_an_array(
    state: TrainState,
) -> None:
    step = make_train_step(
        tiny.method(),
        tiny.optimizer(),
        axis_name=None,
        steps_per_epoch=2,
        nonfinite_limit=1,
        padding=2,
        flip=True,
    )
    for one in (state, flatten(state)):
        program = jax.jit(step).lower(one, tiny.batch()).as_text()
        # Of each gradient, and of the loss.
        assert program.count("stablehlo.is_finite") == len(jax.tree.leaves(one.params)) + 1
    assert len(jax.tree.leaves(flatten(state).params)) < 8
