"""JAX's settings that decide the numbers, the same wherever the package computes.

JAX takes them from the environment or from the program that calls us. A run that is resumed, or
evaluated, from another shell would go on with other numbers, or not start at all.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax

from ddag_jax.errors import UserError

_OURS: dict[str, tuple[Any, Any]] = {
    "JAX_ENABLE_X64": (jax.enable_x64, False),
    "JAX_THREEFRY_PARTITIONABLE": (jax.threefry_partitionable, True),
    "JAX_DEFAULT_PRNG_IMPL": (jax.default_prng_impl, "threefry2x32"),
    "JAX_DEFAULT_MATMUL_PRECISION": (jax.default_matmul_precision, None),
    "JAX_SOFTMAX_CUSTOM_JVP": (jax.softmax_custom_jvp, False),
    "JAX_NUMPY_DTYPE_PROMOTION": (jax.numpy_dtype_promotion, "standard"),
    "JAX_NUMPY_RANK_PROMOTION": (jax.numpy_rank_promotion, "allow"),
    "JAX_LEGACY_PRNG_KEY": (jax.legacy_prng_key, "allow"),
    "JAX_TRANSFER_GUARD": (jax.transfer_guard, "allow"),
    "JAX_DEBUG_KEY_REUSE": (jax.debug_key_reuse, False),
    "JAX_DISABLE_JIT": (jax.disable_jit, False),
}
"""By its variable of the environment: JAX's context manager, and our value, which is JAX's default
in the versions that we support."""

_SEED_OFFSET = "JAX_RANDOM_SEED_OFFSET"  # JAX has no context manager for it


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Compute with our settings of JAX; a caller's own, in this thread, are back afterwards.

    Also a decorator. Everything public that computes has it: a compiled function that is called
    under other settings is another program. Code that is to be in float64 asks for it inside, by
    `jax.enable_x64()`.

    Raises:
        UserError: JAX_RANDOM_SEED_OFFSET is set, which changes every seed.
    """
    if offset := getattr(jax.config, _SEED_OFFSET.lower()):
        raise UserError(
            f"{_SEED_OFFSET}: is {offset}, which changes every seed; unset it, and choose"
            " --training.seed"
        )
    with contextlib.ExitStack() as stack:
        for setting, value in _OURS.values():
            stack.enter_context(setting(value))
        yield


def overridden() -> list[str]:
    """Return the variables of the environment that `own_settings` leaves without effect."""
    outside = _values()
    with own_settings():
        ours = _values()
    return [name for name in _OURS if name in os.environ and ours[name] != outside[name]]


def _values() -> dict[str, Any]:
    return {name: getattr(jax.config, name.lower()) for name in _OURS}
