"""Which PyTorch key holds which of our variables, as a table: no torch here.

A row names one of our variables by its path, the keys it is made of, and the axes' order. A layout
is all the keys of a state dict, those that no row takes as well.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ddag_jax.models.resnet import ARCHITECTURES, Architecture

Path = tuple[str, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our variables and where PyTorch keeps it."""

    path: Path
    """In {"params": …, "batch_stats": …}."""
    keys: tuple[str, ...]
    """Several where we stack what PyTorch keeps apart (the heads of the graph attention)."""
    axes: tuple[int, ...] | None = None
    """Transposition from PyTorch's layout to ours; None leaves it."""
    stacked: bool = False
    squeeze: bool = False
    """PyTorch has a 1x1 convolution where we have a matrix: [o, i, 1, 1] and [i, o]."""

    def to_ours(self, state_dict: Mapping[str, np.ndarray]) -> np.ndarray:
        """Our array from PyTorch's, in its own dtype."""
        arrays = [np.asarray(state_dict[key]) for key in self.keys]
        if self.squeeze:
            arrays = [array[:, :, 0, 0] for array in arrays]
        if self.axes is not None:
            arrays = [array.transpose(self.axes) for array in arrays]
        return np.stack(arrays) if self.stacked else arrays[0]

    def to_pytorch(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """PyTorch's arrays from ours: the inverse of `to_ours`."""
        arrays = list(array) if self.stacked else [array]
        if self.axes is not None:
            inverse = tuple(np.argsort(self.axes))
            arrays = [one.transpose(inverse) for one in arrays]
        if self.squeeze:
            arrays = [one[:, :, None, None] for one in arrays]
        return {key: np.ascontiguousarray(one) for key, one in zip(self.keys, arrays, strict=True)}


_OIHW_TO_HWIO = (2, 3, 1, 0)


def _convolution(path: Path, key: str) -> Row:
    return Row(("params", *path, "kernel"), (f"{key}.weight",), _OIHW_TO_HWIO)


def _normalisation(path: Path, key: str, bias: bool = True) -> list[Row]:
    rows = [Row(("params", *path, "scale"), (f"{key}.weight",))]
    if bias:
        rows.append(Row(("params", *path, "bias"), (f"{key}.bias",)))
    return [
        *rows,
        Row(("batch_stats", *path, "mean"), (f"{key}.running_mean",)),
        Row(("batch_stats", *path, "var"), (f"{key}.running_var",)),
    ]


def stem_rows(stream: str, prefix: str) -> list[Row]:
    """A stem: `stream` is "visible" or "infrared", `prefix` what PyTorch puts before `conv1`."""
    path: Path = ("two_stream", stream)
    return [
        _convolution((*path, "conv1"), f"{prefix}conv1"),
        *_normalisation((*path, "bn1"), f"{prefix}bn1"),
    ]


def stage_rows(backbone: str, prefix: str) -> list[Row]:
    """The shared stages: `prefix` is what PyTorch puts before `layer1`."""
    architecture: Architecture = ARCHITECTURES[backbone]
    convolutions = 3 if backbone == "resnet50" else 2
    rows = []
    for stage, depth in enumerate(architecture.depths):
        for block in range(depth):
            path: Path = ("two_stream", "shared", f"stage{stage + 1}_block{block}")
            key = f"{prefix}layer{stage + 1}.{block}"
            for i in range(1, convolutions + 1):
                rows.append(_convolution((*path, f"conv{i}"), f"{key}.conv{i}"))
                rows.extend(_normalisation((*path, f"bn{i}"), f"{key}.bn{i}"))
            projected = stage > 0 or architecture.expansion > 1
            if block == 0 and projected:
                rows.append(_convolution((*path, "downsample_conv"), f"{key}.downsample.0"))
                rows.extend(_normalisation((*path, "downsample_bn"), f"{key}.downsample.1"))
    return rows


def reference_rows(heads: int) -> list[Row]:
    """The whole of B+P+G as the PyTorch reference names it, with `heads` graph heads."""
    rows = [
        *stem_rows("visible", "visible_module.visible."),
        *stem_rows("infrared", "thermal_module.thermal."),
        *stage_rows("resnet50", "base_resnet.base."),
        *_normalisation(("neck",), "bottleneck", bias=False),
        Row(("params", "classifier", "kernel"), ("classifier.weight",), (1, 0)),
        Row(("params", "iwpa", "gate"), ("wpa.gate",)),
        *_normalisation(("iwpa", "neck"), "wpa.bottleneck", bias=False),
    ]
    for ours, theirs in (("u", "wpa.fc1.0"), ("v", "wpa.fc2"), ("z", "wpa.fc3")):
        path: Path = ("params", "iwpa", ours)
        rows.append(Row((*path, "kernel"), (f"{theirs}.weight",), (1, 0), squeeze=True))
        rows.append(Row((*path, "bias"), (f"{theirs}.bias",)))
    for ours, attentions in (
        ("heads", [f"attention_{i}" for i in range(heads)]),
        ("output", ["out_att"]),
    ):
        for variable, letter in (("kernel", "W"), ("a", "a")):
            keys = tuple(f"{attention}.{letter}" for attention in attentions)
            rows.append(Row(("params", "cgsa", ours, variable), keys, stacked=True))
    return rows


def to_variables(state_dict: Mapping[str, np.ndarray], rows: Sequence[Row]) -> dict:
    """Our nested variables, {"params": …, "batch_stats": …}, from PyTorch's arrays."""
    variables: dict = {}
    for row in rows:
        level = variables
        for name in row.path[:-1]:
            level = level.setdefault(name, {})
        level[row.path[-1]] = row.to_ours(state_dict)
    return variables


def to_state_dict(variables: Mapping, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """PyTorch's arrays from our variables; rows whose variable is not there are left out."""
    state_dict = {}
    for row in rows:
        level: Any = variables
        for name in row.path:
            level = level.get(name, {})
        if not isinstance(level, Mapping):
            state_dict.update(row.to_pytorch(np.asarray(level)))
    return state_dict


class _HasShape(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """What may differ between two networks of the reference; the defaults are its own."""

    classes: int = 395
    parts: int = 3
    heads: int = 4
    head_dim: int = 512

    @classmethod
    def of(cls, state_dict: Mapping[str, _HasShape]) -> "Dimensions":
        """Those of a state dict, by its shapes; the default where a key is not there."""

        def size(key: str, axis: int, default: int) -> int:
            shape = state_dict[key].shape if key in state_dict else ()
            return shape[axis] if len(shape) > axis else default

        heads = sum(key.startswith("attention_") and key.endswith(".W") for key in state_dict)
        return cls(
            classes=size("classifier.weight", 0, cls.classes),
            parts=size("wpa.gate", 0, cls.parts),
            heads=heads or cls.heads,
            head_dim=size("attention_0.W", 1, cls.head_dim),
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """All that a state dict may hold."""

    rows: tuple[Row, ...]
    shapes: dict[str, Shape]
    """Of every key in PyTorch's layout; of those that `ignored` names, where it is known."""
    ignored: dict[str, str]
    """Why a key goes nowhere, by key."""
    zeros: tuple[str, ...] = ()
    """Keys that are read and must be zero, for we have no variable there."""

    @property
    def mapped(self) -> tuple[str, ...]:
        """The keys that our variables are made of."""
        return tuple(key for row in self.rows for key in row.keys)


_COUNTER = "counts steps, which a fixed momentum does not read"


def torchvision_layout(backbone: str) -> Layout:
    """An ImageNet ResNet's state dict, as torchvision and timm name it, for both our stems."""
    shapes = resnet_shapes(backbone)
    ignored = {key: _COUNTER for key in shapes if _counts(key)}
    ignored |= dict.fromkeys(("fc.weight", "fc.bias"), "ImageNet's classes")
    rows = [*stem_rows("visible", ""), *stem_rows("infrared", ""), *stage_rows(backbone, "")]
    return Layout(tuple(rows), shapes, ignored)


def reference_layout(dimensions: Dimensions) -> Layout:
    """The reference's state dict; 991 keys with its four heads."""
    classes, heads, head_dim = dimensions.classes, dimensions.heads, dimensions.head_dim
    shapes: dict[str, Shape] = {}
    ignored: dict[str, str] = {}
    for prefix, used in (
        ("visible_module.visible.", "stem"),
        ("thermal_module.thermal.", "stem"),
        ("base_resnet.base.", "stages"),
    ):
        for key, shape in resnet_shapes("resnet50").items():
            shapes[prefix + key] = shape
            if ("stages" if key.startswith("layer") else "stem") != used:
                ignored[prefix + key] = f"of this ResNet-50 the network uses only the {used}"
    channels = 2048
    matrix = (channels, channels, 1, 1)
    shapes |= _normalisation_shapes("bottleneck", channels)
    shapes["classifier.weight"] = (classes, channels)
    for key in ("classifier1.weight", "classifier2.weight"):
        shapes[key] = (classes, channels)
        ignored[key] = "a classifier that is never called"
    shapes["wpa.gate"] = (dimensions.parts,)
    for key in ("wpa.fc1.0", "wpa.fc2", "wpa.fc3", "wpa.W.0"):
        shapes |= {f"{key}.weight": matrix, f"{key}.bias": (channels,)}
    shapes |= _normalisation_shapes("wpa.W.1", channels)
    shapes |= _normalisation_shapes("wpa.bottleneck", channels)
    for key in shapes:
        if key.startswith("wpa.W."):
            ignored[key] = "a layer that is never called"
    for head in range(heads):
        shapes[f"attention_{head}.W"] = (channels, head_dim)
        shapes[f"attention_{head}.a"] = (2 * head_dim, 1)
    shapes["out_att.W"], shapes["out_att.a"] = (heads * head_dim, classes), (2 * classes, 1)
    ignored = {key: _COUNTER for key in shapes if _counts(key)} | ignored
    zeros = ("bottleneck.bias", "wpa.bottleneck.bias")
    ignored |= dict.fromkeys(zeros, "zero, and never trained")
    return Layout(tuple(reference_rows(heads)), shapes, ignored, zeros)


def _counts(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def resnet_shapes(backbone: str) -> dict[str, Shape]:
    """Shapes of the state dict of a ResNet without its `fc`."""
    architecture = ARCHITECTURES[backbone]
    shapes: dict[str, Shape] = {}

    def layer(convolution: str, normalisation: str, outputs: int, inputs: int, size: int) -> None:
        shapes[f"{convolution}.weight"] = (outputs, inputs, size, size)
        shapes.update(_normalisation_shapes(normalisation, outputs))

    layer("conv1", "bn1", 64, 3, 7)
    channels = 64
    for stage, depth in enumerate(architecture.depths):
        width = 64 * 2**stage
        outputs = width * architecture.expansion
        bottleneck = backbone == "resnet50"
        layers = [(width, 1), (width, 3), (outputs, 1)] if bottleneck else [(width, 3)] * 2
        for block in range(depth):
            key = f"layer{stage + 1}.{block}"
            inputs = channels
            for i, (features, size) in enumerate(layers, 1):
                layer(f"{key}.conv{i}", f"{key}.bn{i}", features, inputs, size)
                inputs = features
            if channels != outputs:
                layer(f"{key}.downsample.0", f"{key}.downsample.1", outputs, channels, 1)
            channels = outputs
    return shapes


def _normalisation_shapes(key: str, channels: int) -> dict[str, Shape]:
    variables = ("weight", "bias", "running_mean", "running_var")
    shapes: dict[str, Shape] = {f"{key}.{variable}": (channels,) for variable in variables}
    return {**shapes, f"{key}.num_batches_tracked": ()}
