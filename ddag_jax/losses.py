"""Losses that any method may use: each the mean over the images of one device, at least float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
    all_features, all_labels = features, labels
    if axis_name is not None:
        all_features = jax.lax.all_gather(features, axis_name, tiled=True)
        all_labels = jax.lax.all_gather(labels, axis_name, tiled=True)
    # Full precision: the difference of large numbers below would not survive TF32 or bfloat16.
    product = jnp.dot(features, all_features.T, precision=jax.lax.Precision.HIGHEST)
    square = jnp.square(features).sum(1)[:, None] + jnp.square(all_features).sum(1) - 2 * product
    distance = jnp.sqrt(jnp.maximum(square, 1e-12))
    same = labels[:, None] == all_labels
    positive = jnp.max(jnp.where(same, distance, -jnp.inf), axis=1)
    negative = jnp.min(jnp.where(same, jnp.inf, distance), axis=1)
    return jax.nn.relu(margin + positive - negative).mean()
