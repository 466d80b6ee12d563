"""SYSU-MM01: its folder and its protocol.

cam1 ... cam6/{identity:04d}/{number:04d}.jpg    cameras 3 and 6 are infrared
exp/{train,val,test}_id.txt                      one line, identities separated by commas
exp/rand_perm_cam.mat                            the authors' gallery draws (optional)

Every image of the infrared cameras is a query. A draw takes of each identity and each of the mode's
visible cameras one image (single-shot) or ten (multi-shot).
"""

import collections
import functools
from collections.abc import Mapping

import numpy as np
from etils import epath

from ddag_jax.datasets.checks import (
    Counts,
    FolderContent,
    ImageEntry,
    check_folder,
    count,
    fingerprint,
    lacking_modality,
    list_people,
    passed_over,
    read_identities,
    shared_identities,
)
from ddag_jax.datasets.dataset import CameraRule, Dataset
from ddag_jax.datasets.rand_perm_cam import read_permutations
from ddag_jax.datasets.training_arrays import read_training_arrays
from ddag_jax.errors import UserError

SPLITS = ("train", "val", "test")
CAMERAS = (1, 2, 3, 4, 5, 6)
INFRARED_CAMERAS = (3, 6)
FOLDER = "the folder that holds cam1 ... cam6 and exp"


def inspect(folder: epath.PathLike, train_arrays: bool = False) -> tuple[FolderContent, list[str]]:
    """List a folder and its faults.

    Args:
      folder: SYSU-MM01's.
      train_arrays: take the training images from the `train_*_resized_*.npy` files, which the
        reference's preprocessing writes, instead of the cameras' folders.

    Returns:
      What the folder holds, and its faults, a sentence each.

    Raises:
      UserError: nothing can be listed: no such folder, or another layout.
    """
    root = epath.Path(folder)
    check_folder(root, ("exp", *(f"cam{camera}" for camera in CAMERAS)), FOLDER)
    faults: list[str] = []
    lists = {split: read_identities(root / "exp" / f"{split}_id.txt", faults) for split in SPLITS}
    shared_identities(
        root / "exp", {f"{split}_id.txt": listed for split, listed in lists.items()}, faults
    )
    images: dict[int, list[ImageEntry]] = {}
    sizes: dict[str, int] = {}
    others: list[str] = []
    for camera in CAMERAS:
        for identity, names in list_people(root, f"cam{camera}", faults, others).items():
            images.setdefault(identity, []).extend(
                ImageEntry(identity, camera, name, camera in INFRARED_CAMERAS) for name in names
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
        entries = [e for identity in lists[split] for e in images.get(identity, ())]
        if split == "test" or not train_arrays:  # read_training_arrays checks the arrays' labels
            lacking_modality(f"{root}: exp/{split}_id.txt", lists[split], entries, faults)
    unlisted = images.keys() - set().union(*lists.values())
    splits = {
        split: sorted(entry for identity in lists[split] for entry in images.get(identity, ()))
        for split in SPLITS
    }
    permutations = root / "exp" / "rand_perm_cam.mat"
    draws = {}
    if permutations.exists():
        draws = _draws(permutations, splits["test"], faults)
    files = [
        (e.name, sizes[e.name]) for entries in splits.values() for e in entries if e.name in sizes
    ]
    content = FolderContent(
        folder=root,
        images=splits,
        notes=(
            [f"{count(unlisted, 'more identity is', 'more identities are')} in no list: ignored"]
            if unlisted
            else []
        ),
        unread=passed_over(others),
        draws=draws,
        arrays=arrays,
        source=fingerprint(
            [sorted((k, sorted(v)) for k, v in lists.items()), draws, source], files
        ),
    )
    return content, faults


def _draws(
    path: epath.Path, test: list[ImageEntry], faults: list[str]
) -> dict[str, list[list[int]]]:
    """Read the permutations of the test images' visible folders, checked against the images."""
    try:
        permutations = read_permutations(path)
    except UserError as error:
        faults.append(str(error))
        return {}
    folders = collections.Counter(
        f"cam{entry.camera}/{entry.identity:04d}" for entry in test if not entry.infrared
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


def _is_infrared(name: str, camera: int) -> bool | None:
    return camera in INFRARED_CAMERAS if camera in CAMERAS else None


SYSU_MM01 = Dataset(
    name="sysu_mm01",
    title="SYSU-MM01",
    description="People seen by four visible and two infrared cameras.",
    homepage="https://github.com/wuancong/SYSU-MM01",
    citation=(
        "Wu, Zheng, Yu, Gong, Lai: RGB-Infrared Cross-Modality Person Re-Identification, ICCV 2017"
    ),
    folder=FOLDER,
    inspect=inspect,
    inspect_arrays=functools.partial(inspect, train_arrays=True),
    counts={
        "train": Counts(296, 20_284, 9_929),
        "val": Counts(99, 1_974, 1_980),
        "train+val": Counts(395, 22_258, 11_909),
        "test": Counts(96, 6_775, 3_803),
    },
    has_val=True,
    directions=("infrared_to_visible",),
    modes={"all": (1, 2, 4, 5), "indoor": (1, 2)},
    mode_while_training="all",
    drawn={"single": 1, "multi": 10},
    permutations=True,
    # Cameras 2 and 3 look at the same place.
    camera_rule=CameraRule(skips_cameras=((3, 2),), counts="identities"),
    is_infrared=_is_infrared,
    modality_shown_by="the camera, 1 to 6: 3 and 6 are infrared",
)
