"""Tables that map PyTorch keys to our variables; torch is not imported.

A `KeyMapping` gives the path of one of our variables, the PyTorch keys that it is made of and the
order of axes. A `KeyTable` describes all keys of a state dict, including those that are not mapped.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ddag_jax.models.non_local import inner_width
from ddag_jax.models.resnet import ARCHITECTURES, NON_LOCAL_BLOCKS, Architecture

Path = tuple[str, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class KeyMapping:
    """One of our variables and its PyTorch keys."""

    path: Path
    """Path in {"params": …, "batch_stats": …}."""
    keys: tuple[str, ...]
    """Several if we stack arrays that PyTorch keeps separately (heads of the graph attention)."""
    axes: tuple[int, ...] | None = None
    """Transposition from PyTorch's axes to ours; None if they are the same."""
    stacked: bool = False
    """Whether our variable stacks the arrays of all keys along a new first axis."""
    squeeze: bool = False
    """Whether PyTorch has a 1x1 convolution, [o, i, 1, 1], in place of our matrix."""

    def from_pytorch(self, state_dict: Mapping[str, np.ndarray]) -> np.ndarray:
        """Convert PyTorch's arrays to ours, in the same dtype."""
        arrays = [np.asarray(state_dict[key]) for key in self.keys]
        if self.squeeze:
            arrays = [array[:, :, 0, 0] for array in arrays]
        if self.axes is not None:
            arrays = [array.transpose(self.axes) for array in arrays]
        return np.stack(arrays) if self.stacked else arrays[0]

    def to_pytorch(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Convert our array to PyTorch's: the inverse of `from_pytorch`."""
        arrays = list(array) if self.stacked else [array]
        if self.axes is not None:
            inverse = tuple(np.argsort(self.axes))
            arrays = [one.transpose(inverse) for one in arrays]
        if self.squeeze:
            arrays = [one[:, :, None, None] for one in arrays]
        return {key: np.ascontiguousarray(one) for key, one in zip(self.keys, arrays, strict=True)}


_OIHW_TO_HWIO = (2, 3, 1, 0)


def _convolution(path: Path, key: str) -> KeyMapping:
    return KeyMapping(("params", *path, "kernel"), (f"{key}.weight",), _OIHW_TO_HWIO)


def _normalisation(path: Path, key: str, bias: bool = True) -> list[KeyMapping]:
    mappings = [KeyMapping(("params", *path, "scale"), (f"{key}.weight",))]
    if bias:
        mappings.append(KeyMapping(("params", *path, "bias"), (f"{key}.bias",)))
    return [
        *mappings,
        KeyMapping(("batch_stats", *path, "mean"), (f"{key}.running_mean",)),
        KeyMapping(("batch_stats", *path, "var"), (f"{key}.running_var",)),
    ]


def stem_mappings(stream: str, prefix: str) -> list[KeyMapping]:
    """Map a stem: `stream` is "visible" or "infrared", `prefix` comes before `conv1` in keys."""
    path: Path = ("two_stream", stream)
    return [
        _convolution((*path, "conv1"), f"{prefix}conv1"),
        *_normalisation((*path, "bn1"), f"{prefix}bn1"),
    ]


def stage_mappings(backbone: str, prefix: str) -> list[KeyMapping]:
    """Map the shared stages: `prefix` comes before `layer1` in the keys."""
    architecture: Architecture = ARCHITECTURES[backbone]
    convolutions = 3 if backbone == "resnet50" else 2
    mappings = []
    for stage, depth in enumerate(architecture.depths):
        for block in range(depth):
            path: Path = ("two_stream", "shared", f"stage{stage + 1}_block{block}")
            key = f"{prefix}layer{stage + 1}.{block}"
            for i in range(1, convolutions + 1):
                mappings.append(_convolution((*path, f"conv{i}"), f"{key}.conv{i}"))
                mappings.extend(_normalisation((*path, f"bn{i}"), f"{key}.bn{i}"))
            projected = stage > 0 or architecture.expansion > 1
            if block == 0 and projected:
                mappings.append(_convolution((*path, "downsample_conv"), f"{key}.downsample.0"))
                mappings.extend(_normalisation((*path, "downsample_bn"), f"{key}.downsample.1"))
    return mappings


def baseline_mappings() -> list[KeyMapping]:
    """Map what every network of the authors has: backbone, neck, classifier."""
    return [
        *stem_mappings("visible", "visible_module.visible."),
        *stem_mappings("infrared", "thermal_module.thermal."),
        *stage_mappings("resnet50", "base_resnet.base."),
        *_normalisation(("neck",), "bottleneck", bias=False),
        KeyMapping(("params", "classifier", "kernel"), ("classifier.weight",), (1, 0)),
    ]


def non_local_mappings() -> list[KeyMapping]:
    """Map AGW's five non-local blocks."""
    mappings = []
    for stage, blocks in enumerate(NON_LOCAL_BLOCKS, 1):
        for block in range(blocks):
            path: Path = ("two_stream", "shared", f"stage{stage}_non_local{block}")
            key = f"NL_{stage}.{block}"
            for ours, theirs in (("g", "g.0"), ("theta", "theta"), ("phi", "phi"), ("w", "W.0")):
                mappings.extend(_linear((*path, ours), f"{key}.{theirs}"))
            mappings.extend(_normalisation((*path, "bn"), f"{key}.W.1"))
    return mappings


def _linear(path: Path, key: str) -> list[KeyMapping]:
    """Map a 1x1 convolution with bias."""
    return [
        KeyMapping(("params", *path, "kernel"), (f"{key}.weight",), (1, 0), squeeze=True),
        KeyMapping(("params", *path, "bias"), (f"{key}.bias",)),
    ]


def reference_mappings(heads: int) -> list[KeyMapping]:
    """Map the reference's whole network (B+P+G) with `heads` graph heads."""
    mappings = [
        *baseline_mappings(),
        KeyMapping(("params", "iwpa", "gate"), ("wpa.gate",)),
        *_normalisation(("iwpa", "neck"), "wpa.bottleneck", bias=False),
    ]
    for ours, theirs in (("u", "wpa.fc1.0"), ("v", "wpa.fc2"), ("z", "wpa.fc3")):
        mappings.extend(_linear(("iwpa", ours), theirs))
    for ours, attentions in (
        ("heads", [f"attention_{i}" for i in range(heads)]),
        ("output", ["out_att"]),
    ):
        for variable, letter in (("kernel", "W"), ("a", "a")):
            keys = tuple(f"{attention}.{letter}" for attention in attentions)
            mappings.append(KeyMapping(("params", "cgsa", ours, variable), keys, stacked=True))
    return mappings


def to_variables(state_dict: Mapping[str, np.ndarray], mappings: Sequence[KeyMapping]) -> dict:
    """Convert a state dict to our nested variables, {"params": …, "batch_stats": …}."""
    variables: dict = {}
    for mapping in mappings:
        level = variables
        for name in mapping.path[:-1]:
            level = level.setdefault(name, {})
        level[mapping.path[-1]] = mapping.from_pytorch(state_dict)
    return variables


def to_state_dict(variables: Mapping, mappings: Sequence[KeyMapping]) -> dict[str, np.ndarray]:
    """Convert our variables to a state dict; mappings of absent variables are skipped."""
    state_dict = {}
    for mapping in mappings:
        level: Any = variables
        for name in mapping.path:
            level = level.get(name, {})
        if not isinstance(level, Mapping):
            state_dict.update(mapping.to_pytorch(np.asarray(level)))
    return state_dict


class _HasShape(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """Dimensions that may differ between networks of the reference, with its defaults."""

    classes: int = 395
    parts: int = 3
    heads: int = 4
    head_dim: int = 512

    @classmethod
    def of(cls, state_dict: Mapping[str, _HasShape]) -> "Dimensions":
        """Infer the dimensions from the shapes of a state dict; defaults for absent keys."""

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
class KeyTable:
    """All keys that a state dict may hold."""

    mappings: tuple[KeyMapping, ...]
    shapes: dict[str, Shape]
    """PyTorch's shape by key; for `ignored` keys only if known."""
    ignored: dict[str, str]
    """Why a key is not mapped, by key."""
    zeros: tuple[str, ...] = ()
    """Keys that must be zero, since our network has no such variable."""

    @property
    def mapped(self) -> tuple[str, ...]:
        """Keys that our variables are made of."""
        return tuple(key for mapping in self.mappings for key in mapping.keys)


_CHANNELS = 2048
"""Of ResNet-50's last feature map."""
_ZERO = "zero, and never trained"
_COUNTER = "counts steps, which a fixed momentum does not read"


def torchvision_table(backbone: str) -> KeyTable:
    """Return the table of an ImageNet ResNet of torchvision or timm, mapped to both our stems."""
    shapes = resnet_shapes(backbone)
    ignored = {key: _COUNTER for key in shapes if _counts(key)}
    ignored |= dict.fromkeys(("fc.weight", "fc.bias"), "ImageNet's classes")
    mappings = [
        *stem_mappings("visible", ""),
        *stem_mappings("infrared", ""),
        *stage_mappings(backbone, ""),
    ]
    return KeyTable(tuple(mappings), shapes, ignored)


def agw_table(classes: int, non_local: str = "one") -> KeyTable:
    """Return the table of the network of AGW and CAJ, or of the baseline with "none".

    1,025 keys with its non-local blocks.

    Args:
        classes: width of the classifier.
        non_local: as in `BaselineConfig`.
    """
    shapes, ignored = _baseline_shapes(classes)
    mappings = baseline_mappings()
    if non_local != "none":
        mappings += non_local_mappings()
        for stage, blocks in enumerate(NON_LOCAL_BLOCKS, 1):
            channels = 128 * 2**stage
            inner = inner_width(non_local, channels)
            for key in (f"NL_{stage}.{block}" for block in range(blocks)):
                for name in ("g.0", "theta", "phi"):
                    shapes[f"{key}.{name}.weight"] = (inner, channels, 1, 1)
                    shapes[f"{key}.{name}.bias"] = (inner,)
                shapes[f"{key}.W.0.weight"] = (channels, inner, 1, 1)
                shapes[f"{key}.W.0.bias"] = (channels,)
                shapes |= _normalisation_shapes(f"{key}.W.1", channels)
    zeros = ("bottleneck.bias",)
    ignored = {key: _COUNTER for key in shapes if _counts(key)} | ignored
    ignored |= dict.fromkeys(zeros, _ZERO)
    return KeyTable(tuple(mappings), shapes, ignored, zeros)


def _baseline_shapes(classes: int) -> tuple[dict[str, Shape], dict[str, str]]:
    """Return the shapes of what every network of the authors has, and why some are ignored.

    That is three ResNet-50, of which a part each is used, the neck and the classifier.
    """
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
    shapes |= _normalisation_shapes("bottleneck", _CHANNELS)
    shapes["classifier.weight"] = (classes, _CHANNELS)
    return shapes, ignored


def reference_table(dimensions: Dimensions) -> KeyTable:
    """Return the table of the reference's network; 991 keys with its four heads."""
    classes, heads, head_dim = dimensions.classes, dimensions.heads, dimensions.head_dim
    shapes, ignored = _baseline_shapes(classes)
    channels = _CHANNELS
    matrix = (channels, channels, 1, 1)
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
    ignored |= dict.fromkeys(zeros, _ZERO)
    return KeyTable(tuple(reference_mappings(heads)), shapes, ignored, zeros)


def _counts(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def resnet_shapes(backbone: str) -> dict[str, Shape]:
    """Return the shapes of the state dict of a ResNet without its `fc`."""
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
