"""DDAG (B+P+G) on images of your own, which `python -m ddag_jax.data prepare folder` has prepared.

Command: python train.py configs/folder.py --workdir runs/own --init weights/resnet50
Hardware: one GPU, or several that divide 8 identities. docs/own-data.md goes from pictures to a
table.
"""

from ddag_jax.config import Config, DataConfig


def get_config() -> Config:
    """The dataset's name; everything else as on SYSU-MM01."""
    return Config(data=DataConfig(dataset="folder"))
