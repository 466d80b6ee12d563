"""Pairs across the modalities: what is counted, and where both errors are equal."""

import numpy as np
import pytest

from ddag_jax.evaluation import pairs
from ddag_jax.evaluation.pairs import compare_pairs, equal_error, operating_points


def scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(0.5, 0.2, 400), random.normal(0.1, 0.2, 3000)


@pytest.mark.parametrize("seed", range(5))
def test_equal_error_is_where_both_errors_are_equal(seed: int) -> None:
    same, different = scores(seed)
    point = equal_error(same.copy(), different.copy())
    missed = (same < point.threshold).mean()
    taken = (different >= point.threshold).mean()
    assert abs(missed - taken) <= 3 / len(same)  # some pairs more or less
    assert point.rate == pytest.approx((missed + taken) / 2)
    # Of two normal distributions of equal width: half their distance in deviations.
    assert point.threshold == pytest.approx(0.3, abs=0.04)
    assert point.rate == pytest.approx(0.1587, abs=0.03)


def test_equal_error_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import roc_curve

    same, different = scores(7)
    truth = np.repeat([1, 0], [len(same), len(different)])
    taken, found, _ = roc_curve(truth, np.concatenate([same, different]), drop_intermediate=False)
    best = np.abs(taken - (1 - found)).argmin()
    expected = (taken[best] + 1 - found[best]) / 2
    assert equal_error(same, different).rate == pytest.approx(expected, abs=1 / 400)


def test_separate_kinds_have_no_error_and_equal_ones_are_a_guess() -> None:
    assert equal_error(np.array([0.7, 0.8]), np.array([0.1, 0.2])).rate == 0
    assert equal_error(np.full(4, 0.5), np.full(6, 0.5)).rate == pytest.approx(0.5)


def test_pairs_are_those_across_the_modalities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_ROWS", 3)  # several chunks
    random = np.random.default_rng(0)
    features = random.normal(size=(30, 4)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    identities, infrared = random.integers(0, 3, 30), random.random(30) < 0.4
    found = compare_pairs(features, identities, infrared)
    assert found is not None
    same, different = [], []
    for i in np.flatnonzero(infrared):
        for j in np.flatnonzero(~infrared):
            alike = identities[i] == identities[j]
            (same if alike else different).append(float(features[i] @ features[j]))
    for counts, values in ((found.same, same), (found.different, different)):
        assert counts.sum() == len(values)
        np.testing.assert_array_equal(counts, np.histogram(values, pairs.BINS, (-1, 1))[0])


def test_one_person_has_no_other() -> None:
    assert compare_pairs(np.eye(4), np.zeros(4, int), np.arange(4) < 2) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_false_accept_rate_is_the_highest_that_is_allowed(dtype: type) -> None:
    same, different = (np.sort(values).astype(dtype) for values in scores(3))
    rates = {"far=1e-2": 1e-2, "far=1e-3": 1e-3, "far=1e-4": 1e-4}
    points = operating_points(same, different, 0.3, rates)
    assert list(points) == ["eer", *rates]
    assert points["far=1e-4"] is None  # of 3,000 pairs, the least rate is 3.3e-4
    for name, expected in (("far=1e-2", 30 / 3000), ("far=1e-3", 3 / 3000)):
        point = points[name]
        assert point is not None
        assert point["false_accept_rate"] == pytest.approx(expected, abs=1e-12)
        assert (different >= point["threshold"]).mean() == pytest.approx(expected, abs=1e-12)
        assert point["true_accept_rate"] == pytest.approx((same >= point["threshold"]).mean())
        # The next lower number accepts one pair more.
        lower = np.nextafter(dtype(point["threshold"]), dtype(-2))
        assert (different >= lower).sum() == round(3000 * expected) + 1
    eer = points["eer"]
    assert eer is not None
    assert eer["threshold"] == 0.3
    assert eer["false_accept_rate"] == pytest.approx((different >= 0.3).mean())


def test_equal_similarities_are_accepted_together() -> None:
    different = np.sort(np.repeat([0.1, 0.5], [98, 2]))
    point = operating_points(np.array([0.4, 0.6]), different, 0.3, {"far=1e-2": 1e-2})["far=1e-2"]
    assert point is not None
    assert point["threshold"] > 0.5  # one of the two at 0.5 alone cannot be accepted
    assert (point["false_accept_rate"], point["true_accept_rate"]) == (0, 0.5)


def test_points_of_pairs_are_those_of_their_similarities() -> None:
    random = np.random.default_rng(1)
    features = random.normal(size=(60, 4)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    identities, infrared = random.integers(0, 3, 60), np.arange(60) % 2 == 0
    found = compare_pairs(features, identities, infrared)
    assert found is not None
    similarity = (features[infrared] @ features[~infrared].T).astype(float)
    alike = identities[infrared][:, None] == identities[~infrared]
    point = found.points["far=1e-2"]
    assert point is not None
    accepted = similarity >= point["threshold"]
    for rate, pairs_of in (("false_accept_rate", ~alike), ("true_accept_rate", alike)):
        one = 1 / pairs_of.sum()  # another order of the sum may move a pair past the threshold
        assert accepted[pairs_of].mean() == pytest.approx(point[rate], abs=1.01 * one)
    assert 0.005 < point["false_accept_rate"] <= 0.01
