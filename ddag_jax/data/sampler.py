"""Identity-balanced batches: (seed, epoch, step) -> which images, and nothing else decides."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ddag_jax.errors import UserError


class Sample(NamedTuple):
    """One batch, as numbers of images."""

    labels: Int[np.ndarray, " n"]
    """Class of each identity slot, int32, no class twice."""
    visible: Int[np.ndarray, "n m"]
    """int64 numbers of the images, all of the slot's identity."""
    infrared: Int[np.ndarray, "n m"]


class IdentitySampler:
    """Draws n identities without replacement, then m visible and m infrared images of each with.

    As the reference samples (`IdentitySampler` of its utils.py), batches are drawn independently
    of each other: an epoch is a number of batches, not one pass over the images.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, " images"],
        infrared: Bool[np.ndarray, " images"],
        *,
        identities_per_batch: int,
        images_per_identity: int,
        seed: int,
    ):
        """Indexes the images by identity.

        Args:
          labels: class of each image, 0 ... classes - 1, each with both modalities.
          infrared: whether an image is infrared.
          identities_per_batch: n.
          images_per_identity: m, of each modality.
          seed: of all draws.

        Raises:
          UserError: fewer identities than a batch needs.
        """
        classes = int(labels.max()) + 1 if len(labels) else 0
        if classes < identities_per_batch:
            raise UserError(
                f"training.identities_per_batch: {identities_per_batch} asked for, but there are"
                f" only {classes} identities to train on; lower it"
            )
        self._classes = classes
        self._identities_per_batch = identities_per_batch
        self._images_per_identity = images_per_identity
        self._seed = seed
        self._visible = _group(labels, ~infrared, classes)
        self._infrared = _group(labels, infrared, classes)

    def sample(self, epoch: int, step: int) -> Sample:
        """The batch of a step, counted from 0 in its epoch; equal arguments, equal batch."""
        rng = np.random.default_rng([self._seed, epoch, step])
        labels = rng.choice(self._classes, self._identities_per_batch, replace=False)
        return Sample(
            labels.astype(np.int32),
            self._draw(rng, self._visible, labels),
            self._draw(rng, self._infrared, labels),
        )

    def _draw(
        self, rng: np.random.Generator, group: "_Group", labels: Int[np.ndarray, " n"]
    ) -> Int[np.ndarray, "n m"]:
        size = (len(labels), self._images_per_identity)
        return group.images[
            group.starts[labels, None] + rng.integers(group.sizes[labels, None], size=size)
        ]


class _Group(NamedTuple):
    """Images of one modality, those of a class side by side."""

    images: Int[np.ndarray, " images"]
    starts: Int[np.ndarray, " classes"]
    sizes: Int[np.ndarray, " classes"]


def _group(
    labels: Int[np.ndarray, " images"], chosen: Bool[np.ndarray, " images"], classes: int
) -> _Group:
    (images,) = np.nonzero(chosen)
    images = images[np.argsort(labels[images], kind="stable")]
    sizes = np.bincount(labels[images], minlength=classes)
    return _Group(images.astype(np.int64), np.cumsum(sizes) - sizes, sizes)


def steps_per_epoch(
    visible: int, infrared: int, identities_per_batch: int, images_per_identity: int
) -> int:
    """Batches that the reference calls an epoch.

    Args:
      visible: training images of that modality.
      infrared: training images of that modality.
      identities_per_batch: n.
      images_per_identity: m.

    >>> steps_per_epoch(22258, 11909, 8, 4)  # SYSU-MM01
    696
    """
    return max(visible, infrared) // (identities_per_batch * images_per_identity) + 1
