"""PyTorch modules to compare the network's blocks with, and conversion of weights and arrays."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn


def to_ours(tensor: torch.Tensor) -> np.ndarray:
    """Return an array, NCHW transposed to NHWC; other ranks unchanged."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Return a tensor, NHWC transposed to NCHW; other ranks unchanged."""
    array = np.asarray(array)
    return torch.from_numpy(np.array(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array))


def normal(seed: int, *shape: int) -> np.ndarray:
    """Draw float64 values from a standard normal distribution."""
    return np.random.default_rng(seed).normal(size=shape)


def assert_close(ours: object, theirs: object, bound: float = 1e-10) -> None:
    """Assert equal shapes, and differences of at most `bound` times the largest expected value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * max(np.abs(theirs).max(), 1e-3))


class Bottleneck(nn.Module):
    """The bottleneck block of torchvision's ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = projection(inputs, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class BasicBlock(nn.Module):
    """The basic block of torchvision's ResNet-18."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return the shortcut: a projection where the shape changes, else an empty Sequential."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Stages(nn.Module):
    """ResNet-18's four stages, the last with stride 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inputs = width
        for stage, stride in enumerate((1, 2, 2, 1)):
            outputs = width * 2**stage
            blocks = [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Stem(nn.Module):
    """Convolution, normalisation, ReLU and pooling before the stages."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return nn.functional.max_pool2d(y, 3, 2, 1)


class PartAttention(nn.Module):
    """Part attention (IWPA) in its default form."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.u, self.v, self.z = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.gate = nn.Parameter(torch.randn(parts))
        self.neck = nn.BatchNorm1d(channels)

    def forward(self, feature_map: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        stripes = nn.functional.adaptive_avg_pool2d(feature_map, (self.parts, 1))
        u, v, z = (layer(stripes)[..., 0] for layer in (self.u, self.v, self.z))  # b c p
        attention = torch.softmax(u.transpose(1, 2) @ v, dim=-1)
        refined = attention @ z.transpose(1, 2)
        weights = torch.softmax(self.gate, dim=0)
        return self.neck((weights[:, None] * refined).sum(1) + residual)


class GraphAttention(nn.Module):
    """Graph attention (CGSA) without dropout, as the authors' code has it: a dense adjacency
    matrix and a loop over heads."""

    def __init__(self, channels: int, heads: int, head_dim: int, classes: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            [torch.randn(channels, head_dim) / channels**0.5 for _ in range(heads)]
        )
        self.scores = nn.ParameterList([torch.randn(2 * head_dim, 1) for _ in range(heads)])
        self.out_weight = nn.Parameter(torch.randn(heads * head_dim, classes))
        self.out_score = nn.Parameter(torch.randn(2 * classes, 1))

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        heads = [
            nn.functional.elu(attend(x, adjacency, w, a))
            for w, a in zip(self.weights, self.scores, strict=True)
        ]
        out = attend(torch.cat(heads, dim=1), adjacency, self.out_weight, self.out_score)
        return torch.log_softmax(nn.functional.elu(out), dim=1)


def attend(
    x: torch.Tensor, adjacency: torch.Tensor, weight: torch.Tensor, score: torch.Tensor
) -> torch.Tensor:
    """Apply one head: score the concatenated features of all pairs, mask non-edges."""
    h = x @ weight
    k = len(h)
    pairs = torch.cat([h[:, None].expand(k, k, -1), h[None].expand(k, k, -1)], dim=2)
    e = nn.functional.leaky_relu((pairs @ score)[..., 0], 0.2)
    attention = torch.softmax(e.masked_fill(~adjacency, -torch.inf), dim=1)
    return attention @ h


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Convert to float64, and draw all normalisation parameters and running statistics."""
    torch.manual_seed(seed)
    module = module.double()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module


def block_variables(module: nn.Module) -> dict:
    """Return Flax variables of a stem or a block, whose layers have the same names in PyTorch."""
    names = {"downsample.0": "downsample_conv", "downsample.1": "downsample_bn"}
    params, stats = {}, {}
    for name, layer in module.named_modules():
        ours = names.get(name, name)
        if isinstance(layer, nn.Conv2d):
            params[ours] = {"kernel": layer.weight.detach().numpy().transpose(2, 3, 1, 0)}
        elif isinstance(layer, nn.BatchNorm2d):
            params[ours] = {
                "scale": layer.weight.detach().numpy(),
                "bias": layer.bias.detach().numpy(),
            }
            stats[ours] = {
                "mean": layer.running_mean.numpy().copy(),
                "var": layer.running_var.numpy().copy(),
            }
    return {"params": params, "batch_stats": stats}


def gradient_variables(module: nn.Module) -> Mapping:
    """Return the gradients of `module` as `block_variables` returns its params."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.grad)
    return block_variables(module)["params"]


def as_jax(tree: object) -> object:
    """Copy all leaves into JAX arrays: PyTorch changes its own in place."""
    return jax.tree.map(jnp.array, tree)
