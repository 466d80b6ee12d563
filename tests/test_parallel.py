"""The number of devices changes nothing, dropout and augmentation on; nor does the mapping."""

import functools
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from ddag_jax.parallel import (
    AXIS,
    device_mesh,
    map_embed,
    map_train_step,
    on_all_devices,
    replicate,
    replicated_shapes,
    shard,
)
from tests import five_steps
from tests.five_steps import STEPS, Run
from tests.models import tiny
from tests.processes import together

pytestmark = pytest.mark.slow


def mesh_of(devices: int) -> Mesh:
    return device_mesh(jax.devices()[:devices])


@functools.cache
def run(devices: int, dtype: type, name: str = "ddag") -> Run:
    return five_steps.run(mesh_of(devices), dtype, name=name)


def relative(ours: Any, expected: Any) -> dict[str, float]:
    """Norm of the difference over that of the expected, of each leaf."""
    ours = dict(jax.tree_util.tree_leaves_with_path(ours))
    result = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        expected_leaf = np.asarray(leaf)
        difference = np.linalg.norm(np.asarray(ours.pop(path)) - expected_leaf)
        size = max(np.linalg.norm(expected_leaf), 1e-12)
        result[jax.tree_util.keystr(path)] = difference / size
    assert not ours
    return result


def check_close(ours: Run, expected: Run, losses: float, parameters: float) -> None:
    far = {k: v for k, v in relative(ours.terms, expected.terms).items() if not v <= losses}
    trees = [
        (run.state.params, run.state.batch_stats, run.state.memory) for run in (ours, expected)
    ]
    far |= {k: v for k, v in relative(*trees).items() if not v <= parameters}
    assert not far


def test_processes_change_nothing_in_float64(tmp_path: Path) -> None:
    """Two of two devices each, which exchange over loopback, against one device.

    It comes first: the programs of the tests below are compiled while the processes wait.
    """
    out = tmp_path / "found.npz"

    def meanwhile(processes: list[subprocess.Popen]) -> None:
        run(1, np.float64)
        run(2, np.float64)

    words = ["-m", "tests.five_steps", out]
    for result in together(2, 2, lambda where: [*words, *where], meanwhile):
        assert result.returncode == 0, result.stderr[-3000:]
    expected = five_steps.compared(run(1, np.float64))
    far = {k: v for k, v in relative(dict(np.load(out)), expected).items() if not v <= 1e-9}
    assert not far


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_change_nothing_in_float64(devices: int) -> None:
    check_close(run(devices, np.float64), run(1, np.float64), losses=1e-9, parameters=1e-9)


def test_devices_change_nothing_in_float32() -> None:
    """Beyond rounding, which the steps amplify: to 5e-3, and by the processor more or less."""
    check_close(run(8, np.float32), run(1, np.float32), losses=1e-2, parameters=2e-2)


@pytest.mark.parametrize("name", ["agw", "caj", "ddag_caj"])
def test_devices_change_nothing_for_the_other_recipes(name: str) -> None:
    """GeM, non-local blocks, AGW's and CAJ's triplets; three views; DDAG's graph of two of them."""
    whole = run(1, np.float64, name=name)
    check_close(run(8, np.float64, name=name), whole, losses=1e-9, parameters=1e-9)
    moved = "graph" if name == "ddag_caj" else "triplet"
    assert len(np.unique(whole.terms[moved])) == STEPS


@pytest.mark.parametrize(("name", "devices"), [("ddag", 1), ("ddag", 2), ("agw", 2)])
def test_a_flat_state_changes_nothing(name: str, devices: int) -> None:
    """As it goes from step to step on GPUs: the same arithmetic, fused otherwise."""
    flat = five_steps.run(mesh_of(devices), np.float64, name=name, flat=True)
    check_close(flat, run(devices, np.float64, name=name), losses=1e-12, parameters=1e-12)


@pytest.mark.parametrize(("name", "devices"), [("ddag", 4), ("caj", 8)])
def test_both_mappings_are_identical(name: str, devices: int) -> None:
    """To the last bit, shapes included."""
    words = ["-m", "tests.both_mappings", name, devices]
    (result,) = together(1, devices, lambda where: words, hasty=False)
    assert result.returncode == 0, result.stderr[-3000:]


def test_the_run_is_a_real_one() -> None:
    """What the tests above compare moves: all terms count, and the parameters have changed."""
    terms, state = run(1, np.float64)
    assert state.skipped_in_row == 0
    for name, term in terms.items():
        assert len(np.unique(term)) == (3 if name == "graph_weight" else STEPS), name
    assert state.step == STEPS
    with jax.enable_x64(True):
        start = tiny.random_variables(tiny.method())["params"]
    assert min(relative(state.params, start).values()) > 1e-5


def test_the_state_has_no_device_axis() -> None:
    """After shard_map; that of pmap is the same, see above."""
    one, other = (
        [leaf.shape for leaf in jax.tree.leaves(run(devices, np.float64).state)]
        for devices in (1, 8)
    )
    assert one == other


# ------------------------------------------------------------------------------------- pieces


def test_mesh_of_all_devices() -> None:
    assert device_mesh().devices.tolist() == jax.devices()
    assert device_mesh().axis_names == (AXIS,)


def test_layouts() -> None:
    """Replicated: all of it everywhere, in buffers of its own. Sharded: split over the rows."""
    mesh = mesh_of(4)
    whole = jnp.arange(12.0).reshape(4, 3)
    copies = replicate(whole, mesh)
    assert copies.sharding.is_fully_replicated
    assert [piece.data.shape for piece in copies.addressable_shards] == [(4, 3)] * 4
    copies.delete()
    assert not whole.is_deleted()
    described = replicated_shapes(whole, mesh)
    assert (described.shape, described.dtype) == (whole.shape, whole.dtype)
    assert described.sharding == copies.sharding
    rows = shard(np.asarray(whole), mesh)
    assert [piece.data.tolist() for piece in rows.addressable_shards] == [
        [row] for row in whole.tolist()
    ]


def test_what_is_drawn_may_be_donated() -> None:
    """Also where two of the results are one value, as both stems are at first."""
    stem = on_all_devices(lambda: (jax.random.normal(jax.random.key(0), (50, 50)),) * 2, mesh_of(2))
    one, other = stem()
    assert one.sharding.is_fully_replicated
    assert len(one.sharding.device_set) == 2
    value = np.asarray(other)
    one.delete()
    np.testing.assert_array_equal(other, value)
    buffers = {shard.data.unsafe_buffer_pointer() for a in stem() for shard in a.addressable_shards}
    assert len(buffers) == 4


def test_donation() -> None:
    """shard_map takes the state's buffers; pmap leaves them."""

    def step(state: jax.Array, batch: jax.Array) -> tuple:
        return state + jax.lax.pmean(batch.sum(), AXIS), jax.lax.axis_index(AXIS) * 0

    mesh, batch = mesh_of(2), np.ones((4, 3), np.float32)
    for mapping, taken in (("shard_map", True), ("pmap", False)):
        state = replicate(jnp.zeros(()), mesh)
        new, _ = map_train_step(step, mesh, mapping)(state, shard(batch, mesh))
        assert float(new) == 6
        assert state.is_deleted() == taken


@pytest.mark.parametrize("part", [True, False], ids=["P", "no P"])
def test_embedding_over_devices(part: bool) -> None:
    method = tiny.method(part_attention=part, graph_attention=False)
    with jax.enable_x64(True):
        variables = tiny.random_variables(method)
        images = np.random.default_rng(0).normal(size=(8, tiny.HEIGHT, tiny.WIDTH, 3))
        (expected, ours) = (
            map_embed(method.embed, mesh_of(devices))(variables, images, "infrared")
            for devices in (1, 4)
        )
    assert set(ours) == {"global", *(["part"] if part else [])}
    assert ours["global"].shape == (8, 64)
    assert max(relative(ours, expected).values()) < 1e-12
