"""AGW (Ye et al., TPAMI 2021) on SYSU-MM01; on the others with --data.dataset regdb or llcm.

Command: python train.py configs/agw.py --workdir runs/agw --init weights/resnet50
Hardware: one GPU, or several that divide 8 identities. Not run by us: we hold no licence.
Published, rank-1 / mAP / mINP of the feature `global`, in AGW's paper: SYSU-MM01 all-search 47.50 /
47.65 / 35.30, indoor-search 54.17 / 62.97 / 59.23; RegDB visible to infrared 70.05 / 66.37 / 50.19.
LLCM, rank-1 / mAP as its authors trained AGW, with random erasing and their own settings: 49.13 /
55.80 infrared to visible, 63.72 / 47.21 visible to infrared, which they read in their own way
(docs/datasets.md).
"""

from ddag_jax.config import BaselineConfig, Config


def get_config() -> Config:
    """The baseline with GeM pooling, non-local blocks and the weighted triplet; DDAG's schedule."""
    return Config(model=BaselineConfig(pooling="gem", non_local="one", triplet="weighted"))
