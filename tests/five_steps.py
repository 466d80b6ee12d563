"""Five training steps of a tiny network, on any devices; by itself, one of several processes.

python -m tests.five_steps OUT.npz HOST:PORT PROCESS PROCESSES
"""

import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

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
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.training.step import make_train_step
from tests.models import tiny

STEPS = 5


class Run(NamedTuple):
    terms: dict[str, np.ndarray]
    """Of the loss, of all steps, stacked."""
    state: TrainState


def run(mesh: Mesh, dtype: type, mapping: str = "shard_map") -> Run:
    """Two and a half epochs, dropout and augmentation on."""
    with jax.enable_x64(dtype is np.float64):
        method, optimizer = tiny.method(axis_name=AXIS), tiny.optimizer()
        variables = tiny.random_variables(method)
        state = new_state(variables, optimizer, method.memory(), jax.random.key(0))
        step = make_train_step(
            method,
            optimizer,
            axis_name=AXIS,
            steps_per_epoch=2,
            nonfinite_limit=1,
            padding=3,
            flip=True,
        )
        step, state = map_train_step(step, mesh, mapping), replicate(state, mesh)
        outcomes = []
        for seed in range(STEPS):
            mine = jax.tree.map(my_part, tiny.batch(seed=seed))
            state, outcome = step(state, shard(mine, mesh))
            outcomes.append(outcome.terms)
        return Run({name: np.stack([o[name] for o in outcomes]) for name in outcomes[0]}, state)


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
