"""One training step, written for one device of an axis: pure, and the same for every method."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ddag_jax.data.augment import Change, augment
from ddag_jax.methods.base import Method, View
from ddag_jax.training.flat import as_tree, formed_like
from ddag_jax.training.state import TrainState
from ddag_jax.types import Batch


class Outcome(NamedTuple):
    """What a step reports, the same on every device."""

    terms: "collections.OrderedDict[str, Float[Array, '']]"
    """The method's terms in its order, then `total`: of the whole batch."""
    skipped_in_row: Int[Array, ""]
    """Consecutive steps, up to this one, that were skipped because they were not finite."""


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Outcome]]
Update = Callable[..., tuple[TrainState, Outcome, Any]]
UPDATE = "update"
"""Scope in traces and compiled programs of what follows the gradients."""


def image_keys(
    key: Key[Array, ""], first_slot: Int[Array, ""] | int, n: int, m: int, views: int = 2
) -> Key[Array, "v n m"]:
    """Return a key for each image of a device's share; of 2 views V, I, of 3 V, V', I.

    A key depends on (identity slot, view, image slot) alone, not on the number of devices. V is
    number 0, I is 1, V' is 2, so that those of V and I do not depend on the number of views either.
    """

    def one(view: Array, slot: Array, image: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, slot), view), image)

    # Over flat indices: XLA compiles few axes faster.
    view, slot, image = jnp.indices((views, n, m)).reshape(3, views * n * m)
    if views == 3:
        view = jnp.array([0, 2, 1])[view]
    return jax.vmap(one)(view, first_slot + slot, image).reshape(views, n, m)


def make_update(
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None,
    steps_per_epoch: int,
    nonfinite_limit: int,
) -> Update:
    """Return the part of a step after augmentation.

    `update(state, views, keys)` returns the new state, the outcome and the gradients, averaged
    over the devices, before weight decay. State and gradients are trees, or flat if `state` is.

    A step whose loss or gradient is not finite changes nothing but the number of steps and the
    method's memory; after `nonfinite_limit` of them in a row, no step does.

    Args:
        method: for the same `axis_name`.
        optimizer: of the parameters.
        axis_name: the device axis over which loss and gradients are averaged; None for one device.
        steps_per_epoch: number of steps in an epoch.
        nonfinite_limit: consecutive steps that are not finite.
    """

    def over_devices(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def update(
        state: TrainState, views: tuple[View, ...], keys: Key[Array, " k"] | None
    ) -> tuple[TrainState, Outcome, Any]:
        statistics = as_tree(state.batch_stats)

        def loss(params: Any) -> tuple[Array, tuple[Any, Any]]:
            variables = {"params": params, "batch_stats": statistics}
            total, terms, batch_stats = method.loss(variables, views, state.memory, keys)
            return total, (collections.OrderedDict(terms, total=total), batch_stats)

        # Of the tree: through the slices of a vector, each gradient would be padded to its size.
        gradients, (terms, batch_stats) = jax.grad(loss, has_aux=True)(as_tree(state.params))
        gradients = over_devices(formed_like(state.params, gradients))
        batch_stats, terms = formed_like(state.batch_stats, batch_stats), over_devices(terms)
        with jax.named_scope(UPDATE):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((terms["total"], gradients))]
            # Behind a barrier, since XLA repeats the whole conjunction, an operation for each of
            # some two hundred arrays, in every one of the selections below: four fifths of the
            # program.
            counted = jax.lax.optimization_barrier(
                jnp.stack(finite).all() & (state.skipped_in_row < nonfinite_limit)
            )
            step = state.step + 1
            skipped_in_row = jnp.where(counted, 0, state.skipped_in_row + 1)

            def unless_skipped(new: Any, old: Any) -> Any:
                return jax.tree.map(lambda new, old: jnp.where(counted, new, old), new, old)

            new_state = state.replace(
                step=step,
                params=unless_skipped(optax.apply_updates(state.params, updates), state.params),
                batch_stats=unless_skipped(batch_stats, state.batch_stats),
                opt_state=unless_skipped(opt_state, state.opt_state),
                memory=method.remember(state.memory, terms, counted, step % steps_per_epoch == 0),
                skipped_in_row=skipped_in_row,
            )
        return new_state, Outcome(terms, skipped_in_row), gradients

    return update


def make_train_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None,
    steps_per_epoch: int,
    nonfinite_limit: int,
    padding: int,
    flip: bool,
    erasing: Change | None = None,
    channels: tuple[Change | None, ...] = (None, None),
) -> TrainStep:
    """Return `train_step(state, batch)` for one device: augmentation, then `make_update`'s part.

    Its share of the batch in; the new state and the outcome of the whole batch out, the same on
    every device. `padding`, `flip`, `erasing` and `channels` are those of `augment`, the rest those
    of `make_update`. `channels` has an entry for each view, 2 for V and I, 3 for V, V' and I, where
    V' is V's images augmented once more.
    """
    update = make_update(
        method,
        optimizer,
        axis_name=axis_name,
        steps_per_epoch=steps_per_epoch,
        nonfinite_limit=nonfinite_limit,
    )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Outcome]:
        n, m, *size = batch.visible.shape
        device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        keys = image_keys(key, device * n, n, m, len(channels)).reshape(-1)
        augment_keys, method_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        visible = [batch.visible] * (len(channels) - 1)
        images = jnp.concatenate([*visible, batch.infrared]).reshape(-1, *size)
        images = augment(
            images, augment_keys, padding=padding, flip=flip, erasing=erasing, channels=channels
        )
        labels = jnp.repeat(jnp.asarray(batch.labels), m)
        views = tuple(
            View("infrared" if i == len(visible) else "visible", view, labels)
            for i, view in enumerate(jnp.split(images, len(channels)))
        )
        new_state, outcome, _ = update(state, views, method_keys)
        return new_state, outcome

    return train_step
