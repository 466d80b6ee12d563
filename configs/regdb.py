"""DDAG (B+P+G) on RegDB as published: one of ten halves of 206 identities, 81 epochs of 65 steps.

Command, once for each TRIAL of 1 ... 10:
  python train.py configs/regdb.py --data.trial TRIAL --workdir runs/regdb_TRIAL
  --init weights/resnet50
Then: python evaluate.py "runs/regdb_*"
Hardware: one GPU, or several that divide 8 identities. Not run by us: we hold no licence.
Published, means of the ten models: visible to infrared rank-1 69.34, mAP 63.46; infrared to
visible 68.06, 61.80 (Table 5). One trial alone is not comparable with them.
"""

from ddag_jax.config import Config, DataConfig


def get_config() -> Config:
    """Trial 1; everything else as on SYSU-MM01."""
    return Config(data=DataConfig(dataset="regdb"))
