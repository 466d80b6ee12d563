"""One training step, written for one device of an axis: pure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ddag_jax.data.augment import augment
from ddag_jax.losses import Losses, ddag_losses, dynamic_graph_weight
from ddag_jax.methods.ddag.model import DDAG
from ddag_jax.training.state import TrainState
from ddag_jax.types import Batch

Step = Callable[[TrainState, Batch], tuple[TrainState, Losses]]


def image_keys(
    key: Key[Array, ""], first_slot: Int[Array, ""] | int, n: int, m: int
) -> Key[Array, "2 n m"]:
    """A key for each image of a device's share, visible first, from (identity slot, modality,
    image slot) alone: the number of devices does not show in it."""

    def one(modality: Array, slot: Array, image: Array) -> Array:
        return jax.random.fold_in(
            jax.random.fold_in(jax.random.fold_in(key, slot), modality), image
        )

    # Over flat indices: XLA compiles few axes faster.
    modality, slot, image = jnp.indices((2, n, m)).reshape(3, 2 * n * m)
    return jax.vmap(one)(modality, first_slot + slot, image).reshape(2, n, m)


def make_update(
    model: DDAG,
    optimizer: optax.GradientTransformation,
    *,
    margin: float,
    graph_reduction: str,
    dynamic_weight: bool,
    steps_per_epoch: int,
    nonfinite_limit: int,
) -> Callable[..., tuple[TrainState, Losses, Any]]:
    """The part of a step after augmentation: images and labels in, new state, losses and gradients
    (averaged over the devices, before weight decay) out.

    A step whose loss or gradient is not finite changes nothing but the counts of steps; after
    `nonfinite_limit` of them in a row, no step does.

    The axis that losses, gradients and batch statistics span is the model's `axis_name`.
    """
    axis_name = model.axis_name

    def over_devices(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def update(
        state: TrainState,
        visible: Float[Array, "b h w 3"],
        infrared: Float[Array, "b h w 3"],
        labels: Int[Array, " k"],
        dropout_keys: Key[Array, " k"] | None,
    ) -> tuple[TrainState, Losses, Any]:
        def loss(params: Any) -> tuple[Array, tuple[Losses, Any]]:
            output, changed = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                visible,
                infrared,
                labels,
                dropout_keys,
                mutable=["batch_stats"],
            )
            losses = ddag_losses(
                output,
                labels,
                state.graph_weight,
                margin=margin,
                graph_reduction=graph_reduction,
                axis_name=axis_name,
            )
            return losses.total, (losses, changed["batch_stats"])

        gradients, (losses, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
        gradients, losses = over_devices(gradients), over_devices(losses)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        finite = [jnp.isfinite(value).all() for value in jax.tree.leaves((losses.total, gradients))]
        # Behind a barrier, since XLA repeats the whole conjunction, an operation for each of some
        # two hundred arrays, in every one of the selections below: four fifths of the program.
        counts = jax.lax.optimization_barrier(
            jnp.stack(finite).all() & (state.skipped_in_row < nonfinite_limit)
        )
        losses = losses._replace(skipped_in_row=jnp.where(counts, 0, state.skipped_in_row + 1))

        step, steps_counted = state.step + 1, state.steps_counted + counts
        loss_sum = state.loss_sum + jnp.where(counts, losses.without_graph, 0)
        epoch_ends = step % steps_per_epoch == 0
        mean = loss_sum / jnp.maximum(steps_counted, 1)
        epoch_loss = jnp.where(epoch_ends, mean, state.epoch_loss)
        graph_weight = state.graph_weight
        if dynamic_weight:
            next_weight = dynamic_graph_weight(epoch_loss)
            graph_weight = jnp.where(epoch_ends, next_weight, graph_weight)

        def unless_skipped(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda new, old: jnp.where(counts, new, old), new, old)

        new_state = state.replace(
            step=step,
            params=unless_skipped(optax.apply_updates(state.params, updates), state.params),
            batch_stats=unless_skipped(batch_stats, state.batch_stats),
            opt_state=unless_skipped(opt_state, state.opt_state),
            graph_weight=graph_weight,
            loss_sum=jnp.where(epoch_ends, 0, loss_sum),
            epoch_loss=epoch_loss,
            steps_counted=jnp.where(epoch_ends, 0, steps_counted),
            skipped_in_row=losses.skipped_in_row,
        )
        return new_state, losses, gradients

    return update


def make_train_step(
    model: DDAG,
    optimizer: optax.GradientTransformation,
    *,
    margin: float,
    graph_reduction: str,
    dynamic_weight: bool,
    steps_per_epoch: int,
    nonfinite_limit: int,
    padding: int,
    flip: bool,
) -> Step:
    """`train_step(state, batch)` for one device: its share of the batch in, the new state and the
    losses of the whole batch out, the same on every device."""
    update = make_update(
        model,
        optimizer,
        margin=margin,
        graph_reduction=graph_reduction,
        dynamic_weight=dynamic_weight,
        steps_per_epoch=steps_per_epoch,
        nonfinite_limit=nonfinite_limit,
    )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Losses]:
        n, m, *size = batch.visible.shape
        device = 0 if model.axis_name is None else jax.lax.axis_index(model.axis_name)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        keys = image_keys(key, device * n, n, m).reshape(2 * n * m)
        augment_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        images = jnp.concatenate([batch.visible, batch.infrared]).reshape(2 * n * m, *size)
        dtype = jnp.dtype(model.dtype)
        images = augment(images, augment_keys, padding=padding, flip=flip, dtype=dtype)
        labels = jnp.tile(jnp.repeat(batch.labels, m), 2)
        new_state, losses, _ = update(state, images[: n * m], images[n * m :], labels, dropout_keys)
        return new_state, losses

    return train_step
