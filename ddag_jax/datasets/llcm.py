"""The folder that LLCM is distributed as: who is in which list, and what is wrong with it.

vis/{identity:04d}/{image}.jpg, nir/...             nir/0001/0001_c01_s185535_f7010_nir.jpg
idx/train_vis.txt, idx/train_nir.txt                a line an image: nir/0001/IMAGE.jpg 0
test_vis/cam1 ... cam9/{identity:04d}/{image}.jpg
test_nir/cam1, cam2, cam4 ... cam9/{identity:04d}/{image}.jpg
idx/test_id.txt                                     one line, identities separated by commas

The training lists' labels count identities from 0; identities are the folders' numbers. `vis` and
`nir` hold the test images too, without a place in any list that is read here.
"""

import re

from etils import epath

from ddag_jax.datasets.builder import ImageFolderBuilder
from ddag_jax.datasets.checks import (
    Counts,
    Layout,
    Line,
    Record,
    check_folder,
    check_labels,
    count,
    examples,
    fingerprint,
    lacking_modality,
    list_people,
    read_identities,
    read_image_lists,
    shared_identities,
)

FOLDER = "the folder that holds vis, nir, test_vis, test_nir and idx"

PUBLISHED = {"train": Counts(713, 16_946, 13_975), "test": Counts(351, 8_680, 7_166)}

CAMERAS = {"test_vis": (1, 2, 3, 4, 5, 6, 7, 8, 9), "test_nir": (1, 2, 4, 5, 6, 7, 8, 9)}

_LISTS = {"idx/train_vis.txt": "vis", "idx/train_nir.txt": "nir"}


def inspect(folder: epath.PathLike) -> tuple[Layout, list[str]]:
    """Lists a folder and looks for faults that do not keep it from being listed.

    The camera of a training image is read off its name, 0 where that does not say it: the protocol
    does not need it.

    Args:
      folder: LLCM's.

    Returns:
      What the folder holds, splits `train` and `test`, and its faults, a sentence each.

    Raises:
      UserError: there is nothing to list: no folder, or another layout.
    """
    root = epath.Path(folder)
    check_folder(root, ("vis", "nir", *CAMERAS, "idx"), FOLDER)
    faults: list[str] = []
    sizes: dict[str, int] = {}
    people: set[int] = set()
    for top in _LISTS.values():
        for identity, images in list_people(root, top, faults).items():
            people.add(identity)
            sizes |= images
    lists = read_image_lists(root, _LISTS, sizes, faults)
    lines = [line for of_list in lists.values() for line in of_list]
    check_labels(root, {"train": lines}, faults)
    train = [_training_record(line) for line in lines]
    trained = {record.identity for record in train}
    if all(lists.values()):  # an empty list is a fault already
        lacking_modality(f"{root}: {' and '.join(_LISTS)}", trained, train, faults)

    tested = read_identities(root / "idx" / "test_id.txt", faults)
    shared_identities(root / "idx", {"the training lists": trained, "test_id.txt": tested}, faults)
    test: list[Record] = []
    missing: list[str] = []
    for kind, cameras in CAMERAS.items():
        for camera in cameras:
            top = f"{kind}/cam{camera}"
            if not (root / top).is_dir():
                missing.append(top)
            for identity, images in list_people(root, top, faults).items():
                people.add(identity)
                if identity in tested:
                    sizes |= images
                    test += [Record(identity, camera, n, kind == "test_nir") for n in images]
    if missing:
        faults.append(
            f"{root}: {count(missing, 'folder is', 'folders are')} not there"
            f" ({examples(missing)}); copy them from the original"
        )
    lacking_modality(f"{root}: idx/test_id.txt", tested, test, faults)

    splits = {
        "train": sorted(record for record in train if record.name in sizes),
        "test": sorted(test),
    }
    records = [record for split in splits.values() for record in split]
    notes = []
    if unlisted := people - trained - tested:
        notes.append(
            f"{count(unlisted, 'more identity is', 'more identities are')} in no list: ignored"
        )
    if unknown := [record for record in splits["train"] if not record.camera]:
        notes.append(
            f"{count(unknown, 'training image says', 'training images say')} no camera in the name:"
            " taken for camera 0"
        )
    layout = Layout(
        folder=root,
        images=splits,
        published=PUBLISHED,
        notes=notes,
        source=fingerprint(sorted(tested), [(r.name, sizes[r.name]) for r in records]),
    )
    return layout, faults


def _training_record(line: Line) -> Record:
    camera = re.search(r"_c([0-9]{1,2})_", line.name.rpartition("/")[2])
    infrared = line.name.startswith("nir/")
    return Record(line.identity, int(camera[1]) if camera else 0, line.name, infrared)


class Llcm(ImageFolderBuilder):
    """LLCM: splits `train` and `test`; camera numbers are shared by the two modalities."""

    DESCRIPTION = "People seen at low light by nine cameras, in visible and near-infrared light."
    HOMEPAGE = "https://github.com/ZYK100/LLCM"
    CITATION = (
        "Zhang, Wang: Diverse Embedding Expansion Network and Low-Light Cross-Modality Benchmark"
        " for Visible-Infrared Person Re-Identification, CVPR 2023"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"The dataset is handed out by its authors on request. `manual_dir` is {FOLDER}."
    )
    inspect = staticmethod(inspect)
