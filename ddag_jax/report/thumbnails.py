"""Thumbnails of a dataset's images, of bounded total size for any dataset."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ddag_jax.evaluation.embed import ReadImages

BUDGET = 10 * 2**20
"""Total characters of all thumbnails in base64."""

LARGEST = 144, 80
"""Height in pixels and JPEG quality of thumbnails where there is room."""

_FORMS = (LARGEST, (112, 70), (96, 50), (64, 30))
"""Heights and qualities, tried in turn until the necessary images fit."""

_CHUNK = 256


def thumbnails(
    read_images: ReadImages,
    necessary: Sequence[int],
    welcome: Sequence[int],
    budget: int = BUDGET,
) -> dict[int, str]:
    """Return JPEGs in base64 by image index, of at most `budget` characters in total.

    Args:
        read_images: reads images by index.
        necessary: indices that must be included; size and quality are reduced until these take at
            most three quarters of the budget.
        welcome: indices to add, in this order, until the budget is spent.
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
            text = encode_jpeg(image, *form)
            if spent + len(text) > budget:
                return encoded
            encoded[number] = text
            spent += len(text)
    return encoded


def _encoded(
    read_images: ReadImages, numbers: Sequence[int], form: tuple[int, int], limit: int
) -> dict[int, str] | None:
    """Encode all images; None if they take more than `limit` characters."""
    encoded: dict[int, str] = {}
    for start in range(0, len(numbers), _CHUNK):
        chunk = numbers[start : start + _CHUNK]
        for number, image in zip(chunk, read_images(np.array(chunk)), strict=True):
            encoded[number] = encode_jpeg(image, *form)
        if sum(map(len, encoded.values())) > limit:
            return None
    return encoded


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], height: int, quality: int) -> str:
    """Return a JPEG in base64 of an image, scaled down to `height` pixels if it is higher."""
    h, w, _ = image.shape
    picture = Image.fromarray(image)
    if h > height:
        picture = picture.resize((max(1, round(w * height / h)), height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode()
