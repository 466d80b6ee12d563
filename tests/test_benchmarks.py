"""The benchmarks print what they write and measure what they say; no test asserts a time."""

import functools
import json
import operator
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import evaluation, measure
from ddag_jax.config import EvaluationConfig
from ddag_jax.datasets.sysu_mm01 import SYSU_MM01
from ddag_jax.evaluation import protocols


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test advances."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    return now


def test_variants_run_in_turn_and_the_warm_up_does_not_count(clock):
    order = []

    def run(name, *seconds):
        clock[0] += seconds[order.count(name)]
        order.append(name)

    variants = {
        "a": functools.partial(run, "a", 100.0, 3.0, 1.0, 2.0),
        "b": functools.partial(run, "b", 50.0, 7.0, 8.0, 9.0),
    }
    times = measure.interleaved(variants, repeats=3, warmup=1)
    assert "".join(order) == "abababab"
    assert times["a"] == measure.Times((3.0, 1.0, 2.0))
    assert (times["a"].median, times["a"].min, times["a"].max) == (2, 1, 3)
    assert str(times["b"]) == "8.000 s (7.000 to 9.000)"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is known on Linux only")
def test_peak_memory_is_that_of_the_work_alone():
    """It excludes memory of this process, and includes memory that the work has freed."""
    held = b"x" * (300 << 20)
    little = measure.peak_memory(functools.partial(len, b""))
    much = measure.peak_memory(functools.partial(operator.mul, b"x", 100 << 20))
    assert little < 200 < len(held) >> 20
    assert much - little == pytest.approx(100, abs=20)


def test_the_machine_is_described_without_starting_jax():
    code = (
        "import sys; from benchmarks import measure; described = measure.machine();"
        "assert 'jax' not in sys.modules and 'devices' not in described; import jax;"
        "print(measure.describe(measure.machine()))"
    )
    root = Path(__file__).parents[1]
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    described = measure.machine()
    assert described["cores"] >= 1
    assert described["memory_gib"] > 0
    for part in (described["processor"], f"numpy {np.__version__}", "devices: cpu"):
        assert part in printed


def test_a_table_aligns_its_columns():
    rows = [["short", "1.5 s"], ["a longer name", "12.25 s"]]
    assert measure.table(["", "time"], rows).splitlines() == [
        "                  time",
        "short            1.5 s",
        "a longer name  12.25 s",
    ]


def test_a_result_is_written_with_where_it_came_from(tmp_path):
    folder = tmp_path / "results"
    path = measure.write("one", {"loop": measure.Times((3.0, 1.0, 2.0)), "ratio": 4}, folder)
    record = json.loads(path.read_text())
    assert record["result"]["ratio"] == 4
    assert record["result"]["loop"] == {
        "median_s": 2,
        "min_s": 1,
        "max_s": 3,
        "seconds": [3, 1, 2],
    }
    assert record["machine"]["versions"]["numpy"] == np.__version__
    assert record["command"].startswith("python ")

    measure.write("one", {"ratio": 5}, folder)
    with pytest.raises(TypeError, match="cannot contain"):
        measure.write("one", {"ratio": object()}, folder)
    assert json.loads(path.read_text())["result"] == {"ratio": 5}
    assert list(folder.iterdir()) == [path]


def test_images_alike_count_as_the_split(split_dir):
    def cameras(folders):
        seen = {}
        for identity, camera in sorted(folders):
            seen[identity] = seen.get(identity, "") + str(camera)
        images = {c: sum(n for (_, k), n in folders.items() if k == c) for c in range(1, 7)}
        return sorted(seen.values()), images

    assert cameras(evaluation.images_alike()) == cameras(evaluation.images_of_split(split_dir))


def test_images_alike_have_the_published_counts():
    images = evaluation.listed(evaluation.images_alike(), evaluation.FULL.people)
    sizes = {}
    for shots in ("single", "multi"):
        settings = EvaluationConfig(shots=shots, trials=1)
        for search in protocols.searches(SYSU_MM01, images, settings):
            assert len(search.query) == 3803
            sizes[shots, search.mode] = len(search.galleries[0])
    assert sizes == {
        ("single", "all"): 301,
        ("single", "indoor"): 112,
        ("multi", "all"): 3010,
        ("multi", "indoor"): 1120,
    }


@pytest.mark.parametrize("with_split", [False, True])
def test_evaluation_prints_and_writes_what_it_says(with_split, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "SPLIT", tmp_path / "absent")
    arguments = ["--quick"]
    if with_split:
        folders = {f"cam{c}/{i:04d}": 11 for c in range(1, 7) for i in (3, 5, 8)}
        (tmp_path / "images_per_folder.json").write_text(json.dumps(folders))
        (tmp_path / "test_id.txt").write_text("3,8")
        arguments += ["--split", str(tmp_path)]
    evaluation.main(arguments, tmp_path)
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "evaluation.json").read_text())
    result = record["result"]

    assert f"written: {tmp_path / 'evaluation.json'}" in printed
    assert f"{result['queries']} queries" in printed
    assert ("the split" if with_split else "spread evenly") in printed
    assert result["images"] == ("split" if with_split else "spread evenly")
    if with_split:  # identities 3 and 8, cameras 3 and 6
        assert result["queries"] == 2 * 2 * 11
        assert result["galleries"]["single"] == {"all": 8, "indoor": 4}
        assert result["galleries"]["multi"] == {"all": 80, "indoor": 40}
    for shots in ("single", "multi"):
        for features in ("1 feature", "2 features"):
            row = result["evaluation"][f"{shots}-shot, {features}"]
            ours, plain = (
                measure.Times(tuple(row[name]["seconds"])) for name in ("ours", "plain loop")
            )
            assert row["ratio"] == plain.median / ours.median
            assert row["largest_difference"] <= evaluation.TOLERANCE
            (line,) = (x for x in printed.splitlines() if x.startswith(f"{shots}-shot, {features}"))
            assert str(ours) in line
            assert str(plain) in line
    reranking = measure.Times(tuple(result["reranking"]["seconds"]))
    assert str(reranking) in printed
    assert "peak memory" in printed


@pytest.mark.parametrize("other", [1.02, float("nan")])
def test_two_evaluations_that_differ_end_the_command(other):
    ours = [{"mAP": 1.0, "mINP": 1.0}]
    close = [{"mAP": 1.005, "mINP": 1.0}]
    assert evaluation.largest_difference(ours, close) == pytest.approx(0.005)
    with pytest.raises(SystemExit, match="differ"):
        evaluation.largest_difference(ours, [{"mAP": 1.0, "mINP": other}])
