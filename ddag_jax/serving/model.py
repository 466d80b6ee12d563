"""A trained network that embeds images."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, get_args

import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int, UInt8

from ddag_jax.config import Config
from ddag_jax.datasets.images import ImageFile, read_images
from ddag_jax.errors import UserError
from ddag_jax.evaluation.embed import embed_images, make_embed
from ddag_jax.evaluation.evaluator import check_feature, pick
from ddag_jax.methods.base import Modality
from ddag_jax.numerics import own_settings
from ddag_jax.parallel import device_mesh, map_embed, shard
from ddag_jax.runs.evaluate import Trained, find_trained
from ddag_jax.serving.arguments import check_choice, check_count

Image: TypeAlias = str | os.PathLike[str] | UInt8[np.ndarray, "_ _ 3"]
"""A file, or RGB pixels of any size."""


@own_settings()
def load(
    run: epath.PathLike, *, config: Config | None = None, batch_size: int | None = None
) -> "Model":
    """Return the trained model of a run or checkpoint, its variables on all devices.

    Args:
        run: folder of a run (its best checkpoint, or the last one), or of a checkpoint.
        config: with a method or dataset of your own that the checkpoint names.
        batch_size: images embedded at once; None for that of the evaluation.

    Raises:
        UserError: there is no checkpoint, it cannot be read, or `config` is needed.
    """
    if batch_size is not None:
        batch_size = check_count("batch_size", batch_size)
    return Model(find_trained(run, config), batch_size)


class Model:
    """A trained network; `load` makes one.

    Attributes:
        config: of the run.
        features: names of the features that `embed` returns; the last one is what is reported.
        image_size: height and width in pixels that images are resized to.
        batch_size: images embedded at once, a multiple of the number of devices.
        trained: the checkpoint that it is of.
    """

    def __init__(self, trained: Trained, batch_size: int | None = None) -> None:
        method, mesh = trained.method(), device_mesh()
        self.trained = trained
        self.config = trained.config
        self.features = method.features
        self.image_size = self.config.data.image_height, self.config.data.image_width
        self._mesh = mesh
        self._variables, _ = trained.restore(mesh)
        # Compiled at the first call of each modality.
        self._embed = map_embed(make_embed(method, flip=self.config.evaluation.flip), mesh)
        wanted = batch_size or self.config.evaluation.batch_size
        self.batch_size = -(-wanted // mesh.size) * mesh.size
        self._method = method

    @own_settings()
    def embed(
        self, images: UInt8[np.ndarray, "n h w 3"] | Sequence[Image], modality: Modality
    ) -> dict[str, Float[np.ndarray, "n _"]]:
        """Return the features of images of one modality, as the evaluation computes them.

        Args:
            images: any number of files or RGB arrays, which are resized as in preparation
                (Lanczos). Files are read batch by batch.
            modality: "visible" or "infrared".

        Returns:
            By name, float32 rows of unit length in the images' order: `features["part"]`.

        Raises:
            UserError: there are no images, one cannot be read or is not an RGB array of uint8, the
                modality is unknown, or an embedding is not finite.
        """
        check_choice("modality", modality, get_args(Modality))
        if isinstance(images, str | os.PathLike) or images is None:
            raise UserError(f"images: is {images!s}; give a list of images")
        files = [_checked(number, image) for number, image in enumerate(images)]

        def read(numbers: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w 3"]:
            # The last batch repeats its last image, which is read once.
            distinct, places = np.unique(numbers, return_inverse=True)
            chosen = [files[number] for number in distinct.tolist()]
            return np.stack(list(read_images(chosen, *self.image_size)))[places]

        infrared = np.full(len(files), modality == "infrared")
        found = embed_images(self.embed_batch, read, infrared, self.batch_size)
        return {name: found[name] for name in self.features}

    @own_settings()
    def embed_batch(
        self, images: UInt8[np.ndarray, "b h w 3"], modality: Modality
    ) -> dict[str, Float[Array, "b _"]]:
        """Return the features of `batch_size` images of `image_size`, perhaps still computing."""
        return self._embed(self._variables, shard(images, self._mesh), modality)

    def select(
        self, features: Mapping[str, Float[np.ndarray, "n _"]], feature: str
    ) -> Float[np.ndarray, "n _"]:
        """Return one of the features of `embed`, or their `concatenation`, rows of unit length."""
        return pick({name: features[name] for name in self.features}, feature)

    def reported(self, feature: str | None = None) -> str:
        """Return the name of a feature; None: the one that the evaluation reports.

        Raises:
            UserError: the network has no feature of this name.
        """
        if feature is None:
            chosen = self.config.evaluation.feature
            return self.features[-1] if chosen == "both" else chosen
        check_feature(feature, self._method, one=True)
        return feature


def _checked(number: int, image: Any) -> ImageFile:
    if isinstance(image, str | os.PathLike):
        return epath.Path(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(
            f"image {number}: is {pixels.dtype} of shape {pixels.shape}; give uint8 [height, width,"
            " 3] in RGB, or a file"
        )
    return pixels
