"""CAJ (Ye et al., ICCV 2021) on SYSU-MM01; on the others with --data.dataset regdb or llcm.

Command: python train.py configs/caj.py --workdir runs/caj --init weights/resnet50
Hardware: one GPU, or several that divide 8 identities. Not run by us: we hold no licence.
Published, rank-1 / mAP / mINP of the feature `global`, averaged with the mirror image's, in CAJ's
paper: SYSU-MM01 all-search 69.88 / 66.89 / 53.61; RegDB visible to infrared 85.03 / 79.14 / 65.33.
LLCM, rank-1 / mAP as its authors trained CAJ, with their own settings: 49.86 / 56.40 infrared to
visible, 63.73 / 47.71 visible to infrared, which they read in their own way (docs/datasets.md).

The published triplet loss may be clamped, without a gradient: the log then warns, and
docs/methods.md says why.
"""

from ddag_jax.config import (
    AugmentConfig,
    BaselineConfig,
    Config,
    EvaluationConfig,
    TrainingConfig,
)


def get_config() -> Config:
    """AGW's network, three views, erasing and channel augmentation, the squared triplet."""
    return Config(
        augment=AugmentConfig(
            erasing=0.5, visible_channels="exchange", infrared_channels="adaptive-grey"
        ),
        model=BaselineConfig(pooling="gem", non_local="one", triplet="squared"),
        training=TrainingConfig(epochs=100, views=3),
        evaluation=EvaluationConfig(flip=True),
    )
