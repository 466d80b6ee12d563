"""What is compared with PyTorch: the published network, and a batch of noise. Without jax or torch,
so that a process with one of them need not hold the other."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from ddag_jax.config import AugmentConfig, Config, DataConfig, DDAGConfig, TrainingConfig

CLASSES = 395
"""SYSU-MM01's training identities."""
STEPS = 696
"""Of its epoch. No benchmark takes as many, so the learning rate stays."""
GRAPH_WEIGHT = 0.25
"""Any but 0, so that the graph loss has gradients."""
IMAGES_PER_IDENTITY = 4
"""In each modality, as published."""


class Noise(NamedTuple):
    """A training batch's images and labels."""

    visible: UInt8[np.ndarray, "n m h w 3"]
    infrared: UInt8[np.ndarray, "n m h w 3"]
    labels: Int[np.ndarray, " n"]


def published(identities: int) -> Config:
    """The published experiment, with so many identities a batch."""
    return Config(training=_training(identities))


def tiny(identities: int) -> Config:
    """ResNet-50 with few channels on small images, to see that a benchmark works."""
    return Config(
        data=DataConfig(image_height=32, image_width=16),
        augment=AugmentConfig(padding=2),
        model=DDAGConfig(width=8, parts=2, graph_heads=2, graph_head_dim=8),
        training=_training(identities),
    )


def _training(identities: int) -> TrainingConfig:
    return TrainingConfig(identities_per_batch=identities, images_per_identity=IMAGES_PER_IDENTITY)


def images(config: Config) -> int:
    """In a batch, of both modalities."""
    return 2 * config.training.identities_per_batch * config.training.images_per_identity


def deterministic(config: Config) -> Config:
    """Without augmentation and dropout, so that two sides can be held against each other."""
    return dataclasses.replace(
        config,
        augment=AugmentConfig(padding=0, flip=False),
        model=dataclasses.replace(config.model, graph_dropout=0.0),
    )


def noise(config: Config) -> Noise:
    """A batch of random pixels, the same each time."""
    training, data = config.training, config.data
    n, m = training.identities_per_batch, training.images_per_identity
    draw = np.random.default_rng(0)
    shape = (2, n, m, data.image_height, data.image_width, 3)
    visible, infrared = draw.integers(0, 256, shape, np.uint8)
    return Noise(visible, infrared, np.arange(n, dtype=np.int32))
