"""A picture of what each augmentation makes of some images."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8
from PIL import Image, ImageDraw, ImageFont

from ddag_jax.config import AugmentConfig
from ddag_jax.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Change,
    adaptive_grey,
    augment,
    erasing_of,
    exchange_channels,
    grey,
    normalise,
)
from ddag_jax.numerics import own_settings

_HEIGHT = 128  # pixels of an image in the picture
_GAP, _APART, _TITLE = 2, 10, 18  # pixels between draws, between augmentations, above the images


@own_settings()
def augmentation_sheet(
    images: UInt8[np.ndarray, "b h w 3"],
    names: Sequence[str],
    settings: AugmentConfig,
    *,
    draws: int,
    seed: int,
) -> Image.Image:
    """Draw a row for each image: as it is, then each augmentation by itself, several draws of it.

    Each is applied with probability 1, whatever `settings` has, by the functions that the training
    step uses, and shown with normalisation undone: colours beyond black and white are cut off.

    Args:
      images: of a prepared dataset.
      names: of the images, to write above each.
      settings: padding, and the erased rectangles' share, aspect and fill.
      draws: columns of each augmentation.
      seed: of the draws.

    Returns:
      An RGB picture.
    """
    erased = erasing_of(dataclasses.replace(settings, erasing=1.0))
    assert erased is not None
    on_device = jnp.asarray(images)

    def cropped(keys: Key[Array, " b"]) -> Float[Array, "b h w 3"]:
        return augment(on_device, keys, padding=settings.padding, flip=True)

    def changed(change: Change, keys: Key[Array, " b"]) -> Float[Array, "b h w 3"]:
        return change(normalise(on_device), keys)

    keys = jax.random.split(jax.random.key(seed), (draws, len(images)))
    always_grey = functools.partial(grey, probability=1.0)
    columns = {
        "original": [images],
        "crop, flip": [_pixels(cropped(row)) for row in keys],
        "erasing": [_pixels(changed(erased, row)) for row in keys],
        "exchange": [_pixels(changed(exchange_channels, row)) for row in keys],
        "adaptive-grey": [_pixels(changed(adaptive_grey, row)) for row in keys],
        "grey": [_pixels(changed(always_grey, keys[0]))],  # nothing is drawn
    }
    return _table(columns, names)


def _pixels(images: Float[Array, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
    """Undo the normalisation."""
    shown = 255 * (np.asarray(images) * IMAGENET_STD + IMAGENET_MEAN)
    return np.rint(shown.clip(0, 255)).astype(np.uint8)


def _table(
    columns: dict[str, list[UInt8[np.ndarray, "b h w 3"]]], names: Sequence[str]
) -> Image.Image:
    """Paste the images, a title above each group of columns, a name above each row."""
    font = ImageFont.load_default(12)
    height, width = columns["original"][0].shape[1:3]
    size = max(1, round(_HEIGHT * width / height)), _HEIGHT
    # A group is as wide as its title at the least.
    wide = {
        title: max(len(group) * (size[0] + _GAP), round(font.getlength(title))) + _APART
        for title, group in columns.items()
    }
    down = size[1] + _TITLE
    picture = Image.new("RGB", (_APART + sum(wide.values()), _TITLE + len(names) * down), "white")
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(names):
        draw.text((_APART, _TITLE + row * down + 2), name, "grey", font)
    left = _APART
    for title, group in columns.items():
        draw.text((left, 3), title, "black", font)
        for place, images in enumerate(group):
            for row, image in enumerate(images):
                corner = left + place * (size[0] + _GAP), 2 * _TITLE + row * down
                picture.paste(Image.fromarray(image).resize(size), corner)
        left += wide[title]
    return picture
