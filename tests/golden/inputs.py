"""Weights and images of the recorded cases, rebuilt from a seed: the repository stores neither.

Every array is drawn from a standard normal distribution by a generator that is seeded with the
case's seed and the CRC-32 of the array's name, then scaled by what kind of array it is.
"""

import zlib
from collections.abc import Sequence

import numpy as np

SMALL_BIASES = ("fc1.0.bias", "fc2.bias", "fc3.bias", "W.0.bias")
"""Ends of the keys of biases that belong to convolutions and linear layers."""
WITHOUT_SHIFT = ("bottleneck.bias", "wpa.bottleneck.bias")
"""Biases of the bottleneck normalisations: always 0, never trained."""


def _draw(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.standard_normal(tuple(shape)).astype(np.float32)


def weight(key: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """Return the array of a state dict's key, in PyTorch's layout.

    Args:
        key: name in the state dict of the authors' network.
        shape: shape that the network has there.
        seed: the case's.

    Returns:
        float32; int64 zeros for a counter of batches.
    """
    if key.endswith("num_batches_tracked"):
        return np.zeros(tuple(shape), np.int64)
    if key in WITHOUT_SHIFT:
        return np.zeros(tuple(shape), np.float32)
    normal = _draw(key, shape, seed)
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(normal)
    if key.endswith("gate"):
        return (0.3 * normal).astype(np.float32)
    if key.endswith(SMALL_BIASES):
        return 0.02 * normal
    if len(shape) == 4:  # convolution, [out, in, height, width]
        return normal * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if len(shape) == 2 and key.startswith(("attention_", "out_att")):  # graph attention
        return normal * np.float32(np.sqrt(2 / sum(shape)))
    if len(shape) == 2:  # classifier
        return 0.02 * normal
    if key.endswith("weight"):  # normalisation; the last of a residual block is small
        return (0.25 if key.endswith("bn3.weight") else 1.0) * (1 + 0.1 * normal)
    return 0.1 * normal  # running means, biases of normalisations


def images(name: str, count: int, height: int, width: int, seed: int) -> np.ndarray:
    """Return `count` normalised images, float32 [count, 3, height, width].

    Args:
        name: "visible", "augmented" (a second visible view) or "infrared".
        count: number of images.
        height: in pixels.
        width: in pixels.
        seed: the case's.
    """
    return _draw(f"images/{name}", (count, 3, height, width), seed)
