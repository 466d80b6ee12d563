"""Embeds a stream of images: fixed batches, reading ahead, one compilation a modality."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ddag_jax.errors import UserError
from ddag_jax.io.progress import Progress
from ddag_jax.types import Embeddings

Modality = Literal["visible", "infrared"]
EmbedFn = Callable[[UInt8[np.ndarray, "b h w 3"], Modality], Embeddings]
ReadFn = Callable[[Int[np.ndarray, " b"]], UInt8[np.ndarray, "b h w 3"]]


class GaveUp(Exception):
    """Asked to end before everything is embedded."""


def embed(
    embed_fn: EmbedFn,
    read_images: ReadFn,
    infrared: Bool[np.ndarray, " N"],
    batch_size: int,
    progress: str | None = None,
    give_up: Callable[[], bool] = lambda: False,
) -> dict[str, Float[np.ndarray, "N d"]]:
    """Embeds images 0 ... N - 1, each through its own modality's stem.

    Args:
        embed_fn: the compiled network in evaluation mode: exactly `batch_size` images and the name
            of their modality to rows of unit length. Its answer may still be under way, but all of
            it must be readable on this host.
        read_images: indices to images, in that order (of several processes, each to its part of
            them, which is what `embed_fn` then takes). Called from one thread of its own, so that
            the next batch is read while the device computes.
        infrared: which of the images are infrared.
        batch_size: images embedded at once; the last batch of a modality repeats its last image to
            the full size, and the repetitions are dropped.
        progress: what to show how far it is as; None for nothing.
        give_up: asked before each batch.

    Returns:
        `global` and, where the network has it, `part`: float32 rows in the images' order.

    Raises:
        GaveUp: `give_up` said so.
        UserError: there is no image, or an embedding is not finite (named by the image's index).
    """
    if not len(infrared):
        raise UserError("no images to embed")
    members: dict[Modality, np.ndarray] = {
        "visible": np.flatnonzero(~infrared),
        "infrared": np.flatnonzero(infrared),
    }
    batches = [
        (modality, indices[start : start + batch_size])
        for modality, indices in members.items()
        for start in range(0, len(indices), batch_size)
    ]

    def read(indices: np.ndarray) -> np.ndarray:
        missing = batch_size - len(indices)
        return read_images(np.pad(indices, (0, missing), mode="edge"))

    result: dict[str, np.ndarray] = {}

    def keep(indices: np.ndarray, modality: Modality, embeddings: Embeddings) -> None:
        rows = {"global": embeddings.global_feature, "part": embeddings.part_feature}
        for name, feature in rows.items():
            if feature is None:
                continue
            values = np.asarray(feature, dtype=np.float32)[: len(indices)]
            broken = ~np.isfinite(values).all(axis=1)
            if broken.any():
                raise UserError(
                    f"image {indices[broken.argmax()]} ({modality}): its {name} embedding is not"
                    " finite; the network's weights have diverged, use an earlier checkpoint or a"
                    " lower learning rate"
                )
            if name not in result:
                result[name] = np.empty((len(infrared), values.shape[1]), dtype=np.float32)
            result[name][indices] = values
        bar.update(len(indices))

    with (
        Progress(len(infrared), progress or "", "image", shown=progress is not None) as bar,
        ThreadPoolExecutor(max_workers=1) as reader,
    ):
        ahead = reader.submit(read, batches[0][1])
        computing: tuple[np.ndarray, Modality, Embeddings] | None = None
        for i, (modality, indices) in enumerate(batches):
            images = ahead.result()
            if give_up():
                raise GaveUp
            if i + 1 < len(batches):
                ahead = reader.submit(read, batches[i + 1][1])
            embeddings = embed_fn(images, modality)
            # The device has this batch queued before the host waits for the one before it.
            if computing is not None:
                keep(*computing)
            computing = indices, modality, embeddings
        assert computing is not None  # there is at least one batch
        keep(*computing)
    return result
