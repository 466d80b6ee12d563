"""Count the kernels of a program that XLA compiled for a GPU; compile the published step for one
where the CUDA plugin of jax is installed."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from benchmarks import gpu_compile

ROOT = Path(__file__).parents[1]

installed = {one.metadata["Name"] for one in importlib.metadata.distributions()}
needs_plugin = pytest.mark.skipif(
    not installed & set(gpu_compile.PLUGINS),
    reason='no CUDA plugin: pip install "jax[cuda13]" in an environment of its own',
)

# ---------------------------------------------------------------------------------- parsing

BACKWARD = 'metadata={op_name="jit(f)/transpose(jvp(bn1))/jit(normalise_batch)/mul"}'
FORWARD = 'metadata={op_name="jit(f)/jvp(bn1)/jit(normalise_batch)/mul"}'
RELU = 'metadata={op_name="jit(f)/transpose(jvp(jit(relu)))/select_n"}'
UPDATE = 'metadata={op_name="jit(f)/shard_map/update/select_n" stack_frame_id=3}'

MODULE = f"""HloModule jit_f, is_scheduled=true, entry_computation_layout={{(f32[9]{{0}})->f32[]}}

%sum.1 (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}}

%sliced (p0: f32[1000], p1: f32[10]) -> (f32[10], bf16[10]) {{
  %p0 = f32[1000]{{0}} parameter(0)
  %p1 = f32[10]{{0}} parameter(1)
  %cast = f32[10,100]{{1,0}} bitcast(%p0)
  %slice.1 = f32[1,10]{{1,0}} slice(%cast), slice={{[5:6], [0:10]}}
  %bitcast.1 = f32[10]{{0}} bitcast(%slice.1)
  %multiply.1 = f32[10]{{0}} multiply(%bitcast.1, %p1), {FORWARD}
  %convert.1 = bf16[10]{{0}} convert(%multiply.1)
  ROOT %both = (f32[10]{{0}}, bf16[10]{{0}}) tuple(%multiply.1, %convert.1)
}}

%updated (p0.1: f32[1000], p1.1: f32[10]) -> f32[1000] {{
  %p0.1 = f32[1000]{{0}} parameter(0)
  %p1.1 = f32[10]{{0}} parameter(1)
  %five = s32[] constant(5)
  ROOT %dynamic-update-slice.1 = f32[1000]{{0}} dynamic-update-slice(%p0.1, %p1.1, %five)
}}

%summed (p0.2: f32[10]) -> f32[] {{
  %p0.2 = f32[10]{{0}} parameter(0)
  %zero = f32[] constant(0)
  %multiply.2 = f32[10]{{0}} multiply(%p0.2, %p0.2), {BACKWARD}
  ROOT %reduce.1 = f32[] reduce(%multiply.2, %zero), dimensions={{0}}, to_apply=%sum.1
}}

%inner (p0.3: f32[10]) -> f32[] {{
  %p0.3 = f32[10]{{0}} parameter(0)
  ROOT %dot.1 = f32[] dot(%p0.3, %p0.3), lhs_contracting_dims={{0}}, rhs_contracting_dims={{0}}
}}

%outer (p0.4: f32[10]) -> f32[] {{
  %p0.4 = f32[10]{{0}} parameter(0)
  ROOT %nested = f32[] fusion(%p0.4), kind=kCustom, calls=%inner
}}

%chosen (p0.5: pred[], p1.5: f32[10], p2.5: f32[10]) -> f32[10] {{
  %p0.5 = pred[] parameter(0)
  %p1.5 = f32[10]{{0}} parameter(1)
  %p2.5 = f32[10]{{0}} parameter(2)
  ROOT %select.1 = f32[10]{{0}} select(%p0.5, %p1.5, %p2.5), {UPDATE}
}}

%finite (p0.6: f32[10]) -> pred[10] {{
  %p0.6 = f32[10]{{0}} parameter(0)
  ROOT %is-finite.1 = pred[10]{{0}} is-finite(%p0.6), {UPDATE}
}}

%masked (p0.10: f32[10], p1.10: pred[10]) -> f32[10] {{
  %p0.10 = f32[10]{{0}} parameter(0)
  %p1.10 = pred[10]{{0}} parameter(1)
  %multiply.10 = f32[10]{{0}} multiply(%p0.10, %p0.10), {FORWARD}
  ROOT %select.10 = f32[10]{{0}} select(%p1.10, %multiply.10, %p0.10), {RELU}
}}

%plain (p0.7: f32[10]) -> f32[] {{
  %p0.7 = f32[10]{{0}} parameter(0)
  %zero.7 = f32[] constant(0)
  ROOT %reduce.7 = f32[] reduce(%p0.7, %zero.7), dimensions={{0}}, to_apply=%sum.1
}}

%turned (p0.8: f32[2,5]) -> f32[2,5] {{
  %p0.8 = f32[2,5]{{1,0}} parameter(0)
  ROOT %copy.8 = f32[2,5]{{0,1}} copy(%p0.8)
}}

%branch (p0.9: f32[10]) -> f32[10] {{
  %p0.9 = f32[10]{{0}} parameter(0)
  ROOT %called = f32[10]{{0}} copy(%p0.9)
}}

ENTRY %main.1 (x: f32[1000], y: f32[10], /*index=2*/n: pred[]) -> f32[] {{
  %x = f32[1000]{{0}} parameter(0)
  %y = f32[10]{{0}} parameter(1)
  %n = pred[] parameter(2)
  %loop_multiply_fusion = (f32[10]{{0}}, bf16[10]{{0}}) fusion(%x, %y), kind=kLoop, calls=%sliced
  %gte = f32[10]{{0}} get-tuple-element(%loop_multiply_fusion), index=0
  %loop_dus_fusion = f32[1000]{{0}} fusion(%x, %gte), kind=kLoop, calls=%updated
  %input_reduce_fusion = f32[] fusion(%gte), kind=kInput, calls=%summed
  %gemm_fusion = f32[] fusion(%gte), kind=kCustom, calls=%outer
  %cublas = (f32[10]{{0}}, s8[64]{{0}}) custom-call(%y, %y), custom_call_target="__cublas$gemm"
  %conv = f32[10]{{0}} custom-call(%y, %gte), custom_call_target="__cudnn$convForward"
  %loop_select_fusion = f32[10]{{0}} fusion(%n, %y, %gte), kind=kLoop, calls=%chosen
  %loop_finite_fusion = pred[10]{{0}} fusion(%y), kind=kLoop, calls=%finite
  %input_reduce_fusion.1 = f32[] fusion(%y), kind=kInput, calls=%plain
  %loop_select_fusion.1 = f32[10]{{0}} fusion(%y, %loop_finite_fusion), kind=kLoop, calls=%masked
  %matrix = f32[2,5]{{1,0}} bitcast(%y)
  %input_transpose_fusion = f32[2,5]{{0,1}} fusion(%matrix), kind=kInput, calls=%turned
  %copy.2 = f32[10]{{0}} copy(%y)
  %call.1 = f32[10]{{0}} call(%y), to_apply=%branch
  ROOT %negate.1 = f32[] negate(%input_reduce_fusion.1)
}}
"""


def test_kernels_of_a_module() -> None:
    """Nested fusions, a call, what a slice touches, an update in place, an operand given twice, a
    workspace."""
    found = [(one.name, one.kind, one.bytes) for one in gpu_compile.kernels(MODULE)]
    assert found == [
        ("loop_multiply_fusion", gpu_compile.FORWARD, 40 + 40 + 40 + 20),
        ("loop_dus_fusion", gpu_compile.COPIES, 40 + 40),
        ("input_reduce_fusion", gpu_compile.BACKWARD, 40 + 4),
        ("gemm_fusion", gpu_compile.PRODUCTS, 40 + 4),
        ("cublas", gpu_compile.PRODUCTS, 40 + 40),
        ("conv", gpu_compile.CONVOLUTIONS, 3 * 40),
        ("loop_select_fusion", gpu_compile.SELECTIONS, 1 + 3 * 40),
        ("loop_finite_fusion", gpu_compile.FINITENESS, 40 + 10),
        ("input_reduce_fusion.1", gpu_compile.REDUCTIONS, 40 + 4),
        ("loop_select_fusion.1", gpu_compile.BACKWARD, 40 + 10 + 40),
        ("input_transpose_fusion", gpu_compile.LAYOUTS, 80),
        ("copy.2", gpu_compile.COPIES, 80),
        ("called", gpu_compile.COPIES, 80),
        ("negate.1", gpu_compile.OTHER, 8),
    ]


def test_sizes_of_types() -> None:
    assert gpu_compile.size("f32[]") == 4
    assert gpu_compile.size("(bf16[2,3]{1,0:T(8)}, /*index=1*/pred[5]{0}, s4[8], token[])") == 25
    assert gpu_compile.size("f8e4m3fn[7]{0}") == 7
    assert gpu_compile.size("c64[2]") == 16


# ---------------------------------------------------------------------------------- compiling


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process: it sets the environment before jax is imported, and some
    faults of the compiler end the process."""
    code = (
        "import sys; from pathlib import Path; from benchmarks import gpu_compile;"
        f"sys.exit(gpu_compile.main({list(arguments)!r}, Path({str(folder)!r})))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )


def written(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())["result"]
    return result


@needs_plugin
@pytest.mark.slow
def test_the_published_step_is_compiled_for_an_h100(tmp_path: Path) -> None:
    """Within the bounds of docs/performance.md."""
    result = command(tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    found = written(tmp_path / "gpu_compile.json")
    assert found["kernels"] <= 950
    assert found["bytes"] <= 24.8e9
    assert found["kinds"][gpu_compile.LAYOUTS]["bytes"] < 0.5e9
    assert found["kinds"][gpu_compile.SELECTIONS]["kernels"] < 20
    assert sum(one["kernels"] for one in found["kinds"].values()) == found["kernels"]
    assert f"{found['kernels']:,}" in result.stdout


@needs_plugin
@pytest.mark.slow
def test_a_large_batch_is_compiled(tmp_path: Path) -> None:
    """256 images: for one form of the step XLA found no tiles."""
    result = command(tmp_path, "--identities", "32")
    assert result.returncode == 0, result.stderr[-3000:]
    assert written(tmp_path / "gpu_compile.json")["kernels"] <= 1000


@needs_plugin
@pytest.mark.slow
def test_another_chip_and_an_earlier_result(tmp_path: Path) -> None:
    """The same program twice has the same figures, also with two views and a baseline's network."""
    words = "--config", "tests/configs/caj.py", "--chip", "a100"
    assert command(tmp_path, *words).returncode == 0
    first = (tmp_path / "gpu_compile_a100.json").rename(tmp_path / "before.json")
    result = command(tmp_path, *words, "--compare", str(first))
    assert result.returncode == 0, result.stderr[-3000:]
    one, other = written(first), written(tmp_path / "gpu_compile_a100.json")
    for key in ("kernels", "small", "bytes", "kinds", "memory", "largest"):
        assert one[key] == other[key], key
    assert "before: kernels" in result.stdout


@pytest.mark.parametrize(
    ("plugin", "start", "fix"),
    [
        (
            "no-such-plugin",
            "error: the CUDA plugin of jax",
            f'pip install "jax[cuda13]=={jax.__version__}"',
        ),
        ("numpy", "error: numpy ", f"but jax {jax.__version__}"),  # of another version
    ],
)
def test_without_its_plugin_the_fix_is_named(
    plugin: str,
    start: str,
    fix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(gpu_compile, "PLUGINS", (plugin,))
    assert gpu_compile.main([], tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(start)
    assert fix in error
    assert error.count("\n") == 1


def test_an_earlier_result_must_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"result": {"kernels": 3}}')
    assert gpu_compile.main(["--compare", str(path)], tmp_path) == 2
    assert f"--compare {path}: not a result of this command" in capsys.readouterr().err


def test_chips_are_described() -> None:
    for chip in gpu_compile.CHIPS.values():
        text = chip.description()
        assert text.count("{") == text.count("}") == 3
        assert f"core_count: {chip.multiprocessors}\n" in text
        assert f"memory_bandwidth: {chip.bandwidth}\n" in text
