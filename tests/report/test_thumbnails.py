"""Thumbnails: what fits, in which order, and what gives way."""

import base64
import io

import numpy as np
from PIL import Image

from ddag_jax.report.thumbnails import BUDGET, thumbnails


def noise(numbers: np.ndarray) -> np.ndarray:
    """What compresses worst."""
    return np.stack(
        [np.random.default_rng(n).integers(0, 256, (288, 144, 3), np.uint8) for n in numbers]
    )


def size(jpeg: str) -> tuple[int, int]:
    width, height = Image.open(io.BytesIO(base64.b64decode(jpeg))).size
    return width, height


def test_all_are_there_once_where_they_fit() -> None:
    made = thumbnails(noise, [4, 2, 4], [2, 9])
    assert list(made) == [4, 2, 9]
    assert {size(jpeg) for jpeg in made.values()} == {(72, 144)}


def test_the_necessary_shrink_and_the_welcome_stay_out() -> None:
    budget = 60_000
    made = thumbnails(noise, range(10), range(10, 40), budget)
    assert set(range(10)) <= set(made)
    assert 10 < len(made) < 40
    assert list(made)[10:] == list(range(10, len(made)))
    assert sum(map(len, made.values())) <= budget
    assert size(made[0])[1] < 144


def test_small_images_are_left_as_they_are() -> None:
    made = thumbnails(lambda numbers: np.zeros((len(numbers), 32, 16, 3), np.uint8), [0], [])
    assert size(made[0]) == (16, 32)


def test_the_worst_case_of_a_whole_report_fits() -> None:
    """As many ranked lists as a report has, all images different, all of them noise."""
    tile = np.random.default_rng(0).integers(0, 256, (288, 144, 3), np.uint8)
    made = thumbnails(
        lambda numbers: np.stack([np.roll(tile, n, axis=0) for n in numbers]), range(96 * 11), []
    )
    assert len(made) == 96 * 11
    assert sum(map(len, made.values())) <= BUDGET
