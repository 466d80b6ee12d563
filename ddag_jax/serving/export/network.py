"""One stream of a trained network as a few plain operations, batch normalisation folded.

The description is written once, here, and executed by two sets of operations: `stablehlo.py` on
JAX's arrays, `onnx.py` on the values of an ONNX graph. It shares no code with the Flax modules that
it describes, only their names and constants, so that a comparison with them says something.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from jaxtyping import Float32, Float64

from ddag_jax.config import BaselineConfig, DDAGConfig
from ddag_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD
from ddag_jax.methods.base import Modality, Variables
from ddag_jax.models.normalisation import BatchNorm
from ddag_jax.models.resnet import ARCHITECTURES, NON_LOCAL_BLOCKS, STRIDES

Value: TypeAlias = Any
"""An array of a backend. It has +, *, / and ** with a Value or a NumPy array of float32 on the
right, which broadcast as NumPy's do."""


class Operations(Protocol):
    """What a backend executes, in float32.

    `images` are NHWC. A `map` is the feature map of a batch in the layout that the backend prefers;
    only these operations read it, beside `+` of two maps. `cells` are its positions in row-major
    order, [b, n, c]. Arrays are NumPy's, of float32.
    """

    def to_float32(self, x: Value) -> Value:
        """Convert the numbers of an array of uint8."""

    def mirror(self, images: Value) -> Value:
        """Mirror images left-right."""

    def images_to_map(self, images: Value) -> Value:
        """Return images as a map of 3 channels."""

    def convolve(
        self,
        x: Value,
        kernel: Float32[np.ndarray, "k k c o"],
        bias: Float32[np.ndarray, " o"],
        stride: int,
    ) -> Value:
        """Convolve a map that is padded with k // 2 zeros on each side, and add the bias."""

    def max_pool(self, x: Value) -> Value:
        """Return the maxima of a map in windows of 3x3 at a stride of 2, with a padding of 1."""

    def relu(self, x: Value) -> Value:
        """Return max(x, 0) of a map."""

    def map_to_cells(self, x: Value) -> Value:
        """Return the cells of a map."""

    def cells_to_map(self, cells: Value, like: Value) -> Value:
        """Return the map of these cells, of the size of the map `like`."""

    def matmul(self, x: Value | np.ndarray, y: Value | np.ndarray) -> Value:
        """Return the matrix product of the last two axes, as NumPy's matmul."""

    def transpose(self, x: Value) -> Value:
        """Return [b, n, c] as [b, c, n]."""

    def flatten(self, x: Value) -> Value:
        """Return [b, n, c] as [b, n * c]."""

    def concatenate(self, values: Sequence[Value], axis: int) -> Value:
        """Join arrays, none of them a map, along an axis."""

    def halves(self, x: Value) -> tuple[Value, Value]:
        """Split [2 b, c] into the first and the last b rows."""

    def mean(self, x: Value) -> Value:
        """Return the mean of [b, n, c] over n."""

    def log_sum_exp(self, x: Value) -> Value:
        """Return log(sum(exp(x))) of [b, n, c] over n, whatever the size of x."""

    def softmax(self, x: Value) -> Value:
        """Return the softmax over the last axis."""

    def exp(self, x: Value) -> Value:
        """Return e**x."""

    def log(self, x: Value) -> Value:
        """Return the natural logarithm."""

    def maximum(self, x: Value, least: float) -> Value:
        """Return the greater of each element and a number."""

    def length(self, x: Value) -> Value:
        """Return the Euclidean length of the rows of [b, c], [b, 1]."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A module's parameters and running statistics; `weights["stem"]` is those of a submodule."""

    params: Mapping[str, Any]
    statistics: Mapping[str, Any]

    def __getitem__(self, name: str) -> "Weights":
        return Weights(self.params[name], self.statistics.get(name, {}))


@dataclasses.dataclass(frozen=True)
class Stream:
    """What one modality's images pass through, up to the feature."""

    model: DDAGConfig | BaselineConfig
    image_size: tuple[int, int]
    """Height and width in pixels."""
    variables: Variables
    """Of NumPy arrays."""
    modality: Modality
    features: tuple[str, ...]
    """Names of the method's features; several are put side by side (`concatenation`)."""
    flip: bool
    """Average a feature with the mirror image's."""

    @property
    def weights(self) -> Weights:
        """The whole network's."""
        return Weights(self.variables["params"], self.variables["batch_stats"])


def embed(ops: Operations, stream: Stream, images: Value) -> Value:
    """Return the feature of images, float32 [b, d] in rows of unit length.

    Args:
        ops: the backend.
        stream: whose images they are, and which feature.
        images: uint8 RGB [b, height, width, 3], not normalised.
    """
    mean, deviation = (255 * np.asarray(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    x = (ops.to_float32(images) + _array(-mean)) * _array(1 / deviation)
    if stream.flip:
        # One pass of a batch of twice the size, so that there is one copy of the weights.
        x = ops.concatenate([x, ops.mirror(x)], 0)
    cells, size = _backbone(ops, stream, ops.images_to_map(x))
    rows = [_unit_rows(ops, feature) for feature in _features(ops, stream, cells, size)]
    if stream.flip:
        rows = [_unit_rows(ops, one + other) for one, other in map(ops.halves, rows)]
    if len(rows) == 1:
        return rows[0]
    return ops.concatenate(rows, 1) * _array(len(rows) ** -0.5)


def _backbone(ops: Operations, stream: Stream, x: Value) -> tuple[Value, tuple[int, int]]:
    """Return the cells of the last feature map, and its height and width."""
    backbone = stream.weights["two_stream"]
    stem, stages = backbone[stream.modality], backbone["shared"]
    x = ops.max_pool(ops.relu(_convolve(ops, x, stem, "conv1", "bn1", 2)))
    size = _halved(_halved(stream.image_size))
    depths = ARCHITECTURES[stream.model.backbone].depths
    for number, (depth, stride, non_local) in enumerate(
        zip(depths, STRIDES, NON_LOCAL_BLOCKS, strict=True), 1
    ):
        size = _halved(size) if stride == 2 else size
        first = max(depth - non_local, 0)
        for block in range(depth):
            weights = stages[f"stage{number}_block{block}"]
            x = _residual_block(ops, x, weights, stride if block == 0 else 1)
            name = f"stage{number}_non_local{block - first}"
            if name in stages.params:
                x = _non_local(ops, x, stages[name], size[0] * size[1])
    return ops.map_to_cells(x), size


def _residual_block(ops: Operations, x: Value, block: Weights, stride: int) -> Value:
    """Two or three convolutions and a shortcut; the first 3x3 one has the stride."""
    count = sum(name.startswith("conv") for name in block.params)
    strided = {2: 1, 3: 2}[count]
    y = x
    for number in range(1, count + 1):
        names = f"conv{number}", f"bn{number}"
        y = _convolve(ops, y, block, *names, stride if number == strided else 1)
        if number < count:
            y = ops.relu(y)
    if "downsample_conv" in block.params:
        x = _convolve(ops, x, block, "downsample_conv", "downsample_bn", stride)
    return ops.relu(y + x)


def _non_local(ops: Operations, x: Value, block: Weights, positions: int) -> Value:
    cells = ops.map_to_cells(x)
    theta, phi, g = (_linear(ops, cells, block[name]) for name in ("theta", "phi", "g"))
    mean = ops.matmul(ops.transpose(phi), g) * _array(1 / positions)
    factor, shift = folded(block["bn"])
    kernel, bias = block["w"].params["kernel"] * factor, block["w"].params["bias"] * factor + shift
    y = ops.matmul(ops.matmul(theta, mean), _array(kernel)) + _array(bias)
    return x + ops.cells_to_map(y, x)


def _features(ops: Operations, stream: Stream, cells: Value, size: tuple[int, int]) -> list[Value]:
    """Return the features [b, d] that the stream names, before they are scaled to unit length."""
    weights = stream.weights
    pooled = _pool(ops, stream.model, weights, cells, size[0] * size[1])
    made: dict[str, Callable[[], Value]] = {
        "pooled": lambda: pooled,
        "global": lambda: _normalise(pooled, weights["neck"]),
        "part": lambda: _part_feature(ops, stream, cells, size, pooled),
    }
    return [made[name]() for name in stream.features]


def _pool(
    ops: Operations,
    model: DDAGConfig | BaselineConfig,
    weights: Weights,
    cells: Value,
    positions: int,
) -> Value:
    if model.pooling == "mean":
        return ops.mean(cells)
    if model.pooling == "gem":
        power = _array(model.gem_power)
        return (ops.mean(cells**power) + _array(1e-12)) ** _array(1 / model.gem_power)
    power = np.asarray(weights["pooling"].params["power"])
    logarithms = ops.log(ops.maximum(cells, 1e-6)) * _array(power)
    mean = ops.log_sum_exp(logarithms) + _array(-np.log(positions))
    return ops.exp(mean / _array(power))


def _part_feature(
    ops: Operations, stream: Stream, cells: Value, size: tuple[int, int], pooled: Value
) -> Value:
    """Return the feature of part attention (Eq. 2-5); the residual is of the whole map."""
    model, weights = stream.model, stream.weights
    assert isinstance(model, DDAGConfig)  # no other has such a feature
    attention, parts = weights["iwpa"], model.parts
    stripes = ops.matmul(_stripes(*size, parts), cells)
    u, v, z = (_linear(ops, stripes, attention[name]) for name in ("u", "v", "z"))
    refined = ops.matmul(ops.softmax(ops.matmul(u, ops.transpose(v))), z)
    if model.part_aggregation == "concatenation":
        copies = parts
    else:
        gate = np.zeros(parts)  # equal weights
        if model.part_aggregation == "weighted":
            gate = np.asarray(attention.params["gate"], np.float64)
        shares = np.exp(gate - gate.max())
        refined = ops.matmul(_array(shares / shares.sum())[None], refined)
        copies = 1
    feature = ops.flatten(refined)
    if model.part_residual != "none":
        added = pooled
        if model.part_residual == "bn":
            added = _normalise(pooled, weights["neck"])
        feature = feature + (ops.concatenate([added] * copies, 1) if copies > 1 else added)
    return _normalise(feature, attention["neck"]) if model.part_neck else feature


def _stripes(height: int, width: int, parts: int) -> Float32[np.ndarray, "p n"]:
    """Return the weights that average the n cells of a map in p horizontal stripes.

    Stripe i has the rows floor(i h / p) to ceil((i + 1) h / p) - 1, as in models/pooling.py.

    >>> _stripes(3, 1, 2).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    rows = np.zeros((parts, height))
    for part in range(parts):
        start, stop = part * height // parts, -((part + 1) * height // -parts)
        rows[part, start:stop] = 1 / (stop - start)
    return _array(rows.repeat(width, axis=1) / width)


def _unit_rows(ops: Operations, x: Value) -> Value:
    return x / ops.maximum(ops.length(x), 1e-12)


def folded(norm: Weights) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Return factor and shift of each channel: a batch normalisation in evaluation mode."""
    params = {name: np.asarray(value, np.float64) for name, value in norm.params.items()}
    mean, variance = (np.asarray(norm.statistics[name], np.float64) for name in ("mean", "var"))
    factor = params["scale"] / np.sqrt(variance + BatchNorm.epsilon)
    return factor, params.get("bias", 0) - mean * factor


def _convolve(
    ops: Operations, x: Value, block: Weights, convolution: str, norm: str, stride: int
) -> Value:
    """Convolve with a kernel that has the factors of the batch normalisation, and add its shift."""
    factor, shift = folded(block[norm])
    kernel = block[convolution].params["kernel"] * factor
    return ops.convolve(x, _array(kernel), _array(shift), stride)


def _normalise(x: Value, norm: Weights) -> Value:
    factor, shift = folded(norm)
    return x * _array(factor) + _array(shift)


def _linear(ops: Operations, x: Value, layer: Weights) -> Value:
    return ops.matmul(x, _array(layer.params["kernel"])) + _array(layer.params["bias"])


def _array(values: Any) -> Float32[np.ndarray, "..."]:
    return np.asarray(values, np.float32)


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of what a layer of stride 2 makes of a map."""
    return -(-size[0] // 2), -(-size[1] // 2)
