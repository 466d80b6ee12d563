"""`rand_perm_cam.mat`: the ten gallery permutations that SYSU-MM01's authors publish.

`rand_perm_cam{camera}{identity}` is a matrix of ten rows, one a trial, each a permutation of
1 ... images over the sorted files of that camera's folder of that identity. A trial's gallery is
the first image of its row (single-shot) or the first ten (multi-shot).
"""

import dataclasses

import numpy as np
import scipy.io
from etils import epath

from ddag_jax.errors import InputError

TRIALS = 10


@dataclasses.dataclass(frozen=True)
class Permutations:
    """What the file holds."""

    _path: epath.Path
    _cells: dict[tuple[int, int], np.ndarray]

    def size(self, camera: int, identity: int) -> int:
        """Images that the file permutes of a camera (from 1) and identity; 0 where it has none."""
        cell = self._cells.get((camera, identity))
        return 0 if cell is None else cell.shape[1]

    def draws(self) -> dict[str, list[list[int]]]:
        """By `cam{camera}/{identity:04d}`: each trial's first ten images (all, where there are
        fewer), 1-based; no protocol draws more."""
        return {
            f"cam{camera}/{identity:04d}": cell[:, :10].tolist()
            for (camera, identity), cell in self._cells.items()
        }


def read_permutations(path: epath.PathLike) -> Permutations:
    """Reads and checks the file.

    Raises:
      InputError: it cannot be read, or is no such cell array of permutations.
    """
    path = epath.Path(path)
    refused = InputError(
        f"{path}: is not SYSU-MM01's rand_perm_cam.mat; copy it again from the dataset's exp folder"
    )
    try:
        with path.open("rb") as file:
            cameras = scipy.io.loadmat(file, variable_names=["rand_perm_cam"])["rand_perm_cam"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except Exception:  # what its reader raises on a damaged file is not bounded
        raise refused from None
    if cameras.dtype != object:
        raise refused
    cells: dict[tuple[int, int], np.ndarray] = {}
    for camera, identities in enumerate(cameras.ravel(), start=1):
        if not isinstance(identities, np.ndarray) or identities.dtype != object:
            raise refused
        for identity, cell in enumerate(identities.ravel(), start=1):
            if not isinstance(cell, np.ndarray) or cell.dtype.kind not in "uif":
                raise refused
            if not cell.size:
                continue
            if cell.ndim != 2 or len(cell) != TRIALS:
                raise refused
            if (np.sort(cell, axis=1) != np.arange(1, cell.shape[1] + 1)).any():
                raise InputError(
                    f"{path}: camera {camera}, identity {identity}: a row is no permutation of"
                    f" 1 ... {cell.shape[1]}; copy it again from the dataset's exp folder"
                )
            cells[camera, identity] = cell.astype(np.int64)
    return Permutations(path, cells)
