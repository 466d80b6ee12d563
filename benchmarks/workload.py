"""The workload of the comparisons with PyTorch: the published network on a batch of noise.

Imports neither jax nor torch, so that the memory of a process with one of them can be measured.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from ddag_jax.config import AugmentConfig, Config, DataConfig, DDAGConfig, TrainingConfig

CLASSES = 395
"""Training identities of SYSU-MM01."""
STEPS = 696
"""Steps of its epoch. No benchmark takes as many, so the learning rate stays constant."""
GRAPH_WEIGHT = 0.25
"""Coefficient of the graph loss. Not 0, so that the loss has gradients."""
IMAGES_PER_IDENTITY = 4
"""Images of an identity in each modality, as published."""

FLOAT32_LOSSES = 2e-3
"""Largest relative difference between a loss of ours and PyTorch's, both in float32: the bound of
"losses" in tests/test_golden.py. The triplet loss subtracts distances that are nearly equal: with
the processor, the two sides were seen to differ by 2e-5 to 1.6e-4, and float32 from float64 by up
to 3e-4; the other losses differ by about 1e-6."""
FLOAT32_FEATURES = 5e-5
"""Largest relative difference between features of ours and PyTorch's, both in float32 (norm of the
difference over norm of the features): the bound of "embeddings" in tests/test_golden.py."""


class Noise(NamedTuple):
    """Images and labels of a training batch: n identities, m images of each in each modality."""

    visible: UInt8[np.ndarray, "n m h w 3"]
    infrared: UInt8[np.ndarray, "n m h w 3"]
    labels: Int[np.ndarray, " n"]


def published(identities: int) -> Config:
    """Return the published configuration, with `identities` in a batch."""
    return Config(training=_training(identities))


def tiny(identities: int) -> Config:
    """Return a configuration of ResNet-50 with few channels on small images, to try a benchmark."""
    return Config(
        data=DataConfig(image_height=32, image_width=16),
        augment=AugmentConfig(padding=2),
        model=DDAGConfig(width=8, parts=2, graph_heads=2, graph_head_dim=8),
        training=_training(identities),
    )


def _training(identities: int) -> TrainingConfig:
    return TrainingConfig(identities_per_batch=identities, images_per_identity=IMAGES_PER_IDENTITY)


def images(config: Config) -> int:
    """Return the number of images that a step processes, of all views."""
    training = config.training
    return training.views * training.identities_per_batch * training.images_per_identity


def deterministic(config: Config) -> Config:
    """Return the configuration without augmentation and dropout, so that losses can be compared."""
    return dataclasses.replace(
        config,
        augment=AugmentConfig(padding=0, flip=False),
        model=dataclasses.replace(config.model, graph_dropout=0.0),
    )


def noise(config: Config) -> Noise:
    """Return a batch of random pixels, drawn from a fixed seed."""
    training, data = config.training, config.data
    n, m = training.identities_per_batch, training.images_per_identity
    draw = np.random.default_rng(0)
    shape = (2, n, m, data.image_height, data.image_width, 3)
    visible, infrared = draw.integers(0, 256, shape, np.uint8)
    return Noise(visible, infrared, np.arange(n, dtype=np.int32))
