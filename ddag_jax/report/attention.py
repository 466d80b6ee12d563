"""What the network looks at: the parts, the places in an image, the other images of a batch."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from ddag_jax.data.augment import normalise
from ddag_jax.methods.base import HasBatchAttention, HasFeatureMap, Modality, View
from ddag_jax.models.pooling import stripe_matrix


class Looks(NamedTuple):
    """What the network made of some images, in evaluation mode."""

    activation: Float[np.ndarray, "b h w"]
    """Of each cell of the last feature map, 0 to 1: Grad-CAM (Selvaraju et al. 2017) of the
    similarity to another image."""
    parts: Float[np.ndarray, "b p p"] | None
    """How part i attends to part j, rows of sum 1; None without part attention."""
    part_weights: Float[np.ndarray, " p"] | None
    """The learned weight of each part, of sum 1; None where parts are not weighted."""


def look_at(
    method: HasFeatureMap,
    variables: Any,
    images: UInt8[np.ndarray, "b h w 3"],
    modality: Modality,
    others: dict[str, Float[np.ndarray, "b _"]],
) -> Looks:
    """Return which cells make each image like another one, and the attention between its parts.

    Args:
        method: without a device axis.
        variables: {"params", "batch_stats"}, on this host.
        images: all of one modality.
        modality: theirs.
        others: features of the image to compare each with, by name; the similarity is the mean
            over the names.
    """
    activation, attention = _look_at(method, variables, images, modality, others)
    parts, weights = attention.get("part_attention"), attention.get("part_weights")
    return Looks(
        np.asarray(activation),
        None if parts is None else np.asarray(parts),
        None if weights is None else np.asarray(weights),
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _look_at(
    method: HasFeatureMap,
    variables: Any,
    images: Array,
    modality: Modality,
    others: dict[str, Array],
) -> tuple[Array, Mapping[str, Array]]:
    cells = method.feature_map(variables, normalise(images), modality)

    def similarity(cells: Array) -> tuple[Array, Mapping[str, Array]]:
        features, attention = method.embed_feature_map(variables, cells)
        products = [jnp.sum(features[name] * other) for name, other in others.items()]
        # Each image's similarity depends on its own cells only, so one gradient serves all.
        return jnp.stack(products).mean(), attention

    gradient, attention = jax.grad(similarity, has_aux=True)(cells)
    wide, gradient = cells.astype(jnp.float32), gradient.astype(jnp.float32)
    channel_weights = gradient.mean((1, 2), keepdims=True)
    activation = jax.nn.relu(jnp.sum(channel_weights * wide, axis=-1))
    highest = activation.max((1, 2), keepdims=True)
    return activation / jnp.maximum(highest, 1e-12), attention


def stripes(height: int, parts: int) -> list[tuple[float, float]]:
    """Where each part starts and ends, as shares of the height, for a map of `height` rows.

    >>> stripes(3, 2)
    [(0.0, 0.6666666666666666), (0.3333333333333333, 1.0)]
    """
    covered = np.asarray(stripe_matrix(height, parts, jnp.float32)) > 0
    return [(rows[0] / height, (rows[-1] + 1) / height) for rows in map(_true, covered.tolist())]


def _true(row: list[bool]) -> list[int]:
    return [number for number, covered in enumerate(row) if covered]


class GraphBatch(NamedTuple):
    """Images for one batch of the graph, as training has them."""

    visible: Int[np.ndarray, "n m"]
    """Numbers of images, all of the slot's identity."""
    infrared: Int[np.ndarray, "n m"]
    identities: list[int]
    """Of the slots, rising."""


def choose_batch(
    identities: Int[np.ndarray, " N"],
    infrared: Bool[np.ndarray, " N"],
    people: int,
    images_per_identity: int,
) -> GraphBatch | None:
    """People, spread evenly over those seen in both modalities, with as many images in each (of
    somebody with fewer, some are there twice). None where nobody is."""
    both = np.intersect1d(identities[infrared], identities[~infrared])
    if not len(both):
        return None
    chosen = both[np.linspace(0, len(both) - 1, min(people, len(both))).astype(int)]

    def draw(modality: Bool[np.ndarray, " N"]) -> Int[np.ndarray, "n m"]:
        rows = []
        for identity in chosen:
            mine = np.flatnonzero((identities == identity) & modality)
            places = np.linspace(0, len(mine) - 1, images_per_identity).astype(int)
            rows.append(mine[places])
        return np.stack(rows)

    return GraphBatch(draw(~infrared), draw(infrared), chosen.tolist())


def batch_attention(
    method: HasBatchAttention,
    variables: Any,
    visible: UInt8[np.ndarray, "n m h w 3"],
    infrared: UInt8[np.ndarray, "n m h w 3"],
) -> Float[np.ndarray, "k k"] | None:
    """Return how each image of a batch attends to each other one, without augmentation.

    Returns:
        Rows of sum 1, by identity; of each, the visible images before the infrared ones. None for
        a method that has no such attention.
    """
    n, m = visible.shape[:2]
    labels = np.repeat(np.arange(n), m)
    flat = [images.reshape(n * m, *images.shape[2:]) for images in (visible, infrared)]
    found = _batch_attention(method, variables, *flat, labels)
    if found is None:
        return None
    attention = np.asarray(found)
    order = np.argsort(np.tile(labels, 2), kind="stable")  # visible first, so they stay first
    return attention[order][:, order]


@functools.partial(jax.jit, static_argnums=0)
def _batch_attention(
    method: HasBatchAttention, variables: Any, visible: Array, infrared: Array, labels: Array
) -> Array | None:
    views = (
        View("visible", normalise(visible), labels),
        View("infrared", normalise(infrared), labels),
    )
    return method.batch_attention(variables, views)
