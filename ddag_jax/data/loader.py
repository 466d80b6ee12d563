"""Read a prepared dataset, and training batches of it ahead of the step (grain)."""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence

import grain
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import Bool, Int, UInt8
from tensorflow_datasets.proto import tf_example_pb2

from ddag_jax.config import DataConfig
from ddag_jax.data.local_copy import local_copy
from ddag_jax.data.sampler import IdentitySampler
from ddag_jax.datasets.builder import VERSION
from ddag_jax.datasets.checks import ImageEntry, fingerprint
from ddag_jax.datasets.find import find_dataset
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import absolute, is_bucket
from ddag_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Random access to the images of a split, or of some of them.

    Identities, cameras and names are in memory; the images are read on access.
    """

    identities: Int[np.ndarray, " images"]
    """int64, the dataset's own numbers."""
    cameras: Int[np.ndarray, " images"]
    """int64, the dataset's own numbers, from 1; 0 if the camera is not known."""
    infrared: Bool[np.ndarray, " images"]
    """Whether an image is infrared."""
    names: list[str]
    """File names in the dataset's layout: `cam1/0001/0001.jpg`."""
    image_size: tuple[int, int]
    """Height and width, pixels."""
    folder: epath.Path
    """Of the prepared dataset."""
    fingerprint: str
    """Of the prepared folder: its source, and its files' names and sizes."""
    rendered: bool
    """Whether the images are rendered people in the dataset's layout."""
    notes: list[str]
    """Remarks on the folder that was prepared, such as how identities were divided."""
    draws: dict[str, list[list[int]]]
    """Published gallery draws by folder, see `FolderContent.draws`."""
    _records: Sequence[bytes]
    """TFDS's data source, of undecoded records."""
    _keys: Int[np.ndarray, " images"]
    """Position of each image among the records."""

    def __len__(self) -> int:
        return len(self.identities)

    @property
    def labels(self) -> Int[np.ndarray, " images"]:
        """int64, class of each image: the rank of its identity among those of this source."""
        return np.unique(self.identities, return_inverse=True)[1]

    @property
    def classes(self) -> int:
        """Number of identities."""
        return len(np.unique(self.identities))

    def images(self, indices: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w 3"]:
        """Read images by their positions in this source, 0 ... len - 1.

        Raises:
          UserError: a record is damaged.
        """
        images = np.empty((len(indices), *self.image_size, 3), np.uint8)
        keys = self._keys[indices].tolist()
        for image, number, key in zip(images, indices.tolist(), keys, strict=True):
            try:
                record = self._records[key]
            except RuntimeError as error:  # ArrayRecord found its file damaged
                raise self._damaged(number, str(error)) from error
            # TFDS's own decoding of all columns takes three times as long.
            features = tf_example_pb2.Example.FromString(record).features
            content = features.feature["image"].bytes_list.value[0]
            if zlib.crc32(content) != features.feature["crc32"].int64_list.value[0]:
                raise self._damaged(number, "its checksum differs")
            image[:] = np.frombuffer(content, np.uint8).reshape(image.shape)
        return images

    def _damaged(self, number: int, how: str) -> UserError:
        return UserError(
            f"{self.folder}: image {self.names[number]} is damaged ({how}); remove this folder and"
            " prepare the dataset again"
        )

    def subset(self, chosen: Int[np.ndarray, " b"] | Bool[np.ndarray, " images"]) -> "ImageSource":
        """Return the source of some images, by position or by mask, in that order."""
        numbers = np.arange(len(self))[chosen]
        return dataclasses.replace(
            self,
            identities=self.identities[numbers],
            cameras=self.cameras[numbers],
            infrared=self.infrared[numbers],
            names=[self.names[number] for number in numbers],
            _keys=self._keys[numbers],
        )


def open_split(
    data_dir: epath.PathLike,
    dataset: str,
    image_size: tuple[int, int],
    split: str,
    cache: epath.PathLike | None = None,
) -> ImageSource:
    """Open a split of a prepared dataset.

    Args:
      data_dir: folder that the dataset was prepared to; one in a bucket is copied to this machine.
      dataset: its name.
      image_size: height and width in pixels that it was prepared at.
      split: name of a stored split or of a subset (RegDB's "train_1" ... "test_10"), or of several
        joined by + ("train+val").
      cache: where copies from buckets are, see `local_copy`.

    Raises:
      UserError: the dataset is not prepared, or not at this size, or cannot be copied.
    """
    height, width = image_size
    sizes = epath.Path(data_dir) / dataset
    folder = sizes / f"{height}x{width}" / VERSION
    if not (folder / "dataset_info.json").exists():
        others = [
            size.name
            for size in (sorted(sizes.iterdir()) if sizes.exists() else [])
            if (size / folder.name / "dataset_info.json").exists()
        ]
        # A relative folder means another one in each working directory.
        raise UserError(
            f"{absolute(folder)}: no prepared dataset"
            + (f" (there is one of {', '.join(others)} pixels)" if others else "")
            + f"; run: python -m ddag_jax.data prepare {dataset} --from FOLDER --to {data_dir}"
            f" --image-size {height} {width}, or give the folder that it was prepared to"
            " (--data.dir)"
        )
    if is_bucket(folder):
        folder = local_copy(folder, cache)
    builder = tfds.builder_from_directory(folder)
    metadata = builder.info.metadata
    parts, subsets = split.split("+"), metadata["subsets"]
    stored = next(iter(metadata["index"])) if parts[0] in subsets else split
    columns = {
        name: np.concatenate([metadata["index"][part][name] for part in stored.split("+")])
        for name in ImageEntry._fields
    }
    keys = np.arange(len(columns["name"]))
    if stored != split:
        keys = np.concatenate([np.asarray(subsets[part], np.int64) for part in parts])
    return ImageSource(
        identities=columns["identity"][keys],
        cameras=columns["camera"][keys],
        infrared=columns["infrared"][keys],
        names=columns["name"][keys].tolist(),
        image_size=image_size,
        folder=folder,
        fingerprint=fingerprint(
            metadata["source"] + metadata.get("checksum", ""),
            sorted((path.name, path.stat().length) for path in folder.iterdir()),
        ),
        rendered=metadata["rendered"],
        notes=metadata.get("notes", []),
        draws=metadata["draws"],
        _records=builder.as_data_source(
            stored, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        ),
        _keys=keys,
    )


def evaluation_split(config: DataConfig) -> ImageSource:
    """Open the images that the published figures are measured on.

    Raises:
      UserError: the dataset is not prepared.
    """
    return _open(config, find_dataset(config.dataset).test_split(config))


def _open(config: DataConfig, split: str) -> ImageSource:
    name = find_dataset(config.dataset).name
    size = config.image_height, config.image_width
    return open_split(config.dir, name, size, split, config.cache)


def training_split(config: DataConfig, seed: int) -> tuple[ImageSource, ImageSource | None]:
    """Open the images to train on and those to choose the best checkpoint by.

    Args:
      config: which identities to train on and to hold out.
      seed: of the draws of `config.holdout_identities` and `config.label_noise`.

    Returns:
      Training images, and those of identities held out of training; None if there are none.

    Raises:
      UserError: the dataset is not prepared; no identities are left to train on; there is more
        label noise than possible.
    """
    validation = None
    training = _open(config, find_dataset(config.dataset).train_split(config))
    if config.train_on == "train":
        validation = _open(config, "val")
        if not len(validation):
            raise UserError(
                f"data.train_on: {config.train_on}, but {validation.folder} has no image of the"
                " split val; leave it at train+val, and hold identities out with"
                " data.holdout_identities"
            )
    elif config.holdout_identities >= training.classes:
        raise UserError(
            f"data.holdout_identities: {config.holdout_identities} of {training.classes}"
            " identities leaves none to train on; lower it"
        )
    elif config.holdout_identities:
        held = np.random.default_rng(seed).choice(
            np.unique(training.identities), config.holdout_identities, replace=False
        )
        is_held = np.isin(training.identities, held)
        training, validation = training.subset(~is_held), training.subset(is_held)
    if config.label_noise:
        noisy = _mislabelled(training, config.label_noise, seed)
        training = dataclasses.replace(training, identities=noisy)
    return training, validation


def _mislabelled(source: ImageSource, share: float, seed: int) -> Int[np.ndarray, " images"]:
    """Return the identities with a share of the images' replaced by another training identity.

    Images and new identities are drawn uniformly, except that one image of each identity in each
    modality keeps its label.
    """
    rng = np.random.default_rng([seed, 0x6E6F6973])  # not the stream of the held-out identities
    order = rng.permutation(len(source))
    groups = 2 * source.labels + source.infrared
    _, kept = np.unique(groups[order], return_index=True)
    free = np.delete(order, kept)
    count = round(share * len(source))
    if count > len(free) or source.classes < 2:
        raise UserError(
            f"data.label_noise: {share} of {len(source)} training images is too much: one of each"
            f" of {source.classes} identities in each modality keeps its label; lower it"
        )
    chosen = np.sort(free[:count])
    labels = source.labels
    others = (labels[chosen] + rng.integers(1, source.classes, count)) % source.classes
    identities = source.identities.copy()
    identities[chosen] = np.unique(source.identities)[others]
    return identities


def training_batches(
    source: ImageSource,
    sampler: IdentitySampler,
    *,
    steps_per_epoch: int,
    first_step: int,
    last_step: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 1,
    read_ahead: int = 2,
) -> Iterator[Batch]:
    """Read the batches of steps `first_step` ... `last_step - 1` in the background.

    Step s is step s % steps_per_epoch of epoch s // steps_per_epoch, wherever reading starts.

    Args:
      source: the training images, which the sampler was made from.
      sampler: chooses the images of a batch.
      steps_per_epoch: batches in an epoch.
      first_step: counted from 0 over all epochs.
      last_step: first step that is not read.
      process_index: of this process.
      process_count: processes that share a batch: each reads its own identity slots only.
      threads: reading threads; few, since a step on CPU needs the same cores.
      read_ahead: number of batches kept ready.

    Returns:
      An iterator of NumPy batches with this process's share of the identity slots.
    """

    def read(step: int) -> Batch:
        sample = sampler.sample(*divmod(step, steps_per_epoch))
        labels, visible, infrared = (
            np.split(part, process_count)[process_index] for part in sample
        )
        numbers = np.concatenate([visible, infrared])
        images = source.images(numbers.reshape(-1))
        images = images.reshape(*numbers.shape, *images.shape[1:])
        return Batch(images[: len(labels)], images[len(labels) :], labels)

    steps = grain.MapDataset.range(first_step, last_step).map(read)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=read_ahead)
    return iter(steps.to_iter_dataset(options))
