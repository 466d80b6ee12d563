"""SYSU-MM01 as a tensorflow-datasets builder; importing this registers it as "sysu_mm01"."""

from ddag_jax.data.sysu_mm01.builder import SysuMm01

__all__ = ["SysuMm01"]
