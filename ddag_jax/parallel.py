"""Device mesh, mapping of functions over it, and multi-process start-up.

The only file that names devices.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddag_jax.errors import UserError
from ddag_jax.types import Batch

Step = Callable[[Any, Batch], tuple[Any, Any]]
"""`step(state, batch)` -> (new state, outcome), on one device of the axis or over all devices."""
Embed = Callable[[Any, Any, str], dict[str, jax.Array]]
"""`embed(variables, uint8 images, modality)` -> features by name."""

AXIS = "data"
_REPLICATED, _SHARDED = PartitionSpec(), PartitionSpec(AXIS)


def join_processes(
    coordinator: str | None = None, process_id: int | None = None, processes: int | None = None
) -> None:
    """Connect the processes that run one command; must be called before jax computes.

    On a TPU slice and under SLURM (srun) or Open MPI (mpirun), jax discovers the other processes.
    Elsewhere all three arguments are needed; without them this process runs alone.

    Args:
        coordinator: host and port of process 0, reachable from all processes.
        process_id: index of this process, from 0.
        processes: number of processes.

    Raises:
        UserError: some of the arguments are missing or invalid.
    """
    given = (coordinator, process_id, processes)
    if given == (None, None, None):
        if _started_together():
            jax.distributed.initialize()
            _connect()
        return
    if coordinator is None or process_id is None or processes is None:
        raise UserError("--coordinator, --process-id, --processes: give all three, or none")
    if not 0 <= process_id < processes:
        raise UserError(
            f"--process-id {process_id}: of {processes} processes they are 0 to {processes - 1}"
        )
    if ":" not in coordinator:
        raise UserError(
            f"--coordinator {coordinator}: give host and port, as in {coordinator}:8476"
        )
    jax.distributed.initialize(coordinator, num_processes=processes, process_id=process_id)
    _connect()


def _connect() -> None:
    """Run one collective operation over the devices of all processes.

    On CPUs the first collective times out after 30 s, and the time to compile the train step may
    differ between processes by more than that.
    """
    mesh = device_mesh()
    meet = jax.shard_map(
        lambda one: jax.lax.psum(one, AXIS), mesh=mesh, in_specs=_SHARDED, out_specs=_REPLICATED
    )
    jax.block_until_ready(jax.jit(meet)(shard(np.ones(jax.local_device_count()), mesh)))


def _started_together() -> bool:
    """Return whether a launcher of several processes started this one, or this is a TPU host."""
    # Of the step, not of the job: a batch script itself, outside srun, is one process.
    tasks = max(
        int(os.environ.get(name, "1")) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return tasks > 1 or (bool(chips) and importlib.util.find_spec("libtpu") is not None)


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of `devices` (default: all) with one axis "data", ordered by process."""
    if devices is None:
        # TPU chips are numbered by position; batches are split by process.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def process_share() -> dict[str, int]:
    """Return {"process_index": ..., "process_count": ...} of this process."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def is_first_process() -> bool:
    """Return whether this is the process that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Wait until every process has made this call; `what` must be equal in all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def as_first_process(value: float) -> float:
    """Return the first process's value, so that all processes take the same decision."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def stop_agreed(step: int) -> bool:
    """Return whether a process received SIGTERM and all have agreed to stop after this step."""
    return bool(multihost_utils.reached_preemption_sync_point(step))


def my_part(rows: np.ndarray) -> np.ndarray:
    """Return this process's share of rows that are sharded over all devices."""
    return np.split(rows, jax.process_count())[jax.process_index()]


def map_train_step(train_step: Step, mesh: Mesh, mapping: str = "shard_map") -> Step:
    """Map a step over the mesh: replicated state, batch sharded over its first axis.

    With "shard_map" the state is donated: the argument must not be used afterwards. With "pmap" it
    is not, since a donated state that is returned unsharded (out_axes=None) loses its buffers.
    Neither mapping sums gradients implicitly (check_vma=False); the step's `pmean` is the only
    average.

    Raises:
        UserError: "pmap" with several processes.
    """
    if mapping == "pmap":
        if jax.process_count() > 1:
            raise UserError(
                "training.mapping: pmap is for the devices of one process; leave it at shard_map"
            )
        devices = list(mesh.devices)
        mapped = jax.pmap(
            train_step, AXIS, in_axes=(None, 0), out_axes=(None, None), devices=devices
        )

        def over_leading_axis(state: Any, batch: Batch) -> Any:
            split = jax.tree.map(lambda x: x.reshape(mesh.size, -1, *x.shape[1:]), batch)
            return mapped(state, split)

        return over_leading_axis
    sharded = jax.shard_map(
        train_step,
        mesh=mesh,
        in_specs=(_REPLICATED, _SHARDED),
        out_specs=(_REPLICATED, _REPLICATED),
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=0, compiler_options=compiler_options(mesh))


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Return the compiler options for CPUs; none for other platforms.

    The memory-optimised schedule halves the memory of a ResNet-50 step without slowing it down
    (XLA's default schedule maximises concurrency). Disabling the pass `cse_barrier_expander` keeps
    optimisation barriers, which XLA otherwise removes before fusion: without that, an update of
    ResNet-50 takes more than twice as long to compile.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    return {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }


def flat_state_pays(mesh: Mesh) -> bool:
    """Return whether a train step is faster with the state as a few vectors (training/flat.py).

    On GPUs, where each array of a tree is a kernel of its own. On a TPU a vector and a kernel have
    different layouts, so that it would be copied.
    """
    return mesh.devices.flat[0].platform == "gpu"


def map_embed(embed: Embed, mesh: Mesh) -> Embed:
    """Map `embed(variables, images, modality)` over the mesh.

    Variables are replicated; images are sharded over their first axis, whose size must be a
    multiple of the number of devices. Every process receives all embeddings.
    """

    def over_mesh(variables: Any, images: Any, modality: str) -> dict[str, jax.Array]:
        return jax.shard_map(
            lambda variables, images: embed(variables, images, modality),
            mesh=mesh,
            in_specs=(_REPLICATED, _SHARDED),
            out_specs=_SHARDED,
            check_vma=False,
        )(variables, images)

    everywhere = NamedSharding(mesh, _REPLICATED)
    options = compiler_options(mesh)
    return jax.jit(over_mesh, static_argnums=2, out_shardings=everywhere, compiler_options=options)


def map_blocks(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Map `function(replicated, carried, *block)` -> carried over the mesh.

    All but the first argument are sharded over their first axis; so is the result.
    """

    def over_mesh(replicated: Any, *sharded: Any) -> Any:
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(_REPLICATED, *(_SHARDED for _ in sharded)),
            out_specs=_SHARDED,
            check_vma=False,
        )(replicated, *sharded)

    return jax.jit(over_mesh, compiler_options=compiler_options(mesh))


def on_all_devices(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Compile `function` so that it returns fresh, donatable arrays, replicated on all devices."""
    return jax.jit(function, out_shardings=NamedSharding(mesh, _REPLICATED))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy `tree` to every device, as fresh arrays that may be donated."""
    # Explicit copies: an array that is already on a device would be shared with the result and
    # deleted when that is donated.
    return on_all_devices(lambda tree: jax.tree.map(jnp.copy, tree), mesh)(tree)


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """Return `tree` as `jax.ShapeDtypeStruct`s, replicated on every device."""
    sharding = NamedSharding(mesh, _REPLICATED)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def shard(tree: Any, mesh: Mesh) -> Any:
    """Shard host arrays over their first axis; each process passes its own part."""
    sharding = NamedSharding(mesh, _SHARDED)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)
