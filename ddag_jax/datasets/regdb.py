"""RegDB: its folder, with the lists of ten splits, and its protocol.

Visible/{identity}/{image}.bmp, Thermal/{identity}/{image}.bmp
idx/{train,test}_{visible,thermal}_{1 ... 10}.txt    a line an image: Visible/285/IMAGE.bmp 0

The label at the end of a line counts the identities of its list from 0, in `train` and again in
`test`: it is not the identity. The folder's number is.

Every image of one modality is a query, every image of the other is in the gallery, in both
directions. The published figures average ten splits ("trials"), a model each.
"""

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
    fingerprint,
    lacking_modality,
    list_people,
    passed_over,
    read_image_lists,
    shared_identities,
)
from ddag_jax.datasets.dataset import Dataset

SPLITS = range(1, 11)
FOLDER = "the folder that holds Visible, Thermal and idx"

_STORED = "everyone"
"""The stored split; part of the stored format."""

_TOPS = {"visible": "Visible", "thermal": "Thermal"}


def inspect(folder: epath.PathLike) -> tuple[FolderContent, list[str]]:
    """List a folder and its faults.

    Each listed image is in the stored split `everyone`, once, with camera 1 for visible and 2 for
    thermal. `train_1`, `test_1` ... `test_10` are subsets of it.

    Args:
      folder: RegDB's.

    Returns:
      What the folder holds, and its faults, a sentence each. A missing list is a fault, since the
      published figures are means over all ten splits.

    Raises:
      UserError: nothing can be listed: no such folder, or another layout.
    """
    root = epath.Path(folder)
    check_folder(root, (*_TOPS.values(), "idx"), FOLDER)
    faults: list[str] = []
    sizes: dict[str, int] = {}
    others: list[str] = []
    for top in _TOPS.values():
        for images in list_people(root, top, faults, others).values():
            sizes |= images
    splits = {
        f"{side}_{number}": [f"idx/{side}_{modality}_{number}.txt" for modality in _TOPS]
        for number in SPLITS
        for side in ("train", "test")
    }
    tops = {
        name: top
        for lists in splits.values()
        for name, top in zip(lists, _TOPS.values(), strict=True)
    }
    lines = read_image_lists(root, tops, sizes, faults)
    members = {
        split: [line for name in lists for line in lines[name]] for split, lists in splits.items()
    }
    check_labels(root, members, faults)
    for split, lists in splits.items():
        if all(lines[name] for name in lists):  # an empty list is a fault already
            entries = [_entry(line) for line in members[split]]
            identities = {entry.identity for entry in entries}
            lacking_modality(f"{root}: the lists of {split}", identities, entries, faults)
    for number in SPLITS:
        sides = {
            split: {line.identity for line in members[split]}
            for split in (f"train_{number}", f"test_{number}")
        }
        shared_identities(root / "idx", sides, faults)

    stored = sorted(
        {_entry(line) for of_split in members.values() for line in of_split if line.name in sizes}
    )
    positions = {entry.name: position for position, entry in enumerate(stored)}
    subsets = {
        split: sorted(positions[line.name] for line in of_split if line.name in sizes)
        for split, of_split in members.items()
    }
    unlisted = sizes.keys() - positions.keys()
    content = FolderContent(
        folder=root,
        images={_STORED: stored},
        subsets=subsets,
        notes=(
            [f"{count(unlisted, 'more image is', 'more images are')} in no list: ignored"]
            if unlisted
            else []
        ),
        unread=passed_over(others),
        source=fingerprint(subsets, [(entry.name, sizes[entry.name]) for entry in stored]),
    )
    return content, faults


def _entry(line: ListedImage) -> ImageEntry:
    infrared = line.name.startswith("Thermal/")
    return ImageEntry(line.identity, 2 if infrared else 1, line.name, infrared)


def _is_infrared(name: str, camera: int) -> bool | None:
    path = PurePosixPath(name.replace("\\", "/"))
    found = {part.lower() for part in (*path.parts[:-1], path.stem)} & {"visible", "thermal"}
    return found == {"thermal"} if len(found) == 1 else None


REGDB = Dataset(
    name="regdb",
    title="RegDB",
    description="People seen by a visible camera (1) and a thermal one (2), ten images each.",
    homepage="http://dm.dongguk.edu/link.html",
    citation=(
        "Nguyen, Hong, Kim, Park: Person Recognition System Based on a Combination of Body Images"
        " from Visible Light and Thermal Cameras, Sensors 2017"
    ),
    folder=FOLDER,
    inspect=inspect,
    counts={
        _STORED: Counts(412, 4_120, 4_120),
        **{f"{side}_{n}": Counts(206, 2_060, 2_060) for side in ("train", "test") for n in SPLITS},
    },
    splits=len(SPLITS),
    is_infrared=_is_infrared,
    modality_shown_by="the folder, Visible or Thermal",
)
