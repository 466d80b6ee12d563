"""The vectorised ranking against the reference's figures and against a plain loop."""

import numpy as np
import pytest

from ddag_jax.datasets.dataset import CameraRule
from ddag_jax.errors import UserError
from ddag_jax.evaluation import ranking

RULES = {
    "sysu": CameraRule(skips_cameras=((3, 2),), counts="identities"),
    "llcm": CameraRule(skips_own_camera=True, counts="identities"),
    "none": CameraRule(),
}


def loop(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, camera_rule):
    """One query after another, as one would explain it."""
    curves, precisions, penalties = [], [], []
    for row, identity, camera in zip(distances, query_ids, query_cameras, strict=True):
        order = sorted(range(len(row)), key=lambda j: row[j])  # Python's sort is stable
        if camera_rule == "sysu" and camera == 3:
            order = [j for j in order if gallery_cameras[j] != 2]
        if camera_rule == "llcm":
            order = [j for j in order if (gallery_ids[j], gallery_cameras[j]) != (identity, camera)]
        ids = [gallery_ids[j] for j in order]
        places = [place for place, other in enumerate(ids, start=1) if other == identity]
        if not places:
            precisions.append(np.nan)
            continue
        precisions.append(np.mean([n / place for n, place in enumerate(places, start=1)]))
        penalties.append(len(places) / places[-1])
        counted = list(dict.fromkeys(ids)) if camera_rule != "none" else ids
        first = counted.index(identity)
        curves.append([first < k for k in range(1, 21)])
    return ranking.Metrics(
        np.mean(curves, axis=0), np.nanmean(precisions), np.mean(penalties), len(curves), precisions
    )


def random_case(seed, queries=70, gallery=50, identities=9, levels=None):
    random = np.random.default_rng(seed)
    distances = random.standard_normal((queries, gallery))
    if levels:
        distances = random.integers(0, levels, (queries, gallery)).astype(float)
    return (
        distances,
        random.integers(0, identities, queries),
        random.integers(0, identities, gallery),
        random.choice([3, 6], queries),
        random.choice([1, 2, 3, 6], gallery),  # some that a query has, too, as LLCM's have
    )


def assert_same(metrics, expected):
    for field in ("cmc", "average_precision"):
        ours, theirs = getattr(metrics, field), getattr(expected, field)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert metrics.mAP == pytest.approx(expected.mAP, abs=1e-12)
    assert metrics.mINP == pytest.approx(expected.mINP, abs=1e-12)
    assert metrics.queries == expected.queries


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("levels", [None, 6, 1])
def test_agrees_with_the_plain_loop(rule, levels):
    """Without ties, with many, and where everything is a tie."""
    for seed in range(10):
        case = random_case(seed, levels=levels)
        assert_same(ranking.rank_distances(*case, camera_rule=RULES[rule]), loop(*case, rule))


@pytest.mark.parametrize("rule", RULES)
def test_chunks_do_not_show(rule, monkeypatch):
    case = random_case(3)
    whole = ranking.rank_distances(*case, camera_rule=RULES[rule])
    monkeypatch.setattr(ranking, "_CHUNK", 7 * 50)
    assert_same(ranking.rank_distances(*case, camera_rule=RULES[rule]), whole)


@pytest.mark.parametrize("rule", RULES)
def test_queries_without_a_match_enter_no_figure(rule):
    distances, query_ids, gallery_ids, query_cameras, gallery_cameras = random_case(5)
    strangers = np.arange(len(query_ids)) % 3 == 0
    query_ids = np.where(strangers, 1000, query_ids)
    case = distances, query_ids, gallery_ids, query_cameras, gallery_cameras
    known = (distances[~strangers], query_ids[~strangers], gallery_ids)
    known += (query_cameras[~strangers], gallery_cameras)
    metrics = ranking.rank_distances(*case, camera_rule=RULES[rule])
    assert np.isnan(metrics.average_precision[strangers]).all()
    asked = metrics._replace(average_precision=metrics.average_precision[~strangers])
    assert_same(asked, ranking.rank_distances(*known, camera_rule=RULES[rule]))
    assert metrics.queries <= (~strangers).sum()


def test_camera_3_never_sees_camera_2():
    """Not its own identity (which may leave nothing to find), nor another's."""
    query_ids, gallery_ids = np.array([1, 1]), np.array([2, 1, 1])
    gallery_cameras = np.array([2, 2, 1])
    distances = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])

    def places(camera, gallery=slice(None)):
        metrics = ranking.rank_distances(
            distances[:1, gallery],
            query_ids[:1],
            gallery_ids[gallery],
            np.array([camera]),
            gallery_cameras[gallery],
            camera_rule=RULES["sysu"],
        )
        return metrics.cmc[0], metrics.mAP

    assert places(3) == (1, 1)
    assert places(6) == (0, pytest.approx((1 / 2 + 2 / 3) / 2))
    with pytest.raises(UserError, match="no query"):
        places(3, slice(0, 2))


def test_llcm_skips_only_the_own_identity_in_the_own_camera():
    """Another identity's image of that camera keeps its place, as does the own one elsewhere."""
    distances = np.array([[0.1, 0.2, 0.3, 0.4]])
    gallery_ids, gallery_cameras = np.array([1, 2, 1, 1]), np.array([5, 5, 4, 5])

    def places(camera, gallery=slice(None)):
        metrics = ranking.rank_distances(
            distances[:, gallery],
            np.array([1]),
            gallery_ids[gallery],
            np.array([camera]),
            gallery_cameras[gallery],
            camera_rule=RULES["llcm"],
        )
        return metrics.cmc[:2].tolist(), metrics.mAP

    assert places(5) == ([0, 1], 1 / 2)
    assert places(4) == ([1, 1], pytest.approx((1 + 2 / 3) / 2))
    assert places(9) == ([1, 1], pytest.approx((1 + 2 / 3 + 3 / 4) / 3))
    with pytest.raises(UserError, match="no query"):
        places(5, slice(0, 2))


def test_fewer_identities_than_ranks():
    """Beyond the last place the curve stays at one."""
    case = random_case(0, identities=2)
    metrics = ranking.rank_distances(*case, camera_rule=RULES["sysu"])
    assert metrics.cmc.shape == (20,)
    assert (metrics.cmc[1:] == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_distances_that_are_not_finite(bad):
    distances, *who = random_case(0)
    distances[2, 3] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        ranking.rank_distances(distances, *who, camera_rule=RULES["none"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query": np.ones((1, 3))}, "same length"),
        ({"query": np.ones((1, 2))}, "query: a row is not of unit length"),
        ({"gallery_ids": [7]}, "gallery_ids: is of shape"),
        ({"camera_rule": RULES["sysu"]}, "cameras: missing"),
        ({"query_ids": [8]}, "no query has an image"),
    ],
)
def test_features_that_cannot_be_ranked(given: dict, message: str) -> None:
    right = {"query": np.eye(2)[[0]], "gallery": np.eye(2), "query_ids": [7], "gallery_ids": [7, 5]}
    assert ranking.rank_features(**right).mAP == 1  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        ranking.rank_features(**{**right, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize("queries", [1, 2, 3, 50])
@pytest.mark.parametrize("copies", [2, 3, 7])
def test_equal_rows_are_at_exactly_equal_distances(copies: int, queries: int) -> None:
    """A plain product rounds differently in different columns, so that chance breaks ties."""
    random = np.random.default_rng(copies)
    rows, query = (random.standard_normal((n, 512), dtype=np.float32) / 23 for n in (43, queries))
    places = random.permutation(np.repeat(np.arange(43), copies))
    found = ranking.distances(query, rows[places])
    np.testing.assert_allclose(found, -query @ rows[places].T, atol=1e-6)
    first = np.array([np.flatnonzero(places == place)[0] for place in places])
    np.testing.assert_array_equal(found, found[:, first])
    order = np.argsort(found, axis=1, kind="stable")
    for row in order:  # the copies of a row follow each other in the gallery's order
        groups = row.reshape(43, copies)
        assert (np.diff(groups, axis=1) > 0).all()
        assert (places[groups] == places[groups[:, :1]]).all()
