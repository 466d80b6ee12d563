"""Check a dataset's folder and build the prepared store from it."""

import contextlib
import io
import tempfile
from typing import NamedTuple

import tensorflow_datasets as tfds
from etils import epath

from ddag_jax.datasets.builder import ImageSize, builder_class
from ddag_jax.datasets.checks import FolderContent, raise_faults
from ddag_jax.datasets.dataset import Dataset
from ddag_jax.datasets.find import DATASETS, find_dataset
from ddag_jax.datasets.images import try_images
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import check_on_disk
from ddag_jax.io.progress import Progress


class Prepared(NamedTuple):
    """What `prepare` built."""

    path: epath.Path
    """The prepared folder."""
    content: FolderContent
    """What it was built from."""
    reused: bool
    """Whether it had been built before, from the same content."""


def read_folder(
    dataset: str | Dataset, folder: epath.PathLike, train_arrays: bool = False
) -> FolderContent:
    """List a dataset's folder and check everything but the images' content.

    Args:
      dataset: the dataset or its name.
      folder: the folder that it is distributed as.
      train_arrays: take the training images from arrays, see `Dataset.inspect_arrays`.

    Raises:
      UserError: all faults, a line each. If there are any, images are decoded after all, so that
        one call finds the faults of lists and images.
    """
    content, faults = _inspect(find_dataset(dataset), folder, train_arrays)
    if faults:
        raise_faults(faults + _unreadable(content))
    return content


def check(
    dataset: str | Dataset, folder: epath.PathLike, train_arrays: bool = False
) -> FolderContent:
    """List a dataset's folder and find every fault; decode each image of its lists.

    Arguments as for `read_folder`.

    Raises:
      UserError: all faults, a line each.
    """
    content, faults = _inspect(find_dataset(dataset), folder, train_arrays)
    raise_faults(faults + _unreadable(content))
    return content


def prepare(
    dataset: str | Dataset,
    folder: epath.PathLike,
    to: epath.PathLike,
    height: int,
    width: int,
    *,
    train_arrays: bool = False,
    overwrite: bool = False,
) -> Prepared:
    """Check a dataset's folder and build `to/{name}/{height}x{width}/{version}` from it.

    The prepared folder appears under that name only when it is complete. An existing one that was
    built from the same content is kept. Run one process at a time: what a killed one left behind is
    removed.

    Args:
      dataset: the dataset or its name.
      folder: the folder that it is distributed as.
      to: where prepared datasets go; `data.dir` of a configuration.
      height: of the stored images, pixels.
      width: of the stored images, pixels.
      train_arrays: take the training images from arrays, see `Dataset.inspect_arrays`.
      overwrite: replace a dataset that was built from other content.

    Raises:
      UserError: all faults of the folder, a line each; the prepared folder is of other content, or
        cannot be written.
    """
    dataset = find_dataset(dataset)
    check_on_disk(to, "a dataset that is being prepared")
    content = read_folder(dataset, folder, train_arrays)
    make, size = builder_class(dataset), ImageSize.of(height, width)
    builder = make(config=size, data_dir=to, content=content)
    path = epath.Path(builder.data_path)
    if (path / "dataset_info.json").exists():
        if builder.info.metadata["source"] == content.source:
            return Prepared(path, content, reused=True)
        if not overwrite:
            raise UserError(
                f"{path}: was prepared from another source; pass --overwrite to replace it, or"
                " another --to"
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
    except UserError:
        raise_faults(_unreadable(content))  # all of them, not only the first
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); choose another --to") from error
    finally:
        if not finished:
            _remove_empty(path.parent, epath.Path(to))
    return Prepared(path, content, reused=False)


def _inspect(
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
    """Return why images cannot be read: the first ten, and how many more."""
    entries = [entry for stored in content.images.values() for entry in stored]
    faults = []
    with Progress(len(entries), "checking", "image") as bar:
        for found in try_images(map(content.image, entries), height=1, width=1):
            bar.update()
            if isinstance(found, UserError):
                faults.append(str(found))
    if len(faults) > 10:
        faults[10:] = [f"... and {len(faults) - 10} more images that cannot be read"]
    return faults


def _remove_empty(folder: epath.Path, last: epath.Path) -> None:
    """Remove `folder` and its parents, up to `last`, as far as they are empty."""
    for level in (folder, *folder.parents):
        if not level.exists() or any(level.iterdir()):
            return
        level.rmdir()
        if level == last:
            return
