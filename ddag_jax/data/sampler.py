"""Identity-balanced batches as a pure function of (seed, epoch, step)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ddag_jax.errors import UserError


class Sample(NamedTuple):
    """One batch, as positions of images."""

    labels: Int[np.ndarray, " n"]
    """Class of each identity slot, int32, no class twice."""
    visible: Int[np.ndarray, "n m"]
    """int64 positions of the images, all of the slot's identity."""
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
        """Index the images by identity.

        Args:
          labels: class of each image, 0 ... classes - 1; every class has both modalities.
          infrared: whether an image is infrared.
          identities_per_batch: n.
          images_per_identity: m, of each modality.
          seed: of all draws.

        Raises:
          UserError: there are fewer identities than a batch needs.
        """
        classes = int(labels.max()) + 1 if len(labels) else 0
        if classes < identities_per_batch:
            raise UserError(
                f"training.identities_per_batch: {identities_per_batch}, but there are only"
                f" {classes} identities to train on; lower it"
            )
        self._classes = classes
        self._identities_per_batch = identities_per_batch
        self._images_per_identity = images_per_identity
        self._seed = seed
        self._visible = _group(labels, ~infrared, classes)
        self._infrared = _group(labels, infrared, classes)

    def sample(self, epoch: int, step: int) -> Sample:
        """Return the batch of a step, counted from 0 in its epoch."""
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
    """Images of one modality, sorted by class."""

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
    """Return the number of batches that the reference counts as an epoch.

    Args:
      visible: number of visible training images.
      infrared: number of infrared training images.
      identities_per_batch: n.
      images_per_identity: m.

    >>> steps_per_epoch(22258, 11909, 8, 4)  # SYSU-MM01
    696
    """
    return max(visible, infrared) // (identities_per_batch * images_per_identity) + 1
