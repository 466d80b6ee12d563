"""A run of version 0.1.0 evaluates and resumes; its stored configuration may lack fields.

tests/version_0_1_0 holds a prepared dataset of rendered people (32 x 16, version 2.0.0) and a run
of `debug` on it, both written by version 0.1.0: the checkpoint of step 8, the log of all 12 steps,
and the evaluation of that checkpoint. Only paths were changed in it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ddag_jax
from ddag_jax.cli.evaluate import main as evaluate_command
from ddag_jax.cli.train import main as train_command
from ddag_jax.runs.evaluate import find_trained

STORED = Path(__file__).parents[1] / "version_0_1_0"
DATA = STORED / "data"
META = Path("meta", "metadata")
FIGURES = ("rank", "mAP", "mINP")
"""How the names of figures start."""
OF_THE_CLOCK = ("time", "images_per_second")


def lines(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def split_figures(record: dict) -> tuple[dict, dict]:
    """Return the figures of a record, and its other values."""
    figures = {name: value for name, value in record.items() if name.startswith(FIGURES)}
    return figures, {name: value for name, value in record.items() if name not in figures}


def check_records(found: list[dict], expected: list[dict]) -> None:
    """Figures agree to 2 points, everything else exactly.

    They are equal on one processor. Another one rounds differently, which may swap two neighbours
    in a ranking: a query that gains or loses rank 1 in one of the ten draws moves rank 1 by
    100 / 24 / 10 = 0.42 points.
    """
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        (figures, rest), (expected_figures, expected_rest) = map(split_figures, (one, other))
        assert rest == rest | expected_rest  # new keys may join
        assert figures == pytest.approx(expected_figures, abs=2.0)


def edit(checkpoint: Path, change: Callable[[dict], object]) -> None:
    """Change what a checkpoint says about itself."""
    meta = json.loads((checkpoint / META).read_text())
    change(meta)
    (checkpoint / META).write_text(json.dumps(meta))


def resume(run: Path) -> int:
    words = ["debug", "--workdir", str(run), "--data.dir", str(DATA), "--resume"]
    return train_command(words)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the stored run, to write into."""
    return Path(shutil.copytree(STORED / "run", tmp_path / "run"))


@pytest.fixture
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "8"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored run, gone on to its end."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(STORED / "run", folder)
    assert resume(folder) == 0
    return folder


def test_the_run_is_version_0_1_0_s() -> None:
    """No format, no method, losses in a section of their own; a dataset of another module."""
    meta = json.loads((STORED / "run" / "checkpoints" / "8" / META).read_text())
    assert meta["version"] == "0.1.0"
    assert not {"format", "method"} & meta.keys()
    assert meta["config"]["loss"] == {
        "margin": 0.3,
        "graph_reduction": "mean",
        "graph_weight": None,
    }
    (info,) = DATA.rglob("dataset_info.json")
    assert json.loads(info.read_text())["moduleName"] == "ddag_jax.data.sysu_mm01.builder"


@pytest.mark.slow
def test_it_evaluates_to_the_same_figures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_command([str(run), "--data.dir", str(DATA)]) == 0
    assert capsys.readouterr().err.count("note: ") == 1  # of the fields that 0.1.0 did not have
    expected = json.loads((STORED / "evaluation.json").read_text())
    check_records(json.loads((run / "evaluation.json").read_text()), expected)


@pytest.mark.slow
def test_it_resumes_as_it_went_on(resumed: Path) -> None:
    """Steps 9 to 12 have the losses that version 0.1.0 logged."""
    stored, now = lines(STORED / "run" / "log.jsonl"), lines(resumed / "log.jsonl")
    assert [line for line in now if line["step"] < 9 and line["kind"] != "note"] == [
        line for line in stored if line["step"] < 9
    ]
    expected = [line for line in stored if line["step"] >= 9]
    found = [line for line in now if line["step"] >= 9]
    assert [(line["kind"], line["step"]) for line in found] == [
        *(("train", step) for step in (9, 10, 11, 12)),
        ("epoch", 12),
        ("evaluation", 12),
    ]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        if "records" in other:
            check_records(one.pop("records"), other.pop("records"))
        for name in OF_THE_CLOCK:
            assert (name in one) == (name in other)
            one.pop(name, None), other.pop(name, None)
        for name, value in other.items():
            if isinstance(value, float):
                assert one[name] == pytest.approx(value, rel=1e-3), name
            else:
                assert one[name] == value, name


@pytest.mark.slow
def test_what_it_writes_then_is_format_2(resumed: Path) -> None:
    meta = json.loads((resumed / "checkpoints" / "12" / META).read_text())
    assert (meta["format"], meta["method"]) == (2, "ddag")
    assert "loss" not in meta["config"]
    assert meta["config"]["model"]["margin"] == 0.3
    assert find_trained(resumed / "checkpoints" / "12").config.model.margin == 0.3


def test_a_missing_field_takes_its_default_with_a_note(
    run: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(checkpoint, lambda meta: meta["config"]["augment"].pop("flip"))
    edit(checkpoint, lambda meta: meta["config"]["loss"].pop("margin"))
    config = find_trained(run).config
    assert (config.augment.flip, config.model.margin) == (True, 0.3)
    note = capsys.readouterr().err
    assert note.startswith(f"note: {checkpoint}: stored by version 0.1.0 without augment.flip,")
    assert " model.margin," in note
    assert note.endswith(": the defaults are taken\n")


@pytest.mark.slow
def test_a_resumed_run_logs_the_note(resumed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(resumed, run)
    edit(run / "checkpoints" / "12", lambda meta: meta["config"]["data"].pop("label_noise"))
    assert resume(run) == 0
    notes = [line["text"] for line in lines(run / "log.jsonl") if line["kind"] == "note"]
    assert any("without data.label_noise: the defaults are taken" in note for note in notes)


def unknown_field(meta: dict) -> None:
    meta["config"]["augment"]["jitter"] = 0.5


def unknown_section(meta: dict) -> None:
    meta["config"]["memory_bank"] = {"size": 4}


def unusable_value(meta: dict) -> None:
    meta["config"]["model"]["parts"] = 0


def later_format(meta: dict) -> None:
    meta |= {"format": 3, "version": "7.5.0"}


def unknown_method(meta: dict) -> None:
    meta |= {"format": 2, "method": "Mine"}
    meta["config"]["model"] = {"own": 1}
    del meta["config"]["loss"]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (unknown_field, ("ddag_jax 0.1.0", "augment.jitter", "use the version that wrote it")),
        (unknown_section, ("ddag_jax 0.1.0", "memory_bank", "use the version that wrote it")),
        (unusable_value, ("ddag_jax 0.1.0", "model.parts", "use the version that wrote it")),
        (later_format, ("ddag_jax 7.5.0", "format 3", "formats up to 2: update it")),
        (unknown_method, ("trained with Mine", "--config FILE")),
    ],
)
def test_what_cannot_be_read_names_the_repair(
    run: Path, checkpoint: Path, change: Callable[[dict], object], parts: tuple[str, ...]
) -> None:
    edit(checkpoint, change)
    with pytest.raises(ddag_jax.UserError) as error:
        ddag_jax.evaluate(run, data_dir=DATA)
    for part in (str(checkpoint), *parts):
        assert part in str(error.value)
