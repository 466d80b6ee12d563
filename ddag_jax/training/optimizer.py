"""SGD as PyTorch does it, learning-rate groups by path, warm-up and drops (section 4.1)."""

from collections.abc import Callable, Sequence

import jax
import optax
from jaxtyping import Array

from ddag_jax.models.two_stream import BACKBONE

Schedule = Callable[[Array | int], Array | float]


def learning_rate_schedule(
    learning_rate: float,
    *,
    steps_per_epoch: int,
    warmup_epochs: int,
    drop_epochs: Sequence[int],
    drop_factor: float,
) -> Schedule:
    """Learning rate of a step, constant within an epoch: an array for one, a float for an int.

    (epoch + 1) / warmup_epochs of `learning_rate` up to epoch warmup_epochs - 1, then
    `learning_rate`, times `drop_factor` from each of `drop_epochs` on.

    >>> rate = learning_rate_schedule(
    ...     0.1, steps_per_epoch=2, warmup_epochs=10, drop_epochs=(20, 50), drop_factor=0.1)
    >>> [round(float(rate(2 * epoch)), 5) for epoch in (0, 9, 10, 19, 20, 50)]
    [0.01, 0.1, 0.1, 0.1, 0.01, 0.001]
    """

    # Operators only: on an int they run here, where a program would wait behind the device's steps.
    def schedule(step: Array | int) -> Array | float:
        # `1.0`: an int32 divided would be float32 even where everything else is float64.
        epoch = 1.0 * (step // steps_per_epoch)
        share = (epoch + 1) / max(warmup_epochs, 1)
        warm = share * (share < 1) + (share >= 1)
        drops = sum((epoch >= start) * 1 for start in drop_epochs)
        return learning_rate * warm * drop_factor**drops

    return schedule


def sgd(
    schedule: Schedule,
    *,
    backbone_scale: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> optax.GradientTransformation:
    """torch.optim.SGD with two groups: weight decay joins the gradient before the momentum, on
    every parameter, and the learning rate comes after it; the backbone's is `backbone_scale` of it.
    """

    def in_backbone(params: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[0] == jax.tree_util.DictKey(BACKBONE), params
        )

    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum, nesterov),
        optax.masked(optax.scale(backbone_scale), in_backbone),
        optax.scale_by_learning_rate(schedule),
    )
