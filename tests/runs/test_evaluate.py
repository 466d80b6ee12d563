"""Evaluation of real runs, by command and from Python: files, averages, stored features.

The runs are of a linear model. DDAG is evaluated in test_train.py, test_version_0_1_0.py and
report/test_page.py.
"""

import contextlib
import dataclasses
import errno
import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import ddag_jax
from ddag_jax.cli.data import main as data_command
from ddag_jax.cli.evaluate import main as evaluate
from ddag_jax.cli.main import run as call
from ddag_jax.config import DataConfig, EvaluationConfig
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from ddag_jax.runs.checkpoint import (
    Meta,
    find_checkpoint,
    read_meta,
    read_variables,
    save_weights,
    variables_checksum,
)
from tests.linear_method import CONFIG
from tests.reliability.debug_runs import log_lines

pytestmark = pytest.mark.slow  # trains

OWN = ("--config", CONFIG)


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """A finished run that the test may write into."""
    return Path(shutil.copytree(finished, tmp_path / "run_a"))


def figures(file: Path) -> list[dict]:
    records: list[dict] = json.loads(file.read_text())
    return records


def without(records: list[dict], *keys: str) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in keys} for record in records]


def test_other_protocols_stand_beside_the_published_one(trained: Path) -> None:
    assert evaluate([str(trained), *OWN]) == 0
    before = (trained / "evaluation.json").read_text()
    assert {r["feature"] for r in json.loads(before)} == {"global", "part"}
    chosen = ("--shots", "multi", "--mode=indoor", "--trials", "3", "--feature", "part")
    assert evaluate([*chosen, *OWN, str(trained)]) == 0
    assert (trained / "evaluation.json").read_text() == before
    (record,) = figures(trained / "evaluation_indoor_multi_3_trials_part_feature.json")
    assert (record["mode"], record["shots"], record["trials"]) == ("indoor", "multi", 3)
    assert (trained / "ranked_lists_indoor_multi_3_trials_part_feature.png").exists()


def test_flip_and_reranking_change_the_figures_and_are_named_in_the_title(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([str(trained), *OWN, "--feature", "concatenation"]) == 0
    plain = figures(trained / "evaluation_concatenation_feature.json")
    said = capsys.readouterr().out.splitlines()[0]
    assert "mirror" not in said
    assert "re-ranking" not in said
    assert "rendered people" in said
    options = ("--feature", "concatenation", "--flip", "--rerank")
    assert evaluate([str(trained), *OWN, *options]) == 0
    changed = figures(trained / "evaluation_concatenation_feature_flip_rerank.json")
    assert plain[0]["mAP"] != changed[0]["mAP"]
    said = capsys.readouterr().out.splitlines()[0]
    assert said.endswith(
        "averaged with mirror images, k-reciprocal re-ranking (k1 20, k2 6, λ 0.3)"
    )


def test_stored_features_are_judged_as_the_run_is(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "features.npz"
    assert evaluate([str(trained), *OWN, "--save-features", str(file)]) == 0
    ours = [r for r in figures(trained / "evaluation.json") if r["feature"] == "part"]
    assert evaluate(["--features", str(file), "--json", str(tmp_path / "out.json")]) == 0
    stored = figures(tmp_path / "out.json")
    differing = "feature", "rendered", "operating_points"
    assert without(stored, *differing) == without(ours, *differing)
    assert figures(tmp_path / "features.evaluation.json") == stored
    of_run, of_file = ours[0]["operating_points"], stored[0]["operating_points"]
    assert of_run["checksum"] == variables_checksum(find_checkpoint(trained))
    assert (of_run["images"], of_file["images"], of_file["checksum"]) == ("held-out", "test", None)

    # The other feature, by name.
    other = tmp_path / "global.npz"
    options = ("--feature", "global", "--save-features", str(other))
    assert evaluate([str(trained), *OWN, *options]) == 0
    assert not np.array_equal(np.load(file)["query_features"], np.load(other)["query_features"])


def test_average_of_runs(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = trained.with_name("run_b")
    shutil.copytree(trained, second)
    capsys.readouterr()
    assert evaluate([str(trained.with_name("run_*")), *OWN]) == 0
    averaged = figures(trained.with_name("run_average_of_2.json"))
    one = figures(trained / "evaluation.json")
    assert figures(second / "evaluation.json") == one
    assert [r["rank1"] for r in averaged] == [r["rank1"] for r in one]
    assert {(r["runs"], r["rank1_std"]) for r in averaged} == {(2, 0.0)}
    assert "run_*: " in capsys.readouterr().out


def test_evaluating_from_python_is_the_command(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([str(trained), *OWN, "--shots", "multi", "--trials", "2"]) == 0
    file = trained / "evaluation_multi_2_trials.json"
    by_command, table = figures(file), capsys.readouterr().out
    file.unlink()
    settings = EvaluationConfig(shots="multi", trials=2, batch_size=32)
    own = load_config(CONFIG)
    assert (
        ddag_jax.evaluate(trained, evaluation=settings, config=own) == by_command == figures(file)
    )
    assert capsys.readouterr().out == table
    second = shutil.copytree(trained, trained.with_name("run_b"))
    averaged = ddag_jax.evaluate(trained, second, evaluation=settings, config=own, quiet=True)
    assert {record["runs"] for record in averaged} == {2}
    assert capsys.readouterr().out == ""


def test_what_cannot_be_evaluated_from_python(trained: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    with pytest.raises(UserError, match="nothing to evaluate"):
        ddag_jax.evaluate()
    own = load_config(CONFIG)
    wrong = EvaluationConfig(direction="visible_to_infrared")
    with pytest.raises(UserError, match="infrared to visible only"):
        ddag_jax.evaluate(trained, evaluation=wrong, config=own)
    with pytest.raises(UserError, match="no prepared dataset"):
        ddag_jax.evaluate(trained, data_dir=tmp_path, config=own)
    with pytest.raises(UserError, match="its folder does not exist"):
        ddag_jax.evaluate(trained, json=tmp_path / "no" / "file.json", config=own)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert evaluate(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_options_that_contradict(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, there = str(trained), tmp_path / "there.json"
    there.write_text("mine")
    other = str(shutil.copytree(trained, tmp_path / "other"))
    for arguments, message in (
        ([], "give the folders of one or more runs, or --features"),
        ([run, "--features", "x.npz"], "not both"),
        (["--features", "x.npz", "--untrained"], "have no network"),
        (["--features", "x.npz", "--flip"], "leave out"),
        (["--features", "x.npz", "--model.parts", "4"], "--model.parts: no such option"),
        ([run, "--rand-perm-cam", "x.mat"], "only with --features"),
        ([run, other, *OWN, "--save-features", "x.npz"], "give one run"),
        ([run, run, *OWN], "given twice"),
        ([str(tmp_path / "none_*")], "matches nothing"),
        ([run, *OWN, "--json", str(there)], "exists already"),
        ([run, *OWN, "--save-features", str(there)], "ends in .npz"),
        ([run, *OWN, "--draw", "rand_perm_cam"], "there is no rand_perm_cam.mat"),
        ([run, *OWN, "--direction", "visible_to_infrared"], "infrared to visible only"),
        ([run, "--shot", "multi"], "--shot"),
    ):
        assert message in refused(arguments, capsys), arguments
    assert there.read_text() == "mine"


@pytest.fixture(scope="module")
def regdb_runs(tmp_path_factory: pytest.TempPathFactory, run_small: Callable[..., int]) -> Path:
    """Runs of two of RegDB's halves."""
    folder = tmp_path_factory.mktemp("regdb")
    for trial in ("1", "2"):
        assert run_small("regdb", folder / f"regdb_{trial}", trial) == 0
    return folder


def test_regdb_s_halves_are_averaged(regdb_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(regdb_runs / f"regdb_{trial}") for trial in (1, 2)]
    for run in runs:  # nobody is held out: the test set is watched, and chooses no checkpoint
        (line,) = [x for x in log_lines(Path(run)) if x["kind"] == "evaluation"]
        assert line["split"] == "test"
        assert not (find_checkpoint(run) / "metrics").exists()
        assert read_meta(find_checkpoint(run), load_config(CONFIG)).classes == 206
    assert evaluate([*runs, *OWN]) == 0
    printed = capsys.readouterr().out
    assert "RegDB's layout, rendered people, trials 1, 2, mean of 2 runs" in printed
    assert "visible → infrared (" in printed
    assert "infrared → visible (" in printed
    averaged = figures(regdb_runs / "regdb_average_of_2.json")
    each = [figures(Path(run) / "evaluation.json") for run in runs]
    for record, same in zip(averaged, zip(*each, strict=True), strict=True):
        assert (record["halves"], record["runs"]) == ([1, 2], 2)
        for figure in ("rank1", "mAP", "mINP"):
            assert record[figure] == pytest.approx(np.mean([r[figure] for r in same]))
            assert record[f"{figure}_std"] == pytest.approx(np.std([r[figure] for r in same]))
    shutil.copytree(runs[0], regdb_runs / "again")
    error = refused([*runs, str(regdb_runs / "again"), *OWN], capsys)
    assert "both are of trial 1" in error


def as_converted(run: Path, to: Path, **data: object) -> Path:
    """Write a run's weights as a conversion does, which knows no fingerprint of the data."""
    meta = read_meta(find_checkpoint(run), load_config(CONFIG))
    config = dataclasses.replace(meta.config, data=DataConfig(**data))  # type: ignore[arg-type]
    said = Meta(config, meta.classes).to_json()
    save_weights(to, read_variables(find_checkpoint(run)), said)
    return to


def test_what_a_conversion_did_not_say_is_said_at_the_evaluation(
    regdb_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of weights that were converted as if they were of SYSU-MM01, at another size."""
    run = regdb_runs / "regdb_2"
    assert evaluate([str(run), *OWN]) == 0
    expected = figures(run / "evaluation.json")
    data = read_meta(find_checkpoint(run), load_config(CONFIG)).config.data
    converted = str(as_converted(run, tmp_path / "converted", dir=data.dir))
    capsys.readouterr()
    assert "sysu_mm01/288x144" in refused([converted, *OWN], capsys)
    said = ["--data.dataset", "regdb", "--data.trial", "2"]
    assert "regdb/288x144" in refused([converted, *OWN, *said], capsys)
    said += ["--data.image-height", "32", "--data.image-width", "16"]
    assert evaluate([converted, *OWN, *said]) == 0
    assert figures(tmp_path / "converted" / "evaluation.json") == expected
    assert capsys.readouterr().err == ""
    given = {"dataset": "regdb", "trial": 2, "image_size": (32, 16)}
    own = load_config(CONFIG)
    assert ddag_jax.evaluate(converted, config=own, quiet=True, **given) == expected  # type: ignore[arg-type]
    assert "1 to 10" in refused(
        [converted, *OWN, "--data.dataset=regdb", "--data.trial=11"], capsys
    )
    assert "not a published dataset" in refused([converted, *OWN, "--data.dataset=regbd"], capsys)
    assert "must be at least 1" in refused([converted, *OWN, "--data.trial=0"], capsys)


def test_a_run_is_evaluated_on_what_it_was_trained_with(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint says it; the same value may be given, another is refused."""
    run = str(trained)
    for option, value, stored in (
        ("dataset", "regdb", "sysu_mm01"),
        ("trial", "2", "1"),
        ("image-height", "64", "32"),
    ):
        error = refused([run, *OWN, f"--data.{option}", value], capsys)
        assert f"data.{option.replace('-', '_')}: {run} was trained with {stored}" in error
    assert evaluate([run, *OWN, "--data.dataset", "sysu_mm01", "--data.image-height", "32"]) == 0
    with pytest.raises(UserError, match="was trained with 16"):
        ddag_jax.evaluate(run, config=load_config(CONFIG), image_size=(32, 32))
    for option in ("--data.image-height", "--data.image-width"):
        error = refused(["--features", "x.npz", option, "32"], capsys)
        assert "has no meaning for stored features" in error


def test_a_number_of_classes_that_is_not_the_dataset_s_is_noted(
    trained: Path, regdb_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of converted weights, and of a run whose dataset was prepared with fewer people since."""
    own = load_config(CONFIG)
    size = {"image_height": 32, "image_width": 16}
    data = read_meta(find_checkpoint(trained), own).config.data
    run = regdb_runs / "regdb_1"
    converted = as_converted(run, tmp_path / "converted", dir=data.dir, **size)
    assert evaluate([str(converted), *OWN]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert f"note: {converted}: has 206 classes, and SYSU-MM01 in " in note
    assert " 20 training identities: " in note
    assert note.endswith("; if so, name its own with --data.dataset")
    other = prepared_people(tmp_path, train=9)
    assert evaluate([str(trained), *OWN, "--data.dir", str(other)]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert "--data.dataset" not in note


def prepared_people(folder: Path, train: int) -> Path:
    from ddag_jax.datasets.prepare import prepare
    from ddag_jax.synthetic.files import write_people
    from ddag_jax.synthetic.image import People

    people = People(train, 6, 6, images_per_camera=2, height=64)
    write_people(people, folder / "people", workers=1, progress=False)
    prepare("sysu_mm01", folder / "people", folder / "other", 32, 16)
    return folder / "other"


def test_from_another_working_directory_the_folder_of_the_data_is_named(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run of `--data.dir data` knows it as it was given."""
    own = load_config(CONFIG)
    stored = read_meta(find_checkpoint(trained), own).config.data
    size = {"image_height": 32, "image_width": 16}
    converted = as_converted(trained, tmp_path / "converted", dir="data", **size)
    monkeypatch.chdir(tmp_path)
    error = refused([str(converted), *OWN], capsys)
    assert f"{tmp_path}/data/sysu_mm01/32x16/2.0.0: no prepared dataset" in error
    assert error.endswith("or give the folder that it was prepared to (--data.dir)\n")
    assert evaluate([str(converted), *OWN, "--data.dir", stored.dir]) == 0


def test_llcm_from_training_to_stored_features(
    tmp_path: Path, run_small: Callable[..., int]
) -> None:
    run, file = tmp_path / "run", tmp_path / "features.npz"
    assert run_small("llcm", run, "1") == 0
    assert evaluate([str(run), *OWN, "--save-features", str(file)]) == 0
    ours = [r for r in figures(run / "evaluation.json") if r["feature"] == "part"]
    assert [r["direction"] for r in ours] == ["visible_to_infrared", "infrared_to_visible"]
    assert {(r["shots"], r["draw"], r["trials"]) for r in ours} == {("single", "seeded", 10)}
    assert evaluate(["--features", str(file), "--data.dataset", "llcm"]) == 0
    stored = figures(tmp_path / "features.evaluation.json")
    differing = "feature", "rendered", "operating_points"
    assert without(stored, *differing) == without(ours, *differing)


# ---------------------------------------------------------------- results that cannot be written


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file can be written, as on a full disk, whoever runs the tests."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_that_cannot_be_written_is_evaluated(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A colleague's: what is written there by default is a note, and the rest is done."""
    folder = shutil.copytree(finished, tmp_path / "run")
    for name in ("evaluation.json", "ranked_lists.png"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
    mine = tmp_path / "mine.json"
    assert evaluate([str(folder), *OWN, "--json", str(mine)]) == 0
    out, err = capsys.readouterr()
    assert "all-search" in out
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert [line.partition(" cannot")[0] for line in notes] == [
        f"note: {folder / name}:" for name in ("evaluation.json", "ranked_lists.png")
    ]
    assert json.loads(mine.read_text())[0]["queries"]


@pytest.mark.parametrize("option", ["--json", "--save-features", "--report"])
def test_targets_are_tried_before_the_work(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
) -> None:
    monkeypatch.setattr("ddag_jax.runs.evaluate._embed_and_rank", None)  # the work
    with no_room():
        assert evaluate([str(finished), *OWN, option, str(tmp_path / "mine.npz")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search("mine.npz: cannot be written .File too large.; name another", error)
    assert list(tmp_path.iterdir()) == []


def test_other_commands_try_their_targets_too(
    debug_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(debug_data.parent / "people")
    for arguments in (
        ["people", "--to", str(tmp_path / "people"), "--sheet", str(tmp_path / "sheet.png")],
        ["prepare", "sysu_mm01", "--from", source, "--to", str(tmp_path / "data")],
    ):
        with no_room():
            assert call(lambda: data_command(arguments)) == 2  # noqa: B023
        (error,) = capsys.readouterr().err.splitlines()
        assert "cannot be written (File too large)" in error
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_data_are_prepared(
    debug_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(debug_data.parent / "people")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        arguments = ["prepare", "sysu_mm01", "--from", source, "--to", str(tmp_path / "data")]
        assert call(lambda: data_command(arguments)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    *_, error = capsys.readouterr().err.splitlines()
    assert re.search(r"error: .*cannot be written \(.*File too large.*; choose another --to", error)
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it happens; another OSError is a fault of the program, and shown whole."""

    def refused() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "runs/mine")

    assert call(refused) == 2
    assert capsys.readouterr().err == (
        "error: runs/mine: Permission denied; correct its permissions, or name another place\n"
    )

    def wrong() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    with pytest.raises(FileNotFoundError):
        call(wrong)


def test_a_file_that_is_no_evaluation_is_not_replaced(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features, target = tmp_path / "f.npz", tmp_path / "f.evaluation.json"
    assert evaluate([str(finished), *OWN, "--save-features", str(features), "--quiet"]) == 0
    target.write_text('{"mine": 1}')
    assert evaluate(["--features", str(features)]) == 2
    assert "f.evaluation.json: is where the figures are written, and is" in capsys.readouterr().err
    assert target.read_text() == '{"mine": 1}'
    target.unlink()
    for _ in range(2):  # its own, it replaces
        assert evaluate(["--features", str(features), "--quiet"]) == 0
