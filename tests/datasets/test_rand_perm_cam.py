"""rand_perm_cam.mat: the authors' own, small ones like it, and broken ones."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from ddag_jax.data.loader import open_split
from ddag_jax.datasets.prepare import check
from ddag_jax.datasets.rand_perm_cam import read_permutations
from ddag_jax.errors import UserError
from tests.datasets.commands import call_prepare, fails

MakeTree = Callable[[], Path]
TREE = {
    (camera, identity): 2 for camera in range(1, 7) for identity in (1, 2, 3, 4, 5, 6, 7, 9, 16)
}
"""Images in each folder of the small tree."""


def cells(sizes: Mapping[tuple[int, int], int]) -> np.ndarray:
    """As the authors' file has them: a cell a camera, in it a cell an identity, ten rows each."""
    rng = np.random.default_rng(0)
    cameras = np.empty((6, 1), object)
    for camera in range(1, 7):
        people = np.empty((max(identity for _, identity in sizes), 1), object)
        for identity in range(1, len(people) + 1):
            order = np.arange(1, sizes.get((camera, identity), 0) + 1, dtype=np.uint8)
            people[identity - 1, 0] = rng.permuted(np.tile(order, (10, 1)), axis=1)
        cameras[camera - 1, 0] = people
    return cameras


def write(path: Path, value: np.ndarray, name: str = "rand_perm_cam") -> None:
    scipy.io.savemat(path, {name: value}, do_compression=True)


def test_the_authors_own(split_dir: Path) -> None:
    path = split_dir / "rand_perm_cam.mat"
    permutations = read_permutations(path)
    folders = json.loads((split_dir / "images_per_folder.json").read_text())
    assert len(folders) == 2298
    assert permutations.folders == folders
    assert sum(folders.values()) == 45_863
    raw = scipy.io.loadmat(path)["rand_perm_cam"]
    assert permutations.draws() == {
        name: raw[int(name[3]) - 1, 0][int(name[5:]) - 1, 0][:, :10].tolist() for name in folders
    }


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"])
def test_however_it_is_stored(tmp_path: Path, compressed: bool, dtype: str) -> None:
    value = cells({(1, 2): 3, (3, 1): 1, (6, 2): 200})
    for camera in value.ravel():
        for identity in range(len(camera)):
            camera[identity, 0] = camera[identity, 0].astype(dtype)
    path = tmp_path / "rand_perm_cam.mat"
    scipy.io.savemat(path, {"other": 1, "rand_perm_cam": value}, do_compression=compressed)
    permutations = read_permutations(path)
    assert permutations.folders == {"cam1/0002": 3, "cam3/0001": 1, "cam6/0002": 200}
    assert permutations.draws()["cam6/0002"] == value[5, 0][1, 0][:, :10].tolist()


def test_draws_come_with_the_prepared_dataset(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    (source / "cam2" / "0006").rename(source / "cam2" / "6")  # however its folder is spelt
    value = cells(TREE)
    write(source / "exp" / "rand_perm_cam.mat", value)
    assert call_prepare("sysu_mm01", source, tmp_path / "data")[0] == 0
    draws = open_split(tmp_path / "data", "sysu_mm01", (32, 16), "test").draws
    assert draws == {
        f"cam{camera}/{identity:04d}": value[camera - 1, 0][identity - 1, 0].tolist()
        for camera in (1, 2, 4, 5)
        for identity in (6, 7)
    }


def test_without_the_file_there_are_no_draws(data_dir: Path) -> None:
    assert open_split(data_dir, "sysu_mm01", (32, 16), "test").draws == {}


def test_other_draws_are_another_source(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    assert call_prepare("sysu_mm01", source, tmp_path)[0] == 0
    write(source / "exp" / "rand_perm_cam.mat", cells(TREE))
    assert "another source" in call_prepare("sysu_mm01", source, tmp_path)[2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({(4, 7): 3}, r"1 folder \(first cam4/0007: it permutes 3 images, the folder holds 2\)"),
        ({(4, 7): 0}, r"1 folder \(first cam4/0007: it permutes 0 images, the folder holds 2\)"),
        ({(5, 6): 9, (2, 7): 1}, r"2 folders \(first cam2/0007: it permutes 1 images"),
    ],
)
def test_what_does_not_match_the_tree_is_a_fault(
    make_tree: MakeTree, tmp_path: Path, change: dict[tuple[int, int], int], told: str
) -> None:
    source = make_tree()
    write(source / "exp" / "rand_perm_cam.mat", cells(TREE | change))
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert "\n" not in error
    with pytest.raises(UserError, match=r"exp/rand_perm_cam\.mat: does not match .* " + told):
        check("sysu_mm01", source)


def test_folders_that_no_gallery_is_drawn_from_may_differ(make_tree: MakeTree) -> None:
    """Training identities, and infrared cameras."""
    source = make_tree()
    write(source / "exp" / "rand_perm_cam.mat", cells(TREE | {(1, 1): 5, (3, 6): 5, (6, 9): 0}))
    assert len(check("sysu_mm01", source).draws) == 8


def whole(path: Path) -> bytes:
    write(path, cells(TREE))
    return path.read_bytes()


def one_cell(matrix: np.ndarray) -> np.ndarray:
    value = cells(TREE)
    value[0, 0][5, 0] = matrix
    return value


def without_checksum(path: Path) -> None:
    content = whole(path)
    size = len(content) - 128 - 8 - 4
    path.write_bytes(content[:128] + struct.pack("<II", 15, size) + content[136:-4])


def reshaped(path: Path, shape: tuple[int, int], other: tuple[int, int]) -> None:
    """With another shape in the place of the first of a shape."""
    scipy.io.savemat(path, {"rand_perm_cam": cells(TREE)})
    old, new = (struct.pack("<IIii", 5, 8, *pair) for pair in (shape, other))
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("404 not found\n" * 20),
    "cut short": lambda path: path.write_bytes(whole(path)[:-100]),
    "cut to its head": lambda path: path.write_bytes(whole(path)[:128]),
    "a byte flipped": lambda path: path.write_bytes(
        whole(path)[:200] + bytes([whole(path)[200] ^ 1]) + whole(path)[201:]
    ),
    "another variable": lambda path: write(path, cells(TREE), name="rand_perm"),
    "a matrix": lambda path: write(path, np.ones((6, 10))),
    "words": lambda path: write(path, np.array([["cam1"], ["cam2"]], object)),
    "matrices in cameras": lambda path: write(path, cells(TREE)[0, 0]),
    "words in cells": lambda path: write(path, one_cell(np.array(["1", "2"]))),
    "nine trials": lambda path: write(path, one_cell(np.tile([1, 2], (9, 1)))),
    "without its checksum": without_checksum,
    "a camera less than it says": lambda path: reshaped(path, (6, 1), (7, 1)),
    "more cameras than memory": lambda path: reshaped(path, (6, 1), (2**30, 2**30)),
    "a shape below nought": lambda path: reshaped(path, (10, 2), (-1, 2)),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged(make_tree: MakeTree, tmp_path: Path, damage: str) -> None:
    source = make_tree()
    DAMAGE[damage](source / "exp" / "rand_perm_cam.mat")
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert "\n" not in error
    told = "cannot be read" if damage == "a folder" else "is not SYSU-MM01's rand_perm_cam.mat"
    assert f"exp/rand_perm_cam.mat: {told}" in error


@pytest.mark.parametrize(
    "row", [[1, 1], [0, 1], [2, 3], [1.5, 2.0], [np.nan, 1.0], [-1, 1], [np.inf, 1.0]]
)
def test_no_permutation(tmp_path: Path, row: list[float]) -> None:
    matrix = np.tile(np.array([1, 2], np.array(row).dtype), (10, 1))
    matrix[3] = row
    write(tmp_path / "rand_perm_cam.mat", one_cell(matrix))
    with pytest.raises(UserError, match=r"cam1/0006: a row is not a permutation of 1 \.\.\. 2"):
        read_permutations(tmp_path / "rand_perm_cam.mat")


def test_no_flipped_byte_makes_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "rand_perm_cam.mat"
    scipy.io.savemat(path, {"rand_perm_cam": cells(TREE)})  # uncompressed: no checksum helps
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 300):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoilt)
        try:
            read_permutations(path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017


HDF5 = b"\x89HDF\r\n\x1a\n"
HEADER = (
    b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2018 HDF5 schema 1"
)


@pytest.mark.parametrize(
    "content",
    [
        (HEADER + b" 1.00 .").ljust(124) + b"\x00\x02IM" + bytes(384) + HDF5 + bytes(2000),
        bytes(512) + HDF5 + bytes(100),
        HDF5 + bytes(2000),  # as h5py writes
    ],
)
def test_matlab_s_format_7_3_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rand_perm_cam.mat"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is in MATLAB's format 7\.3 \(HDF5\)") as caught:
        read_permutations(path)
    assert "save('-v7', 'rand_perm_cam.mat', 'rand_perm_cam')" in str(caught.value)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<html><body>Not found", "a web page"),
    ],
)
def test_what_a_download_left_is_called_so(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_permutations(tmp_path / "x.mat")
