"""The triplet loss that a configuration asks for."""

from collections.abc import Mapping

from jaxtyping import Array, Bool, Float, Int

from ddag_jax.config import TwoStreamConfig
from ddag_jax.losses import (
    batch_hard_triplet,
    hetero_centre_triplet,
    squared_triplet,
    weighted_triplet,
)
from ddag_jax.types import Array as AnyArray


def triplet_terms(
    config: TwoStreamConfig,
    features: Float[AnyArray, "k c"],
    labels: Int[Array, " k"],
    visible: Bool[AnyArray, " k"],
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """Return the term `triplet` of `config.triplet`; of the squared one also `clamped`, to log.

    Args:
        config: the kind, one of the functions of losses.py, with its margin, alpha and gamma.
        features: of this device's images.
        labels: class of each image.
        visible: whether the image is visible; only the centres read it.
        axis_name: the device axis among whose features positives and negatives are sought.
    """
    margin = config.margin
    match config.triplet:
        case "hard":
            return {"triplet": batch_hard_triplet(features, labels, margin, axis_name)}
        case "weighted":
            return {"triplet": weighted_triplet(features, labels, axis_name)}
        case "squared":
            alpha, gamma = config.triplet_alpha, config.triplet_gamma
            loss, clamped = squared_triplet(features, labels, alpha, gamma, axis_name)
            return {"triplet": loss, "clamped": clamped}
        case "hetero-centre":
            return {"triplet": hetero_centre_triplet(features, labels, visible, margin, axis_name)}


def clamped_warnings(terms: Mapping[str, float]) -> dict[str, str]:
    """Return a warning, by its name, if most anchors of a squared triplet are clamped.

    >>> clamped_warnings({"clamped": 0.5}), list(clamped_warnings({"clamped": 0.75}))
    ({}, ['clamped'])
    """
    share = terms.get("clamped", 0.0)
    if share <= 0.5:
        return {}
    text = (
        f"the squared triplet loss is clamped for {100 * share:.0f} % of this step's anchors, which"
        " have no gradient; train with a smaller --model.triplet-gamma, or --model.triplet weighted"
    )
    return {"clamped": text}
