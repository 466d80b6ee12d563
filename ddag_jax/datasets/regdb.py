"""The folder that RegDB is distributed as: the ten trials' lists, and what is wrong with them.

Visible/{identity}/{image}.bmp, Thermal/{identity}/{image}.bmp
idx/{train,test}_{visible,thermal}_{1 ... 10}.txt    a line an image: Visible/285/IMAGE.bmp 0

The label at the end of a line counts the identities of its own list's split from 0, in `train` and
again in `test`: it is no identity. The folder's number is.
"""

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
    fingerprint,
    lacking_modality,
    list_people,
    read_image_lists,
    shared_identities,
)

TRIALS = range(1, 11)
FOLDER = "the folder that holds Visible, Thermal and idx"

PUBLISHED = {"everyone": Counts(412, 4_120, 4_120)} | {
    f"{split}_{trial}": Counts(206, 2_060, 2_060) for split in ("train", "test") for trial in TRIALS
}

_TOPS = {"visible": "Visible", "thermal": "Thermal"}


def inspect(folder: epath.PathLike) -> tuple[Layout, list[str]]:
    """Lists a folder and looks for faults that do not keep it from being listed.

    Each image of any list is in the stored split `everyone`, once, with camera 1 for visible and
    2 for thermal. `train_1`, `test_1` ... `test_10` are subsets of it.

    Args:
      folder: RegDB's.

    Returns:
      What the folder holds, and its faults, a sentence each. A trial whose lists are missing is
      one: the published figures are means over ten.

    Raises:
      UserError: there is nothing to list: no folder, or another layout.
    """
    root = epath.Path(folder)
    check_folder(root, (*_TOPS.values(), "idx"), FOLDER)
    faults: list[str] = []
    sizes: dict[str, int] = {}
    for top in _TOPS.values():
        for images in list_people(root, top, faults).values():
            sizes |= images
    splits = {
        f"{split}_{trial}": [f"idx/{split}_{modality}_{trial}.txt" for modality in _TOPS]
        for trial in TRIALS
        for split in ("train", "test")
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
            records = [_record(line) for line in members[split]]
            identities = {record.identity for record in records}
            lacking_modality(f"{root}: the lists of {split}", identities, records, faults)
    for trial in TRIALS:
        halves = {
            split: {line.identity for line in members[split]}
            for split in (f"train_{trial}", f"test_{trial}")
        }
        shared_identities(root / "idx", halves, faults)

    stored = sorted(
        {_record(line) for of_split in members.values() for line in of_split if line.name in sizes}
    )
    positions = {record.name: position for position, record in enumerate(stored)}
    subsets = {
        split: sorted(positions[line.name] for line in of_split if line.name in sizes)
        for split, of_split in members.items()
    }
    unlisted = sizes.keys() - positions.keys()
    layout = Layout(
        folder=root,
        images={"everyone": stored},
        subsets=subsets,
        published=PUBLISHED,
        notes=(
            [f"{count(unlisted, 'more image is', 'more images are')} in no list: ignored"]
            if unlisted
            else []
        ),
        source=fingerprint(subsets, [(record.name, sizes[record.name]) for record in stored]),
    )
    return layout, faults


def _record(line: Line) -> Record:
    infrared = line.name.startswith("Thermal/")
    return Record(line.identity, 2 if infrared else 1, line.name, infrared)


class Regdb(ImageFolderBuilder):
    """RegDB: one stored split, `everyone`; each trial has subsets of it, `train_1` and `test_1`."""

    DESCRIPTION = "People seen by a visible camera (1) and a thermal one (2), ten images each."
    HOMEPAGE = "http://dm.dongguk.edu/link.html"
    CITATION = (
        "Nguyen, Hong, Kim, Park: Person Recognition System Based on a Combination of Body Images"
        " from Visible Light and Thermal Cameras, Sensors 2017"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"The dataset is handed out by its authors on request. `manual_dir` is {FOLDER}."
    )
    inspect = staticmethod(inspect)
