"""The seam: what a method owes the training step, the evaluation and the report."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Modality = Literal["visible", "infrared"]
Variables = Mapping[str, Any]
"""{"params", "batch_stats"}: nested dictionaries of arrays."""


class View(flax.struct.PyTreeNode):
    """One image for every image slot of a batch, all of one modality, augmented and normalised.

    Views of a batch list the same identities in the same order: one or, with `training.views=3`,
    two visible views, then the infrared one.
    """

    modality: Modality = flax.struct.field(pytree_node=False)
    images: Float[Array, "b h w 3"]
    labels: Int[Array, " b"]
    """Class of each image, 0 ... classes - 1."""


class Images(flax.struct.PyTreeNode):
    """The images of all views, as a two-stream network takes them."""

    visible: Float[Array, "v h w 3"]
    infrared: Float[Array, "b h w 3"]
    labels: Int[Array, " k"]
    """Class of each image, visible ones first; k = v + b."""
    is_visible: Bool[Array, " k"]


def by_modality(views: tuple[View, ...]) -> Images:
    """Join visible views, one or several, beside the infrared one, which comes last."""
    *visible, infrared = views
    images = [view.images for view in visible]
    labels = jnp.concatenate([view.labels for view in views])
    return Images(
        visible=images[0] if len(images) == 1 else jnp.concatenate(images),
        infrared=infrared.images,
        labels=labels,
        is_visible=jnp.arange(len(labels)) < len(labels) - len(infrared.labels),
    )


@runtime_checkable
class Method(Protocol):
    """A network, its losses, and what it carries from step to step. All functions are pure.

    An instance is a frozen dataclass: hashable, so that JAX can take it as a static argument.
    Parameters under `two_stream` learn at the backbone's rate, and are what `--init` fills. A
    method whose `loss` takes a second visible view has `third_view = True`; without that attribute
    `training.views=3` is refused.
    """

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that `embed` returns; the last one is what the paper reports."""

    def init(self, key: Key[Array, ""], image_size: tuple[int, int]) -> dict[str, Any]:
        """Return fresh variables for images of this height and width in pixels.

        {"params": ..., "batch_stats": ...}; a method without running statistics has {} there.
        """

    def memory(self) -> Any:
        """Return what is carried between steps as it is before the first one: a tree of arrays.

        It is part of every checkpoint. () where there is nothing to carry.
        """

    def loss(
        self,
        variables: Variables,
        views: tuple[View, ...],
        memory: Any,
        keys: Key[Array, " k"] | None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]], Any]:
        """Return the loss of one device's images, its terms by name, and the new `batch_stats`.

        Args:
            variables: of the network.
            views: of this device.
            memory: as `remember` left it.
            keys: of random numbers, one for each image of all views in their order; None switches
                dropout off.

        Returns:
            The scalar to differentiate, of which the step takes the mean over the devices; scalars
            to log, averaged alike; the updated running statistics.
        """

    def remember(
        self,
        memory: Any,
        terms: Mapping[str, Float[Array, ""]],
        counted: Array,
        epoch_ends: Array,
    ) -> Any:
        """Return the memory after a step.

        Args:
            memory: before it.
            terms: of the step's loss, averaged over the devices, with "total".
            counted: bool scalar; False where the step was skipped, since it was not finite.
            epoch_ends: bool scalar; whether it was the last step of an epoch.
        """

    def epoch_figures(self, memory: Any) -> dict[str, Float[Array, ""]]:
        """Return scalars to log at the end of an epoch, by name; {} for none."""

    def embed(
        self, variables: Variables, images: Float[Array, "b h w 3"], modality: Modality
    ) -> dict[str, Float[Array, "b _"]]:
        """Return each feature of normalised images of one modality, in rows of unit length."""


@runtime_checkable
class HasWarnings(Protocol):
    """What a method adds to be heard where training goes on and learns nothing."""

    def warnings(self, terms: Mapping[str, float]) -> dict[str, str]:
        """Return a sentence, by a name of its kind, for whatever a logged step's terms show.

        The log has each kind once, and once more after a resume.
        """


@runtime_checkable
class HasFeatureMap(Protocol):
    """What a method adds for the report to show which cells of an image make it like another."""

    def feature_map(
        self, variables: Variables, images: Float[Array, "b h w 3"], modality: Modality
    ) -> Float[Array, "b ho wo c"]:
        """Return the backbone's last feature map, in evaluation mode."""

    def embed_feature_map(
        self, variables: Variables, feature_map: Float[Array, "b h w c"]
    ) -> tuple[dict[str, Float[Array, "b _"]], dict[str, Array]]:
        """Return what `embed` makes of the map, and attention by name to show.

        `part_attention` [b, p, p] and `part_weights` [p] have panels in the report.
        """


@runtime_checkable
class HasBatchAttention(Protocol):
    """What a method adds for the report to show how images of a batch attend to each other."""

    def batch_attention(
        self, variables: Variables, views: tuple[View, ...]
    ) -> Float[Array, "k k"] | None:
        """Return the weights of all images of the views, rows of sum 1; None for none."""
