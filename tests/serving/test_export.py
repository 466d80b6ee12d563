"""An exported model gives the features of the run, says what it is, or is not written."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import pytest

from ddag_jax.cli.export import main
from ddag_jax.config import BaselineConfig, Config, DDAGConfig
from ddag_jax.errors import UserError
from ddag_jax.evaluation.embed import make_embed
from ddag_jax.evaluation.evaluator import pick
from ddag_jax.methods.base import Modality
from ddag_jax.methods.build import build_method
from ddag_jax.runs.checkpoint import find_checkpoint, variables_checksum
from ddag_jax.runs.evaluate import Trained
from ddag_jax.serving.export import check, export, network, read_metadata, write
from ddag_jax.serving.export.network import Stream
from tests.linear_method import LinearConfig
from tests.models import tiny
from tests.processes import ROOT

onnx = pytest.importorskip("ddag_jax.serving.export.onnx")
stablehlo = pytest.importorskip("ddag_jax.serving.export.stablehlo")

RUN = ROOT / "tests" / "version_0_1_0" / "run"
"""DDAG on a tiny ResNet-18."""
SIZE = tiny.HEIGHT, tiny.WIDTH
IMAGES = np.random.default_rng(0).integers(0, 256, (64, *SIZE, 3), np.uint8)
FORMATS = {"onnx": onnx, "stablehlo": stablehlo}


class Variant(NamedTuple):
    model: Any
    modality: Modality = "visible"
    feature: str | None = None
    flip: bool = False


TINY: dict[str, Any] = {"backbone": "resnet18", "width": 8}
VARIANTS = {
    "ddag": Variant(DDAGConfig(**TINY)),
    "resnet50": Variant(
        DDAGConfig(
            width=8, part_aggregation="concatenation", part_residual="plain", part_neck=False
        ),
        "infrared",
        "concatenation",
        flip=True,
    ),
    "average": Variant(
        DDAGConfig(
            **TINY,
            parts=2,
            part_aggregation="average",
            part_residual="none",
            pooling="gem",
            gem_power=2.5,
        )
    ),
    "concatenation with bn": Variant(DDAGConfig(**TINY, part_aggregation="concatenation")),
    "without parts": Variant(DDAGConfig(**TINY, part_attention=False), "infrared"),
    "baseline": Variant(BaselineConfig(**TINY), feature="pooled"),
    "agw": Variant(BaselineConfig(**TINY, non_local="one", pooling="gem"), "infrared"),
    "half": Variant(BaselineConfig(**TINY, non_local="half", pooling="gem-learnable")),
}


def variables(model: Any) -> dict:
    """Random ones, statistics and scales too, so that every fold shows; none that overflow."""

    def tame(path: tuple, leaf: np.ndarray) -> np.ndarray:
        names = jax.tree_util.keystr(path)
        if "power" in names:
            return np.full_like(leaf, 2.7)
        # Five blocks, each cubic in its input.
        return leaf / 30 if "non_local" in names and "theta" in names else leaf

    drawn = tiny.random_variables(build_method(model, tiny.CLASSES))
    return jax.tree_util.tree_map_with_path(tame, drawn)


@functools.cache
def stream_and_features(name: str) -> tuple[Stream, np.ndarray]:
    """A variant, and its method's own features of IMAGES."""
    model, modality, feature, flip = VARIANTS[name]
    method, values = build_method(model, tiny.CLASSES), variables(model)
    chosen = feature or method.features[-1]
    names = method.features if chosen == "concatenation" else (chosen,)
    found = jax.jit(make_embed(method, flip=flip), static_argnums=2)(values, IMAGES, modality)
    ours = pick({key: np.asarray(rows) for key, rows in found.items()}, chosen)
    return Stream(model, SIZE, values, modality, names, flip), ours


@pytest.mark.slow  # compiles eight networks
@pytest.mark.parametrize("name", VARIANTS)
def test_onnx_gives_the_features_of_every_variant(name: str) -> None:
    stream, ours = stream_and_features(name)
    embed = onnx.load(onnx.serialize(stream, {}))
    for batch in (1, 3, len(IMAGES)):
        found = embed(IMAGES[:batch])
        assert found.dtype == np.float32
        # One image differs more than all together: see `relative_difference`.
        times = 1 if batch == len(IMAGES) else 10
        assert check.relative_difference(ours[:batch], found) <= times * check.TOLERANCE


@pytest.mark.slow  # compiles eight networks
@pytest.mark.parametrize("name", VARIANTS)
def test_stablehlo_gives_the_features_of_every_variant(name: str) -> None:
    stream, ours = stream_and_features(name)
    embed = stablehlo.load(stablehlo.serialize(stream, {}))
    assert check.relative_difference(ours, embed(IMAGES)) <= check.TOLERANCE


@pytest.mark.slow  # starts a process that compiles
def test_a_process_without_this_package_runs_stablehlo(tmp_path: Path) -> None:
    stream, ours = stream_and_features("ddag")
    (tmp_path / "model").write_bytes(stablehlo.serialize(stream, {"name": 'quotes " and é'}))
    np.save(tmp_path / "images.npy", IMAGES)
    code = """
import json, sys
import jax, jax.export, numpy as np
exported = jax.export.deserialize(bytearray(open("model", "rb").read()))
assert exported.platforms == ("cpu", "cuda", "tpu"), exported.platforms
assert json.loads(exported.fun_name) == {"name": 'quotes " and é'}
images = np.load("images.npy")
for batch in (1, 3, 64):
    np.save(f"{batch}.npy", exported.call(images[:batch]))
assert not [name for name in sys.modules if name.startswith(("ddag_jax", "flax"))]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    for batch in (1, 3, 64):
        found = np.load(tmp_path / f"{batch}.npy")
        assert check.relative_difference(ours[:batch], found) <= check.TOLERANCE


def test_stablehlo_has_plain_operations_only() -> None:
    model = VARIANTS["agw"].model
    stream = Stream(model, SIZE, variables(model), "visible", ("global",), True)
    module = jax.export.deserialize(bytearray(stablehlo.serialize(stream, {}))).mlir_module()
    # jax's own, of the free batch: it is at least 1.
    assert set(re.findall(r"custom_call @(\w+)", module)) <= {"shape_assertion"}
    assert "gather" not in module


def test_onnx_is_valid_and_small() -> None:
    import onnx as package

    model = DDAGConfig(**TINY)
    values = variables(model)
    stream = Stream(model, SIZE, values, "visible", ("global",), False)
    content = onnx.serialize(stream, {})
    loaded = package.load_model_from_string(content)
    package.checker.check_model(loaded, full_check=True)
    assert [(one.domain, one.version) for one in loaded.opset_import] == [("", 17)]
    inside = sum(np.prod(one.dims) for one in loaded.graph.initializer)
    backbone = jax.tree.leaves(values["params"]["two_stream"])
    assert inside < sum(leaf.size for leaf in backbone)  # nothing of the part feature
    batch, width = loaded.graph.output[0].type.tensor_type.shape.dim
    assert (batch.dim_param, width.dim_value) == ("batch", 64)
    kinds = {node.op_type for node in loaded.graph.node}
    assert "BatchNormalization" not in kinds


POINTS = {
    "images": "held-out",
    "flip": False,
    "same": 2,
    "different": 3,
    "points": {
        "eer": {"threshold": 0.5, "false_accept_rate": 0.1, "true_accept_rate": 0.9},
        "far=1e-2": None,
    },
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("exported")
    run = shutil.copytree(RUN, folder / "run")
    checksum = variables_checksum(find_checkpoint(run))
    records = [
        {"feature": "part", "operating_points": POINTS | {"checksum": checksum + change}}
        for change in (1, 0)  # those of another network are not taken
    ]
    (run / "evaluation.json").write_text(json.dumps(records))
    return {
        name: export(run, folder / name, format=name)  # type: ignore[arg-type]
        for name in FORMATS
    }


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_says_what_it_is(exported: dict[str, list[Path]], name: str) -> None:
    assert [path.name for path in exported[name]] == [f"visible.{name}", f"infrared.{name}"]
    for path in exported[name]:
        said = read_metadata(path)
        assert said["modality"] == path.stem
        assert said["thresholds"].pop("checksum") == variables_checksum(find_checkpoint(RUN))
        assert said["thresholds"] == POINTS
        assert said["configuration"]["backbone"] == "resnet18"
        assert {key: said[key] for key in ("format", "method", "dataset", "checkpoint")} == {
            "format": 1,
            "method": "DDAGConfig",
            "dataset": "sysu_mm01",
            "checkpoint": "run/8",
        }
        assert (said["feature"], said["flip"], said["image_size"]) == ("part", False, list(SIZE))


@pytest.mark.slow  # compiles
def test_the_files_are_of_the_run(exported: dict[str, list[Path]]) -> None:
    import ddag_jax

    model = ddag_jax.load(RUN, batch_size=8)
    for name, backend in FORMATS.items():
        for path in exported[name]:
            modality: Any = path.stem
            ours = model.embed(IMAGES[:8], modality)["part"]
            found = backend.load(path.read_bytes())(IMAGES[:8])
            assert check.relative_difference(ours, found) <= check.TOLERANCE


@pytest.mark.slow  # compiles
def test_the_command_with_its_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    run = shutil.copytree(RUN, tmp_path / "mine")
    file = run / "checkpoints" / "8" / "meta" / "metadata"
    stored = json.loads(file.read_text())
    stored["config"]["model"]["compute_dtype"] = "bfloat16"
    file.write_text(json.dumps(stored))
    out = tmp_path / "new" / "out"
    words = [str(run), str(out), "--feature", "concatenation", "--flip", "True"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "compute_dtype=bfloat16; exported, and compared, in float32" in printed
    assert f"{out / 'infrared.onnx'}: feature concatenation [batch, 128]" in printed
    said = read_metadata(out / "visible.onnx")
    assert (said["feature"], said["flip"]) == ("concatenation", True)
    assert said["configuration"]["compute_dtype"] == "bfloat16"
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("broken", ["factor", "shift"])
def test_a_model_that_differs_is_not_written(
    broken: Literal["factor", "shift"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = network.folded

    def wrong(norm: network.Weights) -> tuple[np.ndarray, np.ndarray]:
        factor, shift = fold(norm)
        return (factor * 1.001, shift) if broken == "factor" else (factor, shift * 0.99)

    monkeypatch.setattr(network, "folded", wrong)
    with pytest.raises(UserError, match=r"visible: .* differ from ours by \d.*nothing is written"):
        export(RUN, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_rankings_that_differ_are_refused() -> None:
    rows = np.eye(3, 4)
    ours: check.Features = {"visible": rows, "infrared": rows}
    assert check.compare(ours, ours) == {"visible": 0, "infrared": 0}
    with pytest.raises(UserError, match=r"infrared: .* by 1\.4 "):
        check.compare(ours, {"visible": rows, "infrared": np.roll(rows, 1, axis=1)})
    with pytest.raises(UserError, match="visible: a feature of the checkpoint is not finite"):
        check.compare({"visible": rows * np.nan, "infrared": rows}, ours)
    with pytest.raises(UserError, match=r"infrared: .* by nan"):
        check.compare(ours, {"visible": rows, "infrared": rows * np.nan})
    close = np.array([[0.9, 0.5, 0.5 - 1e-6]])
    assert check.rank_difference(close, close[:, [0, 2, 1]]) == pytest.approx(1e-6)
    assert check.rank_difference(close, close[:, [1, 0, 2]]) == pytest.approx(0.4)


def test_the_images_vary_and_are_always_the_same() -> None:
    one, other = (check.check_images("infrared", 48, 24) for _ in range(2))
    assert one.shape == (64, 48, 24, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one.reshape(64, -1), axis=0)) == 64


def refused(tmp_path: Path, match: str, **arguments: Any) -> None:
    with pytest.raises(UserError, match=match):
        export(**({"run": RUN, "out": tmp_path / "out"} | arguments))
    assert not (tmp_path / "out").exists()


def test_bad_arguments_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trained, "restore", None)  # the work
    refused(tmp_path, "format: tflite must be onnx or stablehlo", format="tflite")
    refused(tmp_path, "feature: 'neck', but .* global, part, concatenation", feature="neck")
    refused(tmp_path, "nowhere: neither a run", run=tmp_path / "nowhere")
    full = tmp_path / "full"
    full.mkdir()
    refused(tmp_path, "full exists", out=full)
    assert list(full.iterdir()) == []


def test_a_method_of_ones_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Trained("mine", Path("8"), Config(model=LinearConfig()), 10)  # type: ignore[arg-type]
    monkeypatch.setattr(write, "find_trained", lambda run, config: own)
    refused(tmp_path, "mine: was trained with LinearConfig, .* DDAGConfig and BaselineConfig")


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnx"), ("stablehlo", "flatbuffers")])
def test_a_missing_package_is_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"ddag_jax.serving.export.{name}")
    refused(tmp_path, rf"needs {package}.*pip install 'ddag_jax\[export\]'", format=name)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_an_exported_file_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"visible.{name}"
    with pytest.raises(UserError, match=f"visible.{name}: cannot be read"):
        read_metadata(file)
    for content in (b"", b"\x00" * 100, np.random.default_rng(0).bytes(1000)):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"visible.{name}: cannot be read"):
            read_metadata(file)
    with pytest.raises(UserError, match="its suffix must be onnx or stablehlo"):
        read_metadata(tmp_path / "visible.tflite")


def test_metadata_of_a_later_format_is_refused(tmp_path: Path) -> None:
    model = VARIANTS["baseline"].model
    stream = Stream(model, SIZE, variables(model), "visible", ("global",), False)
    file = tmp_path / "visible.onnx"
    file.write_bytes(onnx.serialize(stream, {"format": 2, "ddag_jax": "9.0"}))
    with pytest.raises(UserError, match=r"ddag_jax 9\.0 with metadata of format 2"):
        read_metadata(file)
