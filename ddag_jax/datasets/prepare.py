"""Check a dataset's folder and build the prepared store from it."""

import contextlib
import io
import tempfile
from typing import Literal

import tensorflow_datasets as tfds
from etils import epath

from ddag_jax.datasets import sysu_mm01
from ddag_jax.datasets.builder import ImageFolderBuilder, ImageSize
from ddag_jax.datasets.checks import Layout, raise_faults
from ddag_jax.datasets.images import unreadable_images
from ddag_jax.datasets.llcm import Llcm
from ddag_jax.datasets.regdb import Regdb
from ddag_jax.errors import UserError
from ddag_jax.io.progress import Progress

Dataset = Literal["sysu_mm01", "regdb", "llcm"]

BUILDERS: dict[Dataset, type[ImageFolderBuilder]] = {
    "sysu_mm01": sysu_mm01.SysuMm01,
    "regdb": Regdb,
    "llcm": Llcm,
}


def read_layout(dataset: Dataset, source: epath.PathLike, train_arrays: bool = False) -> Layout:
    """Lists a dataset's folder and checks it, all but the images' content.

    Args:
      dataset: which.
      source: the folder that it is distributed as.
      train_arrays: SYSU-MM01's training images from the reference's `train_*_resized_*.npy`.

    Raises:
      UserError: all faults, a line each. Where there are any, images are decoded after all, so
        that nobody mends the lists only to be told of the images.
    """
    layout, faults = _inspect(dataset, source, train_arrays)
    if faults:
        raise_faults(faults + _unreadable(layout))
    return layout


def check(dataset: Dataset, source: epath.PathLike, train_arrays: bool = False) -> Layout:
    """Looks for every fault of a dataset's folder, decoding each image of its lists.

    Raises:
      UserError: all faults, a line each.
    """
    layout, faults = _inspect(dataset, source, train_arrays)
    raise_faults(faults + _unreadable(layout))
    return layout


def _unreadable(layout: Layout) -> list[str]:
    """Why images cannot be read: the first ten, and how many more."""
    records = [record for stored in layout.images.values() for record in stored]
    faults = []
    with Progress(len(records), "checking", "image") as bar:
        for fault in unreadable_images(map(layout.image, records)):
            bar.update()
            if fault:
                faults.append(fault)
    if len(faults) > 10:
        faults[10:] = [f"... and {len(faults) - 10} more images that cannot be read"]
    return faults


def _inspect(
    dataset: Dataset, source: epath.PathLike, train_arrays: bool
) -> tuple[Layout, list[str]]:
    if not train_arrays:
        return BUILDERS[dataset].inspect(source)
    if dataset != "sysu_mm01":
        raise UserError(
            f"--train-arrays: only sysu_mm01 has such files, not {dataset}; leave it out"
        )
    return sysu_mm01.inspect(source, train_arrays=True)


def prepare(
    dataset: Dataset,
    layout: Layout,
    data_dir: epath.PathLike,
    height: int,
    width: int,
    overwrite: bool = False,
) -> tuple[epath.Path, bool]:
    """Builds `data_dir/{dataset}/{height}x{width}/{version}` from a dataset's folder.

    The folder appears under that name only when it is whole. One that exists and was made from
    the same source is kept. Run one at a time: what a killed one left behind is removed.

    Args:
      dataset: which.
      layout: of the source, without faults.
      data_dir: where prepared datasets go.
      height: of the stored images, pixels.
      width: of the stored images, pixels.
      overwrite: replace a dataset that was made from another source.

    Returns:
      The prepared folder, and whether it was there already.

    Raises:
      UserError: an image that cannot be read; the folder is another source's, or cannot be
        written.
    """
    size = ImageSize.of(height, width)
    builder = BUILDERS[dataset](config=size, data_dir=data_dir, layout=layout)
    folder = epath.Path(builder.data_path)
    if builder.is_prepared():
        if builder.info.metadata["source"] == layout.source:
            return folder, True
        if not overwrite:
            raise UserError(
                f"{folder}: was prepared from another source; pass --overwrite to replace it, or"
                " another --to"
            )
        # A folder that is being deleted must not look whole.
        folder.rename(folder.with_name(f"incomplete.old_{folder.name}"))
        builder = BUILDERS[dataset](config=size, data_dir=data_dir, layout=layout)
    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):  # as TFDS names them
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
                    manual_dir=layout.folder, try_download_gcs=False
                ),
            )
        finished = True
    except UserError:
        raise_faults(_unreadable(layout))  # all of them, not the first alone
        raise
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); choose another --to") from error
    finally:
        if not finished:
            _remove_empty(folder.parent, epath.Path(data_dir))
    return folder, False


def _remove_empty(folder: epath.Path, last: epath.Path) -> None:
    """Removes `folder` and what it lies in, up to `last`, as far as they are empty."""
    for level in (folder, *folder.parents):
        if not level.exists() or any(level.iterdir()):
            return
        level.rmdir()
        if level == last:
            return
