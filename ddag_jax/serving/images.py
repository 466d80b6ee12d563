"""Find the images to embed or to search: files, folders and lists, each with its modality."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from etils import epath

from ddag_jax.datasets.checks import count, is_image, raise_faults
from ddag_jax.datasets.image_table import (
    MODALITIES,
    TABLE_SUFFIXES,
    Row,
    file_stats,
    plausible_rows,
    read_table,
)
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import check_on_disk
from ddag_jax.io.files import is_file
from ddag_jax.methods.base import Modality

_REQUIRED = ("path",)
_OPTIONAL = ("modality", "identity", "camera", "tracklet")


class FoundImage(NamedTuple):
    """An image file and what is known of it. Empty text: not known."""

    file: str
    """Absolute path."""
    name: str
    """The path as its source has it: relative to the folder or the list."""
    modality: Modality
    identity: str
    camera: str
    tracklet: str
    stamp: tuple[int, int]
    """Size in bytes, and time of the last change in nanoseconds."""


def find_images(
    sources: Sequence[epath.PathLike], modality: Modality | None = None
) -> tuple[list[FoundImage], list[str]]:
    """Find the images of files, folders and lists, each file once.

    A list has a line an image, with the column `path` and perhaps `modality`, `identity`, `camera`
    and `tracklet` (datasets/image_table.py). A folder has all images below it, in the order of
    their paths. The modality is that of a list's column, or else that of the deepest folder in the
    path, as it is written, that is named visible or infrared, or else `modality`. Without a list,
    the identity of visible/IDENTITY/IMAGE and infrared/IDENTITY/IMAGE is the folder's name.

    Args:
        sources: paths of files, folders and lists.
        modality: of all images.

    Returns:
        The images in the order of the sources, and remarks on them.

    Raises:
        UserError: a source has no images, a listed file is missing (all are named), or an image's
            modality is not known, or known to be another one than `modality`.
    """
    faults, notes = list[str](), list[str]()
    found: list[FoundImage] = []
    unknown: list[str] = []
    other: list[str] = []
    for name in sources:
        check_on_disk(name, "images to embed")
        source = epath.Path(name)
        listed = source.suffix.lower() in TABLE_SUFFIXES
        for root, row, stat in _rows(source, faults, notes):
            file = os.path.abspath(root / row.path)
            folder_modality, identity = _said_by_folders(row.path if listed else row.where)
            known = row.modality or folder_modality or modality
            if known is None:
                unknown.append(file)
                continue
            if modality is not None and known != modality:
                other.append(file)
            found.append(
                FoundImage(
                    file,
                    row.path,
                    cast(Modality, known),
                    row.identity if listed else identity,
                    row.camera,
                    row.tracklet,
                    (stat.st_size, stat.st_mtime_ns),
                )
            )
    if unknown:
        faults.append(
            f"{count(unknown, 'image has', 'images have')} no modality (first: {unknown[0]}); give"
            " --modality visible or infrared, a list with the column modality, or folders of these"
            " names"
        )
    if other:
        faults.append(
            f"--modality {modality}: {count(other, 'image is', 'images are')} of the other one by"
            f" their list or folder (first: {other[0]}); leave the option out, or name the images"
            " that it fits"
        )
    raise_faults(faults)
    distinct = list({image.file: image for image in reversed(found)}.values())[::-1]
    if len(distinct) < len(found):
        notes.append(f"{len(found) - len(distinct)} images are named twice and taken once")
    return distinct, notes


def _rows(
    source: epath.Path, faults: list[str], notes: list[str]
) -> Iterator[tuple[epath.Path, Row, os.stat_result]]:
    """Yield each image of a source, after the folder that its path is relative to, and its status.

    `where` is the path as it is written, except for a list.
    """
    if source.is_dir():
        root = source
        rows = [Row(os.fspath(source / name), name) for name in sorted(_below(source))]
        if not rows:
            raise UserError(f"{source}: holds no .jpg, .jpeg, .png or .bmp file")
    elif not is_file(source):
        raise UserError(f"{source}: no such file or folder")
    elif source.suffix.lower() in TABLE_SUFFIXES:
        root = source.parent
        rows = read_table(source, _REQUIRED, _OPTIONAL, faults, notes)
        rows = plausible_rows(rows, _REQUIRED, source, faults)
    elif is_image(source.name):
        root, rows = source.parent, [Row(os.fspath(source), source.name)]
    else:
        raise UserError(
            f"{source}: is neither an image (.jpg, .jpeg, .png, .bmp) nor a list of images (.csv,"
            " .tsv, .parquet)"
        )
    stats = file_stats(root, rows, source, faults)
    for row in rows:
        if row.path in stats:
            yield root, row, stats[row.path]


def _below(folder: epath.Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from None

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.relpath(os.path.join(parent, f), folder) for f in files if is_image(f))


def _said_by_folders(path: str) -> tuple[str, str]:
    """Return the modality that one of a path's folders is named after, and the identity below it.

    >>> _said_by_folders("own/visible/anna/1.jpg"), _said_by_folders("own/infrared/1.jpg")
    (('visible', 'anna'), ('infrared', ''))
    """
    folders = path.split("/")[:-1]
    for place in range(len(folders) - 1, -1, -1):
        if folders[place].lower() in MODALITIES:
            below = folders[place + 1 :]
            return folders[place].lower(), below[0] if len(below) == 1 else ""
    return "", ""
