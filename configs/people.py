"""Rendered people at a small size: `python -m ddag_jax.experiments ... --dataset people`.

Command: python train.py configs/people.py --workdir runs/people
Hardware: 2 CPU cores. No published number: its people are drawn. docs/experiments.md has the
commands that draw and prepare them, and what came out.
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
    """The demo's network in a third of its steps, nobody held out, as published."""
    return Config(
        data=DataConfig(dir="data/experiments", image_height=96, image_width=48),
        augment=AugmentConfig(padding=4),
        model=DDAGConfig(backbone="resnet18", width=32, graph_head_dim=128),
        optimizer=OptimizerConfig(
            learning_rate=0.02, backbone_scale=1.0, warmup_epochs=1, drop_epochs=(6, 7)
        ),
        training=TrainingConfig(epochs=8, steps_per_epoch=50, eval_every=8),
    )
