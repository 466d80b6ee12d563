"""Nothing is ever lost: a test for each promise of docs/reliability.md.

The runs train a linear model: nothing here depends on the network.
"""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.data.loader import training_split
from ddag_jax.data.sampler import IdentitySampler
from ddag_jax.evaluation.evaluator import Evaluator
from ddag_jax.io.config_file import load_config
from ddag_jax.runs import train as loop
from ddag_jax.runs.checkpoint import RunCheckpoints, find_checkpoint, read_meta, saved_steps
from ddag_jax.training.step import Outcome
from tests.linear_method import CONFIG
from tests.processes import LIMIT, ROOT, flags
from tests.reliability.debug_runs import (
    computed,
    copy,
    differences,
    log_lines,
    notes,
    steps,
    wait_for,
)

pytestmark = pytest.mark.slow  # trains, and starts processes that do

Run = Callable[..., int]

LONGER, TOTAL = ("--training.epochs", "8"), 32
"""Steps enough that there is time to signal a process, of the program that `finished` compiles."""


def benchmark(name: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"tests.reliability.{name}", *words],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(devices=1)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


# --- 1. Exact resume --------------------------------------------------------------------------


def test_killed_again_and_again_a_run_ends_as_if_it_had_not_been() -> None:
    ended = benchmark("kill_resume", "--config", CONFIG, "--kills", "6", "--epochs", "5")
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    assert ended.stdout.startswith("6 kills in ")


def test_an_evaluation_that_a_kill_cut_off_is_made_up_for(
    finished: Path, run_linear: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(finished, tmp_path / "run", without=(12,))
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    kept = [x for x in lines if (r := json.loads(x))["step"] < 8 or r["kind"] in ("train", "epoch")]
    (run / "log.jsonl").write_text("".join(kept))
    (run / "checkpoints" / "8" / "score.json").unlink()
    assert run_linear(run, "--resume") == 0
    assert differences(run, finished) == []


# --- 2. Checkpoints are whole or absent -------------------------------------------------------


def largest_file(folder: Path) -> Path:
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def truncate(checkpoint: Path) -> None:
    file = largest_file(checkpoint / "variables")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(checkpoint: Path) -> None:
    file = largest_file(checkpoint / "progress")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def delete(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "progress")


def cut_meta(checkpoint: Path) -> None:
    (checkpoint / "meta" / "metadata").write_text('{"config": {')


def swap(checkpoint: Path) -> None:
    """Its files are whole, but of another checkpoint."""
    shutil.rmtree(checkpoint / "variables")
    shutil.copytree(checkpoint.parent / "8" / "variables", checkpoint / "variables")


@pytest.mark.parametrize("damage", [truncate, flip, delete, cut_meta, swap])
def test_the_checkpoint_before_a_damaged_one_is_used(
    damage: Callable[[Path], None],
    finished: Path,
    run_linear: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copy(finished, tmp_path / "run")
    damage(run / "checkpoints" / "12")
    if damage is not flip:  # one goes on to the end: compiling takes time
        monkeypatch.setattr(loop._Run, "train", lambda self, state, resume: int(state.step) - 8)
    assert run_linear(run, "--resume") == 0
    aside = run / "damaged_checkpoint_12"
    warning = f"warning: the checkpoint of step 12 is damaged; it is now {aside}"
    assert warning in capsys.readouterr().out
    assert warning in notes(run)
    assert aside.is_dir()
    if damage is flip:
        assert differences(run, finished) == []


def test_without_a_whole_checkpoint_nothing_is_started(
    finished: Path, run_linear: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(finished, tmp_path / "run")
    for step in saved_steps(run):
        truncate(run / "checkpoints" / str(step))
    before = sorted(run.rglob("*"))
    assert run_linear(run, "--resume") == 2
    error = capsys.readouterr().err
    assert "all of its checkpoints are damaged; start again with --overwrite" in error
    assert all(f"checkpoints/{step}/variables: damaged" in error for step in saved_steps(run))
    assert sorted(run.rglob("*")) == before


def test_a_full_disk_ends_the_run_and_spares_the_last_checkpoint(
    finished: Path, run_linear: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(finished, tmp_path / "run", without=(12,))
    # Once without the limit, so that JAX has no program left to write to its cache.
    assert run_linear(copy(run, tmp_path / "unlimited"), "--resume") == 0
    capsys.readouterr()
    room = largest_file(run / "checkpoints" / "8").stat().st_size // 2
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        assert run_linear(run, "--resume") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert "cannot be written" in error
    assert "that of step 8 is whole: make room, then go on with --resume" in error
    assert saved_steps(run)[-1] == 8
    assert run_linear(run, "--resume") == 0
    assert differences(run, finished) == []


def test_the_best_is_never_pruned(
    finished: Path, run_linear: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of five epochs is made the best; the last two stay beside it."""
    real = RunCheckpoints.scored
    monkeypatch.setattr(
        RunCheckpoints,
        "scored",
        lambda self, step, score, write: real(self, step, float(step == 8), write=write),
    )
    run = tmp_path / "run"
    assert run_linear(run, "--training.epochs", "5") == 0
    assert saved_steps(run) == [8, 16, 20]
    assert find_checkpoint(run).name == "8"


# --- 3. Preemption ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory, run_linear: Run) -> Path:
    """An undisturbed run of TOTAL steps."""
    folder = tmp_path_factory.mktemp("runs") / "longer"
    assert run_linear(folder, *LONGER) == 0
    return folder


def start(run: Path, data: Path) -> subprocess.Popen:
    words = ["train.py", CONFIG, "--workdir", run, "--data.dir", data, "--resume", *LONGER]
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "moment", "code"),
    [
        (signal.SIGTERM, "train", 0),
        (signal.SIGTERM, "epoch", 0),  # an evaluation follows
        (signal.SIGINT, "train", 130),
    ],
)
def test_a_signal_ends_the_run_after_its_step(
    number: int,
    moment: str,
    code: int,
    longer: Path,
    debug_data: Path,
    run_linear: Run,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    process = start(run, debug_data)
    wait_for(moment, run)([process])
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == code, err[-3000:]
    last = steps(run)[-1]
    assert last < TOTAL
    assert saved_steps(run)[-1] == last
    text = f"stopped after step {last} of {TOTAL}; go on with --resume"
    assert notes(run)[-1] == text
    assert text in out
    assert not (run / "lock.json").exists()
    assert run_linear(run, "--resume", *LONGER) == 0
    assert steps(run) == list(range(1, TOTAL + 1))
    assert [*computed(run)] == [*computed(longer)]
    assert not [d for d in differences(run, longer) if f"step {TOTAL}" in d or "score" in d]


def test_a_signal_cuts_an_evaluation_short(
    finished: Path, run_linear: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(finished, tmp_path / "run", without=(12,))
    real = Evaluator.embed

    def preempted(self: Evaluator, *arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "embed", preempted)
        assert run_linear(run, "--resume") == 0
    assert saved_steps(run)[-1] == 12
    assert {x["step"] for x in log_lines(run) if x["kind"] == "evaluation"} == {4, 8}
    assert run_linear(run, "--resume") == 0
    assert differences(run, finished) == []


def test_a_second_ctrl_c_ends_at_once() -> None:
    program = (
        "import os, signal\n"
        "from ddag_jax.runs.preemption import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert stop.after(1) and stop.exit_code == 130\n"
        "    print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
    )
    assert (ended.returncode, ended.stdout) == (130, "goes on\n"), ended.stderr


# --- 4. Numbers that go wrong -----------------------------------------------------------------


def poisoned(*bad: int) -> Callable[..., Any]:
    """`map_train_step` whose steps of these numbers have a loss and a gradient of NaN."""
    real = loop.map_train_step

    def mapped(*arguments: Any) -> Callable[..., Any]:
        step = real(*arguments)

        def with_weight(state: Any, weight: Any) -> Any:
            return state.replace(memory=state.memory | {"weight": weight})

        def poison(state: Any, batch: Any) -> Any:
            if int(state.step) + 1 not in bad:
                return step(state, batch)
            before = state.memory["weight"]
            kept = jnp.copy(before)  # the step deletes its argument
            after, outcome = step(with_weight(state, jnp.full_like(before, jnp.nan)), batch)
            return with_weight(after, kept), outcome

        return poison

    return mapped


def test_a_step_that_is_not_finite_stops_the_run(
    run_linear: Run,
    debug_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "map_train_step", poisoned(6))
        assert run_linear(run, "--training.log-every", "4") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: step 6: weight, total is not finite"), error
    failed = json.loads((run / "failed_step.json").read_text())
    assert (failed["step"], failed["epoch"], failed["total"]) == (6, 1, None)
    assert math.isfinite(failed["identity"])
    assert saved_steps(run) == [4]  # the last before it
    config = read_meta(find_checkpoint(run), load_config(CONFIG)).config
    images, _ = training_split(config.data, 0)
    sample = IdentitySampler(
        images.labels, images.infrared, identities_per_batch=8, images_per_identity=2, seed=0
    ).sample(1, 1)
    for kind, indices in (("visible", sample.visible), ("infrared", sample.infrared)):
        assert failed[kind] == [images.names[i] for i in indices.reshape(-1)]
    assert run_linear(run, "--resume", "--training.log-every", "4") == 0  # without the fault


def test_too_high_a_learning_rate_is_an_error(
    run_linear: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert run_linear(run, "--optimizer.learning-rate", "1e30") == 2
    assert "training has diverged" in capsys.readouterr().err
    assert json.loads((run / "failed_step.json").read_text())["step"] == 2


def test_steps_that_are_not_finite_are_skipped_up_to_a_limit(
    run_linear: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(loop, "map_train_step", poisoned(2, 3, 6, 9, 10, 11))
    skip = ("--on-nonfinite", "skip", "--training.nonfinite-limit", "3")
    assert run_linear(run, *skip) == 2
    lines = {line["step"]: line for line in log_lines(run) if line["kind"] == "train"}
    counted = [lines[step].get("skipped_in_row", 0) for step in range(1, 11)]
    assert counted == [0, 1, 2, 0, 0, 1, 0, 0, 1, 2]
    assert lines[2]["total"] is None
    assert "error: step 11: " in capsys.readouterr().err
    assert json.loads((run / "failed_step.json").read_text())["step"] == 11


def test_losses_are_asked_for_only_to_log_them(
    run_linear: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then only when the next step is under way: checking them costs no wait of its own."""
    events: list[str] = []

    class OnDevice:
        def __init__(self, step: int) -> None:
            self.step = step

        def __float__(self) -> float:
            events.append(f"ask {self.step}")
            return 0.0

        def __int__(self) -> int:
            return int(float(self))

    def fake(*_: Any) -> Any:
        def step(state: Any, batch: Any) -> Any:
            number = len([event for event in events if event.startswith("step")]) + 1
            events.append(f"step {number}")
            value: Any = OnDevice(number)
            return state.replace(step=state.step + 1), Outcome({"total": value}, value)

        return step

    monkeypatch.setattr(loop, "map_train_step", fake)
    monkeypatch.setattr(loop._Run, "_evaluate", lambda *_: True)
    words = ("--training.epochs", "1", "--training.steps-per-epoch", "8")
    drops = ("--optimizer.drop-epochs",)
    assert run_linear(tmp_path / "run", *words, "--training.log-every", "3", *drops) == 0
    order = [event for i, event in enumerate(events) if i == 0 or event != events[i - 1]]
    assert order == [
        "step 1", "step 2", "ask 1", "step 3", "step 4", "ask 3", "step 5", "step 6", "step 7",
        "ask 6", "step 8", "ask 8",
    ]  # fmt: skip


# --- 5. Data faults ---------------------------------------------------------------------------


def test_a_damaged_record_is_named(
    debug_data: Path, run_linear: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(debug_data, tmp_path / "data")
    for file in data.rglob("*train.array_record*"):
        content = bytearray(file.read_bytes())
        for at in range(len(content) // 4, 3 * len(content) // 4, 500):
            content[at] ^= 16
        file.write_bytes(content)
    assert run_linear(tmp_path / "run", "--data.dir", str(data)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "prepare the dataset again" in error
    assert ": image cam" in error


def test_a_changed_dataset_is_refused_on_resume(
    finished: Path,
    debug_data: Path,
    run_linear: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = shutil.copytree(debug_data, tmp_path / "data")
    (file,) = data.rglob("*val.array_record*")
    file.write_bytes(file.read_bytes() + b"x")
    run = copy(finished, tmp_path / "run", without=(12,))
    before = sorted(run.rglob("*"))
    assert run_linear(run, "--resume", "--data.dir", str(data)) == 2
    assert "the prepared dataset's fingerprint was " in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


# --- 6. One writer ----------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused(
    debug_data: Path, run_linear: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = start(run, debug_data)
    try:
        wait_for("train", run)([process])
        for option in ("--resume", "--overwrite"):
            assert run_linear(run, option, *LONGER) == 2
            error = capsys.readouterr().err
            assert f"process {process.pid} on " in error
            assert "is writing in this folder" in error
    finally:
        process.kill()
        process.communicate()
    assert run_linear(run, "--overwrite", "--training.epochs", "1") == 0
    assert notes(run)[0].startswith(f"took over the lock of process {process.pid} on ")


# --- 7. Other machines ------------------------------------------------------------------------


def test_a_checkpoint_says_what_wrote_it(finished: Path) -> None:
    import ddag_jax

    meta = read_meta(find_checkpoint(finished), load_config(CONFIG))
    assert meta.version == ddag_jax.__version__
    assert meta.config.training.epochs == 3
    assert len(meta.data) == 64
    np.testing.assert_equal(meta.classes, 14)


# --- 9. Long runs -----------------------------------------------------------------------------


def test_memory_is_flat() -> None:
    ended = benchmark("memory", "--config", CONFIG, "--steps", "200")
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    assert "200 steps, 10 evaluations and checkpoints" in ended.stdout
