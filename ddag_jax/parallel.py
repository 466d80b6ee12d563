"""The mesh of devices and the mapping of a step over it: the one file that names devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddag_jax.errors import InputError
from ddag_jax.training.step import Step
from ddag_jax.typing import Batch, Embeddings

AXIS = "data"
_REPLICATED, _SHARDED = PartitionSpec(), PartitionSpec(AXIS)


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (or those given) along the one axis "data"."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def process_share() -> dict[str, int]:
    """Which of the processes this is, and of how many: {"process_index", "process_count"}."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def check_divides(identities_per_batch: int, mesh: Mesh) -> None:
    """Raises InputError where identities do not divide evenly over the devices."""
    if identities_per_batch % mesh.size:
        fitting = max(identities_per_batch // mesh.size, 1) * mesh.size
        raise InputError(
            f"training.identities_per_batch: {identities_per_batch} does not divide over"
            f" {mesh.size} devices; take {fitting}, or another multiple of {mesh.size}"
        )


def map_train_step(train_step: Step, mesh: Mesh, mapping: str = "shard_map") -> Step:
    """The same step over the whole mesh: a replicated state and a whole batch in and out.

    "shard_map" is compiled with the state donated: the one handed in is gone afterwards. "pmap"
    is not, since a donated state that comes back unsharded (out_axes=None) loses its buffers.
    Neither sums gradients of its own accord (check_vma=False), so the step's `pmean` is the one
    average, under both.
    """
    if mapping == "pmap":
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
    return jax.jit(sharded, donate_argnums=0)


def map_embed(
    embed: Callable[[Any, Any, str], Embeddings], mesh: Mesh
) -> Callable[[Any, Any, str], Embeddings]:
    """`embed(variables, images, modality)` over the mesh: variables replicated, images and
    embeddings sharded over their first axis, which the number of devices must divide."""

    def over_mesh(variables: Any, images: Any, modality: str) -> Embeddings:
        return jax.shard_map(
            lambda variables, images: embed(variables, images, modality),
            mesh=mesh,
            in_specs=(_REPLICATED, _SHARDED),
            out_specs=_SHARDED,
            check_vma=False,
        )(variables, images)

    return jax.jit(over_mesh, static_argnums=2)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` on every device, as fresh arrays that may be donated."""
    # Copied first: what lies on one of the devices already would be shared, may_alias=False or not,
    # and go when the result is donated.
    return jax.device_put(jax.tree.map(jnp.array, tree), NamedSharding(mesh, _REPLICATED))


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """`tree` of abstract arrays, each told that it lies on every device."""
    sharding = NamedSharding(mesh, _REPLICATED)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def shard(tree: Any, mesh: Mesh) -> Any:
    """Host arrays, split over their first axis onto the devices; each process gives its part."""
    sharding = NamedSharding(mesh, _SHARDED)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)
