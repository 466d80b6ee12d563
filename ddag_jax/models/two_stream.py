"""The two-stream backbone (section 3.1): a stem of its own for each modality, shared stages."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddag_jax.models.convolution import Conv
from ddag_jax.models.normalisation import BatchNorm
from ddag_jax.models.pooling import max_pool_3x3_2
from ddag_jax.models.resnet import Stages

BACKBONE = "two_stream"
"""Name of this module in every network of ours: of its parameters and statistics."""


class Stem(nn.Module):
    """Stem of one modality: 7x7/2 convolution, batch normalisation, ReLU, 3x3/2 max-pool.

    The output has `width` channels and a quarter of the image's resolution.
    """

    width: int = 64
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"], train: bool) -> Float[Array, "b ho wo c"]:
        x = Conv(self.width, 7, 2, dtype=self.dtype, name="conv1")(x)
        return max_pool_3x3_2(nn.relu(BatchNorm(axis_name=self.axis_name, name="bn1")(x, train)))


class TwoStream(nn.Module):
    """A stem for each modality, and residual stages that both share; `non_local` as in `Stages`."""

    backbone: str = "resnet50"
    width: int = 64
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    non_local: str = "none"

    def setup(self) -> None:
        self.visible = Stem(self.width, self.dtype, self.axis_name)
        self.infrared = Stem(self.width, self.dtype, self.axis_name)
        self.shared = Stages(self.backbone, self.width, self.dtype, self.axis_name, self.non_local)

    def __call__(
        self, visible: Float[Array, "v h w 3"], infrared: Float[Array, "b h w 3"], train: bool
    ) -> Float[Array, "k ho wo c"]:
        """Return the feature maps of both modalities, visible first.

        The shared stages process them as one batch, so that batch statistics cover both. `train`
        chooses between statistics of the batch and running ones.
        """
        stems = [self.visible(visible, train), self.infrared(infrared, train)]
        return self.shared(jnp.concatenate(stems), train)

    def one_stream(
        self, images: Float[Array, "b h w 3"], modality: str
    ) -> Float[Array, "b ho wo c"]:
        """Return feature maps in evaluation mode; all images are "visible" or all "infrared"."""
        stem = {"visible": self.visible, "infrared": self.infrared}[modality]
        return self.shared(stem(images, False), False)
