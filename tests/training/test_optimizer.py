"""Several steps against torch.optim.SGD, and the schedule against the paper's numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from ddag_jax.training.optimizer import learning_rate_schedule, sgd

SHAPES = {
    ("two_stream", "conv"): (3, 4),
    ("two_stream", "bn", "scale"): (4,),
    ("neck", "scale"): (4,),
    ("classifier", "kernel"): (4, 5),
}


def tree(values: list[np.ndarray]) -> dict:
    """Nested by the paths of SHAPES."""
    root: dict = {}
    for path, value in zip(SHAPES, values, strict=True):
        level = root
        for name in path[:-1]:
            level = level.setdefault(name, {})
        level[path[-1]] = jnp.asarray(value)
    return root


def draw(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in SHAPES.values()]


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)], ids=str
)
def test_steps_as_pytorch(momentum: float, nesterov: bool) -> None:
    """Six epochs of two steps: two of warm-up, drops at the third and the fifth; two groups, with
    weight decay on all, batch normalisation too."""
    start = draw(0)
    parameters = [torch.tensor(value, requires_grad=True) for value in start]
    backbone = [p for p, path in zip(parameters, SHAPES, strict=True) if path[0] == "two_stream"]
    others = parameters[len(backbone) :]
    theirs = torch.optim.SGD(
        [{"params": backbone, "lr": 0.01}, {"params": others, "lr": 0.1}],
        momentum=momentum,
        weight_decay=0.05,
        nesterov=nesterov,
    )
    rates = [0.5, 1, 0.1, 0.1, 0.01, 0.01]  # of an epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: rates[min(step // 2, 5)])
    with jax.enable_x64(True):
        ours = sgd(
            learning_rate_schedule(
                0.1, steps_per_epoch=2, warmup_epochs=2, drop_epochs=(2, 4), drop_factor=0.1
            ),
            backbone_scale=0.1,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=0.05,
        )
        params = tree(start)
        state = ours.init(params)
        for step in range(12):
            gradients = draw(1 + step)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = torch.tensor(gradient)
            theirs.step()
            scheduler.step()
            updates, state = ours.update(tree(gradients), state, params)
            params = optax.apply_updates(params, updates)
        expected = tree([parameter.detach().numpy() for parameter in parameters])
    chex.assert_trees_all_close(params, expected, rtol=1e-12)


@pytest.mark.parametrize("drops", [(20, 50), (30, 50)], ids=["code", "paper"])
def test_published_schedule(drops: tuple[int, int]) -> None:
    """Constant within an epoch; the drop is on the epoch's first step."""
    steps = 7
    schedule = learning_rate_schedule(
        0.1, steps_per_epoch=steps, warmup_epochs=10, drop_epochs=drops, drop_factor=0.1
    )
    epochs = np.arange(81)
    expected = np.select(
        [epochs < 10, epochs < drops[0], epochs < drops[1]], [(epochs + 1) / 100, 0.1, 0.01], 0.001
    )
    rates = jax.vmap(schedule)(jnp.arange(81 * steps))
    np.testing.assert_allclose(rates, np.repeat(expected, steps), rtol=1e-5)
    on_host = [schedule(step) for step in range(81 * steps)]
    assert all(type(rate) is float for rate in on_host)  # no program that a device must run
    np.testing.assert_allclose(on_host, np.repeat(expected, steps), rtol=1e-12)


def test_schedule_without_warmup_or_drops() -> None:
    schedule = learning_rate_schedule(
        0.1, steps_per_epoch=3, warmup_epochs=0, drop_epochs=(), drop_factor=0.1
    )
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.arange(9)), 0.1, rtol=1e-6)
