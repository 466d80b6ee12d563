"""The least precision of statistics, losses and softmaxes."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Return float32 for narrower dtypes, else `dtype`.

    >>> at_least_float32(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.promote_types(dtype, jnp.float32)
