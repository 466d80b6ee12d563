"""LLCM: its folder and its protocol.

vis/{identity:04d}/{image}.jpg, nir/...             nir/0001/0001_c01_s185535_f7010_nir.jpg
idx/train_vis.txt, idx/train_nir.txt                a line an image: nir/0001/IMAGE.jpg 0
test_vis/cam1 ... cam9/{identity:04d}/{image}.jpg
test_nir/cam1, cam2, cam4 ... cam9/{identity:04d}/{image}.jpg
idx/test_id.txt                                     one line, identities separated by commas

The training lists' labels count identities from 0; identities are the folders' numbers. `vis` and
`nir` hold the test images too; these copies are not in the lists and are ignored.

Every image of one modality is a query; the gallery is one image of each identity and camera of the
other modality, drawn anew for each draw; in both directions.
"""

import re
from pathlib import PurePosixPath

from etils import epath

from ddag_jax.datasets.checks import (
    Counts,
    FolderContent,
    ImageEntry,
    ListedImage,
    check_folder,
    check_labels,
    count,
    examples,
    fingerprint,
    lacking_modality,
    list_people,
    passed_over,
    read_identities,
    read_image_lists,
    shared_identities,
)
from ddag_jax.datasets.dataset import CameraRule, Dataset

FOLDER = "the folder that holds vis, nir, test_vis, test_nir and idx"

CAMERAS = {"test_vis": (1, 2, 3, 4, 5, 6, 7, 8, 9), "test_nir": (1, 2, 4, 5, 6, 7, 8, 9)}

_LISTS = {"idx/train_vis.txt": "vis", "idx/train_nir.txt": "nir"}


def inspect(folder: epath.PathLike) -> tuple[FolderContent, list[str]]:
    """List a folder and its faults.

    A training image's camera is read from its name, and is 0 if the name does not show it: the
    protocol does not need it.

    Args:
      folder: LLCM's.

    Returns:
      What the folder holds, splits `train` and `test`, and its faults, a sentence each.

    Raises:
      UserError: nothing can be listed: no such folder, or another layout.
    """
    root = epath.Path(folder)
    check_folder(root, ("vis", "nir", *CAMERAS, "idx"), FOLDER)
    faults: list[str] = []
    sizes: dict[str, int] = {}
    others: list[str] = []
    people: set[int] = set()
    for top in _LISTS.values():
        for identity, images in list_people(root, top, faults, others).items():
            people.add(identity)
            sizes |= images
    lists = read_image_lists(root, _LISTS, sizes, faults)
    lines = [line for of_list in lists.values() for line in of_list]
    check_labels(root, {"train": lines}, faults)
    train = [_training_entry(line) for line in lines]
    trained = {entry.identity for entry in train}
    if all(lists.values()):  # an empty list is a fault already
        lacking_modality(f"{root}: {' and '.join(_LISTS)}", trained, train, faults)

    tested = read_identities(root / "idx" / "test_id.txt", faults)
    shared_identities(root / "idx", {"the training lists": trained, "test_id.txt": tested}, faults)
    test: list[ImageEntry] = []
    missing: list[str] = []
    for kind, cameras in CAMERAS.items():
        for camera in cameras:
            top = f"{kind}/cam{camera}"
            if not (root / top).is_dir():
                missing.append(top)
            for identity, images in list_people(root, top, faults, others).items():
                people.add(identity)
                if identity in tested:
                    sizes |= images
                    test += [ImageEntry(identity, camera, n, kind == "test_nir") for n in images]
    if missing:
        faults.append(
            f"{root}: {count(missing, 'folder is', 'folders are')} not there"
            f" ({examples(missing)}); copy them from the original"
        )
    lacking_modality(f"{root}: idx/test_id.txt", tested, test, faults)

    splits = {
        "train": sorted(entry for entry in train if entry.name in sizes),
        "test": sorted(test),
    }
    entries = [entry for split in splits.values() for entry in split]
    notes = []
    if unlisted := people - trained - tested:
        notes.append(
            f"{count(unlisted, 'more identity is', 'more identities are')} in no list: ignored"
        )
    if unknown := [entry for entry in splits["train"] if not entry.camera]:
        notes.append(
            f"{count(unknown, 'training image has', 'training images have')} no camera in the name:"
            " taken for camera 0"
        )
    content = FolderContent(
        folder=root,
        images=splits,
        notes=notes,
        unread=passed_over(others),
        source=fingerprint(sorted(tested), [(e.name, sizes[e.name]) for e in entries]),
    )
    return content, faults


def _training_entry(line: ListedImage) -> ImageEntry:
    camera = re.search(r"_c([0-9]{1,2})_", line.name.rpartition("/")[2])
    infrared = line.name.startswith("nir/")
    return ImageEntry(line.identity, int(camera[1]) if camera else 0, line.name, infrared)


def _is_infrared(name: str, camera: int) -> bool | None:
    path = PurePosixPath(name.replace("\\", "/"))
    found = {
        (match[1] or match[2]).lower() == "nir"
        for part in (*path.parts[:-1], path.stem)
        if (match := re.fullmatch(r"(?i)(?:test_)?(vis|nir)|.*_(vis|nir)", part))
    }
    return found.pop() if len(found) == 1 else None


LLCM = Dataset(
    name="llcm",
    title="LLCM",
    description="People seen at low light by nine cameras, in visible and near-infrared light.",
    homepage="https://github.com/ZYK100/LLCM",
    citation=(
        "Zhang, Wang: Diverse Embedding Expansion Network and Low-Light Cross-Modality Benchmark"
        " for Visible-Infrared Person Re-Identification, CVPR 2023"
    ),
    folder=FOLDER,
    inspect=inspect,
    counts={"train": Counts(713, 16_946, 13_975), "test": Counts(351, 8_680, 7_166)},
    drawn={"single": 1},
    camera_rule=CameraRule(skips_own_camera=True, counts="identities"),
    is_infrared=_is_infrared,
    modality_shown_by="the folder (vis, nir, test_vis or test_nir) or the end of the file's name",
)
