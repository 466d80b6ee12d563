"""PyTorch's side of the comparisons: DDAG in plain PyTorch, as in the authors' code.

It uses standard PyTorch layers: NCHW convolutions, `BatchNorm2d`, one module for each graph head
that scores all pairs of images. Modules that the authors' code stores and never calls are omitted.
Weights are converted by the authors' names (`ddag_jax.pytorch.keys`).

Imports no jax, so that the memory of a process with PyTorch alone can be measured.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.workload import CLASSES, GRAPH_WEIGHT, Noise
from ddag_jax.config import Config

# -------------------------------------------------------------------------------------- network


class Stem(nn.Module):
    """Convolution, normalisation, ReLU and pooling of one modality."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        return functional.max_pool2d(functional.relu(self.bn1(self.conv1(images))), 3, 2, 1)


class Bottleneck(nn.Module):
    """Block of ResNet-50, with the stride on the 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Stages(nn.Sequential):
    """Residual stages shared by both modalities; the last stage has stride 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inputs = width
        for stage, (depth, stride) in enumerate(((3, 1), (4, 2), (6, 2), (3, 1))):
            blocks = []
            for index in range(depth):
                blocks.append(Bottleneck(inputs, width << stage, stride if index == 0 else 1))
                inputs = 4 * (width << stage)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))


class PartAttention(nn.Module):
    """Part attention (IWPA): a weighted sum of stripes that attend to each other, added to the
    batch-normalised feature."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.u, self.v, self.z = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.gate = nn.Parameter(torch.full((parts,), 1 / parts))
        self.neck = neck(channels)

    def forward(self, feature_map: Tensor, normalised: Tensor) -> Tensor:
        stripes = functional.adaptive_avg_pool2d(feature_map, (self.parts, 1))
        u, v, z = (layer(stripes).flatten(2) for layer in (self.u, self.v, self.z))  # b c p
        attention = functional.softmax(u.mT @ v, dim=-1)
        refined = (attention @ z.mT).mT
        return self.neck(refined @ functional.softmax(self.gate, dim=0) + normalised)


class GraphHead(nn.Module):
    """One head of graph attention (CGSA): score all pairs of images, mask non-edges."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.W = nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, outputs), gain=1.414))
        self.a = nn.Parameter(nn.init.xavier_uniform_(torch.empty(2 * outputs, 1), gain=1.414))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = x @ self.W
        k = len(h)
        pairs = torch.cat([h[:, None].expand(k, k, -1), h[None].expand(k, k, -1)], dim=2)
        scores = functional.leaky_relu((pairs @ self.a)[..., 0], 0.2)
        attention = functional.softmax(scores.masked_fill(~edges, -torch.inf), dim=1)
        return functional.dropout(attention, self.dropout, self.training) @ h


def neck(channels: int) -> nn.BatchNorm1d:
    """Return batch normalisation whose bias is not trained."""
    layer = nn.BatchNorm1d(channels)
    nn.init.normal_(layer.weight, 1.0, 0.01)
    layer.bias.requires_grad_(False)
    return layer


class Output(NamedTuple):
    """Output for a training batch, visible images first."""

    pooled: Tensor
    global_logits: Tensor
    part_logits: Tensor
    graph_log_probs: Tensor


class Network(nn.Module):
    """B+P+G on ResNet-50, with PyTorch's initialisation."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        model = config.model
        channels = 32 * model.width
        self.visible = Stem(model.width)
        self.infrared = Stem(model.width)
        self.infrared.load_state_dict(self.visible.state_dict())  # as with ImageNet weights
        self.stages = Stages(model.width)
        self.neck = neck(channels)
        self.classifier = nn.Linear(channels, classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)
        self.parts = PartAttention(channels, model.parts)
        self.dropout = model.graph_dropout
        self.heads = nn.ModuleList(
            GraphHead(channels, model.graph_head_dim, self.dropout)
            for _ in range(model.graph_heads)
        )
        joined = model.graph_heads * model.graph_head_dim
        self.output = GraphHead(joined, classes, self.dropout)

    def forward(self, visible: Tensor, infrared: Tensor, labels: Tensor) -> Output:
        """Compute a training batch. `labels` lists the visible images first."""
        stems = torch.cat([self.visible(visible), self.infrared(infrared)])
        pooled, normalised, part = self._features(self.stages(stems))
        edges = labels[:, None] == labels
        x = functional.dropout(pooled, self.dropout, self.training)
        x = torch.cat([functional.elu(head(x, edges)) for head in self.heads], dim=1)
        x = functional.dropout(x, self.dropout, self.training)
        graph = functional.log_softmax(functional.elu(self.output(x, edges)), dim=1)
        return Output(pooled, self.classifier(normalised), self.classifier(part), graph)

    def embed(self, images: Tensor, modality: str) -> tuple[Tensor, Tensor]:
        """Return global and part features of unit length, [b, c] each, in evaluation mode."""
        stem = {"visible": self.visible, "infrared": self.infrared}[modality]
        _, normalised, part = self._features(self.stages(stem(images)))
        return functional.normalize(normalised), functional.normalize(part)

    def _features(self, feature_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = feature_map.mean((2, 3))
        normalised = self.neck(pooled)
        return pooled, normalised, self.parts(feature_map, normalised)


# ------------------------------------------------------------------------------ losses and step

Triplet = Callable[[Tensor, Tensor, float], Tensor]


def pairwise_distances(features: Tensor) -> Tensor:
    """Return Euclidean distances, [k, k]; squares are clamped before the root."""
    square = features.square().sum(1)
    return (square[:, None] + square - 2 * features @ features.T).clamp(min=1e-12).sqrt()


def triplet_by_anchor(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Compute the batch-hard triplet loss as the authors' code does: anchor by anchor."""
    distances, same = pairwise_distances(features), labels[:, None] == labels
    positive = torch.stack([row[mask].max() for row, mask in zip(distances, same, strict=True)])
    negative = torch.stack([row[~mask].min() for row, mask in zip(distances, same, strict=True)])
    return functional.relu(margin + positive - negative).mean()


def triplet_at_once(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Compute the same without a loop, for a compiler, and in float32 under autocast too."""
    with torch.autocast(features.device.type, enabled=False):
        distances, same = pairwise_distances(features.float()), labels[:, None] == labels
        positive = distances.masked_fill(~same, -torch.inf).amax(1)
        negative = distances.masked_fill(same, torch.inf).amin(1)
        return functional.relu(margin + positive - negative).mean()


def losses(
    network: Network,
    visible: Tensor,
    infrared: Tensor,
    labels: Tensor,
    margin: float,
    triplet: Triplet,
) -> dict[str, Tensor]:
    """Return identity, triplet, part and graph loss, and the total that is differentiated."""
    output = network(visible, infrared, labels)
    terms = {
        "identity": functional.cross_entropy(output.global_logits, labels),
        "triplet": triplet(output.pooled, labels, margin),
        "part": functional.cross_entropy(output.part_logits, labels),
        "graph": functional.nll_loss(output.graph_log_probs, labels),
    }
    without_graph = terms["identity"] + terms["triplet"] + terms["part"]
    return {**terms, "total": without_graph + GRAPH_WEIGHT * terms["graph"]}


def sgd(network: Network, config: Config, fused: bool) -> torch.optim.Optimizer:
    """Return SGD with two parameter groups, at the learning rates of the first epoch."""
    settings = config.optimizer
    rate = settings.learning_rate / max(settings.warmup_epochs, 1)
    backbone: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        in_backbone = name.startswith(("visible.", "infrared.", "stages."))
        (backbone if in_backbone else others).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": backbone, "lr": rate * settings.backbone_scale},
        {"params": others},
    ]
    return torch.optim.SGD(
        groups,
        lr=rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=fused or None,  # None: PyTorch's default
    )


# ------------------------------------------------------------------------------------ the sides


@dataclasses.dataclass(frozen=True)
class Style:
    """How PyTorch is used; by default eagerly, in float32."""

    reference: bool = False
    """As the authors' loop: the triplet loss anchor by anchor, every loss read after every step."""
    bfloat16: bool = False
    """Autocast, channels_last for images and weights, a fused optimiser."""
    compiled: bool = False
    """Network and losses through torch.compile."""


class Training:
    """The authors' training step, repeated on one batch on the device, normalised already as by
    their loader."""

    def __init__(
        self, config: Config, noise: Noise, style: Style = Style(), device: str = "cpu"
    ) -> None:
        self.network = network(config).to(device)
        visible, infrared = (pixels(each, device) for each in (noise.visible, noise.infrared))
        if style.bfloat16:
            self.network.to(memory_format=torch.channels_last)
            visible, infrared = (
                images.contiguous(memory_format=torch.channels_last)
                for images in (visible, infrared)
            )
        labels = torch.as_tensor(noise.labels, dtype=torch.long, device=device)
        labels = labels.repeat_interleave(noise.visible.shape[1]).repeat(2)
        self.batch = visible, infrared, labels
        self.optimizer = sgd(self.network, config, fused=style.bfloat16)
        # Without a GPU, compile with the backend that needs no C++ compiler: only a trial run.
        backend = "inductor" if device == "cuda" else "eager"
        self.losses = torch.compile(losses, backend=backend) if style.compiled else losses
        self.triplet = triplet_by_anchor if style.reference else triplet_at_once
        self.margin = config.model.margin
        self.style, self.device = style, device

    def __call__(self, steps: int = 1) -> dict[str, Tensor]:
        """Take `steps` steps, wait for them, and return the losses of the last."""
        for _ in range(steps):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.style.bfloat16):
                terms = self.losses(self.network, *self.batch, self.margin, self.triplet)
            self.optimizer.zero_grad()
            terms["total"].backward()
            self.optimizer.step()
            if self.style.reference:
                for loss in terms.values():
                    loss.item()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return {name: loss.detach() for name, loss in terms.items()}


class Embedding:
    """The network in evaluation mode."""

    def __init__(self, config: Config) -> None:
        self.network = network(config).eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor, modality: str) -> tuple[Tensor, Tensor]:
        return self.network.embed(images, modality)


def network(config: Config) -> Network:
    """Return the network with random weights of a fixed seed."""
    torch.manual_seed(0)
    return Network(config, CLASSES)


def pixels(images: UInt8[np.ndarray, "*b h w 3"], device: str = "cpu") -> Tensor:
    """Return images as the authors' loader does: float32, NCHW, normalised by ImageNet's mean and
    standard deviation."""
    flat = torch.as_tensor(images).flatten(0, -4).permute(0, 3, 1, 2)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    return ((flat / 255 - mean) / std).contiguous().to(device)


_NAMES = (
    ("visible_module.visible.", "visible."),
    ("thermal_module.thermal.", "infrared."),
    ("base_resnet.base.", "stages."),
    ("bottleneck.", "neck."),
    ("wpa.fc1.0.", "parts.u."),
    ("wpa.fc2.", "parts.v."),
    ("wpa.fc3.", "parts.z."),
    ("wpa.bottleneck.", "parts.neck."),
    ("wpa.", "parts."),
    ("attention_", "heads."),
    ("out_att.", "output."),
)
"""Prefixes of the authors' keys, and of this module's."""


def _own_name(key: str) -> str:
    for theirs, own in _NAMES:
        if key.startswith(theirs):
            return own + key.removeprefix(theirs)
    return key


def variables(network: Network) -> dict[str, Any]:
    """Return a copy of the network's weights as variables of ddag_jax's network."""
    from ddag_jax.pytorch.keys import reference_mappings, to_variables  # imports jax

    mappings = reference_mappings(len(network.heads))
    state = network.state_dict()
    keys = [key for mapping in mappings for key in mapping.keys]
    arrays = {key: state[_own_name(key)].detach().cpu().numpy().copy() for key in keys}
    return to_variables(arrays, mappings)
