"""What the network looks at, against what a picture of it must be."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.data.augment import normalise
from ddag_jax.methods.ddag.method import DDAG
from ddag_jax.report.attention import batch_attention, choose_batch, look_at, stripes
from tests.models import tiny
from tests.models.tiny import HEIGHT, WIDTH, random_variables

IMAGES = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def method() -> DDAG:
    return tiny.method()


@pytest.fixture(scope="module")
def variables(method: DDAG) -> Any:
    with jax.enable_x64(True):
        return random_variables(method)


def test_activation_is_grad_cam_by_finite_differences(method: DDAG, variables: Any) -> None:
    others = np.random.default_rng(1).normal(size=(4, 64)) / 8
    with jax.enable_x64(True):
        looks = look_at(method, variables, IMAGES, "infrared", {"global": others, "part": others})
        pixels = normalise(jnp.asarray(IMAGES))
        half = jax.jit(lambda v, x: method.feature_map(v, x, "infrared"))
        cells = np.asarray(half(variables, pixels))
        other_half = jax.jit(lambda v, x: method.embed_feature_map(v, x)[0])

        def similarity(cells: np.ndarray) -> np.ndarray:
            both = other_half(variables, cells)
            return sum((np.asarray(feature) * others).sum(1) for feature in both.values()) / 2

        # A channel's weight: what the similarity gains, a cell, where all its cells rise.
        weights = np.zeros((len(IMAGES), cells.shape[-1]))
        for channel in range(cells.shape[-1]):
            step = np.zeros(cells.shape[-1])
            step[channel] = 1e-5
            gain = similarity(cells + step) - similarity(cells - step)
            weights[:, channel] = gain / 2e-5 / cells[0, ..., 0].size
    expected = np.maximum(np.einsum("bc,bhwc->bhw", weights, cells), 0)
    assert (expected.max((1, 2)) > 0).any()
    expected /= np.maximum(expected.max((1, 2), keepdims=True), 1e-12)
    np.testing.assert_allclose(looks.activation, expected, atol=1e-4)


def test_rows_of_the_part_map_and_the_weights_sum_to_one(method: DDAG, variables: Any) -> None:
    with jax.enable_x64(True):
        looks = look_at(method, variables, IMAGES, "visible", {"part": np.ones((4, 64))})
    assert looks.parts is not None
    assert looks.part_weights is not None
    assert looks.parts.shape == (4, 2, 2)
    np.testing.assert_allclose(looks.parts.sum(-1), 1)
    np.testing.assert_allclose(looks.part_weights.sum(), 1)
    gate = np.exp(variables["params"]["iwpa"]["gate"])
    np.testing.assert_allclose(looks.part_weights, gate / gate.sum())


@pytest.mark.parametrize(
    "options", [{"part_attention": False}, {"part_aggregation": "average"}], ids=str
)
def test_what_a_network_lacks_is_none(options: dict) -> None:
    other = tiny.method(**options)
    looks = look_at(
        other, random_variables(other), IMAGES[:1], "visible", {"global": np.ones((1, 64))}
    )
    assert looks.part_weights is None
    assert (looks.parts is None) == ("part_attention" in options)


def test_stripes_are_those_that_the_network_averages() -> None:
    assert stripes(18, 3) == [(0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)]
    assert stripes(7, 3) == [(0, 3 / 7), (2 / 7, 5 / 7), (4 / 7, 1)]


def test_graph_attention_is_ordered_and_stays_within_an_identity(
    method: DDAG, variables: Any
) -> None:
    visible = np.stack([IMAGES, IMAGES[::-1]])[:, :2]  # two identities, two images each
    infrared = 255 - visible
    with jax.enable_x64(True):
        attention = batch_attention(method, variables, visible, infrared)
        np.testing.assert_allclose(attention.sum(1), 1)
        own = np.kron(np.eye(2), np.ones((4, 4))) > 0
        assert (attention[own] > 0).all()
        assert not attention[~own].any()
        # Who is first in the batch plays no part: the rows go with the identities.
        swapped = batch_attention(method, variables, visible[::-1], infrared[::-1])
        np.testing.assert_allclose(swapped[:4, :4], attention[4:, 4:], atol=1e-9)
        # Within one, visible first: the attention that infrared image 0 gets changes with it.
        changed = infrared.copy()
        changed[0, 0] = 0
        difference = np.abs(batch_attention(method, variables, visible, changed) - attention)
        assert difference[:4, :4].sum(0).argmax() == 2


def test_a_batch_has_people_seen_in_both_modalities() -> None:
    identities = np.array([5, 5, 5, 6, 7, 7, 8, 8, 8])
    infrared = np.array([1, 0, 0, 1, 0, 1, 0, 1, 1], bool)
    batch = choose_batch(identities, infrared, 2, 2)
    assert batch is not None
    assert batch.identities == [5, 8]
    assert batch.visible.tolist() == [[1, 2], [6, 6]]
    assert batch.infrared.tolist() == [[0, 0], [7, 8]]
    assert choose_batch(identities, np.ones(9, bool), 2, 2) is None
