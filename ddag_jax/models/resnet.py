"""The residual stages of ResNet-50 and ResNet-18 (He et al., CVPR 2016)."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddag_jax.models.convolution import Conv
from ddag_jax.models.non_local import NonLocal, inner_width
from ddag_jax.models.normalisation import BatchNorm


class Bottleneck(nn.Module):
    """Block of 1x1, 3x3 and 1x1 convolutions with a shortcut; the 3x3 has the stride (torchvision).

    The output has 4 `width` channels. `dtype` is that of the convolutions and of the output.
    """

    width: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b ho wo o"]:
        features = 4 * self.width
        y = Conv(self.width, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(axis_name=self.axis_name, name="bn1")(y, train))
        y = Conv(self.width, 3, self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(BatchNorm(axis_name=self.axis_name, name="bn2")(y, train))
        y = Conv(features, 1, dtype=self.dtype, name="conv3")(y)
        y = BatchNorm(axis_name=self.axis_name, name="bn3")(y, train)
        return nn.relu(y + shortcut(x, features, self.stride, self.dtype, self.axis_name, train))


class BasicBlock(nn.Module):
    """Block of two 3x3 convolutions with a shortcut, the first with the stride.

    The output has `width` channels. `dtype` is that of the convolutions and of the output.
    """

    width: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b ho wo o"]:
        y = Conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(axis_name=self.axis_name, name="bn1")(y, train))
        y = Conv(self.width, 3, dtype=self.dtype, name="conv2")(y)
        y = BatchNorm(axis_name=self.axis_name, name="bn2")(y, train)
        return nn.relu(y + shortcut(x, self.width, self.stride, self.dtype, self.axis_name, train))


def shortcut(
    x: Float[Array, "b h w c"],
    features: int,
    stride: int,
    dtype: DTypeLike,
    axis_name: str | None,
    train: bool,
) -> Float[Array, "b ho wo o"]:
    """Return `x`, or its 1x1 projection where a block changes the shape.

    Call this in a block's compact method, which then has the projection's parameters.
    """
    if stride == 1 and x.shape[-1] == features:
        return x
    x = Conv(features, 1, stride, dtype=dtype, name="downsample_conv")(x)
    return BatchNorm(axis_name=axis_name, name="downsample_bn")(x, train)


class Architecture(NamedTuple):
    """A variant of ResNet."""

    block: Callable[..., nn.Module]
    depths: tuple[int, int, int, int]
    expansion: int
    """Ratio of a block's output channels to its width."""


ARCHITECTURES = {
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3), 4),
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2), 1),
}
NON_LOCAL_BLOCKS = (0, 2, 3, 0)
"""Non-local blocks of each stage in AGW: one after each of its last residual blocks."""
STRIDES = (1, 2, 2, 1)  # ResNet has 2 in the last stage; re-identification keeps the larger map


class Stages(nn.Module):
    """Residual stages 1 to 4, the last with stride 1: the map has 1/16 of the image's resolution.

    The output has 8 `width` times the architecture's expansion channels: 2048 for ResNet-50 with
    its width of 64. `non_local` adds AGW's non-local blocks, with an inner width of 1 ("one") or of
    half the channels ("half").
    """

    backbone: str = "resnet50"
    width: int = 64
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    non_local: str = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b ho wo o"]:
        block, depths, expansion = ARCHITECTURES[self.backbone]
        for stage, (depth, stride) in enumerate(zip(depths, STRIDES, strict=True)):
            for index in range(depth):
                x = block(
                    self.width * 2**stage,
                    stride if index == 0 else 1,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"stage{stage + 1}_block{index}",
                )(x, train)
                first = max(depth - NON_LOCAL_BLOCKS[stage], 0)
                if self.non_local != "none" and index >= first:
                    channels = self.width * 2**stage * expansion
                    x = NonLocal(
                        inner_width(self.non_local, channels),
                        dtype=self.dtype,
                        axis_name=self.axis_name,
                        name=f"stage{stage + 1}_non_local{index - first}",
                    )(x, train)
        return x
