"""Training augmentation on the device, from uint8.

Pad, crop, flip, normalise (section 4.1), then random erasing and changes of the channels as in the
authors' code of CAJ. Each is a plain function of images and of a key for each of them, so that an
image's draws depend on its own key alone.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from ddag_jax.config import AugmentConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of red, green, blue in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Scale to [0, 1], subtract ImageNet's mean and divide by its deviation.

    Returns:
        float32; float64 under `jax.enable_x64`. A network in bfloat16 rounds it once.
    """
    dtype = jnp.result_type(float)
    mean, std = jnp.asarray(IMAGENET_MEAN, dtype), jnp.asarray(IMAGENET_STD, dtype)
    return (images.astype(dtype) / 255 - mean) / std


def crop_flip(
    images: UInt8[Array, "b h w 3"],
    offsets: Int[Array, "b 2"],
    flips: Bool[Array, " b"],
    padding: int,
) -> UInt8[Array, "b h w 3"]:
    """Pad each image with black, crop it back to its size, and mirror some left-right.

    Black before normalisation, as torchvision's `Pad` of an image, so not 0 after it.

    Args:
      images: on the device.
      offsets: row and column of the padded image at which the crop starts, 0 ... 2 * padding.
      flips: whether to mirror the crop.
      padding: pixels on each side.
    """
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # One gather of whole crops; per-row gathers took twice as long on CPU, products with one-hot
    # matrices ten times.
    crops = jax.vmap(
        lambda image, offset: jax.lax.dynamic_slice(
            image, (offset[0], offset[1], 0), images.shape[1:]
        )
    )(padded, offsets)
    return jnp.where(flips[:, None, None, None], crops[:, :, ::-1], crops)


ERASING_CANDIDATES = 100
"""Rectangles drawn for an image, of which the first that fits is taken: the authors' code tries as
often. With the published share and aspect one of 288 x 144 pixels fits with probability 0.945."""

GREY_WEIGHTS = (0.2989, 0.5870, 0.1140)
"""Of red, green, blue, in the authors' code of CAJ."""

Change = Callable[[Float[Array, "b h w 3"], Key[Array, " b"]], Float[Array, "b h w 3"]]
"""Normalised images and a key for each of them to images."""


class Rectangle(NamedTuple):
    """Rows and columns of an image, from `top` and `left` on, in pixels."""

    top: Int[Array, ""]
    left: Int[Array, ""]
    height: Int[Array, ""]
    width: Int[Array, ""]


def draw_rectangle(
    key: Key[Array, ""],
    size: tuple[int, int],
    share: tuple[float, float],
    aspect: tuple[float, float],
) -> Rectangle:
    """Draw the rectangle that random erasing fills (Zhong et al. 2020, in CAJ's form).

    Share of the area s and aspect r are uniform; the height is sqrt(s * H * W * r) and the width
    sqrt(s * H * W / r), rounded; both are drawn again until the rectangle is lower and narrower
    than the image. The corner is uniform among those with the rectangle inside the image.

    Args:
      key: of the image.
      size: height H and width W of the image in pixels.
      share: least and greatest s.
      aspect: least and greatest r, height over width.

    Returns:
      int32 scalars. Height and width are 0 if none of `ERASING_CANDIDATES` fits, which at the
      published 288 x 144 pixels, share and aspect has probability 0.055 ** 100.

    >>> box = draw_rectangle(jax.random.key(0), (288, 144), (0.02, 0.4), (0.3, 1 / 0.3))
    >>> bool(box.top + box.height <= 288), bool(box.left + box.width <= 144)
    (True, True)
    """
    shape_key, corner_key = jax.random.split(key)
    low, high = jnp.array([share, aspect]).T
    s, r = jax.random.uniform(shape_key, (ERASING_CANDIDATES, 2), minval=low, maxval=high).T
    area = s * (size[0] * size[1])
    extents = jnp.rint(jnp.sqrt(jnp.stack([area * r, area / r], axis=1))).astype(jnp.int32)
    fits = (extents < jnp.array(size)).all(1)
    extent = jnp.where(fits.any(), extents[jnp.argmax(fits)], 0)
    corner = jax.random.randint(corner_key, (2,), 0, jnp.array(size) - extent + 1)
    return Rectangle(corner[0], corner[1], extent[0], extent[1])


def erase(
    images: Float[Array, "b h w 3"],
    keys: Key[Array, " b"],
    *,
    probability: float,
    share: tuple[float, float],
    aspect: tuple[float, float],
    fill: tuple[float, float, float],
) -> Float[Array, "b h w 3"]:
    """Fill a random rectangle of some images with a colour.

    Args:
      images: normalised.
      keys: one for each image.
      probability: of an image to be erased.
      share: as in `draw_rectangle`.
      aspect: as in `draw_rectangle`.
      fill: red, green, blue, in the units of the images.

    >>> images, keys = jnp.zeros((2, 16, 8, 3)), jax.random.split(jax.random.key(0), 2)
    >>> erased = erase(images, keys, probability=1.0, share=(0.2, 0.4), aspect=(1.0, 2.0),
    ...                fill=(1.0, 2.0, 3.0))
    >>> jnp.unique(erased.reshape(-1, 3), axis=0).tolist()
    [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]
    """
    size = images.shape[1], images.shape[2]
    rows, columns = jnp.arange(size[0])[:, None], jnp.arange(size[1])

    def mask(key: Key[Array, ""]) -> Bool[Array, "h w"]:
        happens_key, box_key = jax.random.split(key)
        box = draw_rectangle(box_key, size, share, aspect)
        inside = (rows >= box.top) & (rows < box.top + box.height)
        inside &= (columns >= box.left) & (columns < box.left + box.width)
        return inside & jax.random.bernoulli(happens_key, probability)

    colour = jnp.asarray(fill, images.dtype)
    return jnp.where(jax.vmap(mask)(keys)[..., None], colour, images)


def erasing_of(settings: AugmentConfig) -> Change | None:
    """Return `erase` as a configuration sets it; None where it is off."""
    if not settings.erasing:
        return None
    return functools.partial(
        erase,
        probability=settings.erasing,
        share=settings.erasing_share,
        aspect=settings.erasing_aspect,
        fill=settings.erasing_fill,
    )


def exchange_channels(
    images: Float[Array, "b h w 3"], keys: Key[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Copy one channel of each image, drawn uniformly, to all three (CAJ, second visible view).

    >>> images = jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3).repeat(4, axis=0)
    >>> exchange_channels(images, jax.random.split(jax.random.key(0), 4))[:, 0, 0].tolist()
    [[2.0, 2.0, 2.0], [3.0, 3.0, 3.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, 3))(keys)
    return _one_channel(images, chosen)


def adaptive_grey(
    images: Float[Array, "b h w 3"], keys: Key[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Copy one channel to all three, or make grey, or do nothing (CAJ, infrared view).

    With probability 1/4 each: red, green, blue; with 1/8 each: grey, nothing.

    >>> images = jnp.array([1.0, 2.0, 4.0]).reshape(1, 1, 1, 3).repeat(64, axis=0)
    >>> changed = adaptive_grey(images, jax.random.split(jax.random.key(0), 64))[:, 0, 0]
    >>> jnp.unique(changed, axis=0).tolist()
    [[1.0, 1.0, 1.0], [1.0, 2.0, 4.0], [1.9289, 1.9289, 1.9289], [2.0, 2.0, 2.0], [4.0, 4.0, 4.0]]
    """
    choice_keys, grey_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(choice_keys)
    greyed = grey(images, grey_keys, probability=0.5)
    return jnp.where((chosen == 3)[:, None, None, None], greyed, _one_channel(images, chosen))


def grey(
    images: Float[Array, "b h w 3"], keys: Key[Array, " b"], *, probability: float
) -> Float[Array, "b h w 3"]:
    """Replace the channels of some images by their weighted sum, with `GREY_WEIGHTS`.

    Of the normalised channels, as in the authors' code: not quite the grey of the pixels.

    >>> images = jnp.array([1.0, 2.0, 4.0]).reshape(1, 1, 1, 3)
    >>> grey(images, jax.random.split(jax.random.key(0), 1), probability=1.0).tolist()
    [[[[1.9289, 1.9289, 1.9289]]]]
    """
    happens = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
    # Not a matrix product, which accelerators round to bfloat16 or TF32.
    red, green, blue = (weight * images[..., i] for i, weight in enumerate(GREY_WEIGHTS))
    return jnp.where(happens[:, None, None, None], (red + green + blue)[..., None], images)


def _one_channel(
    images: Float[Array, "b h w 3"], chosen: Int[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Copy channel `chosen` of each image to all three; the last one where it is beyond 2."""
    red, green, blue = jnp.split(images, 3, axis=-1)
    chosen = chosen[:, None, None, None]
    one = jnp.where(chosen == 0, red, jnp.where(chosen == 1, green, blue))
    return jnp.broadcast_to(one, images.shape)


def augment(
    images: UInt8[Array, "b h w 3"],
    keys: Key[Array, " b"],
    *,
    padding: int,
    flip: bool,
    erasing: Change | None = None,
    channels: tuple[Change | None, ...] = (None,),
) -> Float[Array, "b h w 3"]:
    """Pad with black, crop at random, mirror every second image on average, and normalise.

    Then erase and change channels, where that is asked for.

    Args:
      images: on the device.
      keys: one for each image; an image's augmentation depends on its own key alone, so that the
        number of devices changes nothing.
      padding: pixels on each side before the crop back to size.
      flip: whether to mirror at all.
      erasing: `erase` with its options; None for none.
      channels: what is done to the channels of each view, the images being so many equal shares;
        None for nothing.
    """

    def draw(key: Key[Array, ""]) -> tuple[Int[Array, " 2"], Bool[Array, ""]]:
        crop_key, flip_key = jax.random.split(key)
        offset = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
        return offset, jax.random.bernoulli(flip_key) if flip else jnp.asarray(False)

    offsets, flips = jax.vmap(draw)(keys)
    normalised = normalise(crop_flip(images, offsets, flips, padding))
    if erasing is not None:
        normalised = erasing(normalised, _fold(keys, 2))
    if any(channels):
        views = zip(
            channels,
            jnp.split(normalised, len(channels)),
            jnp.split(_fold(keys, 3), len(channels)),
            strict=True,
        )
        normalised = jnp.concatenate(
            [view if change is None else change(view, own) for change, view, own in views]
        )
    return normalised


def _fold(keys: Key[Array, " b"], number: int) -> Key[Array, " b"]:
    """Return keys for another draw; 0 and 1 are those that crop and flip split off."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
