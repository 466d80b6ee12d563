"""DDAG's network: the two-stream backbone with part attention (P) and graph attention (G)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddag_jax.config import DDAGConfig
from ddag_jax.methods.ddag.graph_attention import GraphAttention
from ddag_jax.methods.ddag.part_attention import PartAttention
from ddag_jax.models.classifier import Classifier, neck_scale, unit_rows
from ddag_jax.models.normalisation import BatchNorm
from ddag_jax.models.pooling import Pooling
from ddag_jax.models.precision import network_dtype
from ddag_jax.models.two_stream import TwoStream


class TrainingOutput(NamedTuple):
    """What the network returns in training mode; None for a branch that is off."""

    pooled: Float[Array, "k c"]
    """Pooled backbone feature before the neck, which triplet loss and graph read."""
    global_logits: Float[Array, "k y"]
    part_logits: Float[Array, "k y"] | None
    graph_log_probs: Float[Array, "k y"] | None


class Network(nn.Module):
    """The network of section 3.

    Parameters, statistics, softmaxes and outputs are at least float32. `axis_name` is the device
    axis that batch statistics span.
    """

    config: DDAGConfig
    classes: int
    axis_name: str | None = None

    def setup(self) -> None:
        config, axis_name = self.config, self.axis_name
        dtype = network_dtype(config.compute_dtype)
        self.two_stream = TwoStream(config.backbone, config.width, dtype, axis_name)
        self.pooling = Pooling(config.pooling, config.gem_power)
        self.neck = BatchNorm(use_bias=False, scale_init=neck_scale, axis_name=axis_name)
        self.classifier = Classifier(self.classes, dtype)
        # The names of the parameters are those of the paper, as checkpoints have them.
        if config.part_attention:
            self.part_attention = PartAttention(
                config.parts,
                config.part_aggregation,
                config.part_residual,
                config.part_neck,
                dtype,
                axis_name,
                name="iwpa",
            )
            if config.part_aggregation == "concatenation":  # parts * c wide: it cannot be shared
                self.part_classifier = Classifier(self.classes, dtype)
        if config.graph_attention:
            self.graph_attention = GraphAttention(
                self.classes,
                config.graph_heads,
                config.graph_head_dim,
                config.graph_dropout,
                config.graph_neighbours,
                dtype,
                name="cgsa",
            )

    def _features(
        self, feature_map: Float[Array, "b h w c"], train: bool
    ) -> tuple[Array, Array, Array | None]:
        """Return the pooled feature x°, the global feature, the part feature."""
        pooled = self.pooling(feature_map)
        normalised = self.neck(pooled, train)
        if not self.config.part_attention:
            return pooled, normalised, None
        return pooled, normalised, self.part_attention(feature_map, pooled, normalised, train)

    def __call__(
        self,
        visible: Float[Array, "v h w 3"],
        infrared: Float[Array, "b h w 3"],
        labels: Int[Array, " k"],
        keys: Key[Array, " k"] | None,
    ) -> TrainingOutput:
        """Return what the losses read, in training mode; updates the collection `batch_stats`.

        `labels` and `keys` (for dropout; None switches it off) list the visible images first, then
        the infrared ones. The graph's nodes are the first b visible images and the infrared ones.
        """
        pooled, normalised, part = self._features(self.two_stream(visible, infrared, True), True)
        part_logits = graph = None
        if part is not None:
            shared = self.config.part_aggregation != "concatenation"
            part_logits = (self.classifier if shared else self.part_classifier)(part)
        if self.config.graph_attention:
            nodes, b = (pooled, labels, keys), len(infrared)
            if len(visible) > b:  # a second visible view
                nodes = jax.tree.map(lambda x: jnp.concatenate([x[:b], x[-b:]]), nodes)
            graph = self.graph_attention(*nodes)
        return TrainingOutput(pooled, self.classifier(normalised), part_logits, graph)

    def feature_map(
        self, images: Float[Array, "b h w 3"], modality: str
    ) -> Float[Array, "b ho wo c"]:
        """Return the backbone's last feature map in evaluation mode."""
        return self.two_stream.one_stream(images, modality)

    def embed_feature_map(
        self, feature_map: Float[Array, "b ho wo c"]
    ) -> dict[str, Float[Array, "b _"]]:
        """Return the features `global` and, with part attention, `part` (section 4.1).

        Rows are of unit length; `part` has c channels, or parts * c with concatenation.
        """
        _, normalised, part = self._features(feature_map, False)
        features = {"global": unit_rows(normalised)}
        if part is not None:
            features["part"] = unit_rows(part)
        return features

    def embed(self, images: Float[Array, "b h w 3"], modality: str) -> dict[str, Array]:
        """Return the features of images that are all "visible" or all "infrared"."""
        return self.embed_feature_map(self.feature_map(images, modality))


def dummy_inputs(height: int, width: int) -> tuple[Array, Array, Array, None]:
    """Return arguments of the call, of one image a modality, to initialise the network with."""
    images = jnp.zeros((1, height, width, 3))
    return images, images, jnp.zeros(2, jnp.int32), None
