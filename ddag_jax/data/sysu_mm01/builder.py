"""The tensorflow-datasets builder of SYSU-MM01: images resized once, kept as raw bytes."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from ddag_jax.data.images import read_images
from ddag_jax.data.sysu_mm01.layout import Layout, Record, read_layout

_SHARD_IMAGES = 2048
"""At most, in an ArrayRecord file. TFDS holds a shard's images in memory while it writes: at
288 x 144 pixels these are 255 MB."""


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


class SysuMm01(tfds.core.ShardBasedBuilder):
    """SYSU-MM01: people seen by four visible and two infrared cameras.

    Splits are the identity lists of the dataset: `train`, `val`, `test`. Examples are ordered by
    identity, camera, file name. These three columns stand in `info.metadata["index"]` too, so that
    a split can be sampled without reading images; `info.metadata["source"]` is the fingerprint of
    the folder it was made from.

    Shard by shard, not with TFDS's GeneratorBasedBuilder: that one sorts in memory and, above
    1 GB, needs TensorFlow to spill to disk.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The dataset is handed out by its authors on request. `manual_dir` is the folder that"
        " holds cam1 ... cam6 and exp."
    )

    def __init__(self, *, config: ImageSize, file_format: str = "array_record", **kwargs: Any):
        super().__init__(config=config, file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = (self.builder_config.height, self.builder_config.width)
        return tfds.core.DatasetInfo(
            builder=self,
            description="People seen by four visible and two infrared cameras.",
            homepage="https://github.com/wuancong/SYSU-MM01",
            citation=(
                "Wu, Zheng, Yu, Gong, Lai: RGB-Infrared Cross-Modality Person Re-Identification,"
                " ICCV 2017"
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=(*size, 3), dtype=np.uint8, encoding="bytes"
                    ),
                    "identity": np.int64,
                    "camera": np.int64,
                    "name": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        layout = read_layout(dl_manager.manual_dir)
        self.info.metadata.update(
            source=layout.source,
            index={
                split: {
                    "identity": [record.identity for record in records],
                    "camera": [record.camera for record in records],
                    "name": [record.name for record in records],
                }
                for split, records in layout.splits.items()
            },
        )
        progress = tqdm.tqdm(
            total=sum(map(len, layout.splits.values())),
            desc="Decoding and resizing",
            unit=" images",
        )
        return {
            split: [
                self._shard(layout, records[start : start + _SHARD_IMAGES], progress)
                for start in range(0, len(records), _SHARD_IMAGES)
            ]
            for split, records in layout.splits.items()
        }

    def _shard(
        self, layout: Layout, records: list[Record], progress: tqdm.tqdm
    ) -> Callable[[], Iterator[tuple[str, dict[str, Any]]]]:
        def examples() -> Iterator[tuple[str, dict[str, Any]]]:
            images = read_images(
                map(layout.path, records), self.builder_config.height, self.builder_config.width
            )
            for record, image in zip(records, images, strict=True):
                yield record.name, {"image": image, **record._asdict()}
                progress.update()

        return examples
