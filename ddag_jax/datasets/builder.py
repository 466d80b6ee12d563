"""What the tensorflow-datasets builders share: images resized once, kept as raw bytes."""

import dataclasses
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from ddag_jax.datasets.checks import Layout, Record, raise_faults
from ddag_jax.datasets.images import read_images
from ddag_jax.io.progress import Progress

VERSION = "2.0.0"
"""Of what is stored and how, for all datasets."""

_SHARD_IMAGES = 2048
"""At most, in an ArrayRecord file: at 288 x 144 pixels these are 255 MB."""


@dataclasses.dataclass(kw_only=True)
class ImageSize(tfds.core.BuilderConfig):
    """The size that images are stored at, so that several can lie side by side."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""

    @classmethod
    def of(cls, height: int, width: int) -> "ImageSize":
        """The size under the name that is also its folder's: `288x144`."""
        return cls(
            name=f"{height}x{width}",
            description=f"Images of {height} x {width} pixels (height x width).",
            height=height,
            width=width,
        )


PUBLISHED_SIZE = ImageSize.of(288, 144)
"""Stands where none is named. It is none of TFDS's BUILDER_CONFIGS, since TFDS would then refuse an
equal one, and leave a file behind where preparing fails."""


class _Uncompressed(tfds.core.ExampleWriter):
    """Writes ArrayRecord without compression, where TFDS has it on.

    Compressed, our rendered people take half the space and more than twice as long to read
    (benchmarks/data.py).
    ArrayRecord's checksums stay.
    """

    def write(self, path: epath.PathLike, examples: Iterable[tuple[Any, bytes]]) -> None:
        """Writes one file."""
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, example in examples:
            writer.write(example)
        writer.close()


class ImageFolderBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A dataset of images of people, from the folder that it is distributed as.

    Examples are ordered by identity, camera, name. These columns stand in `info.metadata["index"]`
    too, so that a split can be sampled without reading images. `info.metadata["subsets"]` has the
    splits that are no stored one, as positions in the one; `["draws"]` the published gallery draws;
    `["source"]` the fingerprint of the folder it was made from; `["rendered"]` whether that holds
    our drawings instead of the dataset's images.

    Shard by shard, not with TFDS's GeneratorBasedBuilder: that one sorts in memory and, above
    1 GB, needs TensorFlow to spill to disk.
    """

    VERSION = tfds.core.Version(VERSION)
    DESCRIPTION: ClassVar[str]
    HOMEPAGE: ClassVar[str]
    CITATION: ClassVar[str]

    def __init__(
        self,
        *,
        config: ImageSize | None = None,
        layout: Layout | None = None,
        file_format: str = "array_record",
        **kwargs: Any,
    ):
        """`layout` is what to build from, where it is known already; else `manual_dir` is read."""
        self._layout = layout
        super().__init__(config=config or PUBLISHED_SIZE, file_format=file_format, **kwargs)

    @staticmethod
    def inspect(folder: epath.PathLike) -> tuple[Layout, list[str]]:
        """What a folder holds, and its faults; the layout module of each dataset has it."""
        raise NotImplementedError

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _Uncompressed(self.info.file_format)

    def _info(self) -> tfds.core.DatasetInfo:
        size = (self.builder_config.height, self.builder_config.width)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=(*size, 3), dtype=np.uint8, encoding="bytes"
                    ),
                    "identity": np.int64,
                    "camera": np.int64,
                    "name": tfds.features.Text(),
                    "infrared": np.bool_,
                    "crc32": np.int64,  # of the image's bytes, so that damage is found
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        layout = self._layout
        if layout is None:
            layout, faults = self.inspect(dl_manager.manual_dir)
            raise_faults(faults)
        self.info.metadata.update(
            source=layout.source,
            rendered=layout.rendered,
            subsets=layout.subsets,
            draws=layout.draws,
            index={
                split: {
                    column: [getattr(record, column) for record in records]
                    for column in Record._fields
                }
                for split, records in layout.images.items()
            },
        )
        total = sum(map(len, layout.images.values()))
        progress = Progress(total, "decoding and resizing", "image")
        return {
            split: [
                self._shard(layout, records[start : start + _SHARD_IMAGES], progress)
                for start in range(0, len(records), _SHARD_IMAGES)
            ]
            for split, records in layout.images.items()
        }

    def _shard(
        self, layout: Layout, records: list[Record], progress: Progress
    ) -> Callable[[], Iterator[tuple[str, dict[str, Any]]]]:
        def examples() -> Iterator[tuple[str, dict[str, Any]]]:
            images = read_images(
                map(layout.image, records), self.builder_config.height, self.builder_config.width
            )
            for record, image in zip(records, images, strict=True):
                example = {"image": image, "crc32": zlib.crc32(image.data), **record._asdict()}
                yield record.name, example
                # Written by now. TFDS keeps the examples of a file to count them in the end.
                del example["image"]
                progress.update()

        return examples
