"""Find the images to embed or to search: files, folders and lists, each with its modality."""

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

from etils import epath

from ddag_jax.datasets.checks import (
    count,
    examples,
    file_stamp,
    is_image,
    passed_over,
    raise_faults,
)
from ddag_jax.datasets.image_table import (
    MODALITIES,
    TABLE_SUFFIXES,
    Row,
    file_stats,
    plausible_rows,
    read_table,
)
from ddag_jax.datasets.images import SUFFIX_LIST
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import check_on_disk
from ddag_jax.io.files import is_file
from ddag_jax.methods.base import Modality
from ddag_jax.serving.arguments import Sources, as_paths, check_choice

_REQUIRED = ("path",)
LABELS = ("identity", "camera", "tracklet")
"""What a list, or a folder's name, may say of an image beside its modality."""

_OPTIONAL = ("modality", *LABELS)


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
    listed: bool = False
    """Whether a list names it, so that its identity is not a folder's name."""

    def labelled_like(self, other: "FoundImage") -> "FoundImage":
        """Return it with the labels that it lacks and another mention of the image has.

        What a list says goes before the name of a folder.
        """
        labels = {name: getattr(self, name) or getattr(other, name) for name in LABELS}
        if other.listed and not self.listed and other.identity:
            labels["identity"] = other.identity
        return self._replace(**labels)


def find_images(
    sources: Sources, modality: Modality | None = None, *, whose: str = ""
) -> tuple[list[FoundImage], list[str]]:
    """Find the images of files, folders and lists, each file once.

    A list has a line an image, with the column `path` and perhaps `modality`, `identity`, `camera`
    and `tracklet` (datasets/image_table.py). A folder has all images below it, in the order of
    their paths. The modality is that of a list's column, or else that of the deepest folder in the
    absolute path that is named visible or infrared, or else `modality`. Without a list, the
    identity of visible/IDENTITY/IMAGE and infrared/IDENTITY/IMAGE is the folder's name.

    Args:
        sources: path or paths of files, folders and lists.
        modality: of all images.
        whose: "gallery" or "query", for messages; empty if there are no others.

    Returns:
        The images in the order of the sources, and remarks on them.

    Raises:
        UserError: there is no source, a source has no images, a listed file is missing (all are
            named), an image's modality is not known, or known to be another one than `modality`, or
            a tracklet has images of several identities.
    """
    option = f"--{whose}-modality" if whose else "--modality"
    if modality is not None:
        check_choice(option, modality, MODALITIES)
    paths = as_paths(f"--{whose}" if whose else "images", sources)
    faults, notes = list[str](), list[str]()
    found: list[FoundImage] = []
    unknown: list[str] = []
    other: list[str] = []
    for source in paths:
        check_on_disk(source, "images to embed")
        for row, stat in _rows(source, faults, notes):
            folder_modality, identity = _said_by_folders(row.path)
            known = row.modality or folder_modality or modality
            if known is None:
                unknown.append(row.path)
                continue
            if modality is not None and known != modality:
                other.append(row.path)
            found.append(
                FoundImage(
                    row.path,
                    row.where,
                    cast(Modality, known),
                    row.identity if _is_list(source) else _in_utf8(identity),
                    row.camera,
                    row.tracklet,
                    stat,
                    _is_list(source),
                )
            )
    if unknown:
        faults.append(
            f"{count(unknown, 'image has', 'images have')} no modality (first: {unknown[0]}); give"
            f" {option} visible or infrared, a list with the column modality, or folders of these"
            " names"
        )
    if other:
        faults.append(
            f"{option} {modality}: {count(other, 'image is', 'images are')} of the other one by"
            f" their list or folder (first: {other[0]}); leave the option out, or name the images"
            " that it fits"
        )
    raise_faults(faults)
    joined: dict[str, FoundImage] = {}
    for image in found:
        first = joined.setdefault(image.file, image)
        joined[image.file] = first.labelled_like(image)
    distinct = list(joined.values())
    if repeated := range(len(found) - len(distinct)):
        notes.append(f"{count(repeated, 'image is', 'images are')} named twice and taken once")
    lists = ", ".join(os.fspath(source) for source in paths if _is_list(source))
    check_tracklets(lists, distinct)
    return distinct, notes


def check_tracklets(where: str, images: Iterable[FoundImage]) -> None:
    """Raise UserError if a tracklet has images of several identities. Of some it may be unknown."""
    people: dict[tuple[str, str], set[str]] = {}
    for image in images:
        if image.tracklet and image.identity:
            people.setdefault((image.tracklet, image.modality), set()).add(image.identity)
    if mixed := sorted({name for (name, _), found in people.items() if len(found) > 1}):
        raise UserError(
            f"{where}: {count(mixed, 'tracklet has', 'tracklets have')} images of several"
            f" identities ({examples(mixed)}); give each tracklet a name of its own"
        )


def _in_utf8(name: str) -> str:
    """Return a file system's name as it is in UTF-8, whatever the locale's encoding is."""
    return os.fsencode(name).decode(errors="surrogateescape")


def _is_list(source: epath.Path) -> bool:
    return source.suffix.lower() in TABLE_SUFFIXES and not source.is_dir()


def _rows(
    source: epath.Path, faults: list[str], notes: list[str]
) -> Iterator[tuple[Row, tuple[int, int]]]:
    """Yield each image of a source and its stamp.

    `path` is absolute, and `where` relative to the folder or the list.
    """
    if source.is_dir():
        root, below = source, sorted(_below(source))
        names = [name for name in below if is_image(name.rpartition("/")[2])]
        remarks = [f"{source}: {remark}" for remark in passed_over(below)]
        if not names:
            raise UserError("\n  ".join([f"{source}: holds no {SUFFIX_LIST} file", *remarks]))
        notes += remarks
        rows = [Row(name, name) for name in names]
    elif not is_file(source):
        raise UserError(f"{source}: no such file or folder")
    elif _is_list(source):
        root = source.parent
        rows = read_table(source, _REQUIRED, _OPTIONAL, faults, notes)
        rows = plausible_rows(rows, _REQUIRED, source, faults)
        present = file_stats(root, rows, source, faults)
        rows = [row._replace(where=row.path) for row in rows if row.path in present]
    elif is_image(source.name):
        root, rows = source.parent, [Row(source.name, source.name)]
    else:
        raise UserError(
            f"{source}: is neither an image ({SUFFIX_LIST}) nor a list of images"
            f" ({', '.join(TABLE_SUFFIXES)})"
        )
    for row in rows:
        file = os.path.abspath(root / row.path)
        # A link that leads nowhere is reported with those that are not images.
        yield row._replace(path=file), file_stamp(file)


def _below(folder: epath.Path) -> Iterator[str]:
    """Yield the files below a folder, relative to it, and hidden folders, which end in "/"."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from None

    for parent, folders, files in os.walk(folder, onerror=refuse):
        yield from (os.path.relpath(os.path.join(parent, name), folder) for name in files)
        hidden = [name for name in folders if name.startswith(".")]
        yield from (os.path.relpath(os.path.join(parent, name), folder) + "/" for name in hidden)
        folders[:] = [name for name in folders if name not in hidden]


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
