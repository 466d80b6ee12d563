"""`python -m ddag_jax.data augmentations`: the picture, and what it refuses."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ddag_jax.config import AugmentConfig
from ddag_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD
from ddag_jax.data.augmentation_sheet import augmentation_sheet
from tests.datasets.commands import call

SIZE = ("--image-size", 32, 16)
RED, GREEN, BLUE = (200, 60, 30)
HEIGHT, WIDTH = 128, 64  # of an image in the picture


def images_in(picture: PIL.Image.Image) -> np.ndarray:
    """The pictures that stand in white, in the order of their columns, from one row of them."""
    pixels = np.asarray(picture).astype(int)[40:]  # below the titles
    full = (pixels[2 : HEIGHT - 8] != 255).any(-1).all(0)
    edges = np.flatnonzero(np.diff(np.pad(full, 1).astype(int)))
    starts, ends = edges[::2], edges[1::2]
    assert (ends - starts == WIDTH).all()
    return np.stack(
        [pixels[2 : HEIGHT - 8, start:end] for start, end in zip(starts, ends, strict=True)]
    )


@pytest.mark.slow
def test_each_column_shows_its_augmentation() -> None:
    image = np.full((1, HEIGHT, WIDTH, 3), (RED, GREEN, BLUE), np.uint8)
    settings = AugmentConfig(padding=12, erasing=1.0, erasing_fill=(0.0, 0.0, 0.0))
    sheets = [augmentation_sheet(image, ["a"], settings, draws=20, seed=seed) for seed in (1, 2)]
    assert (np.asarray(sheets[0]) != np.asarray(sheets[1])).any()
    shown = images_in(sheets[0])
    assert len(shown) == 1 + 4 * 20 + 1
    colours = [{tuple(pixel) for pixel in one.reshape(-1, 3)} for one in shown]
    original, grey = colours[0], colours[-1]
    crops, erased, exchanged, adaptive = (colours[i : i + 20] for i in range(1, 81, 20))
    own, mean = (RED, GREEN, BLUE), (124, 116, 104)  # ImageNet's mean colour, of 0 when normalised
    assert original == {own}
    assert any((0, 0, 0) in crop for crop in crops)  # black from the padding
    assert all(own in crop for crop in crops)
    assert all({own, mean} <= one for one in erased)
    # After normalisation one value in all channels is one of so many colours.
    offset, scale = 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)
    channels = (np.array(own) - offset) / scale

    def colour(value: float) -> tuple[int, ...]:
        return tuple(np.rint((value * scale + offset).clip(0, 255)).astype(int).tolist())

    one_channel = [{colour(value)} for value in channels]
    the_grey = {colour(channels @ [0.2989, 0.5870, 0.1140])}
    for drawn, cases in (
        (exchanged, one_channel),
        (adaptive, [*one_channel, the_grey, {own}]),
    ):
        assert {*map(frozenset, drawn)} == {*map(frozenset, cases)}
    assert grey == the_grey


@pytest.mark.slow
def test_the_command_draws_training_images(data_dir: Path, tmp_path: Path) -> None:
    words = ("augmentations", data_dir, *SIZE, "--images", 3, "--draws", 2, "--padding", 2)
    files = [tmp_path / f"{name}.png" for name in ("one", "again", "other")]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        assert call(*words, "--to", file, "--seed", seed) == (0, f"wrote {file}\n", "")
    one, again, other = (np.asarray(PIL.Image.open(file)) for file in files)
    assert one.shape[0] == 18 + 6 * (HEIGHT + 18)  # three visible rows, three infrared ones
    np.testing.assert_array_equal(one, again)
    assert one.shape == other.shape
    assert (one != other).any()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--images", 0), "--images 0: must be 1 to 20"),
        (("--draws", 21), "--draws 21: must be 1 to 20"),
        (("--seed", -1), "--seed -1: must be 0 or more"),
        (("--padding", -1), "augment.padding: must be 0 or more"),
        (("--erasing-share", 0.4, 0.1), "augment.erasing_share: (0.4, 0.1) must be the least"),
        (("--erasing-share", 0.9, 0.95, "--erasing-aspect", 3, 3), "no rectangle of 461 pixels"),
        (("--dataset", "market"), "market"),
        (("--dataset", "regdb"), "no prepared dataset"),
        (("--image-size", 64, 32), "there is one of 32x16 pixels"),
        (("--to", "missing/a.png"), "missing/a.png: its folder does not exist"),
        (("--to", "a.jpg"), "--to a.jpg: the picture is a PNG"),
    ],
    ids=str,
)
def test_what_it_refuses(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[object, ...],
    error: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, said = call("augmentations", data_dir, *SIZE, "--to", "a.png", *words)
    assert (code, out) == (2, "")
    assert said.startswith("error: ")
    assert error in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


def test_it_does_not_overwrite(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    code, _, said = call("augmentations", data_dir, *SIZE, "--to", tmp_path / "a.png")
    assert code == 2
    assert f"{tmp_path / 'a.png'}: exists already" in said
    assert (tmp_path / "a.png").read_bytes() == b"mine"
