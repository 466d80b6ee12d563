"""Everything that decides the next step, as one tree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt32


class TrainState(flax.struct.PyTreeNode):
    """Replicated over the devices, without a device axis; all of it goes into a checkpoint."""

    step: Int[Array, ""]
    """Steps taken, over all epochs."""
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    graph_weight: Float[Array, ""]
    """Coefficient of the graph loss in this epoch (Eq. 11)."""
    loss_sum: Float[Array, ""]
    """Sum of L_P over the steps of this epoch so far."""
    epoch_loss: Float[Array, ""]
    """Mean of L_P over the last whole epoch; 0 in the first."""
    steps_counted: Int[Array, ""]
    """Steps of this epoch that `loss_sum` holds: all that were not skipped."""
    skipped_in_row: Int[Array, ""]
    """Steps, up to the last, whose loss or gradient was not finite: they changed nothing."""
    key: UInt32[Array, " 2"]
    """Base of all random numbers of the run; a step folds its own number in."""


def new_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    graph_weight: float,
    seed: int,
) -> TrainState:
    """The state before the first step. `graph_weight`: 0 for the dynamic coefficient."""
    params = variables["params"]
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        # In one program, where eagerly there is one for each shape to compile.
        opt_state=jax.jit(optimizer.init)(params),
        graph_weight=jnp.asarray(graph_weight, dtype),
        loss_sum=jnp.zeros((), dtype),
        epoch_loss=jnp.zeros((), dtype),
        steps_counted=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
    )
