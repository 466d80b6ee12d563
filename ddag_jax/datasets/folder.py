"""Your own pictures: a list of images, or folders of them, under LLCM's protocol.

A list is a table with a header and a line an image, LIST.csv (commas), .tsv (tabs) or .parquet:

    path,identity,modality,camera,split
    day/anna_03.jpg,anna,visible,gate,train
    night/anna_01.jpg,anna,infrared,yard,train

A path is relative to the list, or absolute; identities and cameras are any text. The columns
camera and split may be missing. Without a list, a folder says as much:

    visible/{identity}/{image}.jpg, infrared/{identity}/{image}.jpg

Every image of one modality is a query, in both directions. The gallery is one image of each
identity and camera of the other modality, drawn anew for each draw, or with evaluation.shots=all
every image of it. A query skips gallery images of its own identity by its own camera, unless
evaluation.camera_rule=none.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from ddag_jax.datasets.checks import (
    FolderContent,
    ImageEntry,
    check_folder,
    check_utf8,
    children,
    count,
    examples,
    fingerprint,
    is_image,
    passed_over,
)
from ddag_jax.datasets.dataset import CameraRule, Dataset
from ddag_jax.datasets.image_table import (
    MODALITIES,
    Row,
    file_stats,
    numbered,
    plausible_rows,
    read_table,
)
from ddag_jax.errors import UserError
from ddag_jax.io.files import is_file

FOLDER_OR_LIST = (
    "a list of images (.csv, .tsv, .parquet), or a folder that holds visible and infrared"
)

_STORED = "images"
"""The stored split; part of the stored format."""

_SPLITS = ("train", "val", "test")
_REQUIRED = ("path", "identity", "modality")
_OPTIONAL = ("camera", "split")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """How identities are divided where the list has no column `split`."""

    seed: int | None = None
    """None: 0."""
    test_share: float | None = None
    """Share of the identities to test on; None: half of them."""

    @property
    def given(self) -> list[str]:
        """Return the fields that are given, as the options of `prepare`."""
        names = {"--split-seed": self.seed, "--test-share": self.test_share}
        return [name for name, value in names.items() if value is not None]

    def divide(self, identities: Sequence[str]) -> tuple[dict[str, str], str]:
        """Return each identity's split, `train` or `test`, and a sentence that says how."""
        seed = self.seed or 0
        share = 0.5 if self.test_share is None else self.test_share
        tested = round(share * len(identities))
        order = np.random.default_rng(seed).permutation(len(identities))
        splits = {
            identities[i]: "test" if place < tested else "train"
            for place, i in enumerate(order.tolist())
        }
        return splits, (
            f"identities divided by seed {seed}: {len(identities) - tested} to train on,"
            f" {tested} to test"
        )


def inspect(source: epath.PathLike, drawn: Drawn = Drawn()) -> tuple[FolderContent, list[str]]:
    """List images and their faults.

    Identities and cameras that are all whole numbers keep them; others are numbered from 1, in the
    order of their names. Without cameras, visible images have camera 1 and infrared ones 2. An
    identity of the training split without images in both modalities is not trained on.

    Args:
      source: a list, or a folder that holds visible and infrared.
      drawn: how identities are divided if no split is given.

    Returns:
      What there is, with the splits `train`, `val` (perhaps empty) and `test` as subsets of one
      stored split, and faults, a sentence each.

    Raises:
      UserError: nothing can be listed: no such file, not a table, or without the columns.
    """
    root, faults, notes, unread = epath.Path(source), list[str](), list[str](), list[str]()
    if root.is_dir():
        images, where = list(_of_folders(root, unread)), root
        if not images:
            holds = f"{root}: holds no images in visible/IDENTITY or infrared/IDENTITY"
            raise UserError("\n  ".join([holds, *unread]))
    else:
        if not is_file(root):
            raise UserError(f"{root}: no such file or folder; give {FOLDER_OR_LIST}")
        images, where = read_table(root, _REQUIRED, _OPTIONAL, faults, notes), root
        root = root.parent
    images = plausible_rows(images, _REQUIRED, where, faults)
    check_utf8(where, (image.path for image in images), faults)
    stats = file_stats(root, images, where, faults)
    images = [image for image in images if image.path in stats]
    identities = numbered("identity", "identities", (i.identity for i in images), faults, notes)
    cameras = _cameras(images, where, faults, notes)
    if any(image.split for image in images):
        splits = _given_splits(images, where, drawn, faults)
    else:
        kinds = _modalities(images)
        both = sorted(
            (name for name, found in kinds.items() if len(found) == 2), key=identities.__getitem__
        )
        splits, said = drawn.divide(both)
        notes.append(said)
    members = {split: [i for i in images if splits.get(i.identity) == split] for split in _SPLITS}
    members = _with_both_modalities(members, where, faults, notes)

    entries = {
        image.path: ImageEntry(
            identities[image.identity],
            cameras[image.camera or image.modality],
            image.path,
            image.modality == "infrared",
        )
        for of_split in members.values()
        for image in of_split
    }
    stored = sorted(entries.values())
    positions = {entry.name: position for position, entry in enumerate(stored)}
    subsets = {
        split: sorted(positions[image.path] for image in of_split)
        for split, of_split in members.items()
    }
    content = FolderContent(
        folder=root,
        images={_STORED: stored},
        subsets=subsets,
        notes=notes,
        unread=unread,
        source=fingerprint(
            (subsets, [entry[:2] for entry in stored]),
            [(e.name, stats[e.name].st_size) for e in stored],
        ),
    )
    return content, faults


def folder_dataset(drawn: Drawn) -> Dataset:
    """Return the dataset of your own pictures with identities divided in this way.

    Raises:
      UserError: the share or the seed is not one.
    """
    if drawn.seed is not None and drawn.seed < 0:
        raise UserError(f"--split-seed {drawn.seed}: must be 0 or more")
    if drawn.test_share is not None and not 0 < drawn.test_share < 1:
        raise UserError(f"--test-share {drawn.test_share}: must be a share, above 0 and below 1")
    return dataclasses.replace(FOLDER, inspect=functools.partial(inspect, drawn=drawn))


# ------------------------------------------------------------------------- where images come from


def _of_folders(root: epath.Path, unread: list[str]) -> Iterator[Row]:
    check_folder(root, MODALITIES, FOLDER_OR_LIST)
    others, misplaced = list[str](), list[str]()
    for modality in MODALITIES:
        for person in sorted(children(root / modality)):
            name = f"{modality}/{person.name}"
            if person.name.startswith(".") and person.is_dir():
                others.append(f"{name}/")
            elif not person.is_dir():
                (misplaced if is_image(person.name) else others).append(name)
            else:
                for file in sorted(children(person)):
                    path = f"{name}/{file.name}"
                    if is_image(file.name):
                        yield Row(path, path, person.name, modality)
                    elif file.is_dir():
                        (others if file.name.startswith(".") else misplaced).append(f"{path}/")
                    else:
                        others.append(path)
    if misplaced:
        what = count(misplaced, "image or folder is", "images or folders are")
        unread.append(
            f"{what} not directly in an identity's folder, and not read: {examples(misplaced)}"
        )
    unread += passed_over(others)


# ------------------------------------------------------------------------------------------ checks


def _cameras(
    images: Sequence[Row], where: epath.Path, faults: list[str], notes: list[str]
) -> Mapping[str, int]:
    """Return the number of each camera, or, where there are none, of each modality."""
    without = [image.where for image in images if not image.camera]
    if len(without) == len(images):
        notes.append("no cameras given: 1 stands for visible, 2 for infrared")
        return {modality: i for i, modality in enumerate(MODALITIES, start=1)}
    if without:
        faults.append(
            f"{where}: {count(without, 'line has', 'lines have')} no camera, and others have one"
            f" ({', '.join(without[:3])}); give each image's, or none"
        )
    given = (image.camera for image in images if image.camera)
    numbers = numbered("camera", "cameras", given, faults, notes, least=1)
    return dict.fromkeys(MODALITIES, 0) | numbers


def _given_splits(
    images: Sequence[Row], where: epath.Path, drawn: Drawn, faults: list[str]
) -> dict[str, str]:
    """Return the split of each identity; one in two splits is a fault."""
    if drawn.given:
        faults.append(f"{' and '.join(drawn.given)}: {where} has splits; leave it out")
    if without := [image.where for image in images if not image.split]:
        faults.append(
            f"{where}: {count(without, 'line has', 'lines have')} no split, and others have one"
            f" ({', '.join(without[:3])}); write train, val or test"
        )
    found: dict[str, set[str]] = {}
    for image in images:
        found.setdefault(image.identity, set()).update({image.split} - {""})
    if torn := [identity for identity, splits in found.items() if len(splits) > 1]:
        faults.append(
            f"{where}: {count(torn, 'identity is', 'identities are')} in more than one split"
            f" ({examples(torn)}); keep each in one"
        )
    return {identity: min(splits) for identity, splits in found.items() if splits}


def _modalities(images: Iterable[Row]) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for image in images:
        kinds.setdefault(image.identity, set()).add(image.modality)
    return kinds


def _with_both_modalities(
    members: dict[str, list[Row]], where: epath.Path, faults: list[str], notes: list[str]
) -> dict[str, list[Row]]:
    """Return the splits, without training identities of one modality; note what is left out."""
    result = dict(members)
    for split, images in members.items():
        kinds = _modalities(images)
        single = {identity for identity, found in kinds.items() if len(found) < 2}
        if split == "train" and single:
            result[split] = [image for image in images if image.identity not in single]
            notes.append(
                f"{count(single, 'training identity has', 'training identities have')} images of"
                f" one modality only ({examples(single)}): not trained on"
            )
        least = {"train": 2, "test": 1}.get(split, 1 if images else 0)
        if len(kinds) - len(single) < least and not faults:
            faults.append(
                f"{where}: the split {split} has {len(kinds) - len(single)} identities with visible"
                f" and infrared images; it needs at least {least}"
            )
    return result


FOLDER = Dataset(
    name="folder",
    title="own images",
    description="Images of your own, of people in visible and infrared light.",
    folder=FOLDER_OR_LIST,
    inspect=inspect,
    has_val=True,
    drawn={"single": 1, "all": None},
    camera_rule=CameraRule(skips_own_camera=True, counts="identities"),
    camera_rule_is_optional=True,
)
