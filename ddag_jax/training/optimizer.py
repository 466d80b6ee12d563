"""SGD as in PyTorch and the learning-rate schedule of the paper (section 4.1)."""

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
    """Return the schedule: linear warm-up, then step decay, constant within an epoch.

    The rate is `learning_rate` * (epoch + 1) / `warmup_epochs` before epoch `warmup_epochs`, and
    `learning_rate` afterwards, multiplied by `drop_factor` at each of `drop_epochs`.

    Returns:
        A function of the number of completed steps. It returns an array for an array and a float
        for an int.

    >>> rate = learning_rate_schedule(
    ...     0.1, steps_per_epoch=2, warmup_epochs=10, drop_epochs=(20, 50), drop_factor=0.1)
    >>> [round(float(rate(2 * epoch)), 5) for epoch in (0, 9, 10, 19, 20, 50)]
    [0.01, 0.1, 0.1, 0.1, 0.01, 0.001]
    """

    # Operators only: an int is evaluated on the host, without waiting for steps on the device.
    def schedule(step: Array | int) -> Array | float:
        # `1.0`: dividing an int32 gives float32 even if everything else is float64.
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
    """Return the equivalent of `torch.optim.SGD` with two parameter groups.

    Weight decay is added to the gradient of every parameter before momentum, and the learning rate
    is applied after it. The learning rate of the backbone is multiplied by `backbone_scale`.

    Args:
        schedule: learning rate by number of completed steps.
        backbone_scale: factor for parameters below the key `BACKBONE`.
        momentum: decay of the velocity.
        nesterov: use Nesterov momentum.
        weight_decay: coefficient of the L2 penalty's gradient.
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
