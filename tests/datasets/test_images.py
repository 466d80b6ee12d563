"""Images as cameras and phones write them: formats, EXIF orientation, thermal images of 16 bits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from etils import epath

import ddag_jax
from ddag_jax.data.loader import open_split
from ddag_jax.datasets.checks import passed_over
from ddag_jax.datasets.images import DeepImage, read_image
from ddag_jax.datasets.prepare import check, prepare, read_folder
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from ddag_jax.serving.index import open_index
from tests.linear_method import CONFIG

NOISE = np.random.default_rng(0).integers(0, 256, (40, 20, 3), np.uint8)


def read(path: Path) -> np.ndarray:
    return read_image(epath.Path(path), 40, 20)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {"format": "tiff"}),
        ("a.TIFF", {"format": "tiff", "compression": "tiff_lzw"}),
        ("a.webp", {"format": "webp", "lossless": True}),
        ("a.png", {"format": "png"}),
        ("a.jpg", {"format": "webp", "lossless": True}),  # whatever the name
        ("a.jpg", {"format": "tiff"}),
    ],
)
def test_formats_without_loss(tmp_path: Path, name: str, options: dict) -> None:
    PIL.Image.fromarray(NOISE).save(tmp_path / name, **options)
    np.testing.assert_array_equal(read(tmp_path / name), NOISE)


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.JPEG"])
def test_other_names_of_jpeg(tmp_path: Path, name: str) -> None:
    PIL.Image.fromarray(NOISE).save(tmp_path / name, format="jpeg")
    PIL.Image.fromarray(NOISE).save(tmp_path / "a.jpg", format="jpeg")
    np.testing.assert_array_equal(read(tmp_path / name), read(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"GIF89a" + bytes(20), "is a GIF image; convert it to PNG or JPEG"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "is a HEIF or AVIF image, or a video; convert"),
        (b"\0\0\0\x0cjP  \r\n" + bytes(20), "is a JPEG 2000 image; convert"),
        (b"%PDF-1.7" + bytes(20), "is a PDF document; convert"),
        (b"<html>", "is not an image; copy it again"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=what):
        read(tmp_path / "a.jpg")


def people(folder: Path, save: Callable[[Path, str], None]) -> Path:
    """Four people of two images in each modality, as folders."""
    for modality in ("visible", "infrared"):
        for who in "abcd":
            (folder / modality / who).mkdir(parents=True)
            for number in range(2):
                save(folder / modality / who / f"{number}.png", modality)
    return folder


def save_noise(path: Path, modality: str) -> None:
    PIL.Image.fromarray(NOISE).save(path)


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    own = people(tmp_path / "own", save_noise)
    for name in ("visible/a/more.gif", "infrared/b/.hidden.png", "visible/loose.png"):
        (own / name).write_bytes((own / "visible/a/0.png").read_bytes())
    (own / "visible" / "a" / "night").mkdir()
    (own / "visible" / "Thumbs.db").write_bytes(b"")
    summary = check("folder", own).summary({})
    assert "(2 images or folders are not directly in an identity's folder, and not read:" in summary
    assert "visible/a/night/, visible/loose.png)" in summary
    assert "(1 file is not read: visible/a/more.gif; convert to .png or .jpg)" in summary
    assert "(1 hidden file or folder is not read: infrared/b/.hidden.png)" in summary
    assert "Thumbs" not in summary


def test_a_fault_comes_with_what_is_not_read(tmp_path: Path) -> None:
    """All infrared images are of another format: the advice is not to add them."""
    own = people(tmp_path / "own", save_noise)
    for file in own.glob("infrared/*/*.png"):
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(UserError, match=r"8 files are not read: .*heic.*convert to .png or .jpg"):
        read_folder("folder", own)


def test_published_layouts_count_too(debug_data: Path, tmp_path: Path) -> None:
    names = ["cam1/0001/0001.tiff", "cam1/0001/0002.avif", "cam1/0001/x.txt"]
    assert passed_over(names) == [
        "1 file is not read: cam1/0001/0002.avif; convert to .png or .jpg"
    ]
    tree = tmp_path / "sysu"
    source = debug_data.parent / "people"
    for file in source.rglob("*"):
        if file.is_file():
            (tree / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (tree / file.relative_to(source)).symlink_to(file)
    (tree / "cam1" / "0001" / "0009.gif").write_bytes(b"")
    assert read_folder("sysu_mm01", tree).unread == [
        "1 file is not read: cam1/0001/0009.gif; convert to .png or .jpg"
    ]


# ------------------------------------------------------------------------------------ orientation


def turned(folder: Path, orientation: int, form: str = "png") -> Path:
    """Save NOISE as a camera does that was held in this way."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF's number to Pillow's transposition
    image = PIL.Image.fromarray(NOISE)
    if orientation in back:
        image = image.transpose(PIL.Image.Transpose(back[orientation]))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image.save(folder / f"{orientation}.{form}", exif=exif)
    return folder / f"{orientation}.{form}"


@pytest.mark.parametrize("form", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright(tmp_path: Path, orientation: int, form: str) -> None:
    np.testing.assert_array_equal(read(turned(tmp_path, orientation, form)), NOISE)


@pytest.mark.parametrize("exif", [b"Exif\0\0broken", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_broken_exif_is_no_fault(tmp_path: Path, exif: bytes) -> None:
    PIL.Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
    PIL.Image.fromarray(NOISE).save(tmp_path / "b.jpg")
    np.testing.assert_array_equal(read(tmp_path / "a.jpg"), read(tmp_path / "b.jpg"))


def test_turned_images_are_counted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = people(tmp_path / "own", save_noise)
    turned(own / "visible" / "a", 6)
    turned(own / "infrared" / "b", 3)
    turned(own / "infrared" / "b", 1)
    note = "2 images are turned upright, as their EXIF orientation says"
    assert f"({note})" in check("folder", own).summary({})
    content = prepare("folder", own, tmp_path / "data", 40, 20).content
    assert f"({note})" in content.summary({})
    stored = open_split(tmp_path / "data", "folder", (40, 20), "images")
    for image in stored.images(np.arange(len(stored))):
        np.testing.assert_array_equal(image, NOISE)
    done = ddag_jax.embed(finished, own, tmp_path / "f.npz", config=load_config(CONFIG))
    assert note in done.notes


# ---------------------------------------------------------------------------------------- 16 bits

DEEP = np.linspace(7000, 9000, 800).reshape(40, 20).astype(np.uint16)


def save_deep(path: Path, modality: str) -> None:
    PIL.Image.fromarray(DEEP if modality == "infrared" else NOISE).save(path)


@pytest.mark.parametrize("form", ["png", "tif"])
def test_a_range_maps_16_bits_to_8(tmp_path: Path, form: str) -> None:
    file = epath.Path(tmp_path / f"a.{form}")
    PIL.Image.fromarray(DEEP).save(file)
    found = read_image(DeepImage(file, 7500, 8500), 40, 20)
    expected = np.clip(np.rint((DEEP.astype(float) - 7500) / 1000 * 255), 0, 255)
    np.testing.assert_array_equal(found, np.repeat(expected[:, :, None], 3, 2))
    with pytest.raises(UserError, match="has 16 bits a pixel; for infrared images give --infrared"):
        read_image(file, 40, 20)
    # One of 8 bits is what it is.
    PIL.Image.fromarray(NOISE).save(file)
    np.testing.assert_array_equal(read_image(DeepImage(file, 7500, 8500), 40, 20), NOISE)


def test_one_range_of_all_thermal_images_is_stored(finished: Path, tmp_path: Path) -> None:
    own = people(tmp_path / "own", save_deep)
    with pytest.raises(UserError, match="--infrared-range LOW HIGH"):
        check("folder", own)
    content = check("folder", own, infrared_range="auto")
    low, high = content.infrared_range or (0, 0)
    assert (low, high) == (7000, 9000)  # 0.1 and 99.9 % of the pixels
    note = f"infrared images with 16 bits: {low} becomes black, {high} white"
    assert f"({note} (--infrared-range auto, " in content.summary({})
    path = prepare("folder", own, tmp_path / "data", 40, 20, infrared_range="auto").path
    stored = open_split(tmp_path / "data", "folder", (40, 20), "images")
    assert any(one.startswith(note) for one in stored.notes)
    for infrared, image in zip(stored.infrared, stored.images(np.arange(16)), strict=True):
        file = DeepImage(epath.Path(own / "infrared/a/0.png"), low, high)
        expected = read_image(file, 40, 20) if infrared else NOISE
        np.testing.assert_array_equal(image, expected)
    # Another range is another dataset.
    assert prepare("folder", own, tmp_path / "data", 40, 20, infrared_range="auto").path == path
    with pytest.raises(UserError, match="was prepared from another source"):
        prepare("folder", own, tmp_path / "data", 40, 20, infrared_range=(7000, 9100))

    config, index = load_config(CONFIG), tmp_path / "f.npz"
    with pytest.raises(UserError, match="no image can be read"):
        ddag_jax.embed(finished, own / "infrared", index, config=config)
    done = ddag_jax.embed(finished, own, index, config=config, infrared_range=(low, high))
    assert (done.images, done.unreadable) == (16, [])
    assert open_index(index).embedded_by.infrared_range == [low, high]
    # A search, and an addition, take the range of the file.
    found = ddag_jax.search(finished, index, own / "infrared/a/0.png", config=config, top=1)
    assert found.results[0].hits[0].similarity == pytest.approx(1, abs=1e-5)
    PIL.Image.fromarray(DEEP).save(own / "infrared" / "a" / "2.png")
    assert ddag_jax.embed(finished, own, index, config=config, add=True).embedded == 1
    with pytest.raises(UserError, match=r"infrared_range: \[7000, 9000\], and here \[0, 9000\]"):
        ddag_jax.embed(finished, own, index, config=config, add=True, infrared_range=(0, 9000))


@pytest.mark.parametrize("given", [(9000, 7000), (0, 70000), (1, 1), (0.5, 9), ("auto", 3), 5])
def test_what_is_no_range(given: object, tmp_path: Path) -> None:
    own = people(tmp_path / "own", save_deep)
    with pytest.raises(UserError, match=r"--infrared-range .*: give the value that becomes black"):
        check("folder", own, infrared_range=given)  # type: ignore[arg-type]


def test_auto_needs_images_of_16_bits(tmp_path: Path) -> None:
    own = people(tmp_path / "own", save_noise)
    with pytest.raises(UserError, match="--infrared-range auto: no infrared image has 16 bits"):
        check("folder", own, infrared_range="auto")
