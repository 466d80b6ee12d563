"""Runs in a bucket, against a server on this machine: what docs/reliability.md says of gs://.

Compared with runs on a disk, which the other tests hold to their promises.
"""

import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

import ddag_jax
from ddag_jax.cli.evaluate import main as evaluate
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import BucketError
from ddag_jax.io.config_file import load_config
from ddag_jax.runs import train as loop
from ddag_jax.runs.checkpoint import RunCheckpoints, find_checkpoint, saved_steps
from ddag_jax.runs.lock import NAME as LOCK
from ddag_jax.runs.logs import RunLog, read_log
from ddag_jax.runs.trace import Profile
from tests.buckets import Bucket
from tests.linear_method import CONFIG
from tests.processes import ROOT, together
from tests.reliability.debug_runs import differences, log_lines, notes, steps

pytestmark = pytest.mark.slow  # trains, and starts processes that do

Run = Callable[..., int]

LONGER, TOTAL = ("--training.epochs", "8"), 32


@pytest.fixture(scope="module")
def longer(bucket: Bucket, run_linear: Run) -> str:
    """The name of an undisturbed run of 8 epochs in the bucket."""
    assert run_linear(bucket / "longer", *LONGER) == 0
    return "longer"


@pytest.fixture(autouse=True)
def _serves(bucket: Bucket) -> Iterator[None]:
    yield
    bucket.serve()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """gcsfs repeats what failed as often, but soon."""
    import asyncio

    real = asyncio.sleep
    monkeypatch.setattr("asyncio.sleep", lambda delay, *rest: real(delay / 100, *rest))


def test_a_run_in_a_bucket_is_that_on_a_disk(
    bucket: Bucket, finished: Path, run_linear: Run, tmp_path: Path
) -> None:
    assert run_linear(bucket / "run") == 0
    run = bucket.fetch("run", tmp_path / "run")
    assert differences(run, finished) == []
    assert notes(run) == notes(finished)
    events = [path.read_bytes() for path in (run / "tensorboard").iterdir()]
    assert sum(content.count(b"held_out/ranked_lists") for content in events) == 3
    assert {path.name for path in run.iterdir()} == {"checkpoints", "log.jsonl", "tensorboard"}


def test_a_checkpoint_takes_as_many_requests_late_in_a_run(bucket: Bucket, run_linear: Run) -> None:
    """An epoch's: its checkpoint, the log, and the removal of an earlier checkpoint."""
    many = ("--training.epochs", "24", "--training.eval-every", "24")
    assert run_linear(bucket / "many", *many) == 0
    mark = re.compile("POST .*name=many/checkpoints/([0-9]+)/commit_success.txt&[^&]*")
    marks = [number for number, line in enumerate(bucket.requests()) if mark.fullmatch(line)]
    counts = np.diff(marks)
    assert len(counts) == 23
    early, late = np.median(counts[3:11]), np.median(counts[15:])
    assert late <= early + 4  # one more in each epoch would be 12
    assert late < 250


def start(workdir: str, data: Path, *more: str) -> subprocess.Popen:
    words = ["train.py", CONFIG, "--workdir", workdir, "--data.dir", str(data), *more]
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_ends_as_if_it_had_not_been(
    bucket: Bucket, finished: Path, debug_data: Path, run_linear: Run, tmp_path: Path
) -> None:
    """Killed while it writes its second checkpoint."""
    process = start(bucket / "killed", debug_data)
    bucket.wait_for("name=killed/checkpoints/8/meta/metadata")
    process.kill()
    _, error = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, error
    left = bucket.fetch("killed", tmp_path / "left")
    assert (left / LOCK).exists()
    assert run_linear(bucket / "killed", "--resume") == 0
    run = bucket.fetch("killed", tmp_path / "run")
    assert any("took over the lock" in note for note in notes(run))
    assert differences(run, finished) == []


def test_sigterm_ends_a_run_after_its_step(
    bucket: Bucket, longer: str, debug_data: Path, run_linear: Run, tmp_path: Path
) -> None:
    process = start(bucket / "ended", debug_data, *LONGER)
    bucket.wait_for("name=ended/checkpoints/4/commit_success.txt")
    process.terminate()
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    left = bucket.fetch("ended", tmp_path / "left")
    last = steps(left)[-1]
    assert saved_steps(bucket / "ended")[-1] == last < TOTAL
    assert notes(left)[-1] == f"stopped after step {last} of {TOTAL}; go on with --resume"
    assert not (left / LOCK).exists()
    assert run_linear(bucket / "ended", *LONGER, "--resume") == 0
    run, twin = (bucket.fetch(name, tmp_path / name) for name in ("ended", longer))
    assert differences(run, twin) == []


def test_a_checkpoint_without_its_mark_is_not_there(
    bucket: Bucket, finished: Path, run_linear: Run, tmp_path: Path
) -> None:
    """As a process leaves it that is killed before its last arrays are written."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "checkpoints" / "12" / "commit_success.txt").unlink()
    shutil.rmtree(run / "checkpoints" / "12" / "progress")
    name = "unmarked"
    assert saved_steps(bucket.put(run, name)) == [*saved_steps(finished)][:-1]
    with pytest.raises(UserError, match="checkpoints/12: an incomplete checkpoint, which is"):
        find_checkpoint(bucket / f"{name}/checkpoints/12")
    assert run_linear(bucket / name, "--resume") == 0
    assert "going on after step 8 of 12" in notes(bucket.fetch(name, tmp_path / "ended"))
    assert differences(tmp_path / "ended", finished) == []


def test_the_checkpoint_before_a_damaged_one_is_used(
    bucket: Bucket, finished: Path, run_linear: Run, tmp_path: Path
) -> None:
    """Of a run that was copied from a disk, as every other file of it is."""
    run = shutil.copytree(finished, tmp_path / "run")
    arrays = run / "checkpoints" / "12" / "progress" / "ocdbt.process_0" / "d"
    largest = max(arrays.iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    name = "damaged"
    assert run_linear(bucket.put(run, name), "--resume") == 0
    ended = bucket.fetch(name, tmp_path / "ended")
    aside = bucket / f"{name}/damaged_checkpoint_12"
    assert f"warning: the checkpoint of step 12 is damaged; it is now {aside}" in notes(ended)
    assert len(bucket.names(f"{name}/damaged_checkpoint_12")) > 10
    assert differences(ended, finished) == []


def test_a_copied_run_is_evaluated(
    bucket: Bucket, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every option that names a file, to the same figures as on the disk."""
    run, out = bucket.put(finished, "copied"), bucket / "out"
    on_disk = shutil.copytree(finished, tmp_path / "run")
    words = ["--config", CONFIG]
    capsys.readouterr()
    assert evaluate([str(on_disk), *words]) == 0
    table = capsys.readouterr().out.replace(str(on_disk), run)
    words += ["--json", f"{out}/a.json", "--save-features", f"{out}/a.npz"]
    assert evaluate([run, *words]) == 0
    assert capsys.readouterr().out == table
    got = bucket.fetch("out", tmp_path / "out")
    evaluated = bucket.fetch("copied", tmp_path / "evaluated")
    for name in ("evaluation.json", "ranked_lists.png"):
        assert (evaluated / name).read_bytes() == (on_disk / name).read_bytes()
    assert (got / "a.json").read_bytes() == (on_disk / "evaluation.json").read_bytes()

    assert evaluate(["--features", f"{out}/a.npz"]) == 0
    assert "a.evaluation.json" in bucket.names("out")
    assert evaluate([run, *words]) == 2
    assert f"{out}/a.json: exists already" in capsys.readouterr().err
    assert evaluate([run, "--config", CONFIG, "--report", f"{out}/report", "--quiet"]) == 0
    page = bucket.fetch("out/report", tmp_path / "report")
    assert "<!DOCTYPE html>" in (page / "index.html").read_text()
    assert list((page / "figures").glob("*.svg"))
    assert evaluate([bucket / "copie*", "--config", CONFIG, "--report", run]) == 2
    assert "which no report wrote" in capsys.readouterr().err
    assert evaluate([bucket / "copies*"]) == 2
    assert "copies*: matches nothing" in capsys.readouterr().err


def test_a_model_is_loaded_from_a_bucket(bucket: Bucket, finished: Path) -> None:
    """As for embedding, searching and exporting."""
    run, config = bucket.put(finished, "loaded"), load_config(CONFIG)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 16, 3), np.uint8)
    ours, theirs = (
        ddag_jax.load(name, config=config).embed(pixels, "visible") for name in (run, finished)
    )
    assert ours.keys() == theirs.keys()
    for name, rows in theirs.items():
        np.testing.assert_array_equal(ours[name], rows)


def test_a_run_starts_from_weights_in_a_bucket(
    bucket: Bucket, finished: Path, run_linear: Run, tmp_path: Path
) -> None:
    weights = bucket.put(finished / "checkpoints" / "12", "weights")
    for name, init in (("one", weights), ("other", str(finished / "checkpoints" / "12"))):
        assert run_linear(tmp_path / name, "--init", init, "--training.epochs", "1") == 0
    assert differences(tmp_path / "one", tmp_path / "other") == []


def test_a_workdir_that_is_taken_or_of_others(
    bucket: Bucket, longer: str, run_linear: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_linear(bucket / longer) == 2
    assert "exists already; resume with --resume" in capsys.readouterr().err
    assert run_linear("gs://another_bucket/run") == 2
    assert "there is no bucket another_bucket; create it first" in capsys.readouterr().err
    bucket.put(Path(__file__).parent, "of_others")
    before = bucket.names("of_others")
    assert run_linear(bucket / "of_others", "--overwrite", "--training.epochs", "1") == 0
    assert set(bucket.names("of_others")) > set(before)


def test_overwrite_starts_anew(bucket: Bucket, run_linear: Run, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        arguments = ["--training.epochs", "1", "--training.seed", seed, "--overwrite"]
        assert run_linear(bucket / "anew", *arguments) == 0
    run = bucket.fetch("anew", tmp_path / "run")
    assert steps(run) == [1, 2, 3, 4]
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_two_processes_and_a_dataset_in_the_bucket(
    bucket: Bucket, debug_data: Path, run_linear: Run, tmp_path: Path
) -> None:
    """Both copy the dataset, one at a time: it is read once."""
    bucket.put(debug_data, "data")
    low = ["--optimizer.learning-rate", "0.001"]  # rounding grows less
    words = ["train.py", CONFIG, "--workdir", bucket / "two", "--data.dir", bucket / "data"]
    words += ["--data.cache", tmp_path / "cache", *low]

    def named(where: list[object]) -> list[object]:
        options = ("--coordinator", "--process-id", "--processes")
        return [*words, *(word for pair in zip(options, where, strict=False) for word in pair)]

    for result in together(2, 2, named):
        assert result.returncode == 0, result.stderr[-3000:]
    read = [line for line in bucket.requests() if "array_record" in line and "alt=media" in line]
    assert len(read) == len(set(read)) == len(list(debug_data.rglob("*array_record*")))
    two = bucket.fetch("two", tmp_path / "two")
    assert saved_steps(two)[-1] == 12
    assert len(list((two / "tensorboard").iterdir())) == 1
    assert run_linear(tmp_path / "one", *low) == 0
    ours, theirs = (_losses(log_lines(run)) for run in (two, tmp_path / "one"))
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(expected, rel=2e-3)


def _losses(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    names = ("step", "identity", "part", "total")
    return [{name: line[name] for name in names} for line in lines if line["kind"] == "train"]


def test_a_server_that_fails_for_a_while_changes_nothing(
    bucket: Bucket,
    finished: Path,
    run_linear: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the second checkpoint is written: first gcsfs is refused, then tensorstore."""
    real = RunCheckpoints.save

    def save(self: RunCheckpoints, step: int, *rest: Any) -> None:
        # What the checkpoint covers is in the bucket.
        assert read_log(bucket / "hiccup")[-1]["step"] == step
        if step == 8:
            bucket.refuse(503)
            threading.Thread(target=recover).start()
        real(self, step, *rest)

    def recover() -> None:
        bucket.wait_for(" 503")
        bucket.refuse(503, "ocdbt")
        bucket.wait_for("ocdbt.* 503")
        bucket.serve()

    monkeypatch.setattr(RunCheckpoints, "save", save)
    assert run_linear(bucket / "hiccup") == 0
    assert differences(bucket.fetch("hiccup", tmp_path / "run"), finished) == []


def test_a_server_that_fails_for_good_is_one_message(
    bucket: Bucket,
    longer: str,
    run_linear: Run,
    impatient: None,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = bucket.names(longer)
    for status, what in ((503, "503"), (403, "Forbidden")):
        for command in (
            lambda: run_linear(bucket / longer, *LONGER, "--resume"),
            lambda: evaluate([bucket / longer, "--config", CONFIG]),
        ):
            bucket.refuse(status)
            assert command() == 2
            bucket.serve()
            (line,) = capfd.readouterr().err.splitlines()
            assert line.startswith("error: gs://bucket")
            assert what in line
    assert bucket.names(longer) == before
    assert [record for record in caplog.records if record.name == "gcsfs"] == []


def test_arrays_out_of_reach_are_not_damaged(
    bucket: Bucket, longer: str, run_linear: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    before = bucket.names(longer)
    bucket.refuse(403, "tensorstore=")
    assert run_linear(bucket / longer, *LONGER, "--resume") == 2
    error = capfd.readouterr().err
    assert "cannot be read" in error
    assert "damaged" not in error
    assert bucket.names(longer) == before


def test_a_run_that_cannot_write_names_its_last_checkpoint(
    bucket: Bucket,
    run_linear: Run,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    finished: Path,
    tmp_path: Path,
) -> None:
    real = RunCheckpoints.save

    def save(self: RunCheckpoints, step: int, *rest: Any) -> None:
        if step == 8:
            bucket.refuse(403, "checkpoints/8/")
        real(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "save", save)
        assert run_linear(bucket / "refused") == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: gs://bucket/refused: a checkpoint cannot be written (")
    assert "that of step 4 is whole: when that is fixed go on with --resume" in error
    bucket.serve()
    assert run_linear(bucket / "refused", "--resume") == 0
    assert differences(bucket.fetch("refused", tmp_path / "run"), finished) == []


def test_the_log_is_copied_once_a_minute(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the bucket is out of reach, without an error before the next checkpoint."""
    due = False
    monkeypatch.setattr("ddag_jax.runs.logs.EveryMinute.due", lambda self: due)
    with RunLog(bucket / "log", None, total_steps=9, images_per_step=1) as log:
        log.note(1, 0, "one")
        assert read_log(bucket / "log") == []
        due = True
        log.note(2, 0, "two")
        assert [line["text"] for line in read_log(bucket / "log")] == ["one", "two"]
        bucket.refuse(403)
        log.note(3, 0, "three")
        with pytest.raises(BucketError, match="Forbidden"):
            log.sync()
        bucket.serve()
        due = False
        log.note(4, 0, "four")
        assert len(read_log(bucket / "log")) == 2
        log.sync()
        assert len(read_log(bucket / "log")) == 4
    assert [name for name in bucket.names("log") if name.startswith("tensorboard/")]


def test_a_trace_is_written_to_the_bucket(bucket: Bucket) -> None:
    with Profile(epath.Path(bucket / "profile"), 0, 1) as profile:
        assert [profile.after(step, np.zeros(1)) for step in (4, 5, 6)] == [False, False, True]
    assert any(name.endswith(".xplane.pb") for name in bucket.names("profile"))


def test_a_process_that_lost_its_lock_ends(
    bucket: Bucket,
    run_linear: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It writes neither a checkpoint nor the log after that."""
    real = loop._Run._log_epoch
    held: list[Any] = []
    take = loop._take_workdir

    def remember(folder: Any, overwrite: bool, damaged: Any, lock: Any, stack: Any) -> Any:
        held.append(lock)
        return take(folder, overwrite, damaged, lock, stack)

    def lose(self: Any, state: Any, number: int) -> None:
        real(self, state, number)
        if number == 8:
            held[0]._lost = True

    monkeypatch.setattr(loop, "_take_workdir", remember)
    monkeypatch.setattr(loop._Run, "_log_epoch", lose)
    assert run_linear(bucket / "lost") == 2
    assert "another process has taken over this folder" in capsys.readouterr().err
    assert saved_steps(bucket / "lost") == [4]
    assert steps(bucket.fetch("lost", tmp_path / "run")) == [1, 2, 3, 4]


def test_without_gcsfs_there_is_one_message_and_else_it_is_not_imported() -> None:
    code = f"""
import sys
from ddag_jax.cli.train import main
import ddag_jax.runs.train
assert not {{"gcsfs", "google.cloud.storage"}} & sys.modules.keys()
sys.modules["gcsfs"] = None
sys.exit(main([{CONFIG!r}, "--workdir", "gs://bucket/run"]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: paths in buckets (gs://) need gcsfs: pip install gcsfs")
