"""Read `rand_perm_cam.mat`, the ten gallery permutations that SYSU-MM01's authors publish.

`rand_perm_cam{camera}{identity}` is a matrix of ten rows, one for each draw, each a permutation of
1 ... images over the sorted files of that camera's folder of that identity. A draw's gallery is
the first image of its row (single-shot) or the first ten (multi-shot).

The reader supports the part of MATLAB's format (level 5) that the file uses: cells of cells of
matrices. SciPy supports all of it, but a damaged file can crash SciPy and the process.
"""

import dataclasses
import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.io.files import read_bytes
from ddag_jax.io.foreign import foreign

DRAWS = 10

_LONGEST = 16 * 2**20
"""Longest accepted file, bytes; the authors' file unpacks to less than one million."""

_HDF5 = b"\x89HDF\r\n\x1a\n"

# MATLAB's numbers for what an element holds, and for what kind of array a matrix is.
_MATRIX, _COMPRESSED = 14, 15
_CELL, _NUMBERS = 1, range(6, 16)
_DTYPES = {
    1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8",
    13: "<u8",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Permutations:
    """Permutations by folder, `cam{camera}/{identity:04d}`."""

    _matrices: dict[str, np.ndarray]

    @property
    def folders(self) -> dict[str, int]:
        """Number of permuted images of each folder, at least 1."""
        return {folder: matrix.shape[1] for folder, matrix in self._matrices.items()}

    def draws(self) -> dict[str, list[list[int]]]:
        """Return the first ten images of each draw, 1-based; no protocol draws more."""
        return {folder: matrix[:, :10].tolist() for folder, matrix in self._matrices.items()}


def read_permutations(path: epath.PathLike) -> Permutations:
    """Read and check the file.

    Raises:
      UserError: the file cannot be read, or is not such a cell array of permutations.
    """
    path = epath.Path(path)
    again = "copy it again from the dataset's exp folder"
    try:
        content = read_bytes(path, _LONGEST)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {again}") from None
    if what := foreign(content):
        raise UserError(f"{path}: is {what}; or {again}")
    if content.startswith(b"MATLAB 7.3") or _HDF5 in (content[:8], content[512:520]):
        raise UserError(
            f"{path}: is in MATLAB's format 7.3 (HDF5), which is not read; save it as version 7 in"
            f" MATLAB or Octave: load('{path.name}'); save('-v7', '{path.name}', 'rand_perm_cam');"
            f" or {again}"
        )
    matrices: dict[str, np.ndarray] = {}
    try:
        for camera, identities in enumerate(_cells(_variable(content)), start=1):
            for identity, cell in enumerate(_cells(identities), start=1):
                if (matrix := _numbers(cell)).size:
                    matrices[f"cam{camera}/{identity:04d}"] = matrix
        if wrong := [matrix.shape for matrix in matrices.values() if len(matrix) != DRAWS]:
            raise ValueError(f"a matrix of shape {wrong[0]}")
    except (ValueError, struct.error, zlib.error) as error:
        raise UserError(
            f"{path}: is not SYSU-MM01's rand_perm_cam.mat, or is damaged; {again}"
        ) from error
    for folder, matrix in matrices.items():
        if (np.sort(matrix, axis=1) != np.arange(1, matrix.shape[1] + 1)).any():
            raise UserError(
                f"{path}: {folder}: a row is not a permutation of 1 ... {matrix.shape[1]}; {again}"
            )
    return Permutations({folder: matrix.astype(np.int64) for folder, matrix in matrices.items()})


class _Matrix(NamedTuple):
    """A MATLAB array with undecoded content."""

    kind: int
    shape: tuple[int, ...]
    name: bytes
    content: list[tuple[int, memoryview]]


def _variable(file: bytes) -> _Matrix:
    """Return the variable `rand_perm_cam`."""
    if file[124:128] != b"\x00\x01IM":
        raise ValueError("not a MATLAB file of level 5")
    for kind, data in _elements(memoryview(file)[128:]):
        if kind == _COMPRESSED:
            unpacking = zlib.decompressobj()
            unpacked = unpacking.decompress(data, _LONGEST)
            if not unpacking.eof:  # zlib compares the checksum at the end only
                raise ValueError("cut short")
            [(kind, data)] = _elements(memoryview(unpacked))
        if kind == _MATRIX and (matrix := _matrix(data)).name == b"rand_perm_cam":
            return matrix
    raise ValueError("no variable rand_perm_cam")


def _cells(matrix: _Matrix) -> Iterator[_Matrix]:
    """Yield the items of a cell array, in MATLAB's order."""
    is_whole = len(matrix.content) == math.prod(matrix.shape)
    if matrix.kind != _CELL or not is_whole or any(k != _MATRIX for k, _ in matrix.content):
        raise ValueError("no cells of cells")
    for _, data in matrix.content:
        yield _matrix(data)


def _numbers(matrix: _Matrix) -> np.ndarray:
    """Return a matrix of numbers, of the stored dtype."""
    [(kind, data)] = matrix.content  # raises ValueError for any other number of items
    if matrix.kind not in _NUMBERS or kind not in _DTYPES:
        raise ValueError("a cell without a matrix of numbers")
    # NumPy would replace -1 by whatever fits.
    if len(matrix.shape) != 2 or min(matrix.shape) < 0:
        raise ValueError(f"a matrix of shape {matrix.shape}")
    return np.frombuffer(data, _DTYPES[kind]).reshape(matrix.shape, order="F")


def _matrix(data: memoryview) -> _Matrix:
    flags, shape, name, *content = _elements(data)
    return _Matrix(
        kind=struct.unpack_from("<I", flags[1])[0] & 0xFF,
        shape=tuple(np.frombuffer(shape[1], "<i4").tolist()),
        name=bytes(name[1]),
        content=content,
    )


def _elements(data: memoryview) -> list[tuple[int, memoryview]]:
    """Return kind and content of consecutive elements.

    The content of a truncated element is shorter than its shape says; the callers find that.
    """
    elements = []
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind > 0xFFFF:  # short element: kind and size share a word, the next word is the content
            kind, size = kind & 0xFFFF, kind >> 16
            start, at = at + 4, at + 8
        else:
            start = at + 8
            at = start + size + (0 if kind == _COMPRESSED else -size % 8)
        elements.append((kind, data[start : start + size]))
    return elements
