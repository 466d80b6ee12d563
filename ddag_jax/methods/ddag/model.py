"""DDAG assembled: what it gives in training, and the embeddings it gives at test time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from ddag_jax.methods.ddag.graph_attention import GraphAttention
from ddag_jax.methods.ddag.part_attention import PartAttention, neck_scale
from ddag_jax.models.normalisation import BatchNorm
from ddag_jax.models.precision import at_least_float32
from ddag_jax.models.two_stream import TwoStream
from ddag_jax.types import Embeddings, TrainingOutput


class Classifier(nn.Module):
    """Linear, without bias, drawn from N(0, 0.001)."""

    classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b y"]:
        wide = at_least_float32(self.dtype)
        kernel = self.param(
            "kernel", nn.initializers.normal(0.001), (x.shape[-1], self.classes), wide
        )
        return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=wide)


class DDAG(nn.Module):
    """The network. With `part_attention` and `graph_attention` off it is the baseline B.

    `dtype` is that of convolutions and matrix products; parameters, statistics, softmaxes and
    outputs are at least float32. `axis_name` is the device axis that batch statistics span.
    """

    classes: int
    backbone: str = "resnet50"
    width: int = 64
    part_attention: bool = True
    parts: int = 3
    part_aggregation: str = "weighted"
    part_residual: str = "bn"
    part_neck: bool = True
    graph_attention: bool = True
    graph_heads: int = 4
    graph_head_dim: int = 512
    graph_dropout: float = 0.2
    graph_neighbours: int | None = None
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        self.two_stream = TwoStream(self.backbone, self.width, self.dtype, self.axis_name)
        self.neck = BatchNorm(use_bias=False, scale_init=neck_scale, axis_name=self.axis_name)
        self.classifier = Classifier(self.classes, self.dtype)
        if self.part_attention:
            self.iwpa = PartAttention(
                self.parts,
                self.part_aggregation,
                self.part_residual,
                self.part_neck,
                self.dtype,
                self.axis_name,
            )
            if self.part_aggregation == "concatenation":  # parts * c wide: it cannot be shared
                self.part_classifier = Classifier(self.classes, self.dtype)
        if self.graph_attention:
            self.cgsa = GraphAttention(
                self.classes,
                self.graph_heads,
                self.graph_head_dim,
                self.graph_dropout,
                self.graph_neighbours,
                self.dtype,
            )

    def _features(
        self, feature_map: Float[Array, "b h w c"], train: bool
    ) -> tuple[Array, Array, Array | None]:
        """Pooled feature x°, global feature, part feature."""
        pooled = feature_map.astype(at_least_float32(self.dtype)).mean((1, 2))
        normalised = self.neck(pooled, train)
        part = self.iwpa(feature_map, pooled, normalised, train) if self.part_attention else None
        return pooled, normalised, part

    def __call__(
        self,
        visible: Float[Array, "b h w 3"],
        infrared: Float[Array, "b h w 3"],
        labels: Int[Array, " k"],
        keys: Key[Array, " k"] | None,
    ) -> TrainingOutput:
        """Training mode. `labels` and `keys` (for dropout; None switches it off) list the visible
        images first, then the infrared. Updates the collection `batch_stats`."""
        pooled, normalised, part = self._features(self.two_stream(visible, infrared, True), True)
        part_logits = graph = None
        if part is not None:
            shared = self.part_aggregation != "concatenation"
            part_logits = (self.classifier if shared else self.part_classifier)(part)
        if self.graph_attention:
            graph = self.cgsa(pooled, labels, keys)
        return TrainingOutput(pooled, self.classifier(normalised), part_logits, graph)

    def embed(self, images: Float[Array, "b h w 3"], modality: str) -> Embeddings:
        """Evaluation mode (section 4.1): `images` all "visible" or all "infrared"."""
        return self.embed_feature_map(self.feature_map(images, modality))

    def feature_map(
        self, images: Float[Array, "b h w 3"], modality: str
    ) -> Float[Array, "b ho wo c"]:
        """The first half of `embed`: the backbone's last feature map."""
        return self.two_stream.one_stream(images, modality)

    def embed_feature_map(self, feature_map: Float[Array, "b ho wo c"]) -> Embeddings:
        """The second half of `embed`, apart so that a picture can have the gradient in between."""
        _, normalised, part = self._features(feature_map, False)
        return Embeddings(unit(normalised), None if part is None else unit(part))


def unit(x: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """Rows scaled to unit length; a row shorter than 1e-12 is left as short as it is."""
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
    return x / jnp.maximum(norm, 1e-12)


def initialise(model: DDAG, key: Key[Array, ""], height: int, width: int) -> dict:
    """Fresh variables {"params", "batch_stats"} for images of `height` x `width` pixels.

    Both stems start equal, as they do with ImageNet weights.
    """
    single = model.clone(axis_name=None)  # shapes do not depend on the devices
    images = jnp.zeros((1, height, width, 3), single.dtype)
    labels = jnp.zeros(2, jnp.int32)

    def draw(key: Key[Array, ""]) -> dict:
        variables = dict(single.init(key, images, images, labels, None))
        backbone = variables["params"]["two_stream"]
        backbone["infrared"] = backbone["visible"]
        return variables

    return jax.jit(draw)(key)
