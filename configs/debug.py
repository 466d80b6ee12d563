"""Seconds, for tests: a tiny network on a few tiny rendered people.

Command: python train.py configs/debug.py --workdir runs/debug --data.dir DATA
Hardware: any. No published number.
"""

from ddag_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    DDAGConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainingConfig,
)


def get_config() -> Config:
    """ResNet-18 of an eighth of the width at 32 x 16 pixels, three epochs of four steps."""
    return Config(
        data=DataConfig(dir="data/debug", image_height=32, image_width=16, train_on="train"),
        augment=AugmentConfig(padding=2),
        model=DDAGConfig(backbone="resnet18", width=8, parts=2, graph_heads=2, graph_head_dim=8),
        optimizer=OptimizerConfig(warmup_epochs=1, drop_epochs=(2,)),
        training=TrainingConfig(
            epochs=3,
            steps_per_epoch=4,
            identities_per_batch=8,
            images_per_identity=2,
            log_every=1,
            eval_every=1,
        ),
        evaluation=EvaluationConfig(batch_size=32),
    )
