"""The least precision of statistics, losses and softmaxes."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Return float32 for narrower dtypes, else `dtype`.

    >>> at_least_float32(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.promote_types(dtype, jnp.float32)


def network_dtype(name: str) -> jnp.dtype:
    """Return the dtype of convolutions and products for a configuration's `compute_dtype`.

    "float32" is JAX's default: float64 under `jax.enable_x64`, so that a network is compared with
    another one in float64 by the same configuration.

    >>> network_dtype("bfloat16")
    dtype(bfloat16)
    """
    return jnp.result_type(float) if name == "float32" else jnp.dtype(name)
