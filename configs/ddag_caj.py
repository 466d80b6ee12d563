"""DDAG (B+P+G) with CAJ's recipe on SYSU-MM01; on the others with --data.dataset regdb or llcm.

Command: python train.py configs/ddag_caj.py --workdir runs/ddag_caj --init weights/resnet50
Hardware: one GPU, or several that divide 8 identities. Not run by us: we hold no licence.
Published: nothing; the combination is ours. DDAG alone: all-search rank-1 54.75; CAJ: 69.88.
"""

from ddag_jax.config import AugmentConfig, Config, EvaluationConfig, TrainingConfig


def get_config() -> Config:
    """DDAG with erasing, channel augmentation, three views; the third has no node in the graph."""
    return Config(
        augment=AugmentConfig(
            erasing=0.5, visible_channels="exchange", infrared_channels="adaptive-grey"
        ),
        training=TrainingConfig(epochs=100, views=3),
        evaluation=EvaluationConfig(flip=True),
    )
