"""Read `train_*_resized_*.npy`, which the reference's preprocessing writes beside cam1 ... cam6.

`train_{rgb,ir}_resized_img.npy` holds the training images, uint8 [images, 288, 144, 3], and
`train_{rgb,ir}_resized_label.npy` the rank of each image's identity among those of train_id.txt
and val_id.txt together. They do not say which camera saw an image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8

from ddag_jax.datasets.checks import ImageEntry
from ddag_jax.errors import UserError
from ddag_jax.io.files import is_file

_MODALITIES = {"rgb": False, "ir": True}


def read_training_arrays(
    root: epath.Path, identities: Sequence[int], faults: list[str]
) -> tuple[dict[int, list[ImageEntry]], Mapping[str, UInt8[np.ndarray, "h w 3"]], list[object]]:
    """Open the four files, memory-mapped.

    Args:
      root: folder of the files.
      identities: those of train and val, ascending; a label is a position among them.
      faults: where to add what is wrong.

    Returns:
      Entries by identity, camera 0; pixels by the entries' names; values to fingerprint.
    """
    entries: dict[int, list[ImageEntry]] = {}
    images: dict[str, np.ndarray] = {}
    source: list[object] = []
    for kind, infrared in _MODALITIES.items():
        try:
            pixels = _load(root / f"train_{kind}_resized_img.npy")
            labels = np.asarray(_load(root / f"train_{kind}_resized_label.npy"))
            _check(root, kind, pixels, labels, len(identities))
        except UserError as error:
            faults.append(str(error))
            continue
        name = f"train_{kind}_resized_img.npy"
        for number, label in enumerate(labels.tolist()):
            entry = ImageEntry(identities[label], 0, f"{name}/{number:05d}", infrared)
            entries.setdefault(entry.identity, []).append(entry)
            images[entry.name] = pixels[number]
        # All pixels are gigabytes; a few images and all labels identify the file.
        sample = pixels[:: max(1, len(pixels) // 16)].tobytes()
        source += [name, pixels.shape, sample, labels.tolist()]
    return entries, images, source


def _load(path: epath.Path) -> np.ndarray:
    if not path.exists():
        raise UserError(
            f"{path}: no such file; it is made by the reference's pre_process_sysu.py (without"
            " --train-arrays, the images are taken from cam1 ... cam6)"
        )
    if not is_file(path):
        raise UserError(
            f"{path}: cannot be read as an array (is not a regular file); write it again with the"
            " reference's pre_process_sysu.py"
        )
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy raises any exception on a damaged header
        raise UserError(
            f"{path}: cannot be read as an array ({error}); write it again with the reference's"
            " pre_process_sysu.py"
        ) from None
    return array


def _check(
    root: epath.Path, kind: str, pixels: np.ndarray, labels: np.ndarray, identities: int
) -> None:
    image_file = root / f"train_{kind}_resized_img.npy"
    label_file = root / f"train_{kind}_resized_label.npy"
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise UserError(
            f"{image_file}: holds {pixels.dtype} of shape {pixels.shape}; expected uint8"
            " [images, height, width, 3]"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise UserError(
            f"{label_file}: holds {labels.dtype} of shape {labels.shape}; expected whole numbers"
            " [images]"
        )
    if len(labels) != len(pixels):
        raise UserError(
            f"{label_file}: holds {len(labels)} labels for the {len(pixels)} images of"
            f" {image_file.name}; write both again together"
        )
    used = np.unique(labels)
    if not np.array_equal(used, np.arange(identities)):
        raise UserError(
            f"{label_file}: holds {len(used)} labels, {used.min()} to {used.max()}; expected"
            f" 0 to {identities - 1}, one for each of the {identities} identities of train_id.txt"
            " and val_id.txt together"
        )
