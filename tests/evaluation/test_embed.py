"""Streaming, padding and order of the embedding, with a network small enough to see through."""

import threading
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.config import BaselineConfig
from ddag_jax.data.augment import normalise
from ddag_jax.errors import UserError
from ddag_jax.evaluation.embed import embed_images, make_embed
from ddag_jax.methods.baseline import Baseline

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 2, 3), dtype=np.uint8)
INFRARED = np.array([0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
SIGN = {"visible": 1.0, "infrared": -1.0}


@partial(jax.jit, static_argnames="modality")
def network(images, modality):
    flat = SIGN[modality] * images.reshape(len(images), -1).astype(jnp.bfloat16)
    return {"global": flat, "part": 2 * flat[:, :6]}


EXPECTED = np.where(INFRARED, -1, 1)[:, None] * IMAGES.reshape(11, -1).astype(np.float32)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
def test_rows_in_order_whatever_the_batch(batch_size):
    result = embed_images(network, IMAGES.__getitem__, INFRARED, batch_size)
    assert {name: feature.dtype for name, feature in result.items()} == {
        "global": np.float32,
        "part": np.float32,
    }
    np.testing.assert_array_equal(result["global"], EXPECTED)
    np.testing.assert_array_equal(result["part"], 2 * EXPECTED[:, :6])


@pytest.mark.parametrize("infrared", [INFRARED, INFRARED[:1], ~INFRARED[:1]])
def test_one_compilation_a_modality(infrared):
    chex.clear_trace_counter()

    @partial(jax.jit, static_argnames="modality")
    @chex.assert_max_traces(n=len(np.unique(infrared)))
    def traced(images, modality):
        chex.assert_shape(images, (4, 4, 2, 3))
        return {"global": images.reshape(len(images), -1).astype(jnp.float32)}

    result = embed_images(traced, IMAGES.__getitem__, infrared, 4)
    assert set(result) == {"global"}


def test_reads_one_batch_ahead():
    """The second batch is being read before the first one's result is asked for."""
    second = threading.Event()
    reads = []

    def read(indices):
        reads.append(threading.current_thread())
        if len(reads) == 2:
            second.set()
        return IMAGES[indices]

    def wait(images, modality):
        assert second.wait(timeout=5)
        return network(images, modality)

    embed_images(wait, read, INFRARED, 4)
    assert len(reads) == 3
    assert set(reads) != {threading.current_thread()}
    assert len(set(reads)) == 1


def test_the_device_has_the_next_batch_before_the_host_waits():
    events = []

    class Pending:
        def __init__(self, number, images):
            self.number, self.rows = number, images.reshape(len(images), -1)

        def __array__(self, dtype=None, copy=None):
            events.append(f"wait {self.number}")
            return self.rows.astype(dtype)

    def start(images, modality):
        number = sum(event.startswith("start") for event in events)
        events.append(f"start {number}")
        return {"global": Pending(number, images)}

    result = embed_images(start, IMAGES.__getitem__, INFRARED, 4)
    assert events == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "wait 2"]
    np.testing.assert_array_equal(result["global"], abs(EXPECTED))


@pytest.mark.parametrize("image", [2, 5])
def test_an_embedding_that_is_not_finite_names_its_image(image):
    def broken(images, modality):
        found = (images == IMAGES[image]).all(axis=(1, 2, 3))
        rows = np.where(found[:, None], np.nan, 1.0)
        return {"global": np.ones((len(images), 3)), "part": rows}

    with pytest.raises(UserError, match=f"image {image} .*part embedding is not finite"):
        embed_images(broken, IMAGES.__getitem__, INFRARED, 4)


def test_no_images():
    with pytest.raises(UserError, match="no images"):
        embed_images(network, IMAGES.__getitem__, INFRARED[:0], 4)


def test_a_fault_in_reading_comes_through():
    def read(indices):
        if 7 in indices:
            raise UserError("cam1/0007/0001.jpg: unreadable")
        return IMAGES[indices]

    with pytest.raises(UserError, match="unreadable"):
        embed_images(network, read, INFRARED, 2)


class Corner(Baseline):
    """A method whose feature is the upper left pixel of an infrared image, of unit length."""

    def embed(self, variables, images, modality):
        assert modality == "infrared"
        pixel = images[:, 0, 0]
        return {"corner": pixel / jnp.linalg.norm(pixel, axis=1, keepdims=True)}


def test_images_are_normalised_and_averaged_with_their_mirror_images():
    images = jnp.array(IMAGES)
    plain, flipped = (make_embed(Corner(BaselineConfig(), 3), flip=flip) for flip in (False, True))
    one = plain({}, images, "infrared")["corner"]
    pixel = np.asarray(normalise(images))[:, 0, 0]
    np.testing.assert_allclose(one, pixel / np.linalg.norm(pixel, axis=1)[:, None], rtol=1e-5)
    mean = np.asarray(one + plain({}, images[:, :, ::-1], "infrared")["corner"])
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(flipped({}, images, "infrared")["corner"], expected, rtol=1e-5)
