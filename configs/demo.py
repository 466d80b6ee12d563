"""Rendered people on two CPU cores: what `make demo` trains.

Command: python train.py configs/demo.py --workdir runs/demo
Hardware: 2 CPU cores, 6 to 8 minutes. No published number: its people are drawn. Without erasing
and channel augmentation, which lower the held-out rank-1 (docs/experiments.md).
"""

from ddag_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    DDAGConfig,
    OptimizerConfig,
    TrainingConfig,
)


def get_config() -> Config:
    """B+P+G on ResNet-18 of half the width at 96 x 48 pixels, from random weights."""
    return Config(
        data=DataConfig(dir="data/demo", image_height=96, image_width=48, train_on="train"),
        augment=AugmentConfig(padding=4),
        model=DDAGConfig(backbone="resnet18", width=32, graph_head_dim=128),
        optimizer=OptimizerConfig(
            learning_rate=0.02, backbone_scale=1.0, warmup_epochs=1, drop_epochs=(9, 12)
        ),
        training=TrainingConfig(epochs=13, steps_per_epoch=100, eval_every=4),
    )
