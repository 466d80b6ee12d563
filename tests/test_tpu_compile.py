"""Lower the full-size step and embedding for GPU and TPU on any machine. Compile a small network
for a slice of TPU where the compiler is installed."""

import dataclasses
import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import tpu_compile
from ddag_jax.config import Config
from ddag_jax.io.config_file import load_config
from ddag_jax.models import pooling
from ddag_jax.parallel import device_mesh

ROOT = Path(__file__).parents[1]

needs_libtpu = pytest.mark.skipif(
    not tpu_compile.LIBTPU.is_dir() and importlib.util.find_spec("libtpu") is None,
    reason="no TPU compiler: make setup installs it on Linux on x86-64",
)

# ----------------------------------------------------------------------------------- lowering


def published() -> Config:
    config = load_config("sysu_mm01")
    model = dataclasses.replace(config.model, compute_dtype="bfloat16")
    return dataclasses.replace(config, model=model)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_full_size_programs_are_lowered_for(platform: str) -> None:
    """On eight devices that the machine does not have. Spatial convolutions, 1x1 convolutions and
    pooling take that platform's form, not the CPU's."""
    config, mesh = published(), device_mesh()
    train, arguments = tpu_compile.train_program(config, mesh, identities=8)
    step = jax.export.export(train, platforms=[platform])(*arguments)
    embed, (variables, images, modality) = tpu_compile.embed_program(config, mesh)
    embedding = jax.export.export(embed, platforms=[platform])(variables, images, modality)
    for exported in (step, embedding):
        assert exported.platforms == (platform,)
        assert exported.nr_devices == 8

    kernels = [leaf.shape for leaf in jax.tree.leaves(arguments[0].params) if leaf.ndim == 4]
    pointwise = sum(shape[:2] == (1, 1) for shape in kernels)
    spatial = len(kernels) - pointwise
    assert (spatial, pointwise) == (18, 36)  # both stems and 16 blocks
    # On a GPU, 1x1 ones are products, except those of stride 2 in stages 2 and 3.
    convolutions = spatial + (pointwise if platform == "tpu" else 2)
    # Output, gradients of input and kernel; images have no gradient. Embedding uses one stem.
    assert operations(step, "convolution") == 3 * convolutions - 2
    assert operations(embedding, "convolution") == convolutions - 1
    assert operations(step, "select_and_scatter") == (2 if platform == "tpu" else 0)


def operations(exported: jax.export.Exported, name: str) -> int:
    """Return how often a program runs an operation; layers of one shape share a function."""
    function = r"func\.func \w+ @(\w+)(.*?)(?=func\.func|\Z)"
    bodies = dict(re.findall(function, exported.mlir_module(), re.DOTALL))

    @functools.cache
    def count(function: str) -> int:
        called = re.findall(r"(?<!custom_)call @(\w+)", bodies[function])
        return bodies[function].count(f"stablehlo.{name}") + sum(map(count, called))

    return count("main")


@pytest.mark.parametrize("values", ["distinct", "ties"])
def test_a_tpu_pools_as_a_cpu(values: str) -> None:
    """Run the TPU's lowering on the CPU: maximum, and gradient to the first of equal maxima."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(2, 13, 10, 3)), rng.integers(0, 3, (2, 9, 8, 3))
    x = jnp.asarray(drawn[values == "ties"], jnp.float32)
    y = pooling._sliced_max_pool(x)
    np.testing.assert_array_equal(pooling._xla_max_pool(x), y)
    g = jnp.asarray(rng.integers(1, 9, y.shape), jnp.float32)  # sums of integers are exact
    np.testing.assert_array_equal(
        pooling._xla_max_pool_gradient(x, y, g), pooling._sliced_max_pool_gradient(x, y, g)
    )


# -------------------------------------------------------------------------------- collectives


def test_collectives_of_a_module() -> None:
    """Combined tensors, a layout with brackets, and a gather repeated in a fusion."""
    repeated = 'backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}'
    hlo = f"""
  %a = f32[16,8]{{1,0:T(8,128)S(1)}} all-gather(%x), metadata={{op_name="jit(f)/all_gather"}}
  ROOT %b = f32[16,8]{{1,0}} all-gather(%x), channel_id=1, {repeated}
  %c = (f32[2,8]{{1,0:T(2,128)}}, /*index=1*/bf16[], pred[3]{{0}}) all-reduce(%y, %z), to_apply=%add
  %d = f32[2,8]{{1,0}} add(%all-reduce.1, %e)
"""
    found = tpu_compile.collectives(hlo, lambda kind, shape, name: name)
    assert [(one.kind, one.tensors) for one in found] == [
        ("all-gather", (("f32[16,8]", 512, "jit(f)/all_gather"),)),
        ("all-reduce", (("f32[2,8]", 64, ""), ("bf16[]", 2, ""), ("pred[3]", 3, ""))),
    ]
    assert [tpu_compile.sent_bytes(one, chips=4) for one in found] == [384, 103.5]


@needs_libtpu
@pytest.mark.slow
def test_a_slice_is_compiled(tmp_path: Path) -> None:
    """Run the command for a small network on 16 chips. The collectives and their bytes are those
    of docs/scaling.md."""
    result = tpu_command(tmp_path, "--config", "debug")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "tpu_compile.json").read_text())["result"]
    train, embed = written["programs"]
    assert (train["name"], train["images"]) == ("train", 64)
    assert (embed["name"], embed["images"]) == ("embed", 32)
    assert all(one["chips"] == 16 and one["hbm"] > 1e6 for one in (train, embed))

    state: Any = tpu_compile.abstract_state(load_config("debug"), device_mesh())
    sizes = {
        jax.tree_util.keystr(path): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    # A projection's bias has the gradient of the last bias of its block: the compiler sums it once.
    summed = sum(size for name, size in sizes.items() if "downsample_bn']['bias" not in name)
    stats = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    width = state.batch_stats["neck"]["mean"].size
    assert carried(train) == {
        "BN statistics": 2 * 4 * stats,  # forward and backward
        "gradients": 4 * summed,
        "pooled features": 2 * 4 * width * 64,  # and their gradients
        "labels": 4 * 64,
        "losses": 4 * 7,
    }
    assert carried(embed) == {"embeddings": 2 * 4 * width * 32}

    last = result.stdout.strip().splitlines()[-3:]
    assert last[0].split()[:2] == ["chips", "load"]
    assert [line.split()[:2] for line in last[1:]] == [["train", "16"], ["embed", "16"]]


@needs_libtpu
@pytest.mark.slow
def test_three_views_are_compiled_for_a_slice(tmp_path: Path) -> None:
    """CAJ's step: non-local blocks, GeM, the squared triplet, erasing, channel augmentation."""
    result = tpu_command(tmp_path, "--config", "tests/configs/caj.py")
    assert result.returncode == 0, result.stderr
    train, embed = json.loads((tmp_path / "tpu_compile.json").read_text())["result"]["programs"]
    assert (train["images"], embed["images"]) == (96, 32)
    found = carried(train)
    assert found["pooled features"] == 2 * 4 * 64 * 96  # and their gradients
    assert found["labels"] == 4 * 96


def carried(program: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of the collectives' results, by purpose."""
    totals: dict[str, int] = {}
    for collective in program["collectives"]:
        for _, size, purpose in collective["tensors"]:
            totals[purpose] = totals.get(purpose, 0) + size
    return totals


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:3x3", "v4:2x2x2", "16"])
def test_an_unknown_slice_is_one_line(topology: str, tmp_path: Path) -> None:
    result = tpu_command(tmp_path, "--topology", topology)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: --topology {topology}: ")
    assert result.stderr.count("\n") == 1


def tpu_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process: it sets the environment before jax is imported."""
    code = (
        "import sys; from pathlib import Path; from benchmarks import tpu_compile;"
        "tpu_compile.LOADS = (1,);"  # half the time
        f"sys.exit(tpu_compile.main({list(arguments)!r}, Path({str(folder)!r})))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_without_libtpu_the_fix_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tpu_compile, "LIBTPU", tmp_path / "absent")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tpu_compile.main([], tmp_path) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: libtpu")
    assert str(tmp_path / "absent") in printed.err
    assert "make setup" in printed.err
    assert 'pip install "jax[tpu]"' in printed.err
    assert printed.err.count("\n") == 1
