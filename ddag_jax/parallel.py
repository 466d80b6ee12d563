"""Device mesh, mapping of functions over it, and multi-process start-up.

The only file that names devices.
"""

import contextlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
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


_LAUNCHERS = {
    # Of the step, not of the job: a batch script itself, outside srun, is one process.
    "SLURM_STEP_NUM_TASKS": (
        "SLURM_JOB_ID",
        "SLURM_STEP_NODELIST",
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "SLURM_LOCALID",
    ),
    "OMPI_COMM_WORLD_SIZE": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_MCA_orte_hnp_uri",  # not set by Open MPI 5
    ),
}
"""Variable of a launcher with the number of processes, and those by which jax finds the others."""
_BY_HAND = "give each process --coordinator HOST:PORT, --process-id and --processes"
_PATIENCE = 300.0
"""Seconds to wait for the other processes."""


def join_processes(
    coordinator: str | None = None, process_id: int | None = None, processes: int | None = None
) -> None:
    """Connect the processes that run one command; must be called before jax computes.

    On a TPU slice and under SLURM (srun) or Open MPI (mpirun), jax discovers the other processes.
    Elsewhere all three arguments are needed; without them this process runs alone. If the others do
    not come, the process ends: with a line that says why, and exit code 2.

    Args:
        coordinator: host and port of process 0, reachable from all processes.
        process_id: index of this process, from 0.
        processes: number of processes.

    Raises:
        UserError: some of the arguments are missing or invalid; the environment is that of several
            processes, but does not say where they are.
    """
    given = (coordinator, process_id, processes)
    if given == (None, None, None):
        if found := _started_together():
            _join(found)
        return
    if coordinator is None or process_id is None or processes is None:
        raise UserError("--coordinator, --process-id, --processes: give all three, or none")
    if processes < 1:
        raise UserError(f"--processes {processes}: must be 1 or more")
    if not 0 <= process_id < processes:
        raise UserError(
            f"--process-id {process_id}: of {processes} processes they are 0 to {processes - 1}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(
            f"--coordinator {coordinator}: give host and port of process 0, as in"
            f" {host or 'localhost'}:8476"
        )
    found = f"--coordinator {coordinator}, --process-id {process_id} of {processes}"
    _join(
        f"{found}: cannot connect; check that all processes run and that the port is free",
        coordinator_address=coordinator,
        num_processes=processes,
        process_id=process_id,
    )


def _join(found: str, **where: Any) -> None:
    with _named_failure(found):
        jax.distributed.initialize(**where, initialization_timeout=round(_PATIENCE) + 60)
    with _named_failure(found):
        _connect()


@contextlib.contextmanager
def _named_failure(found: str) -> Iterator[None]:
    """Turn a failure to connect into one line: what was found and what to do, and the reason."""

    def give_up() -> None:
        print(f"error: {found} (no answer in {_PATIENCE:.0f} s)", file=sys.stderr, flush=True)
        os._exit(2)  # jaxlib would abort the process a minute later, with a stack trace

    timer = threading.Timer(_PATIENCE, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # jax and its launchers raise whatever they meet
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{found} ({reason})") from error
    finally:
        timer.cancel()


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


def _started_together() -> str | None:
    """Return what shows that a launcher started several processes, or that this is a TPU host, and
    what to do if that is wrong; None if this process is alone.

    Raises:
        UserError: a launcher's variables are malformed, or only some of them are there.
    """
    for name, needed in _LAUNCHERS.items():
        value = os.environ.get(name, "").strip()
        if not value:
            continue
        alone = f"if this command runs alone, unset {name}"
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"{name}={value}: is not a number of processes; {alone}")
        if int(value) == 1:
            continue
        if missing := [one for one in needed if not os.environ.get(one, "").strip()]:
            raise UserError(
                f"{name}={value}, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
                f" not set, by which the other processes are found; {alone}; else {_BY_HAND}"
            )
        return f"{name}={value}: cannot connect to the other processes; {alone}; else {_BY_HAND}"
    chips = sorted([*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")])
    if chips and importlib.util.find_spec("libtpu") is not None:
        return (
            f"{chips[0]}, a TPU's: cannot find the slice's other machines; {_BY_HAND} (of a machine"
            " that is alone: localhost:8476, 0 and 1)"
        )
    return None


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of `devices` (default: all) with one axis "data", ordered by process.

    Raises:
        UserError: there is no device of the platform that JAX_PLATFORMS names.
    """
    if devices is None:
        # TPU chips are numbered by position; batches are split by process.
        devices = sorted(_all_devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _all_devices() -> list[jax.Device]:
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError of JAX has no text
        reason = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0]
        wanted = os.environ.get("JAX_PLATFORMS")
        found = f"JAX_PLATFORMS={wanted}: no such device" if wanted else "no device"
        advice = "unset it to compute on what there is, or set it to cpu"
        raise UserError(
            f"{found} can be used ({reason or 'none is visible'});"
            f" {advice if wanted else 'set JAX_PLATFORMS=cpu to compute on the CPU'}"
        ) from None


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
