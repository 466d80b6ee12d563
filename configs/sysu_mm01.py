"""DDAG (B+P+G) on SYSU-MM01 as published: 395 identities, 81 epochs of 696 steps.

Command: python train.py configs/sysu_mm01.py --workdir runs/sysu_mm01 --init weights/resnet50
Hardware: one GPU, or several that divide 8 identities. Not run by us: we hold no licence.
Published: all-search rank-1 54.75, mAP 53.02; indoor-search 61.02, 67.98 (Tables 1 and 4).
"""

from ddag_jax.config import Config


def get_config() -> Config:
    """The defaults are this experiment."""
    return Config()
