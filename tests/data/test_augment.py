import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from ddag_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD, augment, crop_flip, normalise

PADDING = 4


def make_images(count: int, height: int = 24, width: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_crop_and_flip_as_pillow() -> None:
    """torchvision's Pad, RandomCrop and RandomHorizontalFlip are these calls on a PIL image."""
    images = make_images(81)
    rows, columns = np.divmod(np.arange(81), 9)  # every offset there is
    flips = np.arange(81) % 3 == 0
    ours = jax.jit(crop_flip, static_argnums=3)(
        images, np.stack([rows, columns], axis=1), flips, PADDING
    )
    assert ours.dtype == np.uint8
    for image, row, column, flip, got in zip(images, rows, columns, flips, ours, strict=True):
        padded = PIL.ImageOps.expand(PIL.Image.fromarray(image), border=PADDING, fill=0)
        crop = padded.crop((column, row, column + 12, row + 24))
        if flip:
            crop = crop.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        np.testing.assert_array_equal(got, np.asarray(crop))


def test_pixels_as_torch() -> None:
    """Pad, crop, flip, ToTensor, Normalize in PyTorch, at the same offsets."""
    torch = pytest.importorskip("torch")
    images = make_images(9)
    offsets = np.stack([np.arange(9), np.arange(9)[::-1]], axis=1)
    flips = np.arange(9) % 2 == 0
    ours = normalise(crop_flip(images, offsets, flips, PADDING))
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for image, (row, column), flip, got in zip(images, offsets, flips, ours, strict=True):
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        padded = torch.nn.functional.pad(pixels, (PADDING, PADDING, PADDING, PADDING))
        crop = padded[:, row : row + 24, column : column + 12]
        crop = crop.flip(-1) if flip else crop
        theirs = (crop.float().div(255) - mean) / std
        np.testing.assert_allclose(got, theirs.permute(1, 2, 0).numpy(), rtol=1e-4, atol=1e-6)


def test_normalise() -> None:
    images = np.array([0, 128, 255], np.uint8)[:, None, None, None].repeat(3, axis=-1)
    expected = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    ours = normalise(images)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    with jax.enable_x64(True):
        wide = normalise(images)
        assert wide.dtype == jnp.float64
        np.testing.assert_allclose(wide, expected, rtol=1e-14)


def test_without_augmentation_it_is_normalise() -> None:
    images = make_images(3)
    keys = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_allclose(
        augment(images, keys, padding=0, flip=False),
        normalise(images),
        atol=2e-6,
    )


def offsets_and_flips(count: int, *, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """What `augment` drew, read off an image whose pixels are their own coordinates."""
    rows, columns = np.mgrid[0:24, 0:12]
    image = np.stack([rows + 100, columns + 100, np.full_like(rows, 200)], axis=-1)
    images = np.broadcast_to(image.astype(np.uint8), (count, 24, 12, 3))
    keys = jax.random.split(jax.random.key(7), count)
    out = augment(images, keys, padding=PADDING, flip=flip)
    pixels = np.asarray(out) * IMAGENET_STD + IMAGENET_MEAN
    centre = np.rint(pixels[:, 12, 6] * 255).astype(int)
    beside = np.rint(pixels[:, 12, 7] * 255).astype(int)
    flips = beside[:, 1] < centre[:, 1]
    column = np.where(flips, centre[:, 1] - 100 - 5, centre[:, 1] - 100 - 6)
    return np.stack([centre[:, 0] - 100 - 12, column], axis=1) + PADDING, flips


def test_draws_are_uniform() -> None:
    offsets, flips = offsets_and_flips(4000, flip=True)
    for axis in range(2):
        share = np.bincount(offsets[:, axis], minlength=9) / 4000
        assert len(share) == 9
        np.testing.assert_allclose(share, 1 / 9, atol=0.02)
    assert abs(flips.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(offsets[:, 0], offsets[:, 1])[0, 1]) < 0.05
    assert not offsets_and_flips(100, flip=False)[1].any()


def test_an_image_depends_on_its_own_key_only() -> None:
    images = make_images(8)
    keys = jax.random.split(jax.random.key(0), 8)

    def run(part: slice) -> np.ndarray:
        return augment(images[part], keys[part], padding=PADDING, flip=True)

    np.testing.assert_array_equal(
        run(slice(0, 8)), np.concatenate([run(slice(0, 2)), run(slice(2, 8))])
    )
