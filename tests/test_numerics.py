"""JAX's settings outside change no number and break no start: commands, and calls from Python."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddag_jax
from ddag_jax import numerics
from ddag_jax.cli import environment
from ddag_jax.config import AugmentConfig
from ddag_jax.data.augmentation_sheet import augmentation_sheet
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from tests.linear_method import CONFIG
from tests.reliability.debug_runs import copy, differences, output, start_training

OUTSIDE = {
    "JAX_ENABLE_X64": "1",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    "JAX_SOFTMAX_CUSTOM_JVP": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_LEGACY_PRNG_KEY": "error",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DEBUG_KEY_REUSE": "1",
    "JAX_DISABLE_JIT": "1",
}
"""A value of each setting that is not ours."""

Run = Callable[..., int]


def test_every_setting_has_another_value() -> None:
    assert OUTSIDE.keys() == numerics._OURS.keys()


@pytest.fixture
def outside() -> Iterator[None]:
    """A program that has changed JAX's settings for all of its threads before it calls us."""
    before = {name: getattr(jax.config, name.lower()) for name in OUTSIDE}
    read = {"0": False, "1": True}
    for name, value in OUTSIDE.items():
        if name not in ("JAX_TRANSFER_GUARD", "JAX_LEGACY_PRNG_KEY", "JAX_DISABLE_JIT"):
            jax.config.update(name.lower(), read.get(value, value))
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name.lower(), getattr(value, "value", value))


def test_inside_they_are_ours_and_afterwards_the_caller_s(outside: None) -> None:
    assert jnp.ones(2).dtype == np.float64
    draw = jax.random.normal(jax.random.key(0), (4,))
    with numerics.own_settings():
        assert jnp.ones(2).dtype == np.float32
        ours = jax.random.normal(jax.random.key(0), (4,))
        assert jnp.ones(2) + np.ones((2, 2)) is not None  # refused by strict promotion
        with jax.enable_x64():
            assert jnp.ones(2).dtype == np.float64
    assert jnp.ones(2).dtype == np.float64
    assert not np.array_equal(draw, ours)
    assert (jax.random.normal(jax.random.key(0), (4,)) == draw).all()


@pytest.mark.slow  # trains
def test_a_run_from_python_is_the_same(
    outside: None, finished: Path, debug_data: Path, tmp_path: Path
) -> None:
    config = load_config(CONFIG)
    data = ddag_jax.DataConfig(**{**vars(config.data), "dir": str(debug_data)})
    config = ddag_jax.Config(**{**vars(config), "data": data})
    assert ddag_jax.train(config, tmp_path / "run") == 0
    assert differences(tmp_path / "run", finished) == []


@pytest.mark.slow  # trains
def test_evaluating_and_embedding_from_python_are_the_same(
    request: pytest.FixtureRequest, finished: Path, tmp_path: Path
) -> None:
    run, own = copy(finished, tmp_path / "run"), load_config(CONFIG)
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 16, 3), np.uint8)
    expected = ddag_jax.evaluate(run, config=own, quiet=True)
    features = ddag_jax.load(run, config=own).embed(images, "visible")
    request.getfixturevalue("outside")
    assert ddag_jax.evaluate(run, config=own, quiet=True) == expected
    model = ddag_jax.load(run, config=own)
    for name, rows in model.embed(images, "visible").items():
        np.testing.assert_array_equal(rows, features[name])
    batch = np.resize(images, (model.batch_size, 32, 16, 3))
    for name, values in model.embed_batch(batch, "visible").items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(values)[:3], features[name])


def test_the_picture_of_augmentations_is_the_same(request: pytest.FixtureRequest) -> None:
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 16, 3), np.uint8)
    pictures = []
    for _ in range(2):
        pictures.append(
            augmentation_sheet(images, ["a", "b"], AugmentConfig(erasing=1.0), draws=2, seed=0)
        )
        request.getfixturevalue("outside")
    assert np.array_equal(*map(np.asarray, pictures))


@pytest.mark.slow  # starts processes that train
def test_a_command_s_numbers_do_not_depend_on_the_environment(
    finished: Path, debug_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run, and one that began in another environment."""
    for name, value in OUTSIDE.items():
        monkeypatch.setenv(name, value)
    fresh, resumed = tmp_path / "fresh", copy(finished, tmp_path / "resumed", without=(12,))
    for run, more in ((fresh, ()), (resumed, ("--resume",))):
        process = start_training(CONFIG, run, debug_data, *more)
        assert process.wait() == 0, output(run)
        assert differences(run, finished) == []
        (note,) = [line for line in output(run).splitlines() if line.startswith("note: JAX")]
        assert all(name in note for name in OUTSIDE)


def test_settings_that_are_ours_are_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from ddag_jax import numerics; print(numerics.overridden())"
    ours = {"JAX_ENABLE_X64": "0", "JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **ours, "JAX_NUMPY_RANK_PROMOTION": "warn"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['JAX_NUMPY_RANK_PROMOTION']\n"


def test_a_seed_that_is_moved_is_refused() -> None:
    jax.config.update("jax_random_seed_offset", 5)
    try:
        with pytest.raises(UserError, match=r"JAX_RANDOM_SEED_OFFSET: is 5.*unset it"):
            environment.import_jax()
    finally:
        jax.config.update("jax_random_seed_offset", 0)
