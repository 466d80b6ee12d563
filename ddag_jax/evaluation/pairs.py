"""Similarity of visible-infrared pairs, of the same person and of different people.

A threshold on the similarity decides whether two images show the same person. The false-accept rate
is the share of pairs of different people that it accepts, the true-accept rate that of pairs of the
same person.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 80
"""Number of equal bins of the histograms, over similarities from -1 to 1."""

_ROWS = 1024
"""Visible images compared at once, to bound memory."""


FALSE_ACCEPT_RATES = {"far=1e-2": 1e-2, "far=1e-3": 1e-3}
"""The false-accept rates that have an operating point, by its name."""


class OperatingPoint(TypedDict):
    """A threshold and what it does. Rates are in [0, 1]."""

    threshold: float
    """Pairs of at least this cosine similarity are accepted as the same person."""
    false_accept_rate: float
    true_accept_rate: float


class OperatingPoints(TypedDict):
    """Thresholds of one feature of one network, ready for JSON."""

    images: Literal["held-out", "test"]
    """The images that the thresholds are from. Those of `test` are the images of the table: their
    rates are optimistic."""
    checksum: int | None
    """Of the network's variables, see `runs.checkpoint`; null for stored features."""
    flip: bool
    """Features are averaged with those of the mirror images."""
    same: int
    """Number of pairs of the same person."""
    different: int
    """Number of pairs of different people."""
    points: dict[str, OperatingPoint | None]
    """`eer`, where the false-accept and the false-reject rate are equal, and `FALSE_ACCEPT_RATES`;
    null where there are too few pairs of different people to measure the rate."""


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
    points: dict[str, OperatingPoint | None]
    """As in `OperatingPoints`."""


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

    counts = histogram(one), histogram(two)
    found = equal_error(one, two)  # sorts both
    return Pairs(*counts, found, operating_points(one, two, found.threshold))


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


def operating_points(
    same: Float[np.ndarray, " n"],
    different: Float[np.ndarray, " m"],
    equal_error: float,
    rates: Mapping[str, float] = FALSE_ACCEPT_RATES,
) -> dict[str, OperatingPoint | None]:
    """Return the operating points of two ascending sets of similarities.

    Args:
        same: of pairs of the same person.
        different: of pairs of different people.
        equal_error: the threshold of `eer`.
        rates: highest false-accept rate of each other point, below 1. Its threshold is the lowest
            number that accepts no more; a rate below 1 / m cannot be measured and has None.

    >>> points = operating_points(np.array([0.5, 0.9]), np.arange(100) / 200, 0.5)
    >>> points["far=1e-2"]["false_accept_rate"], points["far=1e-3"]
    (0.01, None)
    """
    points: dict[str, OperatingPoint | None] = {}
    for name, rate in rates.items():
        accepted = math.floor(rate * len(different) * (1 + 1e-12))  # 0.01 * 300 is 3
        points[name] = None
        if accepted:
            refused = different[-accepted - 1]
            above = float(np.nextafter(refused, different.dtype.type(2)))
            points[name] = _point(same, different, above)
    return {"eer": _point(same, different, equal_error), **points}


def _point(
    same: Float[np.ndarray, " n"], different: Float[np.ndarray, " m"], threshold: float
) -> OperatingPoint:
    def accepted(values: Float[np.ndarray, " _"]) -> float:
        return 1 - float(np.searchsorted(values, threshold, "left")) / len(values)

    return OperatingPoint(
        threshold=threshold,
        false_accept_rate=accepted(different),
        true_accept_rate=accepted(same),
    )
