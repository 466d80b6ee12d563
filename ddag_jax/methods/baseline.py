"""One pooled feature, identity and triplet loss: the baseline B, AGW and CAJ, by configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddag_jax.config import BaselineConfig
from ddag_jax.losses import cross_entropy
from ddag_jax.methods.base import Modality, Variables, View, by_modality
from ddag_jax.methods.triplet import clamped_warnings, triplet_terms
from ddag_jax.models.classifier import Classifier, neck_scale, unit_rows
from ddag_jax.models.normalisation import BatchNorm
from ddag_jax.models.pooling import Pooling
from ddag_jax.models.precision import network_dtype
from ddag_jax.models.two_stream import TwoStream


class Network(nn.Module):
    """Two-stream backbone, pooling, a neck, a classifier."""

    config: BaselineConfig
    classes: int
    axis_name: str | None = None

    def setup(self) -> None:
        config, dtype = self.config, network_dtype(self.config.compute_dtype)
        self.two_stream = TwoStream(
            config.backbone, config.width, dtype, self.axis_name, config.non_local
        )
        self.pooling = Pooling(config.pooling, config.gem_power)
        self.neck = BatchNorm(use_bias=False, scale_init=neck_scale, axis_name=self.axis_name)
        self.classifier = Classifier(self.classes, dtype)

    def __call__(
        self, visible: Float[Array, "v h w 3"], infrared: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "k c"], Float[Array, "k y"]]:
        """Return pooled features and logits in training mode, visible images first."""
        pooled = self.pooling(self.two_stream(visible, infrared, True))
        return pooled, self.classifier(self.neck(pooled, True))

    def feature_map(
        self, images: Float[Array, "b h w 3"], modality: str
    ) -> Float[Array, "b ho wo c"]:
        """Return the backbone's last feature map in evaluation mode."""
        return self.two_stream.one_stream(images, modality)

    def embed_feature_map(
        self, feature_map: Float[Array, "b ho wo c"]
    ) -> dict[str, Float[Array, "b c"]]:
        """Return `pooled` and `global`, the neck's input and output, in rows of unit length."""
        pooled = self.pooling(feature_map)
        return {"pooled": unit_rows(pooled), "global": unit_rows(self.neck(pooled, False))}

    def embed(
        self, images: Float[Array, "b h w 3"], modality: str
    ) -> dict[str, Float[Array, "b c"]]:
        """Return the features of images that are all "visible" or all "infrared"."""
        return self.embed_feature_map(self.feature_map(images, modality))


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The baseline for `classes` training identities; `axis_name` is the device axis, if any."""

    config: BaselineConfig
    classes: int
    axis_name: str | None = None
    third_view: ClassVar[bool] = True

    @property
    def network(self) -> Network:
        """The Flax module."""
        return Network(self.config, self.classes, self.axis_name)

    @property
    def features(self) -> tuple[str, ...]:
        """`pooled` and `global`, which is the published one."""
        return ("pooled", "global")

    def init(self, key: Key[Array, ""], image_size: tuple[int, int]) -> dict[str, Any]:
        """Return fresh variables. Both stems start equal, as they do with ImageNet weights."""
        # Shapes do not depend on the devices.
        single = self.network.clone(axis_name=None)
        images = jnp.zeros((1, *image_size, 3))
        variables = dict(single.init(key, images, images))
        backbone = variables["params"]["two_stream"]
        backbone["infrared"] = backbone["visible"]
        return variables

    def memory(self) -> tuple[()]:
        """Return (): nothing is carried between steps."""
        return ()

    def loss(
        self,
        variables: Variables,
        views: tuple[View, ...],
        memory: tuple[()],
        keys: Key[Array, " k"] | None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]], Any]:
        """Return L_b, the sum of `identity` and `triplet` over the images of all views."""
        images = by_modality(views)
        (pooled, logits), changed = self.network.apply(
            variables, images.visible, images.infrared, mutable=["batch_stats"]
        )
        total, terms = self.output_loss(pooled, logits, images.labels, images.is_visible)
        return total, terms, changed["batch_stats"]

    def output_loss(
        self,
        pooled: Float[Array, "k c"],
        logits: Float[Array, "k y"],
        labels: Int[Array, " k"],
        visible: Bool[Array, " k"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Return the loss of the network's output, visible images first, and its terms.

        `visible` is whether each image is visible. Override it to train the same network with
        another loss.
        """
        identity = cross_entropy(logits, labels)
        triplet = triplet_terms(self.config, pooled, labels, visible, self.axis_name)
        return identity + triplet["triplet"], {"identity": identity, **triplet}

    def warnings(self, terms: Mapping[str, float]) -> dict[str, str]:
        """Warn where most anchors of the squared triplet have no gradient."""
        return clamped_warnings(terms)

    def remember(
        self,
        memory: tuple[()],
        terms: Mapping[str, Float[Array, ""]],
        counted: Array,
        epoch_ends: Array,
    ) -> tuple[()]:
        """Return ()."""
        return memory

    def epoch_figures(self, memory: tuple[()]) -> dict[str, Float[Array, ""]]:
        """Return {}."""
        return {}

    def embed(
        self, variables: Variables, images: Float[Array, "b h w 3"], modality: Modality
    ) -> dict[str, Float[Array, "b _"]]:
        """Return `pooled` and `global`, in rows of unit length."""
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
        """Return what `embed` makes of the map; there is no attention to show."""
        features = self.network.apply(variables, feature_map, method="embed_feature_map")
        return cast(dict[str, Array], features), {}
