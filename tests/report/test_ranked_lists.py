"""The picture of ranked lists: what stands where, and how it is marked."""

import numpy as np
import pytest

from ddag_jax.config import EvaluationConfig
from ddag_jax.evaluation.protocols import Images, searches
from ddag_jax.report.ranked_lists import ranked_lists

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
        "search": searches("sysu_mm01", images, settings)[0],
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
