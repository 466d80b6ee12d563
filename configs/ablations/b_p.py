"""Table 1, B+P, with part attention, on SYSU-MM01.

Command: python train.py configs/ablations/b_p.py --workdir runs/b_p --init weights/resnet50
Hardware: one GPU, or several that divide 8 identities. Not run by us: we hold no licence.
Published: all-search rank-1 53.69, mAP 51.37; indoor-search 58.08, 65.07.
"""

from ddag_jax.config import Config, DDAGConfig


def get_config() -> Config:
    """The published setting with the branches of this row."""
    return Config(model=DDAGConfig(part_attention=True, graph_attention=False))
