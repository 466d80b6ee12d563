"""Losses that any method may use: each the mean over the images of one device, at least float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddag_jax.types import Array as AnyArray


def cross_entropy(logits: Float[AnyArray, "k y"], labels: Int[Array, " k"]) -> Float[Array, ""]:
    """Return the identity loss (Eq. 10): the mean over images of the softmax cross-entropy.

    >>> round(float(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
    1.3863
    """
    return negative_log_likelihood(jax.nn.log_softmax(logits), labels)


def negative_log_likelihood(
    log_probs: Float[AnyArray, "k y"], labels: Int[Array, " k"]
) -> Float[Array, ""]:
    """Return the mean over images of minus the log-probability of the right class.

    >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    >>> round(float(negative_log_likelihood(log_probs, jnp.array([0, 0]))), 4)
    1.0397
    """
    return -jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean()


def batch_hard_triplet(
    features: Float[AnyArray, "k c"],
    labels: Int[Array, " k"],
    margin: float,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Return Eq. 1: for each anchor its farthest positive and nearest negative, in any modality.

    Euclidean distance, its square clamped at 1e-12 before the root, so that coincident features
    have a finite gradient.

    Args:
        features: of this device's images, which are the anchors.
        labels: class of each image.
        margin: by which the negative should be farther than the positive.
        axis_name: positives and negatives are sought among the features of all devices of this
            axis; None for one device.

    >>> x = jnp.array([[0.0], [1.0], [3.0], [4.0]])
    >>> batch_hard_triplet(x, jnp.array([0, 0, 1, 1]), margin=1.5).item()
    0.25
    """
    distance, same = _distances(features, labels, axis_name)
    return _hinge(distance, same, ~same, margin).mean()


def weighted_triplet(
    features: Float[AnyArray, "k c"], labels: Int[Array, " k"], axis_name: str | None = None
) -> Float[Array, ""]:
    """Return AGW's weighted regularised triplet loss (its Eq. 5 and 6): mean of softplus(p - n).

    p and n are the mean distances to an anchor's positives, itself among them, and to its
    negatives, weighted by the softmax of the distance and of minus the distance. No margin.

    As in the authors' code, the softmax's denominator has 1e-6 added after the largest distance of
    the positives is subtracted; of the negatives nothing is. Where all of them are far, the 1e-6
    outweighs their sum, and n shrinks.

    Args:
        features: of this device's images, which are the anchors.
        labels: class of each image.
        axis_name: as in `batch_hard_triplet`.

    >>> x = jnp.array([[0.0], [0.0], [2.0], [2.0]])
    >>> round(float(weighted_triplet(x, jnp.array([0, 0, 1, 1]))), 4)  # softplus(0 - 2)
    0.1269
    """
    positive, negative = _weighted_means(features, labels, 1.0, axis_name)
    return jax.nn.softplus(positive - negative).mean()


def squared_triplet(
    features: Float[AnyArray, "k c"],
    labels: Int[Array, " k"],
    alpha: float,
    gamma: float,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return CAJ's enhanced squared difference, and the share of its anchors that are clamped.

    With p and n as in `weighted_triplet`, the distances in the softmaxes times alpha, and D the
    smaller of gamma (p - n)^2 and 88: the mean of log(1 + e^D) where p > n, else log(1 + e^-D).
    A clamped anchor has no gradient; at the scale of raw features all are clamped with gamma 1, and
    the loss stays at 88 (the authors' issues 23, 27 and 30).

    Args:
        features: of this device's images, which are the anchors.
        labels: class of each image.
        alpha: factor of the distances in the softmaxes.
        gamma: factor of the squared difference.
        axis_name: as in `batch_hard_triplet`.

    >>> x = jnp.array([[0.0], [0.0], [2.0], [2.0]])
    >>> [round(float(x), 4) for x in squared_triplet(x, jnp.array([0, 0, 1, 1]), 1.0, 0.5)]
    [0.1269, 0.0]
    """
    positive, negative = _weighted_means(features, labels, alpha, axis_name)
    difference = gamma * jnp.square(positive - negative)
    clamped = difference > _LARGEST_EXPONENT
    exponent = jnp.where(clamped, _LARGEST_EXPONENT, difference)
    loss = jax.nn.softplus(jnp.where(positive > negative, exponent, -exponent)).mean()
    return loss, clamped.astype(loss.dtype).mean()


_SHORTEST = 1e-6  # distance: the root of the clamp
_LARGEST_EXPONENT = 88.0  # e^88 is just below float32's largest number


def hetero_centre_triplet(
    features: Float[AnyArray, "k c"],
    labels: Int[Array, " k"],
    visible: Bool[AnyArray, " k"],
    margin: float,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Return the hetero-centre triplet loss (Liu et al. 2020).

    A centre is the mean feature of an identity in a modality: 2n of them. Its positive is the same
    identity's other centre, its negative the nearest centre of another identity in either modality;
    the loss is the mean over the centres of max(0, margin + d+ - d-).

    Args:
        features: of this device's images; the centres of its identities are the anchors.
        labels: class of each image; an identity's images are all on one device.
        visible: whether the image is visible.
        margin: by which the negative should be farther than the positive.
        axis_name: negatives are sought among the centres of all devices of this axis.

    >>> x = jnp.array([[0.0], [2.0], [4.0], [2.0], [4.0], [6.0]])  # centres 1, 4 and 3, 6
    >>> labels, visible = jnp.array([0, 0, 1, 0, 0, 1]), jnp.arange(6) < 3
    >>> round(float(hetero_centre_triplet(x, labels, visible, 0.3)), 4)  # 0, 1.3, 1.3, 0
    0.65
    """
    group = 2 * labels + visible
    together = (group[:, None] == group).astype(features.dtype)
    count = together.sum(1)
    centres = jnp.dot(together, features, precision=jax.lax.Precision.HIGHEST) / count[:, None]
    # A row for each image: a centre stands as often as it has images, and counts once.
    distance, same_group = _distances(centres, group, axis_name)
    same = labels[:, None] == _over_devices(labels, axis_name)
    hinge = _hinge(distance, same & ~same_group, ~same, margin)
    return (hinge / count).sum() / (1 / count).sum()


def _over_devices(rows: Array, axis_name: str | None) -> Array:
    return rows if axis_name is None else jax.lax.all_gather(rows, axis_name, tiled=True)


def _distances(
    features: Float[AnyArray, "k c"], labels: Int[Array, " k"], axis_name: str | None
) -> tuple[Float[Array, "k K"], Bool[Array, "k K"]]:
    """Return distances of this device's features to those of all devices, and who shares a label.

    Euclidean, their squares clamped at 1e-12 before the root.
    """
    features = jnp.asarray(features)
    all_features, all_labels = (_over_devices(x, axis_name) for x in (features, labels))
    # Full precision: the difference of large numbers below would not survive TF32 or bfloat16.
    product = jnp.dot(features, all_features.T, precision=jax.lax.Precision.HIGHEST)
    square = jnp.square(features).sum(1)[:, None] + jnp.square(all_features).sum(1) - 2 * product
    return jnp.sqrt(jnp.maximum(square, 1e-12)), labels[:, None] == all_labels


def _hinge(
    distance: Float[Array, "k K"],
    positives: Bool[Array, "k K"],
    negatives: Bool[Array, "k K"],
    margin: float,
) -> Float[Array, " k"]:
    """Return max(0, margin + farthest positive - nearest negative) of each row."""
    positive = jnp.max(jnp.where(positives, distance, -jnp.inf), axis=1)
    negative = jnp.min(jnp.where(negatives, distance, jnp.inf), axis=1)
    return jax.nn.relu(margin + positive - negative)


def _weighted_means(
    features: Float[AnyArray, "k c"], labels: Int[Array, " k"], alpha: float, axis_name: str | None
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Return each anchor's softmax-weighted mean distance to its positives and to its negatives."""
    distance, same = _distances(features, labels, axis_name)
    # The distance of an image to itself is the clamp, without a gradient. Rounding in its square
    # may exceed the clamp, and the slope of the root there multiplies it by half a million.
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * len(labels)
    itself = first + jnp.arange(len(labels))[:, None] == jnp.arange(distance.shape[1])
    distance = jnp.where(itself, _SHORTEST, distance)

    def mean(exponent: Array, mask: Array) -> Array:
        weight = jnp.exp(jnp.where(mask, exponent, -jnp.inf))
        return (weight * distance).sum(1) / (weight.sum(1) + 1e-6)

    scaled = alpha * distance
    largest = jnp.max(jnp.where(same, scaled, 0), axis=1, keepdims=True)
    return mean(scaled - largest, same), mean(-scaled, ~same)
