"""Two processes of two devices each, joined over loopback: train, save, evaluate, resume."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from ddag_jax.runs.checkpoint import find_checkpoint, read_variables, saved_steps
from tests.processes import together
from tests.reliability.debug_runs import computed, copy, log_lines, notes, steps, wait_for

pytestmark = pytest.mark.slow  # starts processes that train and compile


def train(
    processes: int,
    devices: int,
    run: Path,
    data: Path,
    *more: object,
    meanwhile: Callable[[list[subprocess.Popen]], None] | None = None,
) -> list[subprocess.CompletedProcess]:
    """A run whose learning rate is low, so that rounding does not grow as in a real one's start."""
    words = ["train.py", "debug", "--workdir", run, "--data.dir", data]
    words += ["--optimizer.learning-rate", 0.001, *more]
    return together(processes, devices, lambda where: words + named(where), meanwhile)


def named(where: list[object]) -> list[object]:
    """The command's options that say where the others are."""
    options = ("--coordinator", "--process-id", "--processes")
    return [word for pair in zip(options, where, strict=False) for word in pair]


def lines(run: Path, kind: str) -> list[dict]:
    return [line for line in log_lines(run) if line["kind"] == kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, debug_data: Path) -> dict[str, Path]:
    """The same run by one process with four devices and by two with two each."""
    folder = tmp_path_factory.mktemp("processes")
    found = {}
    for name, processes, devices in (("one", 1, 4), ("two", 2, 2)):
        found[name] = folder / name
        for result in train(processes, devices, found[name], debug_data):
            assert result.returncode == 0, result.stderr[-3000:]
    return found


def test_processes_change_nothing(runs: dict[str, Path]) -> None:
    one, two = (lines(runs[name], "train") for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 13))
    for ours, expected in zip(two, one, strict=True):
        for name in ("identity", "triplet", "part", "graph", "total", "graph_weight"):
            assert ours[name] == pytest.approx(expected[name], rel=2e-3), (ours["step"], name)
    assert saved_steps(runs["one"])[-1] == saved_steps(runs["two"])[-1] == 12
    assert difference(runs["two"], runs["one"]) < 5e-3


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


def test_one_process_prints_and_writes(runs: dict[str, Path]) -> None:
    assert len(lines(runs["two"], "train")) == 12
    assert len(lines(runs["two"], "epoch")) == 3
    assert len(list((runs["two"] / "tensorboard").iterdir())) == 1


def without_gloo(printed: str) -> str:
    """What we print: the library of the CPU's collectives says when it is connected."""
    return "".join(line for line in printed.splitlines(True) if not line.startswith("[Gloo]"))


def test_evaluation_is_the_same_in_two_processes(runs: dict[str, Path], tmp_path: Path) -> None:
    """Of one checkpoint; 13 images a batch do not divide, so that the padding is exercised."""
    checkpoint = find_checkpoint(runs["two"])
    tables, records = [], []
    for processes, devices in ((1, 1), (2, 2)):
        results = together(
            processes,
            devices,
            lambda where: ["evaluate.py", checkpoint, "--batch-size", 13, *named(where)],
        )
        for result in results:
            assert result.returncode == 0, result.stderr[-3000:]
        first, *others = (without_gloo(result.stdout) for result in results)
        tables.append(first)
        assert others in ([], [""])
        records.append(json.loads((checkpoint / "evaluation.json").read_text()))
    assert tables[0] == tables[1]
    assert records[0] == records[1]


def test_a_run_goes_on_with_other_processes(
    runs: dict[str, Path], tmp_path: Path, debug_data: Path
) -> None:
    """Four steps by two processes, the rest by one: the run that one process would have made."""
    run = tmp_path / "run"
    for result in train(2, 2, run, debug_data, "--training.epochs", 1):
        assert result.returncode == 0, result.stderr[-3000:]
    meta = run / "checkpoints" / "4" / "meta" / "metadata"
    meta.write_text(meta.read_text().replace('"epochs": 1', '"epochs": 3'))
    (result,) = train(1, 4, run, debug_data, "--resume")
    assert result.returncode == 0, result.stderr[-3000:]
    assert steps(run) == list(range(1, 13))
    assert difference(run, runs["one"]) < 5e-3


def test_a_checkpoint_goes_on_with_other_devices(
    runs: dict[str, Path], tmp_path: Path, debug_data: Path
) -> None:
    """Written by four devices."""
    expected = [line for line in computed(runs["one"]) if line["kind"] == "train"]
    copies = {n: copy(runs["one"], tmp_path / f"on{n}", without=(12,)) for n in (1, 2, 8)}
    for devices, run in copies.items():
        (result,) = train(1, devices, run, debug_data, "--resume")
        assert result.returncode == 0, result.stderr[-3000:]
        assert "going on after step 8 of 12" in notes(run)
        ours = [line for line in computed(run) if line["kind"] == "train"]
        assert ours[:8] == expected[:8]
        for mine, theirs in zip(ours, expected, strict=True):
            for name in ("identity", "triplet", "part", "graph", "total", "graph_weight"):
                assert mine[name] == pytest.approx(theirs[name], rel=2e-3), (mine["step"], name)


def test_all_processes_save_the_same_step(
    runs: dict[str, Path], tmp_path: Path, debug_data: Path
) -> None:
    """One of two is sent the signal. `runs` has compiled the programs."""
    run = tmp_path / "run"
    more = ["--training.epochs", 40, "--training.eval-every", 40]

    def preempt(processes: list[subprocess.Popen]) -> None:
        wait_for("train", run)(processes)
        processes[1].send_signal(signal.SIGTERM)

    for result in train(2, 2, run, debug_data, *more, meanwhile=preempt):
        assert result.returncode == 0, result.stderr[-3000:]
    last = steps(run)[-1]
    assert last < 160
    assert saved_steps(run)[-1] == last
    assert notes(run)[-1] == f"stopped after step {last} of 160; go on with --resume"
    for result in train(1, 4, run, debug_data, *more, "--resume"):
        assert result.returncode == 0, result.stderr[-3000:]
    assert steps(run) == list(range(1, 161))


def test_a_fault_ends_both(tmp_path: Path, debug_data: Path) -> None:
    run = tmp_path / "run"
    for result in train(2, 2, run, debug_data, "--data.image-height", 64):
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
