"""The mesh of devices, the mapping of a step over it, the processes of a pod: the one file that
names devices."""

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
"""`step(state, batch)` for one device of the axis, or over all of them: new state, outcome."""
Embed = Callable[[Any, Any, str], dict[str, jax.Array]]
"""`embed(variables, uint8 images, modality)`: features by name."""

AXIS = "data"
_REPLICATED, _SHARDED = PartitionSpec(), PartitionSpec(AXIS)


def join_processes(
    coordinator: str | None = None, process_id: int | None = None, processes: int | None = None
) -> None:
    """Joins the processes that run one command together; to be called before jax computes.

    On a TPU slice, under SLURM (srun) and Open MPI (mpirun) jax finds the others by itself. Else
    all three arguments say where they are; without them this process is alone.

    Args:
        coordinator: host and port of process 0, reachable by all.
        process_id: of this process, from 0.
        processes: how many there are.

    Raises:
        UserError: some of the arguments are missing or make no sense.
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
    """Has the devices of all processes meet now, while everyone is here. CPUs give up on a first
    meeting after 30 s, and one process may compile its step for longer than another."""
    mesh = device_mesh()
    meet = jax.shard_map(
        lambda one: jax.lax.psum(one, AXIS), mesh=mesh, in_specs=_SHARDED, out_specs=_REPLICATED
    )
    jax.block_until_ready(jax.jit(meet)(shard(np.ones(jax.local_device_count()), mesh)))


def _started_together() -> bool:
    """Whether the environment is one that starts several processes, or a TPU machine."""
    # Of the step, not of the job: a batch script itself, outside srun, is one process.
    tasks = max(
        int(os.environ.get(name, "1")) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return tasks > 1 or (bool(chips) and importlib.util.find_spec("libtpu") is not None)


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (or those given) along the one axis "data", process by process."""
    if devices is None:
        # A TPU slice numbers its chips by place, not by process; identity slots go by process.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def process_share() -> dict[str, int]:
    """Which of the processes this is, and of how many: {"process_index", "process_count"}."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process has come here; `what` must be the same in all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def as_first_process(value: float) -> float:
    """The first process's value, so that all decide alike."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def stop_agreed(step: int) -> bool:
    """Whether some process got SIGTERM and this is the step that all agreed to stop after."""
    return bool(multihost_utils.reached_preemption_sync_point(step))


def my_part(rows: np.ndarray) -> np.ndarray:
    """This process's share of rows that are sharded over all devices."""
    return np.split(rows, jax.process_count())[jax.process_index()]


def map_train_step(train_step: Step, mesh: Mesh, mapping: str = "shard_map") -> Step:
    """The same step over the whole mesh: a replicated state and a whole batch in and out.

    "shard_map" is compiled with the state donated: the one handed in is gone afterwards. "pmap"
    is not, since a donated state that comes back unsharded (out_axes=None) loses its buffers.
    Neither sums gradients of its own accord (check_vma=False), so the step's `pmean` is the one
    average, under both.

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
    return jax.jit(sharded, donate_argnums=0, compiler_options=_compiler_options(mesh))


def _compiler_options(mesh: Mesh) -> dict[str, str]:
    """For a CPU: an order of operations that needs half the memory for a ResNet-50 step in the same
    time (XLA's default one aims at running many at once), and optimisation barriers that stand
    (XLA's default is to drop them before it fuses operations)."""
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    return {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }


def map_embed(embed: Embed, mesh: Mesh) -> Embed:
    """`embed(variables, images, modality)` over the mesh: variables replicated, images sharded over
    their first axis, which the number of devices must divide; every process gets all embeddings."""

    def over_mesh(variables: Any, images: Any, modality: str) -> dict[str, jax.Array]:
        return jax.shard_map(
            lambda variables, images: embed(variables, images, modality),
            mesh=mesh,
            in_specs=(_REPLICATED, _SHARDED),
            out_specs=_SHARDED,
            check_vma=False,
        )(variables, images)

    everywhere = NamedSharding(mesh, _REPLICATED)
    options = _compiler_options(mesh)
    return jax.jit(over_mesh, static_argnums=2, out_shardings=everywhere, compiler_options=options)


def on_all_devices(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function` in one program, what it returns on every device, as arrays that may be donated."""
    return jax.jit(function, out_shardings=NamedSharding(mesh, _REPLICATED))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` on every device, as fresh arrays that may be donated."""
    # Copied, since what lies on one of the devices already would be shared, and go when the result
    # is donated.
    return on_all_devices(lambda tree: jax.tree.map(jnp.copy, tree), mesh)(tree)


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """`tree` of abstract arrays, each told that it lies on every device."""
    sharding = NamedSharding(mesh, _REPLICATED)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def shard(tree: Any, mesh: Mesh) -> Any:
    """Host arrays, split over their first axis onto the devices; each process gives its part."""
    sharding = NamedSharding(mesh, _SHARDED)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)
