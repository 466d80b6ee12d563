"""Check a dataset's folder and build the prepared store from it."""

import concurrent.futures
import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from ddag_jax.datasets.builder import ImageSize, builder_class
from ddag_jax.datasets.checks import FolderContent, fingerprint, note_turned, raise_faults
from ddag_jax.datasets.dataset import Dataset
from ddag_jax.datasets.find import DATASETS, find_dataset
from ddag_jax.datasets.images import check_range, deep_values, try_images
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import check_on_disk, check_scheme
from ddag_jax.io.files import refusal
from ddag_jax.io.progress import Progress
from ddag_jax.io.storable import check_storable

InfraredRange: TypeAlias = tuple[int, int] | Literal["auto"] | None

_BY_NAME = (
    "names and sizes of its files are the same; an earlier version prepared it, without checksums:"
    " --overwrite prepares it again"
)


class Prepared(NamedTuple):
    """What `prepare` built."""

    path: epath.Path
    """The prepared folder."""
    content: FolderContent
    """What it was built from."""
    kept: str | None
    """None if it was built; else how an existing one was compared with the folder."""


def read_folder(
    dataset: str | Dataset,
    folder: epath.PathLike,
    train_arrays: bool = False,
    infrared_range: InfraredRange = None,
) -> FolderContent:
    """List a dataset's folder and check everything but the images' content.

    Args:
      dataset: the dataset or its name.
      folder: the folder that it is distributed as.
      train_arrays: take the training images from arrays, see `Dataset.inspect_arrays`.
      infrared_range: values that become black and white of infrared images with 16 bits, or "auto":
        those below which 0.1 and 99.9 % of all their pixels are.

    Raises:
      UserError: all faults, a line each. If there are any, images are decoded after all, so that
        one call finds the faults of lists and images.
    """
    content, faults = _inspect(find_dataset(dataset), folder, train_arrays, infrared_range)
    if faults:
        raise_faults(faults + content.unread + _unreadable(content))
    return content


def check(
    dataset: str | Dataset,
    folder: epath.PathLike,
    train_arrays: bool = False,
    infrared_range: InfraredRange = None,
) -> FolderContent:
    """List a dataset's folder and find every fault; decode each image of its lists.

    Arguments as for `read_folder`.

    Raises:
      UserError: all faults, a line each.
    """
    content, faults = _inspect(find_dataset(dataset), folder, train_arrays, infrared_range)
    unreadable = _unreadable(content)
    if faults or unreadable:
        raise_faults(faults + content.unread + unreadable)
    return content


def prepare(
    dataset: str | Dataset,
    folder: epath.PathLike,
    to: epath.PathLike,
    height: int,
    width: int,
    *,
    train_arrays: bool = False,
    infrared_range: InfraredRange = None,
    overwrite: bool = False,
) -> Prepared:
    """Check a dataset's folder and build `to/{name}/{height}x{width}/{version}` from it.

    The prepared folder appears under that name only when it is complete. An existing one that was
    built from the same content is kept: files of the same names, sizes and modification times, or,
    where the times differ, of the same checksums. Run one process at a time: what a killed one left
    behind is removed.

    Args:
      dataset: the dataset or its name.
      folder: the folder that it is distributed as.
      to: where prepared datasets go; `data.dir` of a configuration.
      height: of the stored images, pixels.
      width: of the stored images, pixels.
      train_arrays: take the training images from arrays, see `Dataset.inspect_arrays`.
      infrared_range: see `read_folder`.
      overwrite: replace a dataset that was built from other content.

    Raises:
      UserError: all faults of the folder, a line each; the prepared folder is of other content, or
        cannot be written.
    """
    dataset = find_dataset(dataset)
    check_on_disk(to, "a dataset that is being prepared")
    check_storable(to, backslashes=True)
    existing = next(one for one in (epath.Path(to), *epath.Path(to).parents) if one.exists())
    if not existing.is_dir():
        raise UserError(f"{to}: cannot be made, since {existing} is a file; choose another --to")
    if why := refusal(existing):
        raise UserError(f"{to}: cannot be written ({why}); choose another --to")
    content = read_folder(dataset, folder, train_arrays, infrared_range)
    make, size = builder_class(dataset), ImageSize.of(height, width)
    builder = make(config=size, data_dir=to, content=content)
    path = epath.Path(builder.data_path)
    if (path / "dataset_info.json").exists():
        kept, changed = _compare(builder.info.metadata, content)
        if kept and not (overwrite and kept is _BY_NAME):
            return Prepared(path, content, kept)
        if not overwrite:
            raise UserError(
                f"{path}: was prepared from {changed}; pass --overwrite to replace it, or another"
                " --to"
            )
        # A folder that is being deleted must not look complete.
        path.rename(path.with_name(f"incomplete.old_{path.name}"))
        builder = make(config=size, data_dir=to, content=content)
    for leftover in path.parent.glob(f"incomplete.*_{path.name}"):  # TFDS's names
        leftover.rmtree()
    finished = False
    try:
        with (
            tempfile.TemporaryDirectory() as unused,
            contextlib.redirect_stdout(io.StringIO()),  # TFDS prints about downloads
        ):
            builder.download_and_prepare(
                download_dir=unused,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=content.folder, try_download_gcs=False
                ),
            )
        finished = True
        note_turned(builder.turned, content.notes)
    except UserError:
        raise_faults(_unreadable(content))  # all of them, not only the first
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); choose another --to") from error
    finally:
        if not finished:
            _remove_empty(path.parent, epath.Path(to))
    return Prepared(path, content, None)


def _compare(stored: Mapping[str, Any], content: FolderContent) -> tuple[str | None, str]:
    """Return how a stored dataset was found to be of the same content, or None, and what else it is
    of."""
    if stored["source"] != content.source:
        return None, "another source"
    if "checksum" not in stored:
        return _BY_NAME, ""
    if stored["stamp"] == content.stamp:
        return "names, sizes and modification times of its files are the same", ""
    if stored["checksum"] == content.checksum:
        return "its files were modified, and have the same checksums", ""
    return None, "files of the same names and sizes with other content"


def _inspect(
    dataset: Dataset,
    folder: epath.PathLike,
    train_arrays: bool,
    infrared_range: InfraredRange,
) -> tuple[FolderContent, list[str]]:
    check_scheme(folder)
    content, faults = _listed(dataset, folder, train_arrays)
    if infrared_range is None:
        return content, faults
    how = "--infrared-range"
    if infrared_range == "auto":
        found = _usual_range(content)
        if found is None:
            raise UserError(f"{how} auto: no infrared image has 16 bits; leave it out")
        infrared_range, how = found, f"{how} auto, 0.1 and 99.9 % of their pixels"
    low, high = check_range(infrared_range)
    note = f"infrared images with 16 bits: {low} becomes black, {high} white ({how})"
    return dataclasses.replace(
        content,
        infrared_range=(low, high),
        notes=[*content.notes, note],
        source=fingerprint((content.source, low, high), []),
    ), faults


def _usual_range(content: FolderContent) -> tuple[int, int] | None:
    """Return the values that bound nearly all pixels of the infrared images with 16 bits."""
    files = [
        content.folder / entry.name
        for entries in content.images.values()
        for entry in entries
        if entry.infrared and entry.name not in content.arrays
    ]

    def values(file: epath.Path) -> np.ndarray | None:
        try:
            return deep_values(file)
        except UserError:  # it is reported when all are read
            return None

    total = np.zeros(2**16, np.int64)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for found in pool.map(values, files):
            if found is not None:
                total += found
    if not total.any():
        return None
    share = total.cumsum() / total.sum()
    low, high = (int(np.searchsorted(share, bound)) for bound in (0.001, 0.999))
    return low, max(high, low + 1)


def _listed(
    dataset: Dataset, folder: epath.PathLike, train_arrays: bool
) -> tuple[FolderContent, list[str]]:
    if not train_arrays:
        return dataset.inspect(folder)
    if dataset.inspect_arrays is None:
        known = " and ".join(one.name for one in DATASETS.values() if one.inspect_arrays)
        raise UserError(
            f"--train-arrays: only {known} has such files, not {dataset.name}; leave it out"
        )
    return dataset.inspect_arrays(folder)


def _unreadable(content: FolderContent) -> list[str]:
    """Return why images cannot be read: the first ten, and how many more.

    That some are turned upright is added to the notes.
    """
    entries = [entry for stored in content.images.values() for entry in stored]
    faults, turned = list[str](), list[int]()
    with Progress(len(entries), "checking", "image") as bar:
        for found in try_images(map(content.image, entries), 1, 1, turned):
            bar.update()
            if isinstance(found, UserError):
                faults.append(str(found))
    if len(faults) > 10:
        faults[10:] = [f"... and {len(faults) - 10} more images that cannot be read"]
    note_turned(turned, content.notes)
    return faults


def _remove_empty(folder: epath.Path, last: epath.Path) -> None:
    """Remove `folder` and its parents, up to `last`, as far as they are empty."""
    for level in (folder, *folder.parents):
        if not level.exists() or any(level.iterdir()):
            return
        level.rmdir()
        if level == last:
            return
