"""The picture of ranked lists: what stands where, and how it is marked."""

import numpy as np
import pytest

from ddag_jax.config import EvaluationConfig
from ddag_jax.datasets.sysu_mm01 import SYSU_MM01
from ddag_jax.evaluation.protocols import Images, searches
from ddag_jax.report.ranked_lists import choose_queries, nearest_images, ranked_lists

GREEN, RED = (0, 130, 70), (200, 40, 40)
HEIGHT, WIDTH, GAP = 144, 72, 6


@pytest.fixture
def people() -> dict:
    """Three identities: one image in cameras 1 and 2, one query in camera 3."""
    identities = np.repeat([1, 2, 3], 3)
    cameras = np.tile([1, 2, 3], 3)
    names = [f"cam{c}/{i:04d}/0001.jpg" for i, c in zip(identities, cameras, strict=True)]
    images = Images(identities, cameras, cameras == 3, names)
    settings = EvaluationConfig(mode="all", trials=1)
    return {
        "images": images,
        "search": searches(SYSU_MM01, images, settings)[0],
        "read_images": lambda numbers: np.repeat(
            np.repeat((20 * numbers[:, None, None, None]).astype(np.uint8), 8, axis=1), 4, axis=2
        ).repeat(3, axis=3),
    }


def frame(picture: np.ndarray, row: int, column: int) -> tuple:
    """Colour of the frame around an image of a list, counted from 0 after the query."""
    left = GAP + (column + 1) * (WIDTH + GAP) + 2 * GAP
    return tuple(picture[GAP + row * (HEIGHT + GAP) + 100, left - 2])


def centre(picture: np.ndarray, row: int, column: int) -> int:
    left = GAP + (column + 1) * (WIDTH + GAP) + (2 * GAP if column >= 0 else 0)
    return int(picture[GAP + row * (HEIGHT + GAP) + 72, left + 36, 0])


def test_the_nearest_come_first_and_are_marked(people: dict) -> None:
    # Query 2 and 5 look like their own identity, query 8 (identity 3) like identity 1.
    features = np.eye(3)[[0, 0, 0, 1, 1, 1, 2, 2, 0]]
    picture = np.asarray(ranked_lists(features, **people))
    assert [centre(picture, row, -1) for row in range(3)] == [40, 100, 160]  # the queries
    # Camera 3 never sees camera 2, so the first is the image of camera 1: number 0, 3, and 0.
    assert [centre(picture, row, 0) for row in range(3)] == [0, 60, 0]
    assert [frame(picture, row, 0) for row in range(3)] == [GREEN, GREEN, RED]


def test_colour_is_not_all_that_tells_right_from_wrong(people: dict) -> None:
    features = np.eye(3)[[0, 0, 0, 1, 1, 1, 2, 2, 0]]
    picture = np.asarray(ranked_lists(features, **people).convert("L")).astype(int)
    left = GAP + (WIDTH + GAP) + 2 * GAP
    right, wrong = (picture[GAP + row * (HEIGHT + GAP) :, left:][:16, :16] > 200 for row in (0, 2))
    assert right.any()
    assert wrong.any()
    assert (right != wrong).any()


def test_rows_are_spread_over_the_queries(people: dict) -> None:
    picture = ranked_lists(np.eye(3)[[0, 0, 0, 1, 1, 1, 2, 2, 2]], **people, rows=2)
    assert picture.height == 2 * (HEIGHT + GAP) + GAP
    assert [centre(np.asarray(picture), row, -1) for row in range(2)] == [40, 160]


def test_what_the_camera_rule_hides_is_in_no_list(people: dict) -> None:
    features = np.eye(3)[[0, 0, 0, 1, 1, 1, 2, 2, 0]]
    images, search = people["images"], people["search"]
    nearest = nearest_images(features, images, search, search.query)
    assert nearest.images.tolist() == [
        [0, 3, 6, -1, -1, -1],
        [3, 0, 6, *[-1] * 3],
        [0, 3, 6, *[-1] * 3],
    ]
    assert nearest.similarity[:, :3].tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("seed", range(8))
def test_equal_images_keep_the_order_of_the_gallery(seed: int) -> None:
    """Two by two; where the products differ by rounding, their order is chance."""
    identities, cameras = np.repeat(np.arange(5), 3), np.tile([1, 4, 3], 5)
    images = Images(identities, cameras, cameras == 3, [""] * 15)
    (search,) = searches(SYSU_MM01, images, EvaluationConfig(mode="all", trials=1))
    features = np.random.default_rng(seed).standard_normal((15, 2048), dtype=np.float32) / 45
    features[cameras == 4] = np.roll(features[cameras == 1], 2, axis=0)
    nearest = nearest_images(features, images, search, search.query[:2])
    first, second = nearest.images[:, ::2], nearest.images[:, 1::2]
    np.testing.assert_array_equal(features[first], features[second])
    assert (first < second).all()


def test_half_of_the_chosen_queries_are_the_hardest() -> None:
    precision = np.array([0.9, 0.8, 0.1, 0.2, 0.3, np.nan, 0.7, 0.6, 0.5, 1.0])
    identities = np.array([1, 1, 2, 2, 2, 2, 3, 3, 3, 4])
    places, hardest = choose_queries(precision, identities, 4, hardest=1)
    assert hardest == [2]
    assert places.tolist() == [0, 2, 3, 9]  # the two worst of 2, and the first and last of the rest
    everything, hardest = choose_queries(precision, identities, 50)
    assert everything.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert hardest == [2, 3, 1, 4]
    few, _ = choose_queries(precision, identities, 2, hardest=4)
    assert len(few) == 2
