"""The vectorised re-ranking against one that goes from image to image."""

import numpy as np
import pytest

from ddag_jax.datasets.dataset import CameraRule
from ddag_jax.errors import UserError
from ddag_jax.evaluation import ranking, reranking
from ddag_jax.evaluation.reranking import rerank


def slow(query_features, gallery_features, *, k1=20, k2=6, weight=0.3):
    """One image after another, in sets and dictionaries, as one would explain it."""
    features = np.concatenate([query_features, gallery_features]).astype(float)
    everyone = range(len(features))
    distances = []
    for feature in features:
        row = ((feature - features) ** 2).sum(axis=1)
        distances.append(row / (row.max() or 1))
    # The image itself first, then by distance, then by number.
    order = [sorted(everyone, key=lambda j: (j != i, distances[i][j], j)) for i in everyone]

    def mutual(i, count):
        return {j for j in order[i][: count + 1] if i in order[j][: count + 1]}

    def describe(i):
        own = mutual(i, k1)
        members = set(own)
        for j in own:
            theirs = mutual(j, round(k1 / 2))
            if 3 * len(theirs & own) > 2 * len(theirs):
                members |= theirs
        weights = {j: np.exp(-distances[i][j]) for j in members}
        return {j: w / sum(weights.values()) for j, w in weights.items()}

    descriptions = [describe(i) for i in everyone]

    def average(i):
        group = [descriptions[j] for j in order[i][:k2]]
        members = set().union(*group)
        return {j: sum(one.get(j, 0) for one in group) / len(group) for j in members}

    averaged = [average(i) for i in everyone]
    result = np.zeros((len(query_features), len(gallery_features)))
    for q in range(len(query_features)):
        for g in range(len(gallery_features)):
            other = len(query_features) + g
            ours, theirs = averaged[q], averaged[other]
            shared = sum(min(ours[j], theirs[j]) for j in ours.keys() & theirs.keys())
            jaccard = 1 - shared / (2 - shared)
            result[q, g] = weight * distances[q][other] + (1 - weight) * jaccard
    return result


def random_case(seed, queries=40, gallery=30, channels=24, identities=6):
    """Features of unit length, those of an identity alike."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((identities, channels))
    features = 0.7 * random.standard_normal((queries + gallery, channels))
    features += common[random.integers(0, identities, queries + gallery)]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features[:queries], features[queries:]


def tied_case(seed, queries=40, gallery=30):
    """Corners of a cube in four dimensions: all products are exact, most images have doubles."""
    corners = np.random.default_rng(seed).choice([-0.5, 0.5], (queries + gallery, 4))
    return corners[:queries], corners[queries:]


OPTIONS = (
    {},
    {"k2": 1},
    {"weight": 0.0},
    {"weight": 1.0},
    {"k1": 5, "k2": 3},  # half of 5 rounds down to 2
    {"k1": 7, "k2": 12},  # half of 7 rounds up to 4; more to average over than neighbours
    {"k1": 1, "k2": 2},
)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", [random_case, tied_case])
def test_agrees_with_the_slow_one(case, options):
    for seed in range(3):
        result = rerank(*case(seed), **options)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, slow(*case(seed), **options), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("queries", "gallery"), [(1, 1), (1, 2), (2, 1), (30, 1), (1, 30), (8, 9)])
def test_few_images(queries, gallery):
    """Fewer than k1, than k2, a single one: the nearest are then all there are."""
    case = random_case(0, queries, gallery)
    result = rerank(*case)
    assert result.shape == (queries, gallery)
    np.testing.assert_allclose(result, slow(*case), rtol=0, atol=1e-5)


def test_chunks_do_not_show(monkeypatch):
    case = tied_case(1)
    whole = rerank(*case)
    monkeypatch.setattr(reranking, "_CHUNK", 9 * 70)
    np.testing.assert_array_equal(rerank(*case), whole)


def test_float32_and_float64_features_give_the_same():
    query, gallery = random_case(2)
    result = rerank(query.astype(np.float32), gallery.astype(np.float32))
    np.testing.assert_array_equal(result, rerank(query, gallery))


def test_images_that_are_all_alike():
    """What a network that broke down embeds: no order, but figures."""
    query, gallery = np.eye(8)[[3] * 30], np.eye(8)[[3] * 20]
    result = rerank(query, gallery)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result, slow(query, gallery), rtol=0, atol=1e-5)


def test_distances_that_rounding_would_make_negative():
    random = np.random.default_rng(0).standard_normal((40, 300), dtype=np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    assert ((random @ random.T).diagonal() > 1).any()
    assert rerank(random, random, weight=1.0).min() == 0


def test_ranks_better_where_images_of_an_identity_support_each_other():
    """The distances go where those of the features go, and find more."""
    random = np.random.default_rng(0)
    query_ids, gallery_ids = random.integers(0, 10, 100), random.integers(0, 10, 60)
    ids = np.concatenate([query_ids, gallery_ids])
    features = random.standard_normal((160, 64))
    features += 0.7 * random.standard_normal((10, 64))[ids]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    query, gallery = features[:100], features[100:]
    who = query_ids, gallery_ids, np.ones(100, int), np.ones(60, int)
    before = ranking.rank_distances(
        ranking.distances(query, gallery), *who, camera_rule=CameraRule()
    )
    after = ranking.rank_distances(rerank(query, gallery), *who, camera_rule=CameraRule())
    assert after.mAP > before.mAP + 0.05


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite(side, bad):
    case = random_case(0)
    case[side][2, 3] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        rerank(*case)


@pytest.mark.parametrize("options", [{"k1": 0}, {"k2": 0}, {"weight": 1.1}, {"weight": -0.1}])
def test_options_out_of_range(options):
    (name, value), *_ = options.items()
    with pytest.raises(UserError, match=f"{name}={value}"):
        rerank(*random_case(0), **options)


@pytest.mark.parametrize("shape", [(3, 21, 16), (17, 40, 33), (30, 101, 64)])
def test_equal_rows_are_at_equal_distances(shape):
    """A duplicate among the queries sees the gallery exactly as the original does."""
    for seed in range(3):
        random = np.random.default_rng(seed)
        queries, gallery, channels = shape
        rows = random.standard_normal((queries + gallery, channels)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        twice = random.permutation(np.repeat(np.arange(queries + gallery), 2))
        products = reranking._products(rows[twice])
        for one in range(queries + gallery):
            same = products[twice == one]
            assert (same == same[:1]).all()
        np.testing.assert_allclose(products, rows[twice] @ rows[twice].T, atol=1e-5)
