"""DDAG (B+P+G) on LLCM: 713 identities, 81 epochs of 530 steps, settings of SYSU-MM01.

Command: python train.py configs/llcm.py --workdir runs/llcm --init weights/resnet50
Hardware: one GPU, or several that divide 8 identities. Not run by us: we hold no licence.
Published: nothing by DDAG's authors, whose paper is older than the dataset. LLCM's authors list for
DDAG, from their own training at 384 x 144 pixels with their own settings: rank-1 42.36, mAP 48.97
infrared to visible; 51.42, 38.77 visible to infrared, in their own reading of that direction
(docs/datasets.md).
"""

from ddag_jax.config import Config, DataConfig


def get_config() -> Config:
    """The dataset's name; everything else as on SYSU-MM01."""
    return Config(data=DataConfig(dataset="llcm"))
