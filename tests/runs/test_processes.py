"""Two processes of two devices each, joined over loopback: train, save, evaluate, resume."""

import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from ddag_jax.cli.evaluate import main as evaluate
from ddag_jax.parallel import device_mesh
from ddag_jax.runs import train as loop
from ddag_jax.runs.checkpoint import find_checkpoint, read_variables, saved_steps
from tests.linear_method import CONFIG
from tests.processes import together
from tests.reliability.debug_runs import computed, copy, log_lines, notes, steps, wait_for

pytestmark = pytest.mark.slow  # starts processes that train and compile

Run = Callable[..., int]


LOW = ("--optimizer.learning-rate", "0.001")
"""So that rounding does not grow as in a real run's start."""


def train(
    processes: int,
    config: str,
    run: Path,
    data: Path,
    *more: object,
    meanwhile: Callable[[list[subprocess.Popen]], None] | None = None,
) -> list[subprocess.CompletedProcess]:
    """A run by several processes of two devices each."""
    words = ["train.py", config, "--workdir", run, "--data.dir", data, *LOW, *more]
    return together(processes, 2, lambda where: words + named(where), meanwhile)


def named(where: list[object]) -> list[object]:
    """The command's options that say where the others are."""
    options = ("--coordinator", "--process-id", "--processes")
    return [word for pair in zip(options, where, strict=False) for word in pair]


def lines(run: Path, kind: str) -> list[dict]:
    return [line for line in log_lines(run) if line["kind"] == kind]


def check_alike(run: Path, other: Path, names: Sequence[str]) -> None:
    """The losses of all 12 steps and the last parameters agree up to rounding."""
    ours, theirs = (lines(one, "train") for one in (run, other))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [*range(1, 13)]
    for mine, expected in zip(ours, theirs, strict=True):
        for name in (*names, "total"):
            assert mine[name] == pytest.approx(expected[name], rel=2e-3), (mine["step"], name)
    assert saved_steps(run)[-1] == saved_steps(other)[-1] == 12
    assert difference(run, other) < 5e-3


def difference(run: Path, expected: Path) -> float:
    """Of the last parameters, relative."""
    ours, theirs = (
        np.concatenate(
            [
                np.ravel(leaf)
                for leaf in jax.tree.leaves(read_variables(r / "checkpoints" / "12")["params"])
            ]
        )
        for r in (run, expected)
    )
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


DDAG_LOSSES = ("identity", "triplet", "part", "graph", "graph_weight")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, debug_data: Path) -> Path:
    """A run of DDAG by two processes with two devices each."""
    run = tmp_path_factory.mktemp("processes") / "two"
    for result in train(2, "debug", run, debug_data):
        assert result.returncode == 0, result.stderr[-3000:]
    return run


def test_processes_change_nothing(by_two: Path, run_ddag: Run, tmp_path: Path) -> None:
    """Against one process with eight devices."""
    assert run_ddag(tmp_path / "one", *LOW) == 0
    check_alike(by_two, tmp_path / "one", DDAG_LOSSES)


def test_a_run_goes_on_with_other_processes_and_devices(
    by_two: Path, run_ddag: Run, tmp_path: Path
) -> None:
    """Eight steps by two processes with four devices, the rest by one process with eight."""
    run = copy(by_two, tmp_path / "run", without=(12,))
    assert run_ddag(run, *LOW, "--resume") == 0
    assert "going on after step 8 of 12" in notes(run)
    assert [*computed(run)][:8] == [*computed(by_two)][:8]
    check_alike(run, by_two, DDAG_LOSSES)


def test_one_process_prints_and_writes(by_two: Path) -> None:
    assert len(lines(by_two, "train")) == 12
    assert len(lines(by_two, "epoch")) == 3
    assert len(list((by_two / "tensorboard").iterdir())) == 1


@pytest.fixture(scope="module")
def on_devices(run_linear: Run) -> Run:
    """A run of a linear model on so many devices of this process: `run(devices, workdir, ...)`."""

    def run(devices: int, workdir: Path, *more: str) -> int:
        mesh = device_mesh(jax.devices()[:devices])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "device_mesh", lambda: mesh)
            return run_linear(workdir, *LOW, *more)

    return run


@pytest.fixture(scope="module")
def by_four(tmp_path_factory: pytest.TempPathFactory, on_devices: Run) -> Path:
    """A run of a linear model on four devices."""
    run = tmp_path_factory.mktemp("devices") / "four"
    assert on_devices(4, run) == 0
    return run


def test_evaluation_is_the_same_in_two_processes(
    by_four: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one checkpoint; 13 images a batch do not divide, so that the padding is exercised."""
    checkpoint = copy(find_checkpoint(by_four), tmp_path / "checkpoint")
    words = [str(checkpoint), "--config", CONFIG, "--batch-size", "13"]
    capsys.readouterr()
    assert evaluate(words) == 0
    table = capsys.readouterr().out
    records = (checkpoint / "evaluation.json").read_text()
    (checkpoint / "evaluation.json").unlink()
    results = together(2, 2, lambda where: ["evaluate.py", *words, *named(where)])
    for result in results:
        assert result.returncode == 0, result.stderr[-3000:]
    # Before it, the library of the CPU's collectives prints that it is connected: from several
    # threads, which may break each other's lines.
    first, second = (result.stdout for result in results)
    assert first.endswith(table)
    printed = set(filter(None, table.splitlines()))
    assert printed.isdisjoint(second.splitlines())
    assert (checkpoint / "evaluation.json").read_text() == records


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_checkpoint_goes_on_with_other_devices(
    devices: int, by_four: Path, on_devices: Run, tmp_path: Path
) -> None:
    """Written by four."""
    run = copy(by_four, tmp_path / "run", without=(12,))
    assert on_devices(devices, run, "--resume") == 0
    assert "going on after step 8 of 12" in notes(run)
    assert [*computed(run)][:8] == [*computed(by_four)][:8]
    check_alike(run, by_four, ("identity", "part", "weight"))


def test_all_processes_save_the_same_step(
    run_linear: Run, tmp_path: Path, debug_data: Path
) -> None:
    """One of two is sent the signal."""
    run = tmp_path / "run"
    more = ["--training.epochs", "20", "--training.eval-every", "20"]

    def preempt(processes: list[subprocess.Popen]) -> None:
        wait_for("train", run)(processes)
        processes[1].send_signal(signal.SIGTERM)

    for result in train(2, CONFIG, run, debug_data, *more, meanwhile=preempt):
        assert result.returncode == 0, result.stderr[-3000:]
    last = steps(run)[-1]
    assert last < 80
    assert saved_steps(run)[-1] == last
    assert notes(run)[-1] == f"stopped after step {last} of 80; go on with --resume"
    assert run_linear(run, *LOW, *more, "--resume") == 0
    assert steps(run) == list(range(1, 81))


def test_a_fault_ends_both(tmp_path: Path, debug_data: Path) -> None:
    run = tmp_path / "run"
    for result in train(2, CONFIG, run, debug_data, "--data.image-height", 64):
        assert result.returncode == 2
        assert "error: " in result.stderr
    assert not run.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "localhost:1"], "give all three"),
        (["--coordinator", "localhost", "--process-id", "0", "--processes", "2"], "host and port"),
        (["--coordinator", "localhost:1", "--process-id", "2", "--processes", "2"], "are 0 to 1"),
    ],
)
def test_options_that_make_no_sense(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddag_jax.cli.train import main

    assert main(["debug", "--workdir", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
