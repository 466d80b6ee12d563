"""Which dtype a computation needs at least."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Return float32 for narrower dtypes, else `dtype`: for statistics, losses and softmaxes."""
    return jnp.promote_types(dtype, jnp.float32)
