"""Comparison of an exported model with ours, on images of the built-in people."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

from ddag_jax.datasets.images import read_images
from ddag_jax.errors import UserError
from ddag_jax.methods.base import Modality
from ddag_jax.synthetic.camera import INFRARED, VISIBLE
from ddag_jax.synthetic.image import People, render

IMAGES = 64
"""Of each modality."""
TOLERANCE = 1e-5
"""Largest `relative_difference` of features, and difference of two similarities that count as
equal."""

Features = Mapping[Modality, Float[np.ndarray, "b d"]]
"""Rows of unit length."""


def check_images(modality: Modality, height: int, width: int) -> UInt8[np.ndarray, "b h w 3"]:
    """Render one image of each of 64 people, always the same: no dataset is needed for them."""
    camera = min(INFRARED if modality == "infrared" else VISIBLE)
    people = People(height=min(max(height, 32), 1024))
    numbers = range(1, IMAGES + 1)
    rendered = (render(people, identity, camera, index=1) for identity in numbers)
    return np.stack(list(read_images(rendered, height, width)))


def relative_difference(
    ours: Float[np.ndarray, "b d"], exported: Float[np.ndarray, "b d"]
) -> float:
    """Return the norm of the difference over the norm of ours, of all images together.

    Not of the worst image: where unscaled attention scores of hundreds nearly tie, the part feature
    of a single image moves by some 1e-5 between any two ways to round in float32, ours included.

    >>> relative_difference(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 0.5]]))
    0.1
    """
    return float(np.linalg.norm(exported - ours) / np.linalg.norm(ours))


def rank_difference(ours: Float[np.ndarray, "q g"], exported: Float[np.ndarray, "q g"]) -> float:
    """Return by how much our similarities contradict the ranking of the exported ones.

    It is the largest difference between our similarities of two gallery images that the exported
    similarities put in the other order; 0 if both rank alike.

    >>> rank_difference(np.array([[0.9, 0.5, 0.4]]), np.array([[0.8, 0.4, 0.5]]))
    0.1
    """
    order = np.argsort(-exported, axis=1, kind="stable")
    ranked = np.take_along_axis(ours, order, axis=1)
    best_below = np.maximum.accumulate(ranked[:, ::-1], axis=1)[:, ::-1]
    return float((best_below - ranked).max())


def compare(ours: Features, exported: Features) -> dict[Modality, float]:
    """Compare features of both modalities, and how infrared queries rank visible images.

    The ranking, by cosine similarity, must be the same, except for images whose similarities to
    the query differ by at most `TOLERANCE` in ours.

    Returns:
        The relative difference of each modality's features.

    Raises:
        UserError: features or ranking differ by more than `TOLERANCE`, or are not finite.
    """
    found = {}
    for modality, rows in ours.items():
        if not np.isfinite(rows).all():
            raise UserError(
                f"{modality}: a feature of the checkpoint is not finite; its weights have diverged,"
                " export an earlier checkpoint"
            )
        found[modality] = relative_difference(rows, exported[modality])
        if not found[modality] <= TOLERANCE:  # nan too
            raise UserError(
                f"{modality}: the exported model's features differ from ours by"
                f" {found[modality]:.2g} (relative), more than {TOLERANCE:g}: nothing is written;"
                " please report it with the run's configuration"
            )
    one, other = (each["infrared"] @ each["visible"].T for each in (ours, exported))
    if not (contradicted := rank_difference(one, other)) <= TOLERANCE:
        raise UserError(
            "infrared to visible: the exported models rank images in another order whose"
            f" similarities differ by {contradicted:.2g} in ours, more than {TOLERANCE:g}: nothing"
            " is written; please report it with the run's configuration"
        )
    return found
