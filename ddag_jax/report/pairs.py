"""Pairs of a visible and an infrared image: how alike those of one person are, and of two."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 80
"""Of the histograms, evenly over similarities from -1 to 1."""

_ROWS = 1024
"""Visible images compared at once: a bound on memory."""


class EqualError(NamedTuple):
    """The threshold at which as many pairs of one person are missed as of two are taken for one."""

    threshold: float
    """Similarity: pairs at least as alike are taken for one person."""
    rate: float
    """Share of either kind that is judged wrongly, in [0, 1]: the mean of the two shares, which
    are equal but for the step of one pair."""


class Pairs(NamedTuple):
    """All pairs across the modalities."""

    same: Int[np.ndarray, " 80"]
    """Pairs of one person in each bin of similarity."""
    different: Int[np.ndarray, " 80"]
    """Pairs of two people in each bin."""
    equal_error: EqualError


def compare_pairs(
    features: Float[np.ndarray, "N d"],
    identities: Int[np.ndarray, " N"],
    infrared: Bool[np.ndarray, " N"],
) -> Pairs | None:
    """Compares every visible image with every infrared one, whatever the cameras.

    Args:
        features: of unit length.
        identities: of the images.
        infrared: which are infrared.

    Returns:
        None where all pairs are of one kind.
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
        # Rounding may carry the product of two rows of unit length past 1.
        return np.histogram(values.clip(-1, 1), BINS, (-1, 1))[0]

    return Pairs(histogram(one), histogram(two), equal_error(one, two))


def equal_error(same: Float[np.ndarray, " n"], different: Float[np.ndarray, " m"]) -> EqualError:
    """The equal-error point of two sets of similarities; the arrays are sorted in place.

    A threshold of 0.5 misses the pair at 0.3 and takes the one at 0.6 for one person:

    >>> equal_error(np.array([0.9, 0.8, 0.5, 0.3]), np.array([0.1, 0.6, 0.2, 0.0]))
    EqualError(threshold=0.5, rate=0.25)
    """
    same.sort()
    different.sort()
    # A pair of one person is as good a threshold as any: between two of them only fewer pairs of
    # two people are taken for one.
    missed = np.arange(len(same)) / len(same)
    missed = missed[np.searchsorted(same, same, "left")]  # equal ones are missed together
    taken = 1 - np.searchsorted(different, same, "left") / len(different)
    best = int(np.abs(missed - taken).argmin())
    return EqualError(float(same[best]), float(missed[best] + taken[best]) / 2)
