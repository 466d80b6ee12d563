"""Real runs: train, evaluate, stop, resume, and everything that refuses.

Tests of the loop train a linear model; the first ones train DDAG.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from ddag_jax.cli.evaluate import main as evaluate
from ddag_jax.io.config_file import load_config
from ddag_jax.runs import train as loop
from ddag_jax.runs.checkpoint import (
    RunCheckpoints,
    find_checkpoint,
    read_meta,
    read_variables,
    saved_steps,
)
from ddag_jax.runs.preemption import StopRequest
from ddag_jax.training.state import TrainState
from tests.linear_method import CONFIG
from tests.processes import ROOT
from tests.reliability.debug_runs import differences, log_lines, notes

pytestmark = pytest.mark.slow  # compiles and trains networks

Run = Callable[..., int]

FIGURES = {"rank1", "rank5", "rank10", "rank20", "mAP", "mINP"}
LOSSES = {"identity", "triplet", "part", "graph", "without_graph", "total"}


def test_the_log_has_every_step_once_with_every_loss(finished_ddag: Path) -> None:
    lines = log_lines(finished_ddag)
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, 13))
    for line in steps:
        assert line.keys() >= LOSSES | {"graph_weight", "learning_rate"}
        assert line["without_graph"] == pytest.approx(
            line["identity"] + line["triplet"] + line["part"], rel=1e-5
        )
        assert line["total"] == pytest.approx(
            line["without_graph"] + line["graph_weight"] * line["graph"], rel=1e-5
        )
    assert {line["graph_weight"] for line in steps if line["epoch"] == 0} == {0.0}


def test_the_coefficient_follows_the_epoch_before(finished_ddag: Path) -> None:
    lines = log_lines(finished_ddag)
    for epoch in (0, 1):
        mean = np.mean(
            [x["without_graph"] for x in lines if x["kind"] == "train" and x["epoch"] == epoch]
        )
        for line in lines:
            if line["kind"] == "train" and line["epoch"] == epoch + 1:
                assert line["graph_weight"] == pytest.approx(1 / (1 + mean), rel=1e-5)


def test_evaluate_writes_what_it_prints(
    finished_ddag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([str(finished_ddag), "--untrained"]) == 0
    printed = capsys.readouterr().out
    for name in ("evaluation.json", "evaluation_untrained.json"):
        records = json.loads((finished_ddag / name).read_text())
        assert {(record["mode"], record["feature"]) for record in records} == {
            (mode, feature) for mode in ("all", "indoor") for feature in ("global", "part")
        }
        for record in records:
            assert record.keys() >= FIGURES | {f"{figure}_std" for figure in FIGURES}
            assert (record["dataset"], record["shots"], record["trials"]) == (
                "sysu_mm01",
                "single",
                10,
            )
            assert f"{record['rank1']:.2f} ± {record['rank1_std']:.2f}" in printed
    assert "all-search" in printed
    assert "untrained part" in printed


def test_ddag_resumes_exactly(
    finished_ddag: Path, run_ddag: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the second epoch and at its end."""
    run = tmp_path / "run"
    for stop in (6, 8):
        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "after", lambda self, step, stop=stop: step == stop)
            assert run_ddag(run, "--resume") == 0
        assert saved_steps(run)[-1] == stop
    assert run_ddag(run, "--resume") == 0
    assert differences(run, finished_ddag) == []


def test_a_run_on_gpus_can_go_on_elsewhere(
    finished: Path, run_linear: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a flat state from step to step, as on a GPU, and with a tree, in turn: checkpoints and
    evaluations are the same."""
    run = tmp_path / "run"
    for stop, flat in ((6, True), (8, False), (None, True)):
        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "after", lambda self, step, stop=stop: step == stop)
            patch.setattr("ddag_jax.training.flat.flat_state_pays", lambda mesh, flat=flat: flat)
            assert run_linear(run, "--resume") == 0
        assert saved_steps(run)[-1] == (stop or 12)
    assert differences(run, finished) == []


def test_held_out_identities_choose_the_best(finished: Path) -> None:
    evaluations = [line for line in log_lines(finished) if line["kind"] == "evaluation"]
    assert [(line["step"], line["split"]) for line in evaluations] == [
        (4, "held_out"),
        (8, "held_out"),
        (12, "held_out"),
    ]
    scores = {
        line["step"]: next(
            record["rank1"] + record["mAP"]
            for record in line["records"]
            if record["feature"] == "part"
        )
        for line in evaluations
    }
    best = max(scores, key=lambda step: (scores[step], step))
    assert find_checkpoint(finished).name == str(best)
    assert set(saved_steps(finished)) == {8, 12, best}


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    finished: Path, run_linear: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    real_save = RunCheckpoints.save

    def save_then_stop(self: RunCheckpoints, step: int, *rest: object) -> None:
        if step == 8:  # its lines are in the log already; its checkpoint never comes to be
            raise KeyboardInterrupt
        real_save(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "save", save_then_stop)
        assert run_linear(run) == 130
    assert saved_steps(run) == [4]
    assert run_linear(run, "--resume") == 0
    assert notes(run) == ["going on after step 4 of 12"]
    assert differences(run, finished) == []


def test_resuming_a_finished_run_changes_nothing(finished: Path, run_linear: Run) -> None:
    before = (finished / "log.jsonl").read_text()
    assert run_linear(finished, "--resume") == 0
    assert (finished / "log.jsonl").read_text() == before


def test_pmap_and_shard_map_train_alike(finished: Path, run_linear: Run, tmp_path: Path) -> None:
    assert run_linear(tmp_path / "run", "--training.mapping", "pmap") == 0
    ours, theirs = (
        [x["total"] for x in log_lines(run) if x["kind"] == "train"]
        for run in (tmp_path / "run", finished)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.fixture
def fresh_state(
    run_linear: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrainState]:
    """Return the state of a run with these options before the first step."""
    states: list[TrainState] = []

    def before_the_first_step(self: object, state: TrainState, resume: bool) -> int:
        states.append(state)
        return 0

    def start(*arguments: str) -> TrainState:
        with monkeypatch.context() as patch:
            patch.setattr(loop._Run, "train", before_the_first_step)
            assert run_linear(tmp_path / f"run{len(states)}", *arguments) == 0
        return states[-1]

    return start


def backbone(state: TrainState) -> jax.Array:
    kernel: jax.Array = state.params["two_stream"]["kernel"]
    return kernel


def test_the_seed_draws_the_parameters(fresh_state: Callable[..., TrainState]) -> None:
    one, other = (fresh_state("--training.seed", seed) for seed in ("1", "2"))
    assert not np.array_equal(backbone(one), backbone(other))
    for seed, state in ((1, one), (2, other)):
        np.testing.assert_array_equal(state.key, jax.random.key_data(jax.random.key(seed)))


def test_a_run_starts_from_another_ones_backbone(
    finished: Path, fresh_state: Callable[..., TrainState]
) -> None:
    drawn, given = fresh_state(), fresh_state("--init", str(finished))
    expected = read_variables(find_checkpoint(finished))
    for kind in ("params", "batch_stats"):
        ours, others = getattr(given, kind), getattr(drawn, kind)
        chex.assert_trees_all_equal(ours["two_stream"], expected[kind]["two_stream"])
        for name in others.keys() - {"two_stream"}:
            chex.assert_trees_all_equal(ours[name], others[name])
    assert not np.array_equal(backbone(given), backbone(drawn))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exists already"),
        (["--resume", "--training.seed", "4"], "training.seed was 0, now 4"),
        (["--resume", "--overwrite"], "contradict"),
    ],
)
def test_a_run_is_never_mixed_up_with_another(
    finished: Path,
    run_linear: Run,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    before = sorted(path.name for path in finished.rglob("*"))
    assert run_linear(finished, *arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in finished.rglob("*")) == before


OTHERS = ("thesis.tex", ".DS_Store", "slurm-1.out", "features.npz", "notes/a.txt", "report/a.txt")


def test_other_files_in_a_run_s_folder_are_left_alone(run_linear: Run, tmp_path: Path) -> None:
    """SLURM writes there before the first start; a report that is none of ours is one of them."""
    run = tmp_path / "run"
    for name in OTHERS:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("years of work")
    for option in ("--resume", "--resume", "--overwrite"):
        assert run_linear(run, option, "--training.epochs", "1") == 0
        assert [(run / name).read_text() for name in OTHERS] == ["years of work"] * len(OTHERS)
    assert len([line for line in log_lines(run) if line["kind"] == "train"]) == 4


@pytest.mark.parametrize("name", ["profile", "tensorboard", "evaluation.json", "ranked_lists.png"])
def test_overwrite_takes_no_other_folder_for_a_run_s(
    run_linear: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Though a run has files of these names."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
    assert run_linear(tmp_path, "--overwrite") == 2
    assert f"not a run's folder: it holds {name}, which --overw" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == [name, "mine"]


def test_a_file_in_the_place_of_a_folder_is_named(
    run_linear: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    assert run_linear(tmp_path, "--resume") == 2
    assert "checkpoints: is a file; move it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a[1]", "[!x]*?", "a b%20#{1}"])
def test_every_folder_name_will_do(run_linear: Run, tmp_path: Path, name: str) -> None:
    """Orbax searches for files below the folder, whose name is no pattern."""
    run = tmp_path / name / "run"
    assert run_linear(run, "--training.epochs", "1") == 0
    assert run_linear(run, "--training.epochs", "1", "--resume") == 0
    assert evaluate([str(run), "--config", CONFIG, "--quiet"]) == 0
    (record, *_) = json.loads((run / "evaluation.json").read_text())
    assert record["queries"]


def test_a_pattern_is_tried_only_where_no_such_folder_is(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run [1]")
    assert evaluate([str(tmp_path / "run [1]"), "--config", CONFIG]) == 0
    assert evaluate([str(tmp_path / "run [[]*"), "--config", CONFIG]) == 0
    assert evaluate([str(tmp_path / "run [2]"), "--config", CONFIG]) == 2
    assert "run [2]: matches nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "why"), [("a\\b", "has a backslash"), (os.fsdecode(b"\xff"), "is not UTF-8")]
)
def test_a_folder_that_cannot_hold_checkpoints_is_refused_first(
    run_linear: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    """Tensorstore takes a backslash for a slash, and names files in UTF-8."""
    assert run_linear(tmp_path / name / "run") == 2
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_cannot_be_made_is_named(
    run_linear: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run_linear(tmp_path / "file", "--overwrite") == 2
    assert "is a file" in capsys.readouterr().err
    assert run_linear(tmp_path / "file" / "run") == 2
    assert "name another --workdir" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in ("description", "arrays"):
        checkpoint = tmp_path / damage
        shutil.copytree(find_checkpoint(finished), checkpoint)
        variables = checkpoint / "variables"
        for file in variables.rglob("*"):
            described = file.name == "_METADATA"
            if file.is_file() and described == (damage == "description"):
                file.write_bytes(b"x" * (file.stat().st_size // 2))
        assert evaluate([str(checkpoint), "--config", CONFIG]) == 2
        error = capsys.readouterr().err
        assert f"{variables}: damaged" in error
        assert error.count("\n") == 1


def test_overwrite_starts_anew(run_linear: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for seed in ("1", "2"):
        arguments = ["--training.epochs", "1", "--training.seed", seed, "--overwrite"]
        assert run_linear(run, *arguments) == 0
    assert read_meta(find_checkpoint(run), load_config(CONFIG)).config.training.seed == 2
    assert [x["step"] for x in log_lines(run) if x["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.identities-per-batch", "12"], "take 8, or another multiple of 8"),
        (["--training.identities-per-batch", "16"], "only 14 identities"),
        (["--data.dir", "nowhere"], "python -m ddag_jax.data prepare"),
        (["--data.image-height", "64"], "32x16"),
        (["--init", "nowhere"], "nowhere"),
        (["--data.train-on", "train+val", "--data.holdout-identities", "99"], "leaves none"),
    ],
)
def test_a_fault_is_found_before_anything_is_written(
    run_linear: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    run = tmp_path / "run"
    assert run_linear(run, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not run.exists()


def test_evaluate_refuses_what_it_cannot_judge(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([str(tmp_path)]) == 2
    assert "neither a run" in capsys.readouterr().err
    assert evaluate([str(finished), "--model.parts", "3"]) == 2
    assert "the checkpoint's own value stands" in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its configuration says one thing and its arrays another."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(find_checkpoint(finished), checkpoint)
    meta = checkpoint / "meta" / "metadata"
    stored = json.loads(meta.read_text())
    stored["config"]["model"]["width"] = 16
    meta.write_text(json.dumps(stored))
    assert evaluate([str(checkpoint), "--config", CONFIG]) == 2
    error = capsys.readouterr().err
    assert "another network" in error
    assert "params/part/kernel: (64, 64) in the checkpoint, (16, 16) here" in error
    assert not (checkpoint / "evaluation.json").exists()


def test_what_is_not_a_checkpoint_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "metadata").write_text('{"config": {"model": 3}}')
    assert evaluate([str(tmp_path)]) == 2
    assert "a checkpoint that this version" in capsys.readouterr().err


def test_profile_records_steps(run_linear: Run, tmp_path: Path) -> None:
    assert run_linear(tmp_path / "run", "--profile", "2") == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    texts = [line["text"] for line in log_lines(tmp_path / "run") if line["kind"] == "note"]
    assert any("the trace of the last steps is in" in text for text in texts)
    assert run_linear(tmp_path / "run", "--resume") == 0  # the folder is still a run's


def test_profile_of_more_steps_than_there_are(
    run_linear: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_linear(tmp_path / "run", "--profile", "8") == 2
    assert "--profile 8: 12 steps remain" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ranked_lists_are_in_the_events(finished: Path) -> None:
    events = [path.read_bytes() for path in (finished / "tensorboard").iterdir()]
    assert sum(content.count(b"held_out/ranked_lists") for content in events) == 3


def test_training_starts_without_what_only_reports_and_buckets_need() -> None:
    """Each would delay every start: matplotlib alone by a quarter of a second."""
    code = (
        "import sys, ddag_jax.runs.train;"
        " sys.exit(str({'matplotlib', 'torch', 'gcsfs', 'google.auth'} & {*sys.modules} or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""
