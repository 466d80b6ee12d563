"""Small JPEGs of a dataset's images, together within a bound whatever the dataset's size."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ddag_jax.evaluation.embed import ReadImages

BUDGET = 10 * 2**20
"""Characters of all thumbnails together, in base64."""

_FORMS = ((144, 80), (112, 70), (96, 50), (64, 30))
"""Height in pixels and JPEG quality, tried in turn until the necessary images fit."""

_CHUNK = 256


def thumbnails(
    read_images: ReadImages,
    necessary: Sequence[int],
    welcome: Sequence[int],
    budget: int = BUDGET,
) -> dict[int, str]:
    """JPEGs in base64 by the images' numbers, in all no more than `budget` characters.

    Args:
        read_images: numbers of images to images.
        necessary: which must be there; they get smaller and coarser until they leave a quarter of
            the budget.
        welcome: which are added, in this order, until the budget is spent.
        budget: characters.
    """
    for form in _FORMS:
        encoded = _encoded(read_images, list(dict.fromkeys(necessary)), form, budget * 3 // 4)
        if encoded is not None:
            break
    else:
        raise AssertionError(f"{len(necessary)} thumbnails do not fit {budget} characters")
    spent = sum(map(len, encoded.values()))
    rest = [number for number in dict.fromkeys(welcome) if number not in encoded]
    for start in range(0, len(rest), _CHUNK):
        numbers = rest[start : start + _CHUNK]
        for number, image in zip(numbers, read_images(np.array(numbers)), strict=True):
            text = _jpeg(image, *form)
            if spent + len(text) > budget:
                return encoded
            encoded[number] = text
            spent += len(text)
    return encoded


def _encoded(
    read_images: ReadImages, numbers: Sequence[int], form: tuple[int, int], limit: int
) -> dict[int, str] | None:
    """All of them, or None where they take more than `limit` characters."""
    encoded: dict[int, str] = {}
    for start in range(0, len(numbers), _CHUNK):
        chunk = numbers[start : start + _CHUNK]
        for number, image in zip(chunk, read_images(np.array(chunk)), strict=True):
            encoded[number] = _jpeg(image, *form)
        if sum(map(len, encoded.values())) > limit:
            return None
    return encoded


def _jpeg(image: UInt8[np.ndarray, "h w 3"], height: int, quality: int) -> str:
    h, w, _ = image.shape
    picture = Image.fromarray(image)
    if h > height:
        picture = picture.resize((max(1, round(w * height / h)), height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode()
