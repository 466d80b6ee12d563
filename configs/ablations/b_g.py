"""Table 1, B+G, with graph attention, on SYSU-MM01.

Command: python train.py configs/ablations/b_g.py --workdir runs/b_g --init weights/resnet50
Hardware: one GPU, or several that divide 8 identities. Not run by us: we hold no licence.
Published: all-search rank-1 50.75, mAP 49.73; indoor-search 52.90, 62.26.
"""

from ddag_jax.config import Config, DDAGConfig


def get_config() -> Config:
    """The published setting with the branches of this row."""
    return Config(model=DDAGConfig(part_attention=False, graph_attention=True))
