"""Embed image files into a file of features, and keep such a file up to date."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int, UInt8

from ddag_jax.config import Config, to_dict
from ddag_jax.datasets.checks import count
from ddag_jax.datasets.images import try_images
from ddag_jax.errors import UserError
from ddag_jax.evaluation import stored_features
from ddag_jax.evaluation.embed import embedded_batches
from ddag_jax.io.buckets import check_on_disk
from ddag_jax.io.files import read_json, write_text
from ddag_jax.io.progress import Progress
from ddag_jax.methods.base import Modality
from ddag_jax.runs.lock import RunLock
from ddag_jax.serving.images import FoundImage, find_images
from ddag_jax.serving.index import (
    SIDES,
    EmbeddedBy,
    Index,
    Rows,
    check_same_network,
    open_index,
    write_index,
)
from ddag_jax.serving.model import Model, load

Stored = Literal["float32", "float16"]

_SAVED_EVERY = 10.0  # seconds between two records of how far it is
_COLOURED = 4.0
"""Mean difference of an image's highest and lowest channel above which it counts as coloured:
compression tints grey images a little."""
_BLOCK = 4096  # rows


class Embedded(NamedTuple):
    """What `embed` did."""

    path: epath.Path
    images: int
    """In the file."""
    embedded: int
    """Of them, in this call or the ones that it went on from."""
    notes: list[str]
    unreadable: list[str]
    """Why images could not be read, a sentence each; they are left out."""


def embed(
    run: epath.PathLike,
    images: epath.PathLike | Sequence[epath.PathLike],
    to: epath.PathLike,
    *,
    modality: Modality | None = None,
    feature: str | None = None,
    dtype: Stored = "float32",
    batch_size: int | None = None,
    add: bool = False,
    config: Config | None = None,
) -> Embedded:
    """Embed images into a file that evaluation reads and a search takes as its gallery.

    Features are those of the evaluation, bit for bit, where the batch size is. If it is stopped,
    the same call goes on where it was: what it has is in the folder TO.partial until it is
    complete.

    Args:
        run: folder of a run (its best checkpoint, or the last one), or of a checkpoint.
        images: files, folders and lists, see `serving.images.find_images`.
        to: file to write (.npz), see `serving.index`; must not exist, unless `add` is set.
        modality: of all images, where neither list nor folder says it.
        feature: name of the feature; None for the one that the evaluation reports.
        dtype: of the stored features; float16 takes half the space.
        batch_size: images embedded at once; None for that of the evaluation.
        add: add to the file `to`. Images that it has are kept, or embedded again if they changed.
        config: with a method of your own that the checkpoint names.

    Raises:
        UserError: an image, the network or the target is missing or does not fit, or no image can
            be read. All but the last are found before the first image is read.
    """
    check_on_disk(to, "the file of features")
    target = epath.Path(to)
    old = open_index(target) if add else None
    if old is None:
        stored_features.check_target(target)
    sources = [images] if isinstance(images, str | os.PathLike) else list(images)
    found, notes = find_images(sources, modality)
    model = load(run, config=config, batch_size=batch_size)
    name = model.reported(feature)
    by = embedded_by(model, name)
    if old is not None:
        check_same_network(old, by)
        stored = next(iter(old.features.values())).dtype
        if stored != dtype:
            raise UserError(f"--dtype {dtype}: {target} has {stored}; give --dtype {stored}")
        known = {image.file: image for image in old.images}
        again = [i for i in found if i.file in known and known[i.file].stamp != i.stamp]
        if again:
            notes.append(f"{count(again, 'image has', 'images have')} changed: embedded again")
        if kept := sum(i.file in known for i in found) - len(again):
            notes.append(f"{kept} images are in {target} already: kept")
        found = [i for i in found if i.file not in known or known[i.file].stamp != i.stamp]
        if not found:
            return Embedded(target, len(old.images), 0, notes, [])
    partial = target.with_name(f"{target.name}.partial")
    with _Unfinished(partial, by, found, model.batch_size, dtype) as unfinished:
        rows, faults = embed_found(model, found, name, what="embedding", unfinished=unfinished)
        notes += faults.notes(len(found))
        readable = faults.readable(len(found))
        new = {image.file for image, good in zip(found, readable, strict=True) if good}
        merged = {m: _merged(m, old, new, found, rows, readable) for m in SIDES}
        if new:
            write_index(target, by, merged, rows.shape[1], rows.dtype)
    shutil.rmtree(partial)
    if not new:
        raise UserError("\n  ".join(["no image can be read:", *faults.unreadable[:10]]))
    total = sum(len(one.images) for one in merged.values())
    return Embedded(target, total, len(new), notes, faults.unreadable)


def prune(path: epath.PathLike, *, identities: Sequence[str] = ()) -> list[FoundImage]:
    """Remove images from a file of features whose files are gone, or that show some identities.

    Args:
        path: of the file, which is replaced.
        identities: to remove, as they were given.

    Returns:
        The removed images.

    Raises:
        UserError: the file cannot be opened or written, has none of an identity, or would be left
            without images.
    """
    index = open_index(path)
    if absent := sorted(set(identities) - {image.identity for image in index.images}):
        raise UserError(f"{index.path}: has no image of {', '.join(absent)}")
    gone = [i for i in index.images if i.identity in identities or not epath.Path(i.file).exists()]
    if len(gone) == len(index.images):
        raise UserError(f"{index.path}: would be left without images; remove the file")
    if gone:
        without = {image.file for image in gone}
        merged = {m: _merged(m, index, without, [], None, np.zeros(0, bool)) for m in SIDES}
        features = next(iter(index.features.values()))
        write_index(path, index.embedded_by, merged, features.shape[1], features.dtype)
    return gone


def embedded_by(model: Model, feature: str) -> EmbeddedBy:
    """Return what decides the features of a model, ready for JSON."""
    return EmbeddedBy(
        checksum=model.trained.checksum,
        model=json.loads(json.dumps(to_dict(model.config)["model"])),
        image_size=list(model.image_size),
        feature=feature,
        flip=model.config.evaluation.flip,
        run=model.trained.name,
    )


@dataclasses.dataclass
class Faults:
    """What is wrong with images that were read, by their index."""

    why_unreadable: dict[int, str] = dataclasses.field(default_factory=dict)
    grey: set[int] = dataclasses.field(default_factory=set)
    """Visible images with three equal channels."""
    coloured: set[int] = dataclasses.field(default_factory=set)
    """Infrared images with colours."""

    @property
    def unreadable(self) -> list[str]:
        """A sentence each, in the images' order."""
        return [self.why_unreadable[number] for number in sorted(self.why_unreadable)]

    def readable(self, images: int) -> Bool[np.ndarray, " n"]:
        """Return whether each of some images could be read."""
        return ~np.isin(np.arange(images), list(self.why_unreadable))

    def notes(self, images: int) -> list[str]:
        """Return a sentence about images of another modality than said, if there are any."""
        return [
            f"of {images:,} images {len(numbers):,} {what}; check their modality"
            for numbers, what in (
                (self.grey, "are said to be visible and have three equal channels"),
                (self.coloured, "are said to be infrared and have colours"),
            )
            if numbers
        ]


def embed_found(
    model: Model,
    images: Sequence[FoundImage],
    feature: str,
    *,
    what: str,
    unfinished: "_Unfinished | None" = None,
) -> tuple[Float[np.ndarray, "n d"], Faults]:
    """Return a feature of images, float32 rows of unit length in their order, and their faults.

    The rows of images that cannot be read have no meaning.

    Args:
        model: embeds.
        images: of any modality.
        feature: its name.
        what: title of the progress bar.
        unfinished: where rows are kept, on disk, from the first batch that it lacks on; None to
            keep them in memory.
    """
    faults = Faults() if unfinished is None else unfinished.faults
    rows: np.ndarray | None = None if unfinished is None else unfinished.rows
    first = 0 if unfinished is None else unfinished.batches
    infrared = np.array([image.modality == "infrared" for image in images], bool)
    batches = embedded_batches(
        model.embed_batch, _reader(images, model.image_size, faults), infrared, model.batch_size,
        first=first,
    )  # fmt: skip
    done = _images_in(first, infrared, model.batch_size)
    with Progress(len(images), what, "image", initial=done) as bar:
        for number, (indices, found) in enumerate(batches, start=first + 1):
            values = model.select(found, feature)
            if rows is None:
                shape = len(images), values.shape[1]
                rows = np.empty(shape, np.float32) if unfinished is None else unfinished.make(shape)
            rows[indices] = values
            bar.update(len(indices))
            if unfinished is not None:
                unfinished.batches = number
                unfinished.save_sometimes()
    assert rows is not None  # there is an image
    return rows, faults


def _images_in(batches: int, infrared: Bool[np.ndarray, " n"], batch_size: int) -> int:
    """Return how many images the first batches have: those of `embedded_batches`."""
    visible = int((~infrared).sum())
    of_visible = -(-visible // batch_size)
    if batches <= of_visible:
        return min(batches * batch_size, visible)
    return min(visible + (batches - of_visible) * batch_size, len(infrared))


def _reader(
    images: Sequence[FoundImage], size: tuple[int, int], faults: Faults
) -> Callable[[Int[np.ndarray, " b"]], UInt8[np.ndarray, "b h w 3"]]:
    def read(numbers: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w 3"]:
        # The last batch repeats its last image, which is read once.
        distinct, places = np.unique(numbers, return_inverse=True)
        files = [epath.Path(images[number].file) for number in distinct.tolist()]
        pixels = np.zeros((len(distinct), *size, 3), np.uint8)
        for place, found in enumerate(try_images(files, *size)):
            number = int(distinct[place])
            if isinstance(found, UserError):
                faults.why_unreadable[number] = str(found)
                continue
            pixels[place] = found
            difference = _colour(found)
            if images[number].modality == "visible" and difference == 0:
                faults.grey.add(number)
            elif images[number].modality == "infrared" and difference > _COLOURED:
                faults.coloured.add(number)
        return pixels[places]

    return read


def _colour(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """Return the mean difference of a pixel's highest and lowest channel, over every fourth row."""
    # Channel by channel: a maximum over the last axis takes ten times as long.
    red, green, blue = (image[::4, :, channel] for channel in range(3))
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    return float((highest - lowest).mean())


class _Unfinished:
    """The rows that are ready, in a folder, while others are not; a context manager.

    Raises:
        UserError: the folder is of other images or another network, or another process writes it.
    """

    def __init__(
        self,
        folder: epath.Path,
        by: EmbeddedBy,
        images: Sequence[FoundImage],
        batch_size: int,
        dtype: Stored,
    ) -> None:
        said = [dataclasses.asdict(dataclasses.replace(by, run="")), images, batch_size, dtype]
        self._key = hashlib.sha256(json.dumps(said).encode(errors="surrogateescape")).hexdigest()
        self._folder, self._dtype = folder, np.dtype(dtype)
        self._lock: RunLock | None = None
        self._saved = time.perf_counter()
        self.batches = 0
        """Number of batches whose rows are ready."""
        self.rows: np.memmap | None = None
        self.faults = Faults()

    def __enter__(self) -> "_Unfinished":
        state = self._folder / "state.json"
        try:
            self._folder.mkdir(parents=False, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be made ({error.strerror})") from None
        self._lock = RunLock(self._folder).__enter__()
        try:
            if state.exists():
                self._resume(state)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def _resume(self, state: epath.Path) -> None:
        found = read_json(state, 2**30)
        if found["key"] != self._key:
            raise UserError(
                f"{self._folder}: holds unfinished features of other images, another network or"
                " other settings; give the same ones to go on, or remove this folder"
            )
        self.batches = found["batches"]
        if self.batches:
            self.rows = np.lib.format.open_memmap(self._folder / "rows.npy", "r+")
        self.faults = Faults(
            {int(number): why for number, why in found["unreadable"].items()},
            set(found["grey"]),
            set(found["coloured"]),
        )

    def make(self, shape: tuple[int, int]) -> np.memmap:
        """Make the file of the rows, on disk."""
        self.rows = np.lib.format.open_memmap(
            self._folder / "rows.npy", "w+", dtype=self._dtype, shape=shape
        )
        return self.rows

    def save_sometimes(self) -> None:
        """Record how far the work is, unless that was done a moment ago."""
        if time.perf_counter() - self._saved > _SAVED_EVERY:
            self._save()

    def _save(self) -> None:
        if self.rows is None:
            return
        self.rows.flush()
        state = {
            "key": self._key,
            "batches": self.batches,
            "unreadable": dict(self.faults.why_unreadable),
            "grey": sorted(self.faults.grey),
            "coloured": sorted(self.faults.coloured),
        }
        write_text(self._folder / "state.json", json.dumps(state))
        self._saved = time.perf_counter()

    def __exit__(self, *failed: Any) -> None:
        assert self._lock is not None
        if failed[0] is not None:
            self._save()
        self._lock.__exit__(*failed)
        if failed[0] is not None and not self.batches:  # there is nothing to go on from
            shutil.rmtree(self._folder)


def _merged(
    modality: Modality,
    old: Index | None,
    replaced: set[str],
    images: Sequence[FoundImage],
    rows: Float[np.ndarray, "n d"] | None,
    readable: Bool[np.ndarray, " n"],
) -> Rows:
    """Return the images of a modality of an old file, without some, and then those of new rows."""
    parts: list[tuple[Float[np.ndarray, "_ d"], Int[np.ndarray, " _"]]] = []
    together: list[FoundImage] = []
    if old is not None:
        mine = [image for image in old.images if image.modality == modality]
        kept = [number for number, image in enumerate(mine) if image.file not in replaced]
        together += [mine[number] for number in kept]
        parts.append((old.features[modality], np.array(kept, int)))
    if rows is not None:
        chosen = [
            number
            for number in np.flatnonzero(readable).tolist()
            if images[number].modality == modality
        ]
        together += [images[number] for number in chosen]
        parts.append((rows, np.array(chosen, int)))

    def blocks() -> Iterator[Float[np.ndarray, "_ d"]]:
        for source, numbers in parts:
            for start in range(0, len(numbers), _BLOCK):
                yield source[numbers[start : start + _BLOCK]]

    return Rows(together, blocks())
