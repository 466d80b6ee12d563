"""Similarity of visible-infrared pairs, of the same person and of different people."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 80
"""Number of equal bins of the histograms, over similarities from -1 to 1."""

_ROWS = 1024
"""Visible images compared at once, to bound memory."""


class EqualError(NamedTuple):
    """The threshold at which the false-rejection and the false-acceptance rate are equal."""

    threshold: float
    """Pairs of at least this similarity are accepted as the same person."""
    rate: float
    """Mean of the two rates, in [0, 1]; they may differ by the step of one pair."""


class Pairs(NamedTuple):
    """Statistics of all visible-infrared pairs."""

    same: Int[np.ndarray, " 80"]
    """Number of pairs of the same person in each bin."""
    different: Int[np.ndarray, " 80"]
    """Number of pairs of different people in each bin."""
    equal_error: EqualError


def compare_pairs(
    features: Float[np.ndarray, "N d"],
    identities: Int[np.ndarray, " N"],
    infrared: Bool[np.ndarray, " N"],
) -> Pairs | None:
    """Compare every visible image with every infrared one, regardless of cameras.

    Args:
        features: of unit length.
        identities: of the images.
        infrared: whether each image is infrared.

    Returns:
        None if all pairs are of the same person, or all of different people.
    """
    asked, visible = features[infrared], np.flatnonzero(~infrared)
    same, different = [], []
    for start in range(0, len(visible), _ROWS):
        rows = visible[start : start + _ROWS]
        similarity = features[rows] @ asked.T
        alike = identities[rows, None] == identities[infrared]
        same.append(similarity[alike])
        different.append(similarity[~alike])
    one, two = np.concatenate(same), np.concatenate(different)
    if not (len(one) and len(two)):
        return None

    def histogram(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " 80"]:
        # Rounding may push the product of two rows of unit length past 1.
        return np.histogram(values.clip(-1, 1), BINS, (-1, 1))[0]

    return Pairs(histogram(one), histogram(two), equal_error(one, two))


def equal_error(same: Float[np.ndarray, " n"], different: Float[np.ndarray, " m"]) -> EqualError:
    """Return the equal-error point of two sets of similarities, which are sorted in place.

    A threshold of 0.5 rejects the pair of one person at 0.3 and accepts that of two at 0.6:

    >>> equal_error(np.array([0.9, 0.8, 0.5, 0.3]), np.array([0.1, 0.6, 0.2, 0.0]))
    EqualError(threshold=0.5, rate=0.25)
    """
    same.sort()
    different.sort()
    # Similarities of pairs of the same person suffice as thresholds: raising one towards the next
    # rejects none of these and only accepts fewer pairs of different people.
    rejected = np.arange(len(same)) / len(same)
    rejected = rejected[np.searchsorted(same, same, "left")]  # equal ones are rejected together
    accepted = 1 - np.searchsorted(different, same, "left") / len(different)
    best = int(np.abs(rejected - accepted).argmin())
    return EqualError(float(same[best]), float(rejected[best] + accepted[best]) / 2)
