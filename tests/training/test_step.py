"""The step's own logic, with a linear model in the network's place so that it compiles at once."""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.config import DDAGConfig
from ddag_jax.methods.ddag.method import DDAG
from ddag_jax.methods.ddag.network import Network, TrainingOutput
from ddag_jax.training.flat import Form, flatten, unflatten
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.training.step import TrainStep, image_keys, make_train_step
from tests.models import tiny

STEPS_PER_EPOCH = 2


class LinearNetwork(Network):
    """Every branch is a product with the same matrix; dropout scales the graph's whole output."""

    def setup(self) -> None:
        self.kernel = self.param("kernel", nn.initializers.normal(0.1), (24, self.classes))
        self.variable("batch_stats", "mean", jnp.zeros, ())

    def __call__(
        self, visible: jax.Array, infrared: jax.Array, labels: jax.Array, keys: Any
    ) -> TrainingOutput:
        images = jnp.concatenate([visible, infrared])
        pooled = images.reshape(len(images), 4, -1, 2, 8, 3).mean((2, 4)).reshape(-1, 24)
        logits = pooled @ self.kernel
        scale = 0.5 + jax.vmap(jax.random.uniform)(keys)[:, None]
        return TrainingOutput(
            pooled @ self.kernel,
            logits,
            2 * logits if self.config.part_attention else None,
            jax.nn.log_softmax(scale * logits) if self.config.graph_attention else None,
        )


@dataclasses.dataclass(frozen=True)
class Linear(DDAG):
    """DDAG whose network is this one."""

    module: type[LinearNetwork] = LinearNetwork

    @property
    def network(self) -> Network:
        return self.module(self.config, self.classes)


def linear(module: type[LinearNetwork] = LinearNetwork, **fields: Any) -> Linear:
    return Linear(DDAGConfig(**fields), tiny.CLASSES, module=module)


def start(method: Linear, seed: int = 0) -> TrainState:
    kernel = 0.1 * np.random.default_rng(0).normal(size=(24, tiny.CLASSES)).astype(np.float32)
    variables = {"params": {"kernel": jnp.array(kernel)}, "batch_stats": {"mean": jnp.zeros(())}}
    return new_state(variables, tiny.optimizer(), method.memory(), jax.random.key(seed))


def plain_step(method: Linear, **options: Any) -> TrainStep:
    settings = {
        "axis_name": None,
        "steps_per_epoch": STEPS_PER_EPOCH,
        "nonfinite_limit": 3,
        "padding": 2,
        "flip": True,
    }
    return make_train_step(method, tiny.optimizer(), **(settings | options))


def make_step(method: Linear, **options: Any) -> TrainStep:
    return jax.jit(plain_step(method, **options))


@pytest.fixture(scope="module")
def step() -> TrainStep:
    return make_step(linear())


@pytest.mark.parametrize("part_attention", [True, False], ids=["B+P+G", "B+G"])
def test_dynamic_coefficient(part_attention: bool) -> None:
    """0 in the first epoch, then 1 / (1 + mean of L_P over the epoch before); L_b without P."""
    model = linear(part_attention=part_attention)
    step, state = make_step(model), start(model)
    expected, sums = 0.0, []
    for epoch in range(3):
        for index in range(STEPS_PER_EPOCH):
            np.testing.assert_allclose(state.memory["loss_sum"], sum(sums), rtol=1e-6)
            state, outcome = step(state, tiny.batch(seed=epoch * STEPS_PER_EPOCH + index))
            losses = outcome.terms
            without_graph = losses["identity"] + losses["triplet"] + losses["part"]
            assert (losses["part"] > 0) == part_attention
            np.testing.assert_allclose(losses["without_graph"], without_graph, rtol=1e-6)
            np.testing.assert_allclose(losses["graph_weight"], expected, rtol=1e-6)
            np.testing.assert_allclose(
                losses["total"], without_graph + expected * losses["graph"], rtol=1e-6
            )
            sums.append(float(without_graph))
        mean, sums = np.mean(sums), []
        np.testing.assert_allclose(state.memory["epoch_loss"], mean, rtol=1e-6)
        expected = 1 / (1 + mean)
        np.testing.assert_allclose(state.memory["graph_weight"], expected, rtol=1e-6)
    assert state.memory["loss_sum"] == 0
    assert state.step == 3 * STEPS_PER_EPOCH


def test_all_steps_share_one_trace() -> None:
    """Over an epoch's end, from the first state on."""
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(plain_step(linear()), n=1))
    state = start(linear())
    for seed in range(STEPS_PER_EPOCH + 1):
        state, _ = step(state, tiny.batch(seed=seed))
    assert state.step == STEPS_PER_EPOCH + 1


def test_constant_coefficient() -> None:
    """From the first step on; the epoch's mean is kept all the same."""
    model = linear(graph_weight=0.25)
    step, state = make_step(model), start(model)
    for seed in range(2 * STEPS_PER_EPOCH):
        state, outcome = step(state, tiny.batch(seed=seed))
        losses = outcome.terms
        np.testing.assert_allclose(losses["graph_weight"], 0.25)
        np.testing.assert_allclose(
            losses["total"], losses["without_graph"] + 0.25 * losses["graph"], rtol=1e-6
        )
    assert state.memory["graph_weight"] == 0.25
    assert state.memory["epoch_loss"] > 0


def test_without_graph() -> None:
    model = linear(graph_attention=False)
    _, outcome = make_step(model)(start(model), tiny.batch())
    losses = outcome.terms
    assert losses["graph"] == 0
    assert losses["total"] == losses["without_graph"]


def test_graph_reduction_is_passed_on(step: TrainStep) -> None:
    _, mean = step(start(linear()), tiny.batch())
    model = linear(graph_reduction="sum")
    _, total = make_step(model)(start(model), tiny.batch())
    np.testing.assert_allclose(total.terms["graph"], 32 * mean.terms["graph"], rtol=1e-6)


def test_same_state_and_batch_give_the_same(step: TrainStep) -> None:
    first, second = (step(start(linear()), tiny.batch()) for _ in range(2))
    chex.assert_trees_all_equal(first, second)


def test_randomness_follows_step_and_seed(step: TrainStep) -> None:
    """Augmentation moves the identity loss, dropout the graph's."""
    state = start(linear())
    later = state.replace(step=jnp.array(1, jnp.int32))
    seeded = start(linear(), seed=1)
    _, here = step(state, tiny.batch())
    for other in (later, seeded):
        _, there = step(other, tiny.batch())
        assert there.terms["identity"] != here.terms["identity"]
    still = make_step(linear(), padding=0, flip=False)  # dropout alone remains
    (_, here), (_, there) = still(state, tiny.batch()), still(later, tiny.batch())
    assert there.terms["identity"] == here.terms["identity"]
    assert there.terms["graph"] != here.terms["graph"]


def test_labels_and_modalities_line_up() -> None:
    """Visible first, each identity's m images in a row, in both halves."""
    seen = {}

    class Spy(LinearNetwork):
        def __call__(
            self, visible: jax.Array, infrared: jax.Array, labels: jax.Array, keys: Any
        ) -> TrainingOutput:
            jax.debug.callback(
                seen.update,
                {
                    "visible": visible.mean((1, 2, 3)),
                    "infrared": infrared.mean((1, 2, 3)),
                    "labels": labels,
                },
            )
            return super().__call__(visible, infrared, labels, keys)

    batch = tiny.batch(n=3)
    shade = lambda start: np.arange(start, start + 6).reshape(3, 2, 1, 1, 1)  # noqa: E731
    batch = batch._replace(
        visible=np.broadcast_to(np.uint8(shade(0)), batch.visible.shape),
        infrared=np.broadcast_to(np.uint8(shade(100)), batch.infrared.shape),
    )
    model = linear(Spy)
    jax.block_until_ready(make_step(model, padding=0)(start(model), batch))
    np.testing.assert_array_equal(seen["labels"], np.tile(np.repeat(batch.labels, 2), 2))
    assert (np.diff(seen["visible"]) > 0).all()
    assert (np.diff(seen["infrared"]) > 0).all()
    assert seen["visible"].max() < seen["infrared"].min()


@pytest.mark.parametrize("devices", [2, 4])
def test_image_keys_do_not_depend_on_devices(devices: int) -> None:
    """An image's key is that of its identity slot, wherever the slot lies."""
    n, m, key = 8, 2, jax.random.key(3)
    whole = jax.random.key_data(image_keys(key, 0, n, m))
    share = n // devices
    shares = [image_keys(key, jnp.array(i * share), share, m) for i in range(devices)]
    shares = [jax.random.key_data(keys) for keys in shares]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)
    assert whole.shape[:3] == (2, n, m)
    assert len(np.unique(np.asarray(whole).reshape(2 * n * m, -1), axis=0)) == 2 * n * m


class Broken(LinearNetwork):
    """Where the first pixel of the batch is white, the loss is as it should be and one gradient is
    not finite: a square root at zero."""

    def __call__(
        self, visible: jax.Array, infrared: jax.Array, labels: jax.Array, keys: Any
    ) -> TrainingOutput:
        output = super().__call__(visible, infrared, labels, keys)
        broken = visible[0, 0, 0, 0] > 1  # normalised
        zero = jnp.sqrt(jnp.where(broken, 0 * jnp.abs(self.kernel).sum(), 1)) - ~broken
        return output._replace(global_logits=output.global_logits + zero)


@pytest.mark.parametrize("form", [unflatten, flatten])
def test_a_step_whose_gradient_is_not_finite_changes_nothing(form: Form) -> None:
    """But the counts; others go on from there; after three in a row none does."""
    model = linear(Broken)
    step, state = make_step(model, padding=0, flip=False, steps_per_epoch=100), form(start(model))
    sound, broken = tiny.batch(), tiny.batch()
    sound.visible[0, 0, 0, 0], broken.visible[0, 0, 0, 0] = 0, 255
    state, _ = step(state, sound)
    rounds = (([broken, broken, sound], [1, 2, 0]), ([broken] * 3 + [sound], [1, 2, 3, 4]))
    for order, counted in rounds:
        for batch, expected in zip(order, counted, strict=True):
            before = state
            state, outcome = step(state, batch)
            assert np.isfinite(outcome.terms["total"])
            assert state.skipped_in_row == outcome.skipped_in_row == expected
            assert state.step == before.step + 1
            for name in ("params", "opt_state", "memory", "batch_stats"):
                pairs = zip(
                    jax.tree.leaves(getattr(before, name)),
                    jax.tree.leaves(getattr(state, name)),
                    strict=True,
                )
                same = all(np.array_equal(one, other) for one, other in pairs)
                constant = expected > 0 or name == "batch_stats"
                assert same == constant, (name, expected)
