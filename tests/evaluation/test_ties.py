"""Images of equal features keep the gallery's order, whatever the matrix product rounds to."""

import numpy as np
import pytest

from ddag_jax.config import EvaluationConfig
from ddag_jax.datasets.find import find_dataset
from ddag_jax.evaluation import ranking
from ddag_jax.evaluation.protocols import Images, score, searches


def duplicated(seed, queries, gallery, channels, dtype=np.float32):
    """Random rows; every gallery row is there two or three times, in any order."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((gallery // 2, channels)).astype(dtype)
    kind = random.permutation(np.arange(gallery) % len(rows))
    return random.standard_normal((queries, channels)).astype(dtype), rows[kind], kind


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(1, 5, 3), (3, 17, 16), (7, 33, 17), (40, 301, 64), (129, 255, 31), (5, 1001, 512)]
)
def test_equal_rows_are_at_equal_distances(shape, dtype):
    for seed in range(3):
        queries, gallery, kind = duplicated(seed, *shape, dtype)
        distances = ranking.distances(queries, gallery)
        np.testing.assert_allclose(distances, -queries @ gallery.T, rtol=1e-4, atol=1e-4)
        for one in np.unique(kind):
            same = distances[:, kind == one]
            assert (same == same[:, :1]).all()


def test_rows_that_share_their_beginning_are_distinct():
    rows = np.zeros((3, 40), np.float32)
    rows[1, 39] = 1
    distinct, places = ranking.distinct_rows(rows)
    assert places.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(distinct, rows[:2])


def test_ties_keep_the_gallery_s_order_wherever_the_rows_are():
    """Reordering the images changes no figure: the gallery's order is the protocol's."""
    random = np.random.default_rng(0)
    queries, gallery, _ = duplicated(1, 129, 255, 31, np.float64)
    ids, cameras = random.integers(0, 12, 384), np.full(384, 1)
    features, infrared = np.concatenate([queries, gallery]), np.arange(384) < 129
    names = [f"{n:04d}" for n in range(384)]
    settings = EvaluationConfig(direction="infrared_to_visible")
    dataset = find_dataset("regdb")
    expected = None
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(384)
        images = Images(ids[order], cameras[order], infrared[order], [names[i] for i in order])
        found = searches(dataset, images, settings)
        record = score({"stored": features[order]}, images, found, dataset, settings)
        assert record == (expected or record)
        expected = record
