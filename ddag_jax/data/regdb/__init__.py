"""RegDB as a tensorflow-datasets builder; importing this registers it as "regdb"."""

from ddag_jax.data.regdb.builder import Regdb

__all__ = ["Regdb"]
