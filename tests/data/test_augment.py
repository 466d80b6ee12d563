import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from ddag_jax.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    adaptive_grey,
    augment,
    crop_flip,
    draw_rectangle,
    erase,
    exchange_channels,
    grey,
    normalise,
)

PADDING = 4
DRAWS = 100_000
SHARE, ASPECT, FILL = (0.02, 0.4), (0.3, 1 / 0.3), (0.4914, 0.4822, 0.4465)


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


# ------------------------------------------------------------------------------- random erasing


def many_keys(count: int = DRAWS, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


@functools.cache
def rectangles(height: int, width: int) -> np.ndarray:
    """Top, left, height, width of so many draws, [4, draws]."""
    draw = lambda key: draw_rectangle(key, (height, width), SHARE, ASPECT)  # noqa: E731
    return np.stack(jax.jit(jax.vmap(draw))(many_keys()))


def extents(s: np.ndarray, r: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """The definition: height and width of the rectangle, and whether it fits."""
    h, w = np.rint(np.sqrt(s * height * width * r)), np.rint(np.sqrt(s * height * width / r))
    return h.astype(int), w.astype(int), (h < height) & (w < width)


def check_counts(counts: np.ndarray, expected: np.ndarray) -> None:
    """Pearson's chi-square, within 5 of its standard deviations; impossible cells are empty."""
    assert (counts[expected == 0] == 0).all()
    counts, expected = counts[expected > 0], expected[expected > 0]
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(16, 8), (8, 16), (24, 12)])
def test_erased_extents_have_the_defined_distribution(height: int, width: int) -> None:
    """Every height and width against its probability, integrated over share and aspect. Images so
    small that a pixel too much, or rounding down, shows."""
    steps = 4000
    middle = (np.arange(steps) + 0.5) / steps
    s = SHARE[0] + (SHARE[1] - SHARE[0]) * middle[:, None]
    r = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * middle
    h, w, fits = extents(s, r, height, width)
    area = np.bincount((h * width + w)[fits], minlength=height * width)
    _, _, *drawn = rectangles(height, width)
    counts = np.bincount(drawn[0] * width + drawn[1], minlength=height * width)
    possible = area / area.sum() * DRAWS
    rare = possible < 5  # which would not be normal; together they are
    assert possible[rare].sum() < DRAWS / 100
    check_counts(
        np.append(counts[~rare], counts[rare].sum()),
        np.append(possible[~rare], possible[rare].sum()),
    )


@pytest.mark.parametrize(("height", "width"), [(16, 8), (24, 12)])
def test_erased_corners_are_uniform_with_both_ends(height: int, width: int) -> None:
    top, left, h, w = rectangles(height, width)
    for corner, extent, size in ((top, h, height), (left, w, width)):
        for one in np.unique(extent):
            free = size - one + 1
            counts = np.bincount(corner[extent == one], minlength=free)
            assert len(counts) == free
            if counts.sum() > 10 * free:
                check_counts(counts, np.full(free, counts.sum() / free))


@pytest.mark.slow
def test_erased_share_and_aspect_at_the_published_size() -> None:
    """Against a loop of the definition: largest difference of the distribution functions."""
    height, width = 288, 144
    rng, count = np.random.default_rng(0), 10 * DRAWS
    expected, fits = np.zeros((2, count), int), np.zeros(count, bool)
    share_that_fits = None
    while not fits.all():
        h, w, ok = extents(rng.uniform(*SHARE, count), rng.uniform(*ASPECT, count), height, width)
        share_that_fits = ok.mean() if share_that_fits is None else share_that_fits
        expected[:, ~fits] = np.stack([h, w])[:, ~fits]
        fits |= ok
    assert abs(share_that_fits - 0.945) < 1e-3  # as ERASING_CANDIDATES says
    top, left, *drawn = rectangles(height, width)
    assert drawn[1].max() == width - 1  # the widest that fits
    for figure in (lambda h, w: h * w, lambda h, w: h / w, lambda h, w: h, lambda h, w: w):
        ours, theirs = np.sort(figure(*drawn)), np.sort(figure(*expected))
        at = np.unique(ours)
        ranks = [np.searchsorted(all_, at, "right") / len(all_) for all_ in (ours, theirs)]
        assert np.abs(ranks[0] - ranks[1]).max() < 0.006  # 3 in 1000, were the seeds free
    for corner, extent, size in ((top, drawn[0], height), (left, drawn[1], width)):
        free = size - extent + 1
        for end in (corner == 0, corner == free - 1):
            expected_ends = (1 / free).sum()
            assert abs(end.sum() - expected_ends) < 4 * np.sqrt(expected_ends)


def test_a_rectangle_that_never_fits_is_empty() -> None:
    box = draw_rectangle(jax.random.key(0), (288, 144), (0.9, 0.95), (3.0, 3.3))
    assert (int(box.height), int(box.width)) == (0, 0)


def test_erase_fills_one_rectangle_of_some_images() -> None:
    images = normalise(make_images(4000))
    options = {"share": SHARE, "aspect": ASPECT, "fill": FILL}
    erased = np.asarray(erase(images, many_keys(4000), probability=0.3, **options))
    changed = (erased != images).any(-1)
    assert abs(changed.any((1, 2)).mean() - 0.3) < 0.03
    np.testing.assert_array_equal(
        erased[changed], np.broadcast_to(np.float32(FILL), (changed.sum(), 3))
    )
    rows, columns = changed.any(2), changed.any(1)
    np.testing.assert_array_equal(changed, rows[:, :, None] & columns[:, None])
    for lines in (rows, columns):  # in one piece
        assert (np.abs(np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(int))).sum(1) <= 2).all()
    assert (
        (erase(images[:99], many_keys(99), probability=1.0, **options) != images[:99])
        .any((1, 2, 3))
        .all()
    )
    untouched = erase(images[:99], many_keys(99), probability=0.0, **options)
    np.testing.assert_array_equal(untouched, images[:99])


# ------------------------------------------------------------------------------------- channels

COLOUR = (1.0, 2.0, 4.0)
REDS, GREENS, BLUES = (1.0,) * 3, (2.0,) * 3, (4.0,) * 3
GREYS = (0.2989 + 0.5870 * 2 + 0.1140 * 4,) * 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (exchange_channels, {REDS: 1 / 3, GREENS: 1 / 3, BLUES: 1 / 3}),
        (adaptive_grey, {REDS: 1 / 4, GREENS: 1 / 4, BLUES: 1 / 4, GREYS: 1 / 8, COLOUR: 1 / 8}),
        (functools.partial(grey, probability=0.3), {GREYS: 0.3, COLOUR: 0.7}),
        (functools.partial(grey, probability=1.0), {GREYS: 1.0}),
        (functools.partial(grey, probability=0.0), {COLOUR: 1.0}),
    ],
    ids=["exchange", "adaptive-grey", "grey", "always grey", "never grey"],
)
def test_frequencies_of_channels(change: Any, expected: dict[tuple[float, ...], float]) -> None:
    """Every case and no other, within four standard deviations; all pixels of an image alike."""
    images = jnp.broadcast_to(jnp.array(COLOUR), (DRAWS, 1, 2, 3))
    changed = np.asarray(jax.jit(change)(images, many_keys()))
    np.testing.assert_array_equal(changed[:, :, 0], changed[:, :, 1])
    cases = np.array(list(expected))
    is_case = np.abs(changed[:, 0, 0, None] - cases).max(-1) < 1e-6
    assert (is_case.sum(1) == 1).all()
    for found, share in zip(is_case.mean(0), expected.values(), strict=True):
        assert abs(found - share) <= 4 * np.sqrt(share * (1 - share) / DRAWS)


def test_new_draws_leave_crop_and_flip_as_they_were() -> None:
    """Erasing comes after them and channels after erasing, for each view its own."""
    images, keys = make_images(60), many_keys(60)
    run = functools.partial(augment, images, keys, padding=PADDING, flip=True)
    plain, seen = np.asarray(run()), {}

    def spy(name: str, change: Any) -> Any:
        def spied(images: jax.Array, keys: jax.Array) -> jax.Array:
            seen[name] = images, keys
            return change(images, keys)

        return spied

    mark = functools.partial(
        erase, probability=1.0, share=SHARE, aspect=ASPECT, fill=(90.0, 91.0, 92.0)
    )
    channels = (None, spy("second", exchange_channels), spy("third", adaptive_grey))
    changed = np.asarray(run(erasing=spy("erasing", mark), channels=channels))
    np.testing.assert_array_equal(seen["erasing"][0], plain)
    erased = np.asarray(mark(plain, seen["erasing"][1]))
    np.testing.assert_array_equal(changed[:20], erased[:20])
    np.testing.assert_array_equal(seen["second"][0], erased[20:40])
    np.testing.assert_array_equal(changed[20:40, ..., 0], changed[20:40, ..., 2])
    np.testing.assert_array_equal(changed[40:], adaptive_grey(erased[40:], seen["third"][1]))
    # None of the keys is another's, as that of fold_in(key, 0) would be split(key)[0].
    used = [*jax.vmap(jax.random.split, out_axes=1)(keys), *(keys for _, keys in seen.values())]
    data = np.concatenate([jax.random.key_data(keys) for keys in used])
    assert len(np.unique(data, axis=0)) == len(data) == 4 * 60 - 20
