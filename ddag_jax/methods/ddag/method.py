"""DDAG behind the seam of methods/base.py."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypedDict, cast

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddag_jax.config import DDAGConfig
from ddag_jax.methods.base import Modality, Variables, View, by_modality
from ddag_jax.methods.ddag.losses import dynamic_graph_weight, loss_terms
from ddag_jax.methods.ddag.network import Network, TrainingOutput, dummy_inputs
from ddag_jax.methods.triplet import clamped_warnings


class Memory(TypedDict):
    """What the dynamic coefficient needs (Eq. 11)."""

    graph_weight: Float[Array, ""]
    """Coefficient of the graph loss in this epoch."""
    loss_sum: Float[Array, ""]
    """Sum of L_P over the counted steps of this epoch so far."""
    epoch_loss: Float[Array, ""]
    """Mean of L_P over the last whole epoch; 0 in the first."""
    steps_counted: Int[Array, ""]
    """Steps of this epoch that `loss_sum` holds."""


@dataclasses.dataclass(frozen=True)
class DDAG:
    """DDAG for `classes` training identities; `axis_name` is the device axis, if any."""

    config: DDAGConfig
    classes: int
    axis_name: str | None = None
    third_view: ClassVar[bool] = True

    @property
    def network(self) -> Network:
        """The Flax module."""
        return Network(self.config, self.classes, self.axis_name)

    @property
    def features(self) -> tuple[str, ...]:
        """`global` and, with part attention, `part`."""
        return ("global", "part") if self.config.part_attention else ("global",)

    def init(self, key: Key[Array, ""], image_size: tuple[int, int]) -> dict[str, Any]:
        """Return fresh variables. Both stems start equal, as they do with ImageNet weights."""
        # Shapes do not depend on the devices.
        single = self.network.clone(axis_name=None)
        variables = dict(single.init(key, *dummy_inputs(*image_size)))
        backbone = variables["params"]["two_stream"]
        backbone["infrared"] = backbone["visible"]
        return variables

    def memory(self) -> Memory:
        """Return the coefficient of the first epoch, 0 where it is dynamic, and empty sums."""
        zero = jnp.zeros(())
        return Memory(
            graph_weight=jnp.full((), self.config.graph_weight or 0.0, zero.dtype),
            loss_sum=zero,
            epoch_loss=zero,
            steps_counted=jnp.zeros((), jnp.int32),
        )

    def loss(
        self,
        variables: Variables,
        views: tuple[View, ...],
        memory: Memory,
        keys: Key[Array, " k"] | None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]], Any]:
        """Return L_P + w L_g (Eq. 11), its terms, and the new running statistics.

        L_P is over the images of all views; a second visible view has no nodes in the graph.
        """
        images = by_modality(views)
        output, changed = self.network.apply(
            variables, images.visible, images.infrared, images.labels, keys, mutable=["batch_stats"]
        )
        total, terms = self.output_loss(output, images.labels, images.is_visible, memory)
        return total, terms, changed["batch_stats"]

    def output_loss(
        self,
        output: TrainingOutput,
        labels: Int[Array, " k"],
        visible: Bool[Array, " k"],
        memory: Memory,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Return the loss of the network's output, visible images first, and its terms.

        `visible` is whether each image is visible. Override it to train the same network with
        another loss.
        """
        weight = memory["graph_weight"]
        return loss_terms(output, labels, visible, weight, self.config, self.axis_name)

    def warnings(self, terms: Mapping[str, float]) -> dict[str, str]:
        """Warn where most anchors of the squared triplet have no gradient."""
        return clamped_warnings(terms)

    def remember(
        self,
        memory: Memory,
        terms: Mapping[str, Float[Array, ""]],
        counted: Array,
        epoch_ends: Array,
    ) -> Memory:
        """Return the memory with this step's L_P; at the end of an epoch, the next coefficient."""
        steps_counted = memory["steps_counted"] + counted
        loss_sum = memory["loss_sum"] + jnp.where(counted, terms["without_graph"], 0)
        mean = loss_sum / jnp.maximum(steps_counted, 1)
        epoch_loss = jnp.where(epoch_ends, mean, memory["epoch_loss"])
        graph_weight = memory["graph_weight"]
        if self.config.graph_weight is None:
            graph_weight = jnp.where(epoch_ends, dynamic_graph_weight(epoch_loss), graph_weight)
        return Memory(
            graph_weight=graph_weight,
            loss_sum=jnp.where(epoch_ends, 0, loss_sum),
            epoch_loss=epoch_loss,
            steps_counted=jnp.where(epoch_ends, 0, steps_counted),
        )

    def epoch_figures(self, memory: Memory) -> dict[str, Float[Array, ""]]:
        """Return the mean of L_P over the epoch, and the next epoch's coefficient."""
        return {
            "loss_without_graph": memory["epoch_loss"],
            "next_graph_weight": memory["graph_weight"],
        }

    def embed(
        self, variables: Variables, images: Float[Array, "b h w 3"], modality: Modality
    ) -> dict[str, Float[Array, "b _"]]:
        """Return `global` and, with part attention, `part`, in rows of unit length."""
        features = self.network.apply(variables, images, modality, method="embed")
        return cast(dict[str, Array], features)

    def feature_map(
        self, variables: Variables, images: Float[Array, "b h w 3"], modality: Modality
    ) -> Float[Array, "b ho wo c"]:
        """Return the backbone's last feature map, in evaluation mode."""
        return cast(Array, self.network.apply(variables, images, modality, method="feature_map"))

    def embed_feature_map(
        self, variables: Variables, feature_map: Float[Array, "b h w c"]
    ) -> tuple[dict[str, Float[Array, "b _"]], dict[str, Array]]:
        """Return what `embed` makes of the map, and the attention between the parts."""
        features, sown = self.network.apply(
            variables, feature_map, method="embed_feature_map", mutable=["intermediates"]
        )
        attention = sown.get("intermediates", {}).get("iwpa", {})
        return features, {name: values[0] for name, values in attention.items()}

    def batch_attention(
        self, variables: Variables, views: tuple[View, ...]
    ) -> Float[Array, "k k"] | None:
        """Return the first graph layer's attention, the mean over its heads, without dropout.

        In training mode (the batch's own statistics), visible images before infrared ones.
        """
        if not self.config.graph_attention:
            return None
        visible, infrared = views
        labels = jnp.concatenate([visible.labels, infrared.labels])
        _, changed = self.network.apply(
            variables,
            visible.images,
            infrared.images,
            labels,
            None,
            mutable=["batch_stats", "intermediates"],
        )
        attention: Array = changed["intermediates"]["cgsa"]["heads"]["graph_attention"][0]
        return attention.mean(0)
