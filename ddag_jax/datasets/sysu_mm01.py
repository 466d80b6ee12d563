"""The folder that SYSU-MM01 is distributed as: who is in which list, and what is wrong with it.

cam1 ... cam6/{identity:04d}/{number:04d}.jpg    cameras 3 and 6 are infrared
exp/{train,val,test}_id.txt                      one line, identities separated by commas
exp/rand_perm_cam.mat                            the authors' gallery draws (may be absent)
"""

import collections
from collections.abc import Mapping

import numpy as np
from etils import epath

from ddag_jax.datasets.builder import ImageFolderBuilder
from ddag_jax.datasets.checks import (
    Counts,
    Layout,
    Record,
    check_folder,
    count,
    fingerprint,
    lacking_modality,
    list_people,
    read_identities,
    shared_identities,
)
from ddag_jax.datasets.rand_perm_cam import read_permutations
from ddag_jax.datasets.training_arrays import read_training_arrays
from ddag_jax.errors import UserError

SPLITS = ("train", "val", "test")
CAMERAS = (1, 2, 3, 4, 5, 6)
INFRARED_CAMERAS = (3, 6)
FOLDER = "the folder that holds cam1 ... cam6 and exp"

PUBLISHED = {
    "train": Counts(296, 20_284, 9_929),
    "val": Counts(99, 1_974, 1_980),
    "train+val": Counts(395, 22_258, 11_909),
    "test": Counts(96, 6_775, 3_803),
}


def inspect(folder: epath.PathLike, train_arrays: bool = False) -> tuple[Layout, list[str]]:
    """Lists a folder and looks for faults that do not keep it from being listed.

    Args:
      folder: SYSU-MM01's.
      train_arrays: take the training images from the `train_*_resized_*.npy` files there, which
        the reference's preprocessing leaves, instead of the cameras' folders.

    Returns:
      What the folder holds, and its faults, a sentence each.

    Raises:
      UserError: there is nothing to list: no folder, or another layout.
    """
    root = epath.Path(folder)
    check_folder(root, ("exp", *(f"cam{camera}" for camera in CAMERAS)), FOLDER)
    faults: list[str] = []
    lists = {split: read_identities(root / "exp" / f"{split}_id.txt", faults) for split in SPLITS}
    shared_identities(
        root / "exp", {f"{split}_id.txt": listed for split, listed in lists.items()}, faults
    )
    images: dict[int, list[Record]] = {}
    sizes: dict[str, int] = {}
    for camera in CAMERAS:
        for identity, names in list_people(root, f"cam{camera}", faults).items():
            images.setdefault(identity, []).extend(
                Record(identity, camera, name, camera in INFRARED_CAMERAS) for name in names
            )
            sizes |= names
    arrays: Mapping[str, np.ndarray] = {}
    source: list[object] = []
    if train_arrays:
        training = sorted(lists["train"] | lists["val"])
        for identity in training:
            images.pop(identity, None)
        if training:
            listed, arrays, source = read_training_arrays(root, training, faults)
            images |= listed
    for split in SPLITS:
        records = [r for identity in lists[split] for r in images.get(identity, ())]
        if split == "test" or not train_arrays:  # the arrays' labels are checked on their own
            lacking_modality(f"{root}: exp/{split}_id.txt", lists[split], records, faults)
    unlisted = images.keys() - set().union(*lists.values())
    splits = {
        split: sorted(record for identity in lists[split] for record in images.get(identity, ()))
        for split in SPLITS
    }
    permutations = root / "exp" / "rand_perm_cam.mat"
    draws = {}
    if permutations.exists():
        draws = _draws(permutations, splits["test"], faults)
    files = [
        (r.name, sizes[r.name]) for records in splits.values() for r in records if r.name in sizes
    ]
    layout = Layout(
        folder=root,
        images=splits,
        published=PUBLISHED,
        notes=(
            [f"{count(unlisted, 'more identity is', 'more identities are')} in no list: ignored"]
            if unlisted
            else []
        ),
        draws=draws,
        arrays=arrays,
        source=fingerprint(
            [sorted((k, sorted(v)) for k, v in lists.items()), draws, source], files
        ),
    )
    return layout, faults


def _draws(path: epath.Path, test: list[Record], faults: list[str]) -> dict[str, list[list[int]]]:
    """The permutations of the test images' visible folders, checked against what is there."""
    try:
        permutations = read_permutations(path)
    except UserError as error:
        faults.append(str(error))
        return {}
    folders = collections.Counter(
        f"cam{record.camera}/{record.identity:04d}" for record in test if not record.infrared
    )
    permuted = permutations.folders
    wrong = {
        name: (permuted.get(name, 0), images)
        for name, images in folders.items()
        if permuted.get(name, 0) != images
    }
    if wrong:
        name = min(wrong)
        faults.append(
            f"{path}: does not match the tree in {count(wrong, 'folder', 'folders')} (first {name}:"
            f" it permutes {wrong[name][0]} images, the folder holds {wrong[name][1]}); take both"
            " from the same release, or remove the file to do without its draws"
        )
        return {}
    draws = permutations.draws()
    return {name: draws[name] for name in folders}


class SysuMm01(ImageFolderBuilder):
    """SYSU-MM01: splits `train`, `val` and `test`, the dataset's identity lists."""

    DESCRIPTION = "People seen by four visible and two infrared cameras."
    HOMEPAGE = "https://github.com/wuancong/SYSU-MM01"
    CITATION = (
        "Wu, Zheng, Yu, Gong, Lai: RGB-Infrared Cross-Modality Person Re-Identification, ICCV 2017"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"The dataset is handed out by its authors on request. `manual_dir` is {FOLDER}."
    )
    inspect = staticmethod(inspect)
