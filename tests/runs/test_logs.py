"""What a run's log holds, and how it goes on after a kill."""

import json
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from ddag_jax.errors import UserError
from ddag_jax.runs.logs import RunLog

RECORD = {
    "direction": "infrared_to_visible",
    "mode": "all",
    "feature": "part",
    "rank1": 41.5,
    "mAP": 1 / 3,
    "queries": 12,
}


def open_log(folder, resume_step=None):
    return RunLog(folder, resume_step, total_steps=100, images_per_step=8)


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def events(folder):
    """TensorBoard's record format, read plainly."""
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def scalars(folder):
    """(tag, step) of every event, and its value."""
    return {
        (value.tag, event.step): value.simple_value
        for event in events(folder)
        for value in event.summary.value
    }


def summaries(folder):
    return [value for event in events(folder) for value in event.summary.value]


def write_steps(log, steps):
    for step in steps:
        log.train(step, step // 10, {"identity": 1 / step})


@pytest.mark.parametrize("before", ["", "import torch; "], ids=["not imported", "imported"])
def test_pytorch_is_left_alone(before):
    """TensorBoard's writer would import it; the log does not, nor does it hide it afterwards."""
    pytest.importorskip("torch")
    after = "; ".join(
        [
            "import sys, ddag_jax.runs.logs",
            f"assert ('torch' in sys.modules) == {bool(before)}",
            "import torch; torch.Tensor",
        ]
    )
    result = subprocess.run(
        [sys.executable, "-c", before + after], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


def test_every_kind_of_line(tmp_path, capsys):
    with open_log(tmp_path / "run") as log:
        log.note(0, 0, "running on 8 devices")
        log.train(20, 0, {"identity": jnp.float32(0.1), "triplet": np.float64(1 / 3)})
        log.epoch(25, 0, {"L_P": 2})
        log.evaluation(25, 0, "held_out", [RECORD])
    note, train, epoch, evaluation = found = lines(tmp_path / "run")
    assert [line["kind"] for line in found] == ["note", "train", "epoch", "evaluation"]
    assert [(line["step"], line["epoch"]) for line in found] == [(0, 0), (20, 0), (25, 0), (25, 0)]
    assert note["time"] <= train["time"] <= epoch["time"] <= evaluation["time"]
    assert note["text"] == "running on 8 devices"
    assert train["identity"] == float(np.float32(0.1))
    assert train["triplet"] == 1 / 3
    assert train["images_per_second"] > 0
    assert epoch["L_P"] == 2
    assert (evaluation["split"], evaluation["records"]) == ("held_out", [RECORD])

    drawn = scalars(tmp_path / "run")
    assert drawn["train/triplet", 20] == np.float32(1 / 3)
    assert drawn["train/images_per_second", 20] == np.float32(train["images_per_second"])
    assert drawn["epoch/L_P", 25] == 2
    assert drawn["held_out/all/part/rank1", 25] == 41.5

    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "running on 8 devices"
    assert printed[1].startswith("epoch 0  step 20/100  identity 0.1  triplet 0.3333  ")
    assert "held_out all-search part:  rank-1 41.50  mAP 0.33" in printed[2]


def test_lines_are_there_while_the_run_goes_on(tmp_path, capsys):
    """The first one too: a killed run has lost nothing that it logged."""
    log = open_log(tmp_path)
    write_steps(log, [1])
    assert [line["step"] for line in lines(tmp_path)] == [1]
    assert "step 1/100" in capsys.readouterr().out
    log.close()


def test_speed_leaves_the_evaluation_out(tmp_path, capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr("ddag_jax.runs.logs.time.perf_counter", lambda: now)
    with open_log(tmp_path) as log:
        now += 30  # compiling
        log.train(1, 0, {})
        now += 40
        log.train(21, 0, {})
        now += 1000
        log.evaluation(21, 0, "test", [])
        now += 20
        log.train(31, 0, {})
        now += 59
        log.train(32, 0, {})
        now += 1
        log.train(42, 0, {})
    found = [line["images_per_second"] for line in lines(tmp_path) if line["kind"] == "train"]
    assert found == [8 / 30, 8 * 20 / 40, 8 * 10 / 20, 8 / 59, 8 * 10 / 1]
    # A line a minute, the first at once.
    first, second, third, fourth = capsys.readouterr().out.splitlines()
    assert "step 1/100" in first
    assert "left" not in first
    assert second.endswith("4.0 images/s  02:38 left")
    assert "step 31/100" in third
    assert third.endswith("02:18 left")
    assert "step 42/100" in fourth


def test_hyper_parameters_and_pictures_are_in_the_events(tmp_path):
    with open_log(tmp_path) as log:
        log.hyper_parameters({"data": {"dir": "x", "flip": True}, "loss": {"w": None, "m": 0.3}})
        log.picture(7, "test/ranked_lists", np.full((4, 6, 3), 200, np.uint8))
    values = {value.tag: value for value in summaries(tmp_path)}
    start = values["_hparams_/session_start_info"].metadata.plugin_data.content
    told = plugin_hparams_pb2.HParamsPluginData.FromString(start).session_start_info.hparams
    assert told["data.dir"].string_value == "x"
    assert told["data.flip"].bool_value is True
    assert told["loss.w"].string_value == "None"
    assert told["loss.m"].number_value == 0.3
    picture = values["test/ranked_lists"].image
    assert (picture.height, picture.width) == (4, 6)


@pytest.mark.parametrize("quiet", ["silent", "silenced"])
def test_quiet(tmp_path, capsys, monkeypatch, quiet):
    monkeypatch.setattr("ddag_jax.io.progress._quiet", quiet == "silenced")
    with RunLog(
        tmp_path, None, total_steps=100, images_per_step=8, silent=quiet == "silent"
    ) as log:
        log.train(1, 0, {"identity": 1})
        log.note(1, 0, "a note")
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "log.jsonl").exists() is (quiet == "silenced")


def test_resumed_log_has_no_step_twice_and_none_missing(tmp_path):
    with open_log(tmp_path) as log:
        write_steps(log, range(1, 16))
        log.evaluation(10, 1, "held_out", [RECORD])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    with open_log(tmp_path, resume_step=10) as log:
        write_steps(log, range(11, 19))
    found = lines(tmp_path)
    assert [line["step"] for line in found if line["kind"] == "train"] == list(range(1, 19))
    assert [line["step"] for line in found if line["kind"] == "evaluation"] == [10]
    assert not list(tmp_path.glob(".*"))


def test_rewriting_is_all_or_nothing(tmp_path, monkeypatch):
    with open_log(tmp_path) as log:
        write_steps(log, range(1, 6))
    before = (tmp_path / "log.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        open_log(tmp_path, resume_step=2)
    assert (tmp_path / "log.jsonl").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_line_within_the_log_is_named(tmp_path):
    with open_log(tmp_path) as log:
        write_steps(log, [1, 2, 3])
    text = (tmp_path / "log.jsonl").read_text()
    damaged = text.replace('"step": 2', '"step" 2')
    (tmp_path / "log.jsonl").write_text(damaged)
    with pytest.raises(UserError, match=r"log\.jsonl, line 2"):
        open_log(tmp_path, resume_step=3)
    assert (tmp_path / "log.jsonl").read_text() == damaged


def test_a_new_log_starts_empty(tmp_path):
    for _ in range(2):
        with open_log(tmp_path) as log:
            write_steps(log, [1])
    assert [line["step"] for line in lines(tmp_path)] == [1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), jnp.float32(jnp.nan)])
def test_a_figure_that_is_not_finite_is_null(tmp_path, bad):
    with open_log(tmp_path) as log:
        log.train(3, 0, {"identity": 1, "triplet": bad})
        log.epoch(3, 0, {"L_P": bad})
        log.evaluation(3, 0, "test", [{**RECORD, "mAP": float(bad)}])
    train, epoch, evaluation = lines(tmp_path)
    assert (train["identity"], train["triplet"]) == (1, None)
    assert epoch["L_P"] is None
    assert evaluation["records"] == [{**RECORD, "mAP": None}]
    drawn = {tag for tag, _ in scalars(tmp_path)}
    assert "train/identity" in drawn
    assert not drawn & {"train/triplet", "epoch/L_P", "test/all/part/mAP"}


def test_null_is_an_error(tmp_path):
    with open_log(tmp_path) as log, pytest.raises(TypeError):
        log.train(3, 0, {"graph": None})
    assert lines(tmp_path) == []


def test_the_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with open_log(tmp_path, resume_step=40) as log:
        log.train(42, 4, {"identity": 0.5})
    out, err = capsys.readouterr()
    assert "42/100" in err
    assert "identity 0.5" in err
    assert "images/s" in err
    assert "step 42/100" not in out
