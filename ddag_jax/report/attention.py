"""Compute the attention between parts and between images, and Grad-CAM of a similarity."""

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
    """Attention of the network on some images, in evaluation mode."""

    activation: Float[np.ndarray, "b h w"]
    """Grad-CAM (Selvaraju et al. 2017) of the similarity to another image, for each cell of the
    last feature map, in [0, 1]."""
    parts: Float[np.ndarray, "b p p"] | None
    """Attention of part i to part j, rows of sum 1; None without part attention."""
    part_weights: Float[np.ndarray, " p"] | None
    """Learned weights of the parts, of sum 1; None if parts are not weighted."""


def look_at(
    method: HasFeatureMap,
    variables: Any,
    images: UInt8[np.ndarray, "b h w 3"],
    modality: Modality,
    others: dict[str, Float[np.ndarray, "b _"]],
) -> Looks:
    """Return Grad-CAM of each image's similarity to another one, and its part attention.

    Args:
        method: a method without a device axis.
        variables: {"params", "batch_stats"}, on this host.
        images: images of one modality.
        modality: the modality of `images`.
        others: by name, the features of the image that each one is compared with; the similarity
            is the mean over the features.
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
        # Each similarity depends on the cells of its own image only: one gradient for the batch.
        return jnp.stack(products).mean(), attention

    gradient, attention = jax.grad(similarity, has_aux=True)(cells)
    wide, gradient = cells.astype(jnp.float32), gradient.astype(jnp.float32)
    channel_weights = gradient.mean((1, 2), keepdims=True)
    activation = jax.nn.relu(jnp.sum(channel_weights * wide, axis=-1))
    highest = activation.max((1, 2), keepdims=True)
    return activation / jnp.maximum(highest, 1e-12), attention


def stripes(height: int, parts: int) -> list[tuple[float, float]]:
    """Return start and end of each part as fractions of the height of a map with `height` rows.

    >>> stripes(3, 2)
    [(0.0, 0.6666666666666666), (0.3333333333333333, 1.0)]
    """
    covered = np.asarray(stripe_matrix(height, parts, jnp.float32)) > 0
    return [(rows[0] / height, (rows[-1] + 1) / height) for rows in map(_true, covered.tolist())]


def _true(row: list[bool]) -> list[int]:
    return [number for number, covered in enumerate(row) if covered]


class GraphBatch(NamedTuple):
    """Indices of the images of one batch, arranged as in training."""

    visible: Int[np.ndarray, "n m"]
    """Indices of visible images; row i has the images of identity i."""
    infrared: Int[np.ndarray, "n m"]
    """Indices of infrared images, likewise."""
    identities: list[int]
    """Identities of the rows, in ascending order."""


def choose_batch(
    identities: Int[np.ndarray, " N"],
    infrared: Bool[np.ndarray, " N"],
    people: int,
    images_per_identity: int,
) -> GraphBatch | None:
    """Choose a batch for `batch_attention`.

    Args:
        identities: identity of each image.
        infrared: whether each image is infrared.
        people: maximum number of identities, evenly spaced over those with both modalities.
        images_per_identity: images per identity and modality; repeated if there are fewer.

    Returns:
        The batch; None if no identity has images in both modalities.
    """
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
    """Return the graph attention between the images of a batch, without augmentation.

    Returns:
        Rows of sum 1, ordered by identity, then visible before infrared. None if the method has no
        such attention.
    """
    n, m = visible.shape[:2]
    labels = np.repeat(np.arange(n), m)
    flat = [images.reshape(n * m, *images.shape[2:]) for images in (visible, infrared)]
    found = _batch_attention(method, variables, *flat, labels)
    if found is None:
        return None
    attention = np.asarray(found)
    order = np.argsort(np.tile(labels, 2), kind="stable")  # stable: visible images stay first
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
