"""Everything that decides the next step, as one tree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, UInt32


class TrainState(flax.struct.PyTreeNode):
    """Replicated over the devices, without a device axis; all of it goes into a checkpoint."""

    step: Int[Array, ""]
    """Steps taken, over all epochs."""
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    memory: Any
    """What the method carries from step to step (methods/base.py)."""
    skipped_in_row: Int[Array, ""]
    """Consecutive steps, up to the last, that were skipped because they were not finite."""
    key: UInt32[Array, " 2"]
    """Base of all random numbers of the run; a step folds its own number in."""


def new_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    memory: Any,
    key: PRNGKeyArray,
) -> TrainState:
    """Return the state before the first step.

    Args:
        variables: {"params", "batch_stats"} of the network.
        optimizer: whose state starts with it.
        memory: of the method, as its `memory()` returns it.
        key: of augmentation and dropout.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        # In one program, where eagerly there is one for each shape to compile.
        opt_state=jax.jit(optimizer.init)(params),
        memory=memory,
        skipped_in_row=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(key),
    )
