"""Training augmentation on the device, from uint8: pad, crop, flip, normalise (section 4.1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

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


def augment(
    images: UInt8[Array, "b h w 3"],
    keys: Key[Array, " b"],
    *,
    padding: int,
    flip: bool,
) -> Float[Array, "b h w 3"]:
    """Pad with black, crop at random, mirror every second image on average, and normalise.

    Args:
      images: on the device.
      keys: one for each image; an image's augmentation depends on its own key alone, so that the
        number of devices changes nothing.
      padding: pixels on each side before the crop back to size.
      flip: whether to mirror at all.
    """

    def draw(key: Key[Array, ""]) -> tuple[Int[Array, " 2"], Bool[Array, ""]]:
        crop_key, flip_key = jax.random.split(key)
        offset = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
        return offset, jax.random.bernoulli(flip_key) if flip else jnp.asarray(False)

    offsets, flips = jax.vmap(draw)(keys)
    return normalise(crop_flip(images, offsets, flips, padding))
