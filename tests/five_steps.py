"""Five training steps of a tiny network, on any devices; by itself, one of several processes.

python -m tests.five_steps OUT.npz HOST:PORT PROCESS PROCESSES
"""

import functools
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ddag_jax.config import BaselineConfig
from ddag_jax.data.augment import adaptive_grey, erase, exchange_channels
from ddag_jax.methods.base import Method
from ddag_jax.methods.baseline import Baseline
from ddag_jax.parallel import (
    AXIS,
    device_mesh,
    is_first_process,
    join_processes,
    map_train_step,
    my_part,
    replicate,
    shard,
)
from ddag_jax.training.flat import flatten, unflatten
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.training.step import make_train_step
from tests.models import tiny

STEPS = 5


class Run(NamedTuple):
    terms: dict[str, np.ndarray]
    """Of the loss, of all steps, stacked."""
    state: TrainState


BASELINES: dict[str, dict[str, Any]] = {
    "agw": {"pooling": "gem-learnable", "non_local": "half", "triplet": "weighted"},
    # A gamma that clamps nothing.
    "caj": {"pooling": "gem", "non_local": "one", "triplet": "squared", "triplet_gamma": 0.05},
}
"""What the networks differ in; between them, every kind of pooling and of non-local block."""


def method_of(name: str) -> Method:
    """Return DDAG, or AGW or CAJ of its size."""
    if name not in BASELINES:
        return tiny.method(axis_name=AXIS)
    config = BaselineConfig(backbone="resnet18", width=8, **BASELINES[name])
    return Baseline(config, tiny.CLASSES, AXIS)


CHANNELS = exchange_channels, adaptive_grey
ERASING = functools.partial(
    erase, probability=0.5, share=(0.02, 0.4), aspect=(0.3, 1 / 0.3), fill=(0.5, 0.5, 0.5)
)


def run(
    mesh: Mesh, dtype: type, mapping: str = "shard_map", name: str = "ddag", flat: bool = False
) -> Run:
    """Two and a half epochs, dropout and augmentation on.

    `name` is "ddag" or "agw", or with three views "caj" or "ddag_caj". With `flat` the state goes
    from step to step as on a GPU; the returned one is a tree.
    """
    recipe: dict[str, Any] = {}
    if name in ("caj", "ddag_caj"):
        recipe = {"erasing": ERASING, "channels": (None, *CHANNELS)}
    with jax.enable_x64(dtype is np.float64):
        method = method_of(name)
        optimizer = tiny.optimizer()
        variables = tiny.random_variables(method)
        state = new_state(variables, optimizer, method.memory(), jax.random.key(0))
        if flat:
            state = flatten(state)
        step = make_train_step(
            method,
            optimizer,
            axis_name=AXIS,
            steps_per_epoch=2,
            nonfinite_limit=1,
            padding=3,
            flip=True,
            **recipe,
        )
        step, state = map_train_step(step, mesh, mapping), replicate(state, mesh)
        outcomes = []
        for seed in range(STEPS):
            mine = jax.tree.map(my_part, tiny.batch(seed=seed))
            state, outcome = step(state, shard(mine, mesh))
            outcomes.append(outcome.terms)
        return Run(
            {name: np.stack([o[name] for o in outcomes]) for name in outcomes[0]}, unflatten(state)
        )


def compared(run: Run) -> dict[str, Any]:
    """What must not depend on the devices, by name."""
    state = run.state
    tree = (run.terms, state.params, state.batch_stats, state.memory)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


if __name__ == "__main__":
    out, coordinator, process, processes = sys.argv[1:]
    join_processes(coordinator, int(process), int(processes))
    if process == "1":  # as if it compiled for so much longer; CPUs that never met wait for 30 s
        time.sleep(35)
    found = compared(run(device_mesh(), np.float64))
    if is_first_process():
        np.savez(out, **found)
