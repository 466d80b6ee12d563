"""Embed image files into a file of features, and keep such a file up to date."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int, UInt8

from ddag_jax.config import Config, to_dict
from ddag_jax.datasets.checks import count, note_turned
from ddag_jax.datasets.images import check_range, try_images, with_range
from ddag_jax.errors import UserError
from ddag_jax.evaluation import stored_features
from ddag_jax.evaluation.embed import embedded_batches
from ddag_jax.io.buckets import check_on_disk
from ddag_jax.io.files import as_path, read_json, write_text
from ddag_jax.io.progress import Progress, say
from ddag_jax.methods.base import Modality
from ddag_jax.numerics import own_settings
from ddag_jax.runs.lock import NAME as LOCK
from ddag_jax.runs.lock import RunLock
from ddag_jax.serving.arguments import Sources, check_choice
from ddag_jax.serving.images import LABELS, FoundImage, check_tracklets, find_images
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

STATE, ROWS = "state.json", "rows.npy"
"""Files of what is unfinished: how far it is, and the rows."""

_SAVED_EVERY = 10.0  # seconds between two records of how far it is
_GREY = "visible image has three equal channels", "visible images have three equal channels"
_COLOURED = "infrared image has colours", "infrared images have colours"
_LEAST_COLOUR = 4.0
"""Mean difference of an image's highest and lowest channel above which it counts as coloured:
compression tints grey images a little."""
_BLOCK = 4096  # rows


class Embedded(NamedTuple):
    """What `embed` did."""

    path: epath.Path
    images: int
    """In the file."""
    embedded: int
    """Of them, in this call."""
    notes: list[str]
    unreadable: list[str]
    """Why images could not be read, a sentence each; they are left out."""


@own_settings()
def embed(
    run: epath.PathLike,
    images: Sources,
    to: epath.PathLike,
    *,
    modality: Modality | None = None,
    feature: str | None = None,
    dtype: Stored | None = None,
    batch_size: int | None = None,
    add: bool = False,
    infrared_range: tuple[int, int] | None = None,
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
        dtype: of the stored features; float16 takes half the space. None: that of the file that is
            added to, or else float32.
        batch_size: images embedded at once; None for that of the evaluation.
        add: add to the file `to`. Images that it has are kept, or embedded again if they changed;
            an identity, camera or tracklet that is given now replaces the former.
        infrared_range: values that become black and white of infrared images with 16 bits, as in
            preparation; None: that of the file that is added to, or else such images are not read.
        config: with a method of your own that the checkpoint names.

    Raises:
        UserError: an image, the network or the target is missing or does not fit, another process
            writes the target, or no image can be read. All but the last are found before the first
            image is read.
    """
    target = as_path("to", to)
    check_on_disk(target, "the file of features")
    if dtype is not None:
        check_choice("dtype", dtype, get_args(Stored))
    if infrared_range is not None:
        infrared_range = check_range(infrared_range)
    if not add:
        stored_features.check_target(target)
    elif not target.exists():
        raise UserError(f"{target}: no such file to add to; leave out --add to write a new one")
    with _only_writer(target) as folder:
        # Read again now that no other process writes it.
        old = open_index(target) if add else None
        if old is None:
            stored_features.check_target(target)
        found, notes = find_images(images, modality)
        model = load(run, config=config, batch_size=batch_size)
        if infrared_range is None and old is not None:
            infrared_range = as_range(old.embedded_by.infrared_range)
        by = embedded_by(model, model.reported(feature), infrared_range)
        if old is not None:
            check_same_network(old, by)
            stored: Stored = "float32" if _like(old)[1] == np.float32 else "float16"
            if dtype not in (None, stored):
                raise UserError(f"--dtype {dtype}: {target} has {stored}; leave the option out")
            dtype = stored
            found, current = _to_embed(found, old, notes)
            again = {image.file for image in found}
            kept = [image for image in current if image.file not in again]
            check_tracklets(f"{target} and these images", [*kept, *found])
            if not found:
                if current != old.images:
                    old = old._replace(images=current)
                    merged = {m: _merged(m, old, set()) for m in SIDES}
                    write_index(target, by, merged, *_like(old))
                return Embedded(target, len(old.images), 0, notes, [])
            old = old._replace(images=current)
        unfinished = _Unfinished(folder, by, found, model.batch_size, dtype or "float32")
        before = unfinished.ready
        if len(before):
            say(f"{folder}: goes on after {len(before):,} of {len(found):,} images")
        with unfinished:
            rows, faults = embed_found(
                model,
                found,
                by.feature,
                infrared_range=infrared_range,
                what="embedding",
                unfinished=unfinished,
            )
            notes += faults.notes(len(found))
            readable = faults.readable(len(found))
            new = {image.file for image, good in zip(found, readable, strict=True) if good}
            merged = {m: _merged(m, old, new, found, rows, readable) for m in SIDES}
            if new:
                write_index(target, by, merged, rows.shape[1], rows.dtype)
        unfinished.remove()
    if not new and old is None:
        raise UserError("\n  ".join(["no image can be read:", *faults.unreadable[:10]]))
    total = sum(len(one.images) for one in merged.values())
    return Embedded(
        target, total, int(readable.sum() - readable[before].sum()), notes, faults.unreadable
    )


def _to_embed(
    found: Sequence[FoundImage], old: Index, notes: list[str]
) -> tuple[list[FoundImage], list[FoundImage]]:
    """Return the images that a file lacks or that changed, and those of the file, with what is said
    of them now."""
    known = {image.file: image for image in old.images}
    lacking, said = list[FoundImage](), dict[str, FoundImage]()
    changed = kept = 0
    for image in found:
        before = known.get(image.file)
        if before is None:
            lacking.append(image)
            continue
        # The file's labels may be a list's, so that a folder's name does not replace them.
        labelled = image.labelled_like(before._replace(listed=True))
        if (before.stamp, before.modality) != (image.stamp, image.modality):
            lacking.append(labelled)
            changed += 1
            continue
        kept += 1
        now = before._replace(**{name: getattr(labelled, name) for name in LABELS})
        if now != before:
            said[image.file] = now
    if changed:
        notes.append(f"{count(range(changed), 'image has', 'images have')} changed: embedded again")
    if kept:
        notes.append(f"{count(range(kept), 'image is', 'images are')} in {old.path} already: kept")
    if said:
        notes.append(
            f"{count(said, 'kept image has', 'kept images have')} another identity,"
            " camera or tracklet now: noted, not embedded again"
        )
    return lacking, [said.get(image.file, image) for image in old.images]


def prune(path: epath.PathLike, *, identities: Sequence[str] = ()) -> list[FoundImage]:
    """Remove images from a file of features whose files are gone, or that show some identities.

    Args:
        path: of the file, which is replaced.
        identities: to remove, as they were given.

    Returns:
        The removed images.

    Raises:
        UserError: the file cannot be opened or written, another process writes it, it has none of
            an identity, or would be left without images.
    """
    if isinstance(identities, str):
        identities = [identities]
    check_on_disk(path, "a file of features to search")
    if not epath.Path(path).exists():
        raise UserError(f"{path}: no such file")
    with _only_writer(epath.Path(path)):
        index = open_index(path)
        if absent := sorted(set(identities) - {image.identity for image in index.images}):
            raise UserError(f"{index.path}: has no image of {', '.join(absent)}")
        gone = [
            i for i in index.images if i.identity in identities or not epath.Path(i.file).exists()
        ]
        if len(gone) == len(index.images):
            raise UserError(f"{index.path}: would be left without images; remove the file")
        if gone:
            without = {image.file for image in gone}
            merged = {m: _merged(m, index, without) for m in SIDES}
            write_index(path, index.embedded_by, merged, *_like(index))
    return gone


def _like(index: Index) -> tuple[int, np.dtype]:
    """Return the channels and the type of a file's features."""
    features = next(iter(index.features.values()))
    return features.shape[1], features.dtype


@contextlib.contextmanager
def _only_writer(target: epath.Path) -> Iterator[epath.Path]:
    """Keep other processes from writing a file of features, and yield the folder beside it for
    what is unfinished; at the end the folder is removed, unless it holds such.

    Raises:
        UserError: another process writes the file, or the folder cannot be made.
    """
    folder = target.with_name(f"{target.name}.partial")
    try:
        folder.mkdir(parents=False, exist_ok=True)
        others = sorted(
            path.name
            for path in folder.iterdir()
            if path.name not in (STATE, ROWS, LOCK) and not path.name.startswith(".")
        )
        if others:
            raise UserError(
                f"{folder}: holds {others[0]}, which ddag-embed has not written, and is where"
                " unfinished features would be; move it, or name another file"
            )
        with RunLock(folder):
            try:
                yield folder
            finally:
                if not (folder / STATE).exists():
                    shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None


def as_range(stored: Sequence[int] | None) -> tuple[int, int] | None:
    """Return the range that a file of features names, as `embed` takes it."""
    return None if stored is None else check_range(stored)


def embedded_by(
    model: Model, feature: str, infrared_range: tuple[int, int] | None = None
) -> EmbeddedBy:
    """Return what decides the features of a model, ready for JSON."""
    return EmbeddedBy(
        checksum=model.trained.checksum,
        model=json.loads(json.dumps(to_dict(model.config)["model"])),
        image_size=list(model.image_size),
        feature=feature,
        flip=model.config.evaluation.flip,
        infrared_range=None if infrared_range is None else list(infrared_range),
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
    turned: set[int] = dataclasses.field(default_factory=set)
    """Images that were turned upright."""

    @property
    def unreadable(self) -> list[str]:
        """A sentence each, in the images' order."""
        return [self.why_unreadable[number] for number in sorted(self.why_unreadable)]

    def readable(self, images: int) -> Bool[np.ndarray, " n"]:
        """Return whether each of some images could be read."""
        return ~np.isin(np.arange(images), list(self.why_unreadable))

    def notes(self, images: int) -> list[str]:
        """Return a sentence about images of another modality than said, and about those that were
        turned upright, if there are any."""
        notes: list[str] = []
        note_turned(self.turned, notes)
        return [
            *notes,
            *(
                f"{count(numbers, *what)} ({len(numbers):,} of {images:,}); check their modality"
                for numbers, what in ((self.grey, _GREY), (self.coloured, _COLOURED))
                if numbers
            ),
        ]


def embed_found(
    model: Model,
    images: Sequence[FoundImage],
    feature: str,
    *,
    what: str,
    infrared_range: tuple[int, int] | None = None,
    unfinished: "_Unfinished | None" = None,
) -> tuple[Float[np.ndarray, "n d"], Faults]:
    """Return a feature of images, float32 rows of unit length in their order, and their faults.

    The rows of images that cannot be read have no meaning.

    Args:
        model: embeds.
        images: of any modality.
        feature: its name.
        what: title of the progress bar.
        infrared_range: see `embed`.
        unfinished: where rows are kept, on disk, from the first batch that it lacks on; None to
            keep them in memory.
    """
    faults = Faults() if unfinished is None else unfinished.faults
    rows: np.ndarray | None = None if unfinished is None else unfinished.rows
    first = 0 if unfinished is None else unfinished.batches
    infrared = np.array([image.modality == "infrared" for image in images], bool)
    read = _reader(images, model.image_size, infrared_range, faults)
    batches = embedded_batches(model.embed_batch, read, infrared, model.batch_size, first=first)
    done = 0 if unfinished is None else len(unfinished.ready)
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


def _images_in(
    batches: int, infrared: Bool[np.ndarray, " n"], batch_size: int
) -> Int[np.ndarray, " m"]:
    """Return the images of the first batches of `embedded_batches`, by index."""
    visible, others = np.flatnonzero(~infrared), np.flatnonzero(infrared)
    of_visible = min(batches, -(-len(visible) // batch_size))
    of_others = batches - of_visible
    return np.concatenate([visible[: of_visible * batch_size], others[: of_others * batch_size]])


def _reader(
    images: Sequence[FoundImage],
    size: tuple[int, int],
    infrared_range: tuple[int, int] | None,
    faults: Faults,
) -> Callable[[Int[np.ndarray, " b"]], UInt8[np.ndarray, "b h w 3"]]:
    def read(numbers: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w 3"]:
        # The last batch repeats its last image, which is read once.
        distinct, places = np.unique(numbers, return_inverse=True)
        files = [
            with_range(epath.Path(one.file), one.modality == "infrared", infrared_range)
            for one in (images[number] for number in distinct.tolist())
        ]
        pixels = np.zeros((len(distinct), *size, 3), np.uint8)
        turned: list[int] = []
        for place, found in enumerate(try_images(files, *size, turned)):
            number = int(distinct[place])
            if isinstance(found, UserError):
                faults.why_unreadable[number] = str(found)
                continue
            pixels[place] = found
            difference = _colour(found)
            if images[number].modality == "visible" and difference == 0:
                faults.grey.add(number)
            elif images[number].modality == "infrared" and difference > _LEAST_COLOUR:
                faults.coloured.add(number)
        faults.turned.update(distinct[turned].tolist())
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
        UserError: the folder is of other images or another network.
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
        self._saved = time.perf_counter()
        self.batches = 0
        """Number of batches whose rows are ready."""
        self.rows: np.memmap | None = None
        self.faults = Faults()
        if (folder / STATE).exists():
            self._resume()
        infrared = np.array([image.modality == "infrared" for image in images], bool)
        self.ready = _images_in(self.batches, infrared, batch_size)
        """The images of these batches, by index."""

    def _resume(self) -> None:
        state = self._folder / STATE
        try:
            found = read_json(state, 2**30)
            key, self.batches = found["key"], found["batches"]
            self.faults = Faults(
                {int(number): why for number, why in found["unreadable"].items()},
                set(found["grey"]),
                set(found["coloured"]),
                set(found["turned"]),
            )
            if key == self._key:
                self.rows = np.lib.format.open_memmap(self._folder / ROWS, "r+")
        except Exception as error:  # the parsers raise any exception on damaged bytes
            raise UserError(
                f"{self._folder}: holds unfinished features that cannot be read ({error}); remove"
                " this folder"
            ) from None
        if key != self._key:
            raise UserError(
                f"{self._folder}: holds unfinished features of other images, another network or"
                " other settings; give the same ones to go on, or remove this folder"
            )

    def make(self, shape: tuple[int, int]) -> np.memmap:
        """Make the file of the rows, on disk."""
        self.rows = np.lib.format.open_memmap(
            self._folder / ROWS, "w+", dtype=self._dtype, shape=shape
        )
        return self.rows

    def save_sometimes(self) -> None:
        """Record how far the work is, unless that was done a moment ago."""
        if time.perf_counter() - self._saved > _SAVED_EVERY:
            self._save()

    def _save(self) -> None:
        if self.rows is None or not self.batches:
            return  # there is nothing to go on from
        self.rows.flush()
        state = {
            "key": self._key,
            "batches": self.batches,
            "unreadable": dict(self.faults.why_unreadable),
            "grey": sorted(self.faults.grey),
            "coloured": sorted(self.faults.coloured),
            "turned": sorted(self.faults.turned),
        }
        write_text(self._folder / STATE, json.dumps(state))
        self._saved = time.perf_counter()

    def remove(self) -> None:
        """Forget how far the work is: it is complete."""
        (self._folder / STATE).unlink(missing_ok=True)

    def __enter__(self) -> "_Unfinished":
        return self

    def __exit__(self, *failed: Any) -> None:
        if failed[0] is not None:
            self._save()
            if self.batches:
                say(f"{self._folder}: keeps what is embedded; the same command goes on")


def _merged(
    modality: Modality,
    old: Index | None,
    without: set[str],
    images: Sequence[FoundImage] = (),
    rows: Float[np.ndarray, "n d"] | None = None,
    readable: Bool[np.ndarray, " n"] | None = None,
) -> Rows:
    """Return the images of a modality of an old file, without some files, and those of new rows.

    A UserError names a row of the old file that is not finite.
    """
    parts: list[tuple[Float[np.ndarray, "_ d"], Int[np.ndarray, " _"]]] = []
    together: list[FoundImage] = []
    if old is not None:
        mine = [image for image in old.images if image.modality == modality]
        kept = [number for number, image in enumerate(mine) if image.file not in without]
        together += [mine[number] for number in kept]
        parts.append((old.features[modality], np.array(kept, int)))
    if rows is not None and readable is not None:
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
                block = source[numbers[start : start + _BLOCK]]
                if old is not None and not np.isfinite(block).all():
                    raise UserError(
                        f"{old.path}: has features that are not finite; embed the images again"
                    )
                yield block

    return Rows(together, blocks())
