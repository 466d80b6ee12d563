"""--train-arrays: train_{rgb,ir}_resized_{img,label}.npy, as the reference's preprocessing leaves
them beside cam1 ... cam6."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddag_jax.data.loader import open_split
from ddag_jax.datasets.images import read_image
from ddag_jax.datasets.prepare import check, read_folder
from ddag_jax.errors import UserError
from tests.datasets.commands import call, call_prepare, fails

IDENTITIES = (1, 2, 3, 4, 5, 16)
"""Of train_id.txt and val_id.txt together, ascending: what the labels count."""
PER_IDENTITY = {"rgb": 8, "ir": 4}


def write_arrays(root: Path, size: tuple[int, int] = (32, 16)) -> dict[str, np.ndarray]:
    """Noise images in the order of the reference's: labels do not ascend."""
    rng = np.random.default_rng(2)
    written = {}
    for kind, images in PER_IDENTITY.items():
        labels = rng.permutation(np.repeat(np.arange(6), images))
        pixels = rng.integers(0, 256, (len(labels), *size, 3), dtype=np.uint8)
        for what, array in (("img", pixels), ("label", labels)):
            written[f"{kind} {what}"] = array
            np.save(root / f"train_{kind}_resized_{what}.npy", array)
    return written


@pytest.fixture
def source(make_tree: Callable[[], Path]) -> Path:
    """A tree that has the arrays, and images of test identities only."""
    root = make_tree()
    write_arrays(root)
    for identity in IDENTITIES:
        for camera in range(1, 7):
            shutil.rmtree(root / f"cam{camera}" / f"{identity:04d}")
    return root


def test_prepared_images_are_the_arrays(source: Path, tmp_path: Path) -> None:
    code, out, error = call_prepare("sysu_mm01", source, tmp_path / "data", "--train-arrays")
    assert (code, error) == (0, "")
    assert [line.split() for line in out.splitlines()[1:4]] == [
        ["train", "4", "32", "16"],
        ["val", "2", "16", "8"],
        ["test", "2", "16", "8"],
    ]
    written = {kind: np.load(source / f"train_{kind}_resized_img.npy") for kind in PER_IDENTITY}
    labels = {kind: np.load(source / f"train_{kind}_resized_label.npy") for kind in PER_IDENTITY}
    training = open_split(tmp_path / "data", "sysu_mm01", (32, 16), "train+val")
    assert len(training) == 72
    assert len(set(training.names)) == 72
    assert set(training.cameras.tolist()) == {0}
    images = training.images(np.arange(72))
    for name, identity, infrared, image in zip(
        training.names, training.identities, training.infrared, images, strict=True
    ):
        kind = "ir" if infrared else "rgb"
        file, number = name.split("/")
        assert file == f"train_{kind}_resized_img.npy"
        np.testing.assert_array_equal(image, written[kind][int(number)])
        assert identity == IDENTITIES[labels[kind][int(number)]]
    test = open_split(tmp_path / "data", "sysu_mm01", (32, 16), "test")
    assert test.names[0] == "cam1/0006/0001.jpg"
    np.testing.assert_array_equal(
        test.images(np.array([0]))[0], read_image(source / test.names[0], 32, 16)
    )


def test_arrays_of_another_size_are_resized_as_images_are(source: Path, tmp_path: Path) -> None:
    pixels = write_arrays(source, size=(48, 40))["rgb img"]
    assert call_prepare("sysu_mm01", source, tmp_path / "data", "--train-arrays")[0] == 0
    training = open_split(tmp_path / "data", "sysu_mm01", (32, 16), "train+val")
    number = training.names.index("train_rgb_resized_img.npy/00005")
    np.testing.assert_array_equal(
        training.images(np.array([number]))[0], read_image(pixels[5], 32, 16)
    )


def test_check_reads_them_too(source: Path) -> None:
    code, out, error = call("check", "sysu_mm01", "--from", source, "--train-arrays")
    assert (code, error) == (0, "")
    assert out.endswith("no faults\n")
    # Without the option these files are not looked at, and the cameras' folders lack people.
    code, _, error = call("check", "sysu_mm01", "--from", source)
    assert code == 2
    assert "exp/train_id.txt: 4 identities without any image" in error
    assert "resized" not in error


def test_folders_of_training_identities_are_not_read(source: Path) -> None:
    folder = source / "cam1" / "0001"
    folder.mkdir()
    (folder / "0001.jpg").write_bytes(b"")
    layout = check("sysu_mm01", source, train_arrays=True)
    assert not any(record.name.startswith("cam") for record in layout.split("train+val"))
    assert layout.notes == ["1 more identity is in no list: ignored"]


@pytest.mark.parametrize("what", ["img", "label"])
def test_other_arrays_are_another_source(source: Path, tmp_path: Path, what: str) -> None:
    assert call_prepare("sysu_mm01", source, tmp_path / "data", "--train-arrays")[0] == 0
    path = source / f"train_ir_resized_{what}.npy"
    array = np.load(path)
    np.save(path, array[::-1])
    code, _, error = call_prepare("sysu_mm01", source, tmp_path / "data", "--train-arrays")
    assert code == 2
    assert "another source" in error


def test_the_images_stay_on_disk(source: Path) -> None:
    layout = read_folder("sysu_mm01", source, train_arrays=True)
    for image in layout.arrays.values():
        assert isinstance(image, np.memmap)
        assert image._mmap is not None  # a copy in memory has none


def test_only_sysu_mm01_has_them(tmp_path: Path) -> None:
    for dataset in ("regdb", "llcm"):
        error = fails(dataset, tmp_path, tmp_path / "data", "--train-arrays")
        assert f"--train-arrays: only sysu_mm01 has such files, not {dataset}" in error


def replace(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    path = f"train_{name}.npy"
    return lambda root: np.save(root / path, make(np.load(root / path)))


def cut(root: Path) -> None:
    path = root / "train_ir_resized_img.npy"
    path.write_bytes(path.read_bytes()[:-1])


def as_archive(root: Path) -> None:
    path = root / "train_ir_resized_img.npy"
    array = np.load(path)
    with path.open("wb") as file:
        np.savez(file, array)


def relabel(labels: np.ndarray) -> np.ndarray:
    labels[labels == 3] = 2
    return labels


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no images": (
        lambda root: (root / "train_rgb_resized_img.npy").unlink(),
        "train_rgb_resized_img.npy: no such file; it is made by the reference's",
    ),
    "no labels": (
        lambda root: (root / "train_ir_resized_label.npy").unlink(),
        "train_ir_resized_label.npy: no such file",
    ),
    "cut short": (cut, "train_ir_resized_img.npy: cannot be read as an array"),
    "empty": (
        lambda root: (root / "train_ir_resized_img.npy").write_bytes(b""),
        "train_ir_resized_img.npy: cannot be read as an array",
    ),
    "text": (
        lambda root: (root / "train_ir_resized_img.npy").write_text("404 not found"),
        "train_ir_resized_img.npy: cannot be read as an array",
    ),
    "an archive": (as_archive, "train_ir_resized_img.npy: cannot be read as an array"),
    "a folder": (
        lambda root: (
            (root / "train_ir_resized_img.npy").unlink(),
            (root / "train_ir_resized_img.npy").mkdir(),
        ),
        "train_ir_resized_img.npy: cannot be read as an array",
    ),
    "pickled": (
        replace("rgb_resized_img", lambda a: a.astype(object)),
        "train_rgb_resized_img.npy: cannot be read as an array",
    ),
    "float images": (
        replace("rgb_resized_img", lambda a: a.astype(np.float32)),
        "train_rgb_resized_img.npy: holds float32 of shape (48, 32, 16, 3); expected uint8",
    ),
    "grey images": (
        replace("ir_resized_img", lambda a: a[..., :1]),
        "train_ir_resized_img.npy: holds uint8 of shape (24, 32, 16, 1); expected uint8",
    ),
    "channels first": (
        replace("ir_resized_img", lambda a: a.transpose(0, 3, 1, 2)),
        "holds uint8 of shape (24, 3, 32, 16)",
    ),
    "one image": (replace("ir_resized_img", lambda a: a[0]), "holds uint8 of shape (32, 16, 3)"),
    "no image": (replace("ir_resized_img", lambda a: a[:0]), "of shape (0, 32, 16, 3)"),
    "float labels": (
        replace("ir_resized_label", lambda a: a.astype(np.float32)),
        "train_ir_resized_label.npy: holds float32 of shape (24,); expected whole numbers",
    ),
    "column of labels": (
        replace("ir_resized_label", lambda a: a[:, None]),
        "holds int64 of shape (24, 1)",
    ),
    "a label less": (
        replace("ir_resized_label", lambda a: a[:-1]),
        "train_ir_resized_label.npy: holds 23 labels for the 24 images of train_ir_resized_img.npy",
    ),
    "an identity without": (
        replace("rgb_resized_label", relabel),
        "train_rgb_resized_label.npy: holds 5 labels, 0 to 5; expected 0 to 5, one for each of",
    ),
    "labels from 1": (
        replace("rgb_resized_label", lambda a: a + 1),
        "holds 6 labels, 1 to 6; expected 0 to 5",
    ),
    "negative labels": (
        replace("rgb_resized_label", lambda a: a - 1),
        "holds 6 labels, -1 to 4; expected 0 to 5",
    ),
    "another split's": (
        lambda root: (root / "exp" / "val_id.txt").write_text("4\n"),
        "holds 6 labels, 0 to 5; expected 0 to 4, one for each of the 5 identities",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(source: Path, tmp_path: Path, fault: str) -> None:
    spoil, told = FAULTS[fault]
    spoil(source)
    error = fails("sysu_mm01", source, tmp_path / "data", "--train-arrays")
    assert told in error
    assert error.count("\n") == (2 if fault == "another split's" else 0)  # of rgb and of ir


def test_all_at_once(source: Path, tmp_path: Path) -> None:
    FAULTS["no labels"][0](source)
    FAULTS["float images"][0](source)
    (source / "cam1" / "0006" / "0001.jpg").write_bytes(b"")
    (source / "cam1" / "0001").mkdir()
    (source / "cam1" / "0001" / "0001.jpg").write_bytes(b"")  # not asked for
    error = fails("sysu_mm01", source, tmp_path / "data", "--train-arrays")
    assert error.startswith("error: 3 faults:\n")
    assert "cam1/0006/0001.jpg: is empty" in error


def test_no_flipped_byte_of_a_header_makes_a_traceback(source: Path) -> None:
    path = source / "train_ir_resized_label.npy"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 128, 60):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoilt)
        try:
            read_folder("sysu_mm01", source, train_arrays=True)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
