"""The residual stages of ResNet-50 and ResNet-18 that both modalities share (section 3.1)."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddag_jax.models.convolution import Conv
from ddag_jax.models.normalisation import BatchNorm


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the stride sits on the 3x3 (torchvision)."""

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
    """Two 3x3 convolutions around a shortcut."""

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
    """`x` itself, or its 1x1 projection where the block changes its shape.

    To be called inside a block's compact method: the projection's parameters are the block's.
    """
    if stride == 1 and x.shape[-1] == features:
        return x
    x = Conv(features, 1, stride, dtype=dtype, name="downsample_conv")(x)
    return BatchNorm(axis_name=axis_name, name="downsample_bn")(x, train)


class Architecture(NamedTuple):
    """What tells one ResNet from another."""

    block: Callable[..., nn.Module]
    depths: tuple[int, int, int, int]
    expansion: int
    """Output channels of a block over its width."""


ARCHITECTURES = {
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3), 4),
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2), 1),
}
STRIDES = (1, 2, 2, 1)  # ResNet's last stride is 2; re-identification keeps the larger map


class Stages(nn.Module):
    """Residual stages 1-4; the last one keeps its resolution, so the map is 1/16 of the image."""

    backbone: str = "resnet50"
    width: int = 64
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b ho wo o"]:
        block, depths, _ = ARCHITECTURES[self.backbone]
        for stage, (depth, stride) in enumerate(zip(depths, STRIDES, strict=True)):
            for index in range(depth):
                x = block(
                    self.width * 2**stage,
                    stride if index == 0 else 1,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"stage{stage + 1}_block{index}",
                )(x, train)
        return x
