"""Table 1, B, the baseline, on SYSU-MM01.

Command: python train.py configs/ablations/b.py --workdir runs/b --init weights/resnet50
Hardware: one GPU, or several that divide 8 identities. Not run by us: we hold no licence.
Published: all-search rank-1 48.18, mAP 47.64; indoor-search 49.52, 58.12.
"""

from ddag_jax.config import Config, DDAGConfig


def get_config() -> Config:
    """The published setting with the branches of this row."""
    return Config(model=DDAGConfig(part_attention=False, graph_attention=False))
