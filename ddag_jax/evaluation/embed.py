"""Embed a sequence of images: fixed batches, read ahead, one compilation for each modality."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from ddag_jax.data.augment import normalise
from ddag_jax.errors import UserError
from ddag_jax.io.progress import Progress
from ddag_jax.methods.base import Method, Modality
from ddag_jax.models.classifier import unit_rows
from ddag_jax.parallel import Embed

EmbedBatch = Callable[[UInt8[np.ndarray, "b h w 3"], Modality], Mapping[str, Any]]
ReadImages = Callable[[Int[np.ndarray, " b"]], UInt8[np.ndarray, "b h w 3"]]


class Interrupted(Exception):
    """Asked to end before all images are embedded."""


def make_embed(method: Method, *, flip: bool) -> Embed:
    """Return `embed(variables, uint8 images, modality)` for one device, in evaluation mode.

    Images are normalised first. With `flip`, a feature is the mean of the image's and its mirror
    image's, scaled to unit length again.
    """

    def embed(variables: Any, images: UInt8[Array, "b h w 3"], modality: Modality) -> Any:
        normalised = normalise(images)
        features = method.embed(variables, normalised, modality)
        if not flip:
            return features
        mirrored = method.embed(variables, normalised[:, :, ::-1], modality)
        return jax.tree.map(lambda one, other: unit_rows(one + other), features, mirrored)

    return embed  # type: ignore[return-value]  # a modality is a str that map_embed hands through


def embed_images(
    embed_batch: EmbedBatch,
    read_images: ReadImages,
    infrared: Bool[np.ndarray, " N"],
    batch_size: int,
    progress: str | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Float[np.ndarray, "N d"]]:
    """Embed images 0 ... N - 1, each through the stem of its own modality.

    Args:
        embed_batch: the compiled network: exactly `batch_size` images and their modality to rows of
            unit length, by feature. The result may still be computing, but this host must be able
            to read all of it.
        read_images: indices to images in that order; of several processes, each to its share,
            which is what `embed_batch` takes then. Called from one thread of its own, so that the
            next batch is read while the device computes.
        infrared: which of the images are infrared.
        batch_size: images embedded at once; the last batch of a modality repeats its last image to
            the full size, and the repetitions are dropped.
        progress: title of the progress bar; None for no bar.
        interrupted: called before each batch; True ends the work.

    Returns:
        Each feature: float32 rows in the images' order.

    Raises:
        Interrupted: `interrupted` returned True.
        UserError: there are no images, or an embedding is not finite (named by the image's index).
    """
    if not len(infrared):
        raise UserError("no images to embed")
    result: dict[str, np.ndarray] = {}
    with Progress(len(infrared), progress or "", "image", shown=progress is not None) as bar:
        for indices, features in embedded_batches(
            embed_batch, read_images, infrared, batch_size, interrupted=interrupted
        ):
            for name, values in features.items():
                if name not in result:
                    result[name] = np.empty((len(infrared), values.shape[1]), dtype=np.float32)
                result[name][indices] = values
            bar.update(len(indices))
    return result


def embedded_batches(
    embed_batch: EmbedBatch,
    read_images: ReadImages,
    infrared: Bool[np.ndarray, " N"],
    batch_size: int,
    *,
    first: int = 0,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Int[np.ndarray, " b"], dict[str, Float[np.ndarray, "b d"]]]]:
    """Yield the images of each batch, by index, and their features: visible images first.

    Arguments and errors are those of `embed_images`; batches before `first` are left out.
    """
    members: dict[Modality, np.ndarray] = {
        "visible": np.flatnonzero(~infrared),
        "infrared": np.flatnonzero(infrared),
    }
    batches = [
        (modality, indices[start : start + batch_size])
        for modality, indices in members.items()
        for start in range(0, len(indices), batch_size)
    ][first:]
    if not batches:
        return

    def read(indices: np.ndarray) -> np.ndarray:
        missing = batch_size - len(indices)
        return read_images(np.pad(indices, (0, missing), mode="edge"))

    def fetch(
        indices: np.ndarray, modality: Modality, features: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        found = {}
        for name, feature in features.items():
            values = np.asarray(feature, dtype=np.float32)[: len(indices)]
            broken = ~np.isfinite(values).all(axis=1)
            if broken.any():
                raise UserError(
                    f"image {indices[broken.argmax()]} ({modality}): its {name} embedding is not"
                    " finite; the network's weights have diverged, use an earlier checkpoint or a"
                    " lower learning rate"
                )
            found[name] = values
        return indices, found

    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(read, batches[0][1])
        computing: tuple[np.ndarray, Modality, Mapping[str, Any]] | None = None
        for i, (modality, indices) in enumerate(batches):
            images = ahead.result()
            if interrupted():
                raise Interrupted
            if i + 1 < len(batches):
                ahead = reader.submit(read, batches[i + 1][1])
            features = embed_batch(images, modality)
            # The device has this batch queued before the host waits for the one before it.
            if computing is not None:
                yield fetch(*computing)
            computing = indices, modality, features
        assert computing is not None  # there is at least one batch
        yield fetch(*computing)
