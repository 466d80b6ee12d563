"""Eq. 1, 9, 10 and 11. Each gives the mean over the images of one device, in at least float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddag_jax.types import Array as AnyArray
from ddag_jax.types import TrainingOutput


def cross_entropy(logits: Float[AnyArray, "k y"], labels: Int[Array, " k"]) -> Float[Array, ""]:
    """Identity loss, on global logits or on part logits (Eq. 10): mean over images.

    >>> round(float(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
    1.3863
    """
    return negative_log_likelihood(jax.nn.log_softmax(logits), labels)


def negative_log_likelihood(
    log_probs: Float[AnyArray, "k y"], labels: Int[Array, " k"]
) -> Float[Array, ""]:
    """Mean over images of minus the log-probability of the right class."""
    return -jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean()


def graph_loss(
    log_probs: Float[AnyArray, "k y"],
    labels: Int[Array, " k"],
    reduction: str,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Eq. 9: "mean" (the code) over the nodes, or their "sum" (the paper).

    The sum is this device's mean times the nodes of all devices, since the step averages the
    devices' losses.
    """
    loss = negative_log_likelihood(log_probs, labels)
    if reduction == "mean":
        return loss
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    return loss * len(labels) * devices


class Triplet(NamedTuple):
    """The batch-hard triplet loss, and how many anchors are in order already."""

    loss: Float[Array, ""]
    correct: Int[Array, ""]
    """Anchors whose hardest negative lies at least as far as their hardest positive."""


def batch_hard_triplet(
    features: Float[AnyArray, "k c"],
    labels: Int[Array, " k"],
    margin: float,
    axis_name: str | None = None,
) -> Triplet:
    """Eq. 1: for each anchor its farthest positive and nearest negative, whatever the modality.

    Euclidean distance, its square clamped at 1e-12 before the root, so that coincident features
    have a finite gradient. Anchors are those of this device; positives and negatives are sought
    among the features of all devices of `axis_name`.

    >>> x = jnp.array([[0.0], [1.0], [3.0], [4.0]])
    >>> batch_hard_triplet(x, jnp.array([0, 0, 1, 1]), margin=1.5).loss.item()
    0.25
    """
    everyone, their_labels = features, labels
    if axis_name is not None:
        everyone = jax.lax.all_gather(features, axis_name, tiled=True)
        their_labels = jax.lax.all_gather(labels, axis_name, tiled=True)
    # Full precision: the difference of large numbers below would not survive TF32 or bfloat16.
    product = jnp.dot(features, everyone.T, precision=jax.lax.Precision.HIGHEST)
    square = jnp.square(features).sum(1)[:, None] + jnp.square(everyone).sum(1) - 2 * product
    distance = jnp.sqrt(jnp.maximum(square, 1e-12))
    same = labels[:, None] == their_labels
    positive = jnp.max(jnp.where(same, distance, -jnp.inf), axis=1)
    negative = jnp.min(jnp.where(same, jnp.inf, distance), axis=1)
    return Triplet(jax.nn.relu(margin + positive - negative).mean(), jnp.sum(negative >= positive))


class Losses(NamedTuple):
    """The terms of Eq. 10 and 11, each a scalar."""

    identity: Float[Array, ""]
    triplet: Float[Array, ""]
    part: Float[Array, ""]
    """0 where the part attention is off."""
    graph: Float[Array, ""]
    """0 where the graph attention is off."""
    without_graph: Float[Array, ""]
    """L_P (Eq. 10), L_b where the part attention is off: its mean over an epoch weighs the graph
    loss of the next."""
    total: Float[Array, ""]
    graph_weight: Float[Array, ""]
    """The coefficient w of the graph loss in the total."""
    skipped_in_row: Int[Array, ""] | int = 0
    """No term: steps, up to this one, that were not finite and changed nothing; the step's."""


def ddag_losses(
    output: TrainingOutput,
    labels: Int[Array, " k"],
    graph_weight: Float[Array, ""],
    *,
    margin: float,
    graph_reduction: str,
    axis_name: str | None = None,
) -> Losses:
    """All terms for one device's images: L_P + w L_g, no gradient through w."""
    zero = jnp.zeros((), output.global_logits.dtype)
    identity = cross_entropy(output.global_logits, labels)
    triplet = batch_hard_triplet(output.pooled, labels, margin, axis_name).loss
    part = zero if output.part_logits is None else cross_entropy(output.part_logits, labels)
    graph = (
        zero
        if output.graph_log_probs is None
        else graph_loss(output.graph_log_probs, labels, graph_reduction, axis_name)
    )
    without_graph = identity + triplet + part
    weight = jax.lax.stop_gradient(graph_weight)
    total = without_graph + weight * graph
    return Losses(identity, triplet, part, graph, without_graph, total, weight)


def dynamic_graph_weight(mean_without_graph: Float[Array, ""]) -> Float[Array, ""]:
    """Eq. 11: coefficient of the graph loss from the mean of L_P over the epoch before.

    >>> float(dynamic_graph_weight(jnp.array(3.0)))
    0.25
    """
    return 1 / (1 + mean_without_graph)
