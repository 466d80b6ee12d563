"""Table 1, B+P+G, the whole of DDAG, on SYSU-MM01.

Command: python train.py configs/ablations/b_p_g.py --workdir runs/b_p_g --init weights/resnet50
Hardware: one GPU, or several that divide 8 identities. Not run by us: we hold no licence.
Published: all-search rank-1 54.75, mAP 53.02; indoor-search 61.02, 67.98.
"""

from ddag_jax.config import Config, DDAGConfig


def get_config() -> Config:
    """The published setting with the branches of this row."""
    return Config(model=DDAGConfig(part_attention=True, graph_attention=True))
