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

import collections
import csv
import dataclasses
import functools
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ddag_jax.datasets.checks import (
    FolderContent,
    ImageEntry,
    check_folder,
    count,
    examples,
    fingerprint,
    image_files,
    is_image,
    quoted,
    read_list,
)
from ddag_jax.datasets.dataset import CameraRule, Dataset
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
_MODALITIES = ("visible", "infrared")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST = 2**30
"""Longest accepted list, bytes."""


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


class _Image(NamedTuple):
    """An image as a line of a list, or a folder, describes it. Empty text: not said."""

    where: str
    path: str
    identity: str
    modality: str
    camera: str
    split: str


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
    root, faults, notes = epath.Path(source), list[str](), list[str]()
    if root.is_dir():
        images, where = list(_of_folders(root)), root
        if not images:
            raise UserError(f"{root}: holds no images in visible/IDENTITY or infrared/IDENTITY")
    else:
        images, where, root = _of_list(root, faults, notes), root, root.parent
    images = _plausible(images, where, faults)
    sizes = _sizes(root, images, where, faults)
    images = [image for image in images if image.path in sizes]
    identities = _numbered("identity", "identities", (i.identity for i in images), faults, notes)
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
        source=fingerprint(
            (subsets, [entry[:2] for entry in stored]), [(e.name, sizes[e.name]) for e in stored]
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


def _of_folders(root: epath.Path) -> Iterator[_Image]:
    check_folder(root, _MODALITIES, FOLDER_OR_LIST)
    for modality in _MODALITIES:
        for person in sorted((root / modality).iterdir()):
            if person.name.startswith(".") or not person.is_dir():
                continue
            for file in image_files(person):
                name = f"{modality}/{person.name}/{file.name}"
                yield _Image(name, name, person.name, modality, "", "")


def _of_list(path: epath.Path, faults: list[str], notes: list[str]) -> list[_Image]:
    """Return the lines of a list; those that are not as wide as its header are faults."""
    if not is_file(path):
        raise UserError(f"{path}: no such file or folder; give {FOLDER_OR_LIST}")
    rows = iter(_parquet(path) if path.suffix.lower() == ".parquet" else _text_rows(path))
    _, names = next(rows, (0, []))
    header = [name.strip().lower() for name in names]
    if missing := [name for name in _REQUIRED if name not in header]:
        raise UserError(
            f"{path}: has no column {', '.join(missing)} in its first line"
            f" ({quoted(','.join(names))}); begin it with {','.join((*_REQUIRED, *_OPTIONAL))}, of"
            " which the last two may be missing"
        )
    if twice := [name for name, times in collections.Counter(header).items() if times > 1]:
        raise UserError(f"{path}: has two columns {', '.join(twice)}; keep one of them")
    if ignored := [name for name in header if name not in (*_REQUIRED, *_OPTIONAL)]:
        notes.append(f"{count(ignored, 'column', 'columns')} ignored: {', '.join(ignored)}")
    images, uneven = [], []
    for number, row in rows:
        if not any(row):
            continue
        if len(row) != len(header):
            uneven.append(f"line {number}: {len(row)} of {len(header)}")
            continue
        cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
        known = {name: cells.get(name, "") for name in (*_REQUIRED, *_OPTIONAL)}
        lower = {name: known[name].lower() for name in ("modality", "split")}
        images.append(_Image(where=f"line {number}", **(known | lower)))
    if uneven:
        faults.append(
            f"{path}: {count(uneven, 'line has', 'lines have')} another number of columns than the"
            f" first line ({', '.join(uneven[:3])}); put text that contains the separator into"
            " quotes"
        )
    if not images and not faults:
        raise UserError(f"{path}: lists no image; write a line for each")
    return images


def _text_rows(path: epath.Path) -> Iterator[tuple[int, list[str]]]:
    delimiter = _DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        raise UserError(f"{path}: is not a .csv, .tsv or .parquet file; give {FOLDER_OR_LIST}")
    reader = csv.reader(
        io.StringIO(read_list(path, _LONGEST), newline=""), delimiter=delimiter, strict=True
    )
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} cannot be read ({error})") from None


def _parquet(path: epath.Path) -> Iterator[tuple[int, list[str]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow: pip install pyarrow, or save the list as .csv"
        ) from None
    try:
        table = parquet.read_table(os.fspath(path))
    except (ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})"
        ) from None
    yield 1, list(table.column_names)
    columns: list[Any] = [column.to_pylist() for column in table.columns]
    for number, row in enumerate(zip(*columns, strict=True), start=2):
        yield number, ["" if cell is None else str(cell) for cell in row]


# ------------------------------------------------------------------------------------------ checks


def _plausible(images: Sequence[_Image], where: epath.Path, faults: list[str]) -> list[_Image]:
    """Return the images whose fields make sense, each once; the others are faults."""
    wrong: dict[tuple[str, str, str], list[str]] = {}
    seen: set[str] = set()
    kept = []
    for image in images:
        kind, text = None, ""
        if not image.path or not image.identity:
            kind = "has no path or no identity", "have no path or no identity", "fill in both"
        elif image.modality not in _MODALITIES:
            kind, text = _of_a_list("modality", "visible or infrared"), image.modality
        elif image.split not in ("", *_SPLITS):
            kind, text = _of_a_list("split", "train, val or test"), image.split
        elif not is_image(image.path.rpartition("/")[2]):
            what = "no .jpg, .jpeg, .png or .bmp file"
            kind, text = (f"names {what}", f"name {what}", "convert the image"), image.path
        elif image.path in seen:
            kind, text = ("repeats an image", "repeat an image", "list each once"), image.path
        if kind is None:
            seen.add(image.path)
            kept.append(image)
        else:
            wrong.setdefault(kind, []).append(image.where + (f": {quoted(text)}" if text else ""))
    for (one, several, repair), lines in wrong.items():
        faults.append(
            f"{where}: {count(lines, f'line {one}', f'lines {several}')} ({'; '.join(lines[:3])}"
            f"{', ...' if len(lines) > 3 else ''}); {repair}"
        )
    return kept


def _of_a_list(field: str, known: str) -> tuple[str, str, str]:
    what = f"another {field} than {known}"
    return f"has {what}", f"have {what}", f"write {known}"


def _sizes(
    root: epath.Path, images: Iterable[_Image], where: epath.Path, faults: list[str]
) -> dict[str, int]:
    """Return the sizes in bytes of the images that exist; the others are a fault that names all."""
    sizes, missing = {}, []
    for image in images:
        try:
            sizes[image.path] = os.stat(root / image.path).st_size
        except (OSError, ValueError):  # a ValueError of a name with a null character
            missing.append(f"{image.where}: {quoted(image.path)}")
    if missing:
        how = "a path is absolute, or relative to the list"
        if any("\\" in line for line in missing):
            how += ", with / between folders"
        faults.append(
            f"{where}: {count(missing, 'listed image is', 'listed images are')} not there; {how}:"
            + "".join(f"\n    {line}" for line in missing)
        )
    return sizes


def _numbered(
    one: str,
    several: str,
    texts: Iterable[str],
    faults: list[str],
    notes: list[str],
    least: int = 0,
) -> dict[str, int]:
    """Return a number for each text: its own if all are whole numbers of at least `least`, else its
    place among them, from 1."""
    distinct = sorted(set(texts))
    if not all(re.fullmatch(r"[0-9]{1,9}", text) and int(text) >= least for text in distinct):
        if distinct:
            notes.append(
                f"{several} are numbered in the order of their names:"
                f" {', '.join(f'{i} {text}' for i, text in enumerate(distinct[:3], start=1))}"
                + (", ..." if len(distinct) > 3 else "")
            )
        return {text: i for i, text in enumerate(distinct, start=1)}
    spelled: dict[int, list[str]] = {}
    for text in distinct:
        spelled.setdefault(int(text), []).append(text)
    if twice := [" and ".join(texts) for texts in spelled.values() if len(texts) > 1]:
        faults.append(
            f"{count(twice, f'{one} is', f'{several} are')} written in two ways"
            f" ({examples(twice)}); write each in one way"
        )
    return {text: int(text) for text in distinct}


def _cameras(
    images: Sequence[_Image], where: epath.Path, faults: list[str], notes: list[str]
) -> Mapping[str, int]:
    """Return the number of each camera, or, where there are none, of each modality."""
    without = [image.where for image in images if not image.camera]
    if len(without) == len(images):
        notes.append("no cameras given: 1 stands for visible, 2 for infrared")
        return {modality: i for i, modality in enumerate(_MODALITIES, start=1)}
    if without:
        faults.append(
            f"{where}: {count(without, 'line has', 'lines have')} no camera, and others have one"
            f" ({', '.join(without[:3])}); give each image's, or none"
        )
    given = (image.camera for image in images if image.camera)
    numbers = _numbered("camera", "cameras", given, faults, notes, least=1)
    return dict.fromkeys(_MODALITIES, 0) | numbers


def _given_splits(
    images: Sequence[_Image], where: epath.Path, drawn: Drawn, faults: list[str]
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


def _modalities(images: Iterable[_Image]) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for image in images:
        kinds.setdefault(image.identity, set()).add(image.modality)
    return kinds


def _with_both_modalities(
    members: dict[str, list[_Image]], where: epath.Path, faults: list[str], notes: list[str]
) -> dict[str, list[_Image]]:
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
