"""The prepared store: images resized once and kept as raw bytes, built by tensorflow-datasets.

Importing this file registers the published datasets with tensorflow-datasets, so that
`tfds.builder("sysu_mm01", data_dir=..., config="288x144")` finds them.
"""

import contextlib
import dataclasses
import functools
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from ddag_jax.datasets.checks import FolderContent, ImageEntry, raise_faults
from ddag_jax.datasets.dataset import Dataset
from ddag_jax.datasets.find import DATASETS
from ddag_jax.datasets.images import read_images
from ddag_jax.io.progress import Progress

VERSION = "2.0.0"
"""Of the stored format, for all datasets."""

_SHARD_IMAGES = 2048
"""Most images of an ArrayRecord file: at 288 x 144 pixels these are 255 MB."""


@dataclasses.dataclass(kw_only=True)
class ImageSize(tfds.core.BuilderConfig):
    """The size of the stored images; several sizes of a dataset can be stored side by side."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""

    @classmethod
    @functools.cache
    def of(cls, height: int, width: int) -> "ImageSize":
        """Return the size under the name of its folder: `288x144`."""
        return cls(
            name=f"{height}x{width}",
            description=f"Images of {height} x {width} pixels (height x width).",
            height=height,
            width=width,
        )


class _Uncompressed(tfds.core.ExampleWriter):
    """Writes ArrayRecord without the compression that TFDS applies.

    Compressed, rendered people take half the space and more than twice as long to read
    (benchmarks/data.py). ArrayRecord's checksums stay.
    """

    def write(self, path: epath.PathLike, examples: Iterable[tuple[Any, bytes]]) -> None:
        """Write one file. Raises OSError if it cannot be written."""
        name = os.fspath(path)
        with _os_errors():
            writer = array_record_module.ArrayRecordWriter(name, "group_size:1,uncompressed")
        for _, example in examples:
            with _os_errors():
                writer.write(example)
        with _os_errors():
            writer.close()


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raise what array_record finds wrong with a file, as on a full disk, as an OSError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


class ImageFolderBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds the store of a `Dataset` from the folder that it is distributed as.

    Examples are ordered by identity, camera, name. `info.metadata["index"]` repeats these columns,
    so that a split can be sampled without reading images. `info.metadata["subsets"]` has splits
    that overlap, as positions in the one stored split; `["draws"]` the published gallery draws;
    `["source"]` the fingerprint of the folder; `["rendered"]` whether its images are rendered;
    `["notes"]` remarks on the folder, which stores of version 0.1.0 lack; `["stamp"]` and
    `["checksum"]` fingerprints of its files, which stores before 0.2.0 lack.

    Shard by shard, not with TFDS's GeneratorBasedBuilder, which sorts in memory and, above 1 GB,
    needs TensorFlow to spill to disk.
    """

    VERSION = tfds.core.Version(VERSION)
    DATASET: ClassVar[Dataset]

    def __init__(
        self,
        *,
        config: ImageSize | str | None = None,
        content: FolderContent | None = None,
        file_format: str = "array_record",
        **kwargs: Any,
    ):
        """Prepare to read or build a store.

        Args:
          config: image size, also by its name; None: 288x144, the published one.
          content: what to build from; None: `manual_dir` is inspected.
          file_format: TFDS's name of it.
          **kwargs: TFDS's own arguments.
        """
        self._content = content
        self.turned: list[int] = []
        """An entry for each image that was turned upright."""
        super().__init__(config=config or ImageSize.of(288, 144), file_format=file_format, **kwargs)

    @classmethod
    def get_builder_config(cls, name: str, version: Any = None) -> ImageSize | None:
        """Return the size of a name like `288x144`: any size, where TFDS expects a fixed list."""
        size = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", name)
        return ImageSize.of(int(size[1]), int(size[2])) if size else None

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _Uncompressed(self.info.file_format)

    def _info(self) -> tfds.core.DatasetInfo:
        size = (self.builder_config.height, self.builder_config.width)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DATASET.description,
            homepage=self.DATASET.homepage,
            citation=self.DATASET.citation,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=(*size, 3), dtype=np.uint8, encoding="bytes"
                    ),
                    "identity": np.int64,
                    "camera": np.int64,
                    "name": tfds.features.Text(),
                    "infrared": np.bool_,
                    "crc32": np.int64,  # of the image's bytes, to detect damage
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        content = self._content
        if content is None:
            content, faults = self.DATASET.inspect(dl_manager.manual_dir)
            raise_faults(faults)
        self.info.metadata.update(
            source=content.source,
            rendered=content.rendered,
            stamp=content.stamp,
            checksum=content.checksum,
            notes=[*content.notes, *content.unread],
            subsets=content.subsets,
            draws=content.draws,
            index={
                split: {
                    column: [getattr(entry, column) for entry in entries]
                    for column in ImageEntry._fields
                }
                for split, entries in content.images.items()
            },
        )
        total = sum(map(len, content.images.values()))
        progress = Progress(total, "decoding and resizing", "image")
        return {
            split: [
                self._shard(content, entries[start : start + _SHARD_IMAGES], progress)
                for start in range(0, len(entries), _SHARD_IMAGES)
            ]
            for split, entries in content.images.items()
        }

    def _shard(
        self, content: FolderContent, entries: list[ImageEntry], progress: Progress
    ) -> Callable[[], Iterator[tuple[str, dict[str, Any]]]]:
        def examples() -> Iterator[tuple[str, dict[str, Any]]]:
            size = self.builder_config.height, self.builder_config.width
            images = read_images(map(content.image, entries), *size, self.turned)
            for entry, image in zip(entries, images, strict=True):
                example = {"image": image, "crc32": zlib.crc32(image.data), **entry._asdict()}
                yield entry.name, example
                # It is written; TFDS would keep it until the file is complete, to count examples.
                del example["image"]
                progress.update()

        return examples


@functools.cache
def builder_class(dataset: Dataset) -> type[ImageFolderBuilder]:
    """Return the TFDS builder of a dataset; those of the published datasets are registered."""
    title = "".join(word.capitalize() for word in dataset.name.split("_"))
    members = {
        "__doc__": f"{dataset.title}: {dataset.description}",
        "__module__": __name__,
        "name": dataset.name,
        "DATASET": dataset,
        "MANUAL_DOWNLOAD_INSTRUCTIONS": (
            f"Ask the authors of {dataset.title} for it. `manual_dir` is {dataset.folder}."
        ),
    }
    published = dataset in DATASETS.values()
    return type(title, (ImageFolderBuilder,), members, skip_registration=not published)


for _dataset in DATASETS.values():
    builder_class(_dataset)
