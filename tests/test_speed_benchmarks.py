"""The benchmarks of speed check what they compare and print what they write. Each runs once, at a
tiny size; no test asserts a time."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    embedding,
    epoch,
    export,
    first_step,
    gpu,
    measure,
    roofline,
    search,
    serving,
    torch_ddag,
    train_step,
    whole_evaluation,
    workload,
)
from tests.test_golden import BOUNDS

ROOT = Path(__file__).parents[1]
CONFIG = workload.deterministic(workload.tiny(3))


def written(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())["result"]


def assert_compared(record: dict[str, Any], printed: str) -> None:
    """Assert that a record of `measure.compared` is printed and that its ratios are right."""
    times = {
        name: measure.Times(tuple(taken["seconds"])) for name, taken in record["times"].items()
    }
    ours, other = times
    assert record["ratio"] == times[other].median / times[ours].median
    for taken in times.values():
        assert str(taken) in printed
    if sys.platform == "linux":
        peaks = record["peak_mib"]
        assert record["memory_ratio"] == peaks[ours] / peaks[other]


# -------------------------------------------------------------------------------------- PyTorch


def test_the_float32_bounds_are_the_golden_ones():
    golden = BOUNDS[np.float32]
    assert golden["first losses"] == golden["losses"] == workload.FLOAT32_LOSSES
    assert golden["embeddings"] == workload.FLOAT32_FEATURES


def test_both_triplet_losses_agree():
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3).repeat(4)
    one = torch_ddag.triplet_by_anchor(features, labels, 0.3)
    torch.testing.assert_close(one, torch_ddag.triplet_at_once(features, labels, 0.3))


@pytest.mark.slow
def test_the_process_of_pytorch_does_not_import_jax():
    """Its memory is measured."""
    code = (
        "import sys; from benchmarks import embedding, train_step, workload;"
        "config = workload.tiny(2); train_step.pytorch(config)(); embedding.pytorch_alone(config);"
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_train_step(tmp_path, capsys):
    train_step.main(["--quick", "--identities", "3"], tmp_path)
    printed, result = capsys.readouterr().out, written(tmp_path, "train_step")
    assert_compared(result, printed)
    assert result["images"] == 24
    assert "24 images of 32 x 16 a step" in printed
    assert result["largest_difference"] <= workload.FLOAT32_LOSSES
    assert result["first_losses"]["ours"].keys() == set(gpu.LOSSES)


@pytest.mark.slow
def test_a_recipe_beside_ddag(tmp_path, capsys):
    train_step.main(["--quick", "--config", "caj"], tmp_path)
    printed, result = capsys.readouterr().out, written(tmp_path, "train_step_caj")
    assert result["images"] == {"caj": 24, "augmentation": 24, "ddag": 16}
    medians = {
        name: measure.Times(tuple(t["seconds"])).median for name, t in result["times"].items()
    }
    assert result["augmentation_share"] == medians["augmentation"] / medians["caj"]
    assert result["ratio"] == medians["caj"] / medians["ddag"]
    assert f"augmentation: {100 * result['augmentation_share']:.1f} % of the step" in printed


@pytest.mark.parametrize("loss", [1.01, float("nan")])
def test_losses_that_differ_end_the_command(loss):
    theirs = {"identity": 1.0, "total": 1.0}
    close = {"identity": 1.00001, "total": 1.0}
    assert train_step.largest_difference({"ours": close, "PyTorch": theirs}) == pytest.approx(1e-5)
    with pytest.raises(SystemExit, match="total loss"):
        train_step.largest_difference({"ours": close | {"total": loss}, "PyTorch": theirs})


@pytest.mark.slow
def test_embedding(tmp_path, capsys):
    embedding.main(["--quick"], tmp_path)
    printed, result = capsys.readouterr().out, written(tmp_path, "embedding")
    for modality in ("visible", "infrared"):
        assert_compared(result[modality], printed)
    assert result["images"] == 32
    assert result["largest_difference"] <= workload.FLOAT32_FEATURES


@pytest.mark.slow
def test_export(tmp_path, capsys):
    export.main(["--quick", "--rounds", "2", "--batch", "1", "3"], tmp_path)
    printed, result = capsys.readouterr().out, written(tmp_path, "export")
    assert result["batches"].keys() == {"1", "3"}
    for batch, record in result["batches"].items():
        medians = {side: taken["median_s"] for side, taken in record["times"].items()}
        assert record["ratio"] == medians["ours"] / medians["onnxruntime"]
        assert record["images_per_s"]["ours"] == int(batch) / medians["ours"]
        assert f"{batch} at once: ours takes {record['ratio']:.3f} times" in printed
        assert record["largest_difference"] <= workload.FLOAT32_FEATURES


def test_features_that_differ_end_the_command():
    rows = np.eye(3)
    with pytest.raises(SystemExit, match="visible part"):
        embedding.largest_difference({"visible part": rows + 0.01}, {"visible part": rows})


# ------------------------------------------------------------------------------------------ ours


@pytest.mark.slow
def test_serving(tmp_path, capsys):
    serving.main(["--quick"], tmp_path)
    printed, result = capsys.readouterr().out, written(tmp_path, "serving")
    assert "features are equal" in printed
    assert result["images"] == 192
    assert f"{result['ratio']:.3f} times as many images a second" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_whole_evaluation(tmp_path, capsys):
    whole_evaluation.main(["--quick"], tmp_path)
    printed, result = capsys.readouterr().out, written(tmp_path, "whole_evaluation")
    for record in result["once beside"].values():
        assert_compared(record, printed)
    queries, candidates = result["queries"], result["candidates"]
    drawn = 10 * sum(result["galleries"].values())
    assert result["embedded"] == {
        "once": queries + candidates,
        "pass per trial": 20 * queries + drawn,
        "as the reference": 2 * queries + drawn,
    }
    assert result["largest_difference"] <= whole_evaluation.TOLERANCE


@pytest.mark.slow
def test_search(tmp_path, capsys):
    """Without faiss, which is no dependency."""
    words = ["--rows", "3000", "--channels", "32", "--queries", "1", "3", "--rounds", "1"]
    search.main(words, tmp_path)
    printed, result = capsys.readouterr().out, written(tmp_path, "search")
    assert list(result["searches"]) == ["1", "3"]
    for record in result["searches"].values():
        assert str(measure.Times(tuple(record["times"]["ours"]["seconds"]))) in printed
    assert f"ours {result['peak_mib']['ours']:,.0f} MiB" in printed


def test_search_results_that_differ_end_the_command():
    similarity, row = np.float32([[0.9, 0.5, 0.5]]), np.array([[4, 7, 8]])
    assert search.same((similarity, row), (similarity, row)) == (0, 0)
    assert search.same((similarity, row), (similarity, row[:, [0, 2, 1]])) == (0, 2)
    with pytest.raises(SystemExit, match=r"similarities differ by 0\.01"):
        search.same((similarity, row), (similarity + np.float32(0.01), row))
    with pytest.raises(SystemExit, match="1 ids differ"):
        search.same((similarity, row), (similarity, np.array([[5, 7, 8]])))


def test_figures_that_differ_end_the_command():
    one = [dict.fromkeys(whole_evaluation.FIGURES, 50.0)]
    with pytest.raises(SystemExit, match="mAP"):
        whole_evaluation.largest_difference(one, [[one[0] | {"mAP": 50.1}]])


def test_where_a_start_spends_its_time():
    program = {"tracing": 1.0, "lowering": 0.5, "compiling": 2.0, "programs": 1}
    small = {"tracing": 0.125, "lowering": 0.0, "compiling": 0.125, "programs": 3}
    programs = {"add": small, "step": program, "draw": program, "mul": small, "last": program}
    watched = {"imports": 4.0, "first step": 16.0, "programs": programs}
    lines = first_step.breakdown(watched).splitlines()
    assert [line.split()[-1] for line in lines] == [
        "together", "4.00", "3.50", "3.50", "3.50", "0.50", "1.00", "16.00",
    ]  # fmt: skip
    assert lines[5].startswith("6 other programs")


@pytest.mark.parametrize("command", [epoch, first_step])
def test_an_unknown_field_is_one_line(command, tmp_path, capsys):
    assert command.main(["debug", "--model.widht", "8"], tmp_path) == 2
    assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)


# ------------------------------------------------------------------------------------------- GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert gpu.main([], tmp_path) == 0
    printed, result = capfd.readouterr().out, written(tmp_path, "gpu")
    assert "neither jax nor PyTorch finds a GPU: nothing is measured" in printed
    head, *rows = result["table"]
    assert [row[:2] for row in rows] == [[way.name, str(n)] for way, n in gpu.PLAN if n]
    assert {row[head.index("a step")] for row in rows} == {"not measured"}
    assert result["ratios"] == result["ways"] == result["losses"] == {}


NEITHER = {"ours": None, "PyTorch": None}


def pretended(monkeypatch: pytest.MonkeyPatch, broken: gpu.Way, error: Exception) -> list[Any]:
    """Replace the processes: a step of ours takes 1 s, of the others 2 s, and `broken` fails.
    Return the calls."""
    calls, clock = [], [0.0]

    class Process:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def within(self, seconds, work, *arguments):
            calls.append((work, *arguments[:1]))
            if work in (gpu.build_ours, gpu.build_pytorch):
                self.way = arguments[0]
                if self.way == broken:
                    raise error
                return {"first_step_s": 1.0}
            if work is gpu.take:
                clock[0] += 1 if self.way.ours else 2
            return {"losses": dict.fromkeys(gpu.LOSSES, 2.0)} if "check" in work.__name__ else None

    monkeypatch.setattr(gpu.measure, "Process", Process)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    return calls


def test_each_variant_alternates_with_ours(tmp_path, monkeypatch):
    calls = pretended(monkeypatch, gpu.EAGER, MemoryError("64 GiB\nmore lines"))
    session = gpu.Session(NEITHER, quick=True, minutes=1)
    session.run(tmp_path)
    assert len(session.facts) == len([images for _, images in gpu.PLAN if images <= 64])
    assert session.ratios == {
        "PyTorch bfloat16, compiled, 32 images": 2,
        "PyTorch float32/TF32, as the reference, 32 images": 2,
        "ours, float32/TF32, 32 images": 1,
    }
    result = written(tmp_path, "gpu")
    assert result["ratios"] == session.ratios
    rows = {row[0]: row[2] for row in result["table"][1:]}
    assert rows[gpu.OURS.name] == "1000.00 ms (1000.00 to 1000.00)"
    assert rows[gpu.EAGER.name] == "failed: MemoryError: 64 GiB"
    blocks = [work for work, *_ in calls].count(gpu.take)
    assert blocks == (1 + gpu.REPEATS) * (1 + 2 * 3)


def test_a_row_is_written_as_soon_as_it_is_known(tmp_path, monkeypatch):
    """An interrupt while the third variant is built leaves the rows of the first two."""
    pretended(monkeypatch, gpu.REFERENCE, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        gpu.Session(NEITHER, quick=True, minutes=1).run(tmp_path)
    rows = {row[0]: row[2] for row in written(tmp_path, "gpu")["table"][1:]}
    known = [name for name, found in rows.items() if " ms (" in found]
    assert known == [gpu.OURS.name, gpu.COMPILED.name]
    assert rows[gpu.REFERENCE.name] == rows[gpu.EAGER.name] == "not measured"


def test_what_does_not_fit_into_the_time_is_not_measured(tmp_path, monkeypatch):
    pretended(monkeypatch, gpu.COMPILED, measure.OutOfTime())
    session = gpu.Session(NEITHER, quick=True, minutes=1)
    session.run(tmp_path)
    rows = {row[0]: row[2] for row in session.rows}
    assert rows[gpu.COMPILED.name] == "not measured: no time left"
    assert rows[gpu.REFERENCE.name] == "2000.00 ms (2000.00 to 2000.00)"
    session = gpu.Session(NEITHER, quick=True, minutes=-1)
    session.run(tmp_path)
    assert {row[2] for row in session.rows} == {"not measured: no time left"}


def test_a_call_ends_in_time(tmp_path):
    """Its process is killed; a call that fits returns its result."""
    with measure.Process() as process:
        assert process.within(60, abs, -3) == 3
        start = time.monotonic()
        with pytest.raises(measure.OutOfTime):
            process.within(0.2, time.sleep, 300)
        assert time.monotonic() - start < 30


def test_losses_that_differ_are_reported():
    exact = dict.fromkeys(gpu.LOSSES, 2.0)
    found = gpu.differences(
        {
            gpu.EAGER.name: {"losses": exact, "exact losses": exact},
            gpu.OURS_FLOAT32.name: {"losses": exact, "exact losses": exact | {"part": 2.02}},
            gpu.OURS.name: {"losses": exact | {"graph": float("nan")}},
            gpu.REFERENCE.name: {"failed": "failed: MemoryError"},
        }
    )
    assert found["float32"] == (pytest.approx(0.01), workload.FLOAT32_LOSSES)
    assert np.isnan(found[gpu.OURS.name][0])
    assert found[gpu.OURS_FLOAT32.name][0] == 0
    assert gpu.REFERENCE.name not in found


@pytest.mark.slow
def test_the_demo_is_trained_and_timed(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(gpu, "CACHE", tmp_path / "cache")
    assert gpu.main(["--train-demo", "--quick"], tmp_path) == 0
    printed, result = capfd.readouterr().out, written(tmp_path, "gpu_demo")
    assert result["figures"].keys() == gpu.ON_CPU.keys()
    assert re.search(rf"^mAP +{result['figures']['mAP']:.2f} +49.36$", printed, re.MULTILINE)
    assert result["seconds"].keys() == {"training", "evaluation"}


def test_the_demo_s_figures_are_those_of_the_readme():
    table = (ROOT / "README.md").read_text().split("all-search (192 queries")[1]
    cells = re.search(r"^part +(.*)$", table, re.MULTILINE)[1].split()
    means = dict(
        zip(("rank1", "rank5", "rank10", "rank20", "mAP", "mINP"), cells[::3], strict=True)
    )
    assert {name: float(means[name]) for name in gpu.ON_CPU} == gpu.ON_CPU
    assert "6 to 8 minutes" in (ROOT / "configs" / "demo.py").read_text()


def test_the_published_step_s_work():
    """As the targets assume: 1.97 TFLOP, and the bytes of operations that each run by itself."""
    config = workload.published(8)
    work = roofline.training_step(config)
    flops, size = sum(one.flops for one in work), sum(one.bytes for one in work)
    assert flops == pytest.approx(1.97e12, rel=0.01)
    assert size == pytest.approx(2 * 20.7e9, rel=0.05)  # here in float32
    h200 = roofline.CHIPS["NVIDIA H200"]
    assert roofline.stated_seconds(64, h200) == pytest.approx(6.76e-3, rel=0.01)
    assert roofline.Work(989e12, 4.8e12).seconds(h200) == 1
    assert roofline.Work(0, 9.6e12).seconds(h200) == 2
