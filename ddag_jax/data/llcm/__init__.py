"""LLCM as a tensorflow-datasets builder; importing this registers it as "llcm"."""

from ddag_jax.data.llcm.builder import Llcm

__all__ = ["Llcm"]
