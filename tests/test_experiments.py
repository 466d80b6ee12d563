"""The tables as commands: real tiny runs, resumed, never repeated; the three formats agree."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from etils import epath

from ddag_jax.cli.options import override
from ddag_jax.config import Config
from ddag_jax.errors import UserError
from ddag_jax.evaluation.protocols import FIGURES
from ddag_jax.experiments import curves, table
from ddag_jax.experiments import runs as runs_module
from ddag_jax.experiments.__main__ import main
from ddag_jax.experiments.estimate import estimate  # noqa: F401  # before a test replaces what it imports
from ddag_jax.experiments.rows import EXPERIMENTS, Curve, Experiment, Row
from ddag_jax.experiments.runs import Result, Run, plan
from ddag_jax.io.config_file import load_config
from ddag_jax.io.files import read_json
from ddag_jax.runs.checkpoint import Meta
from ddag_jax.runs.evaluate import evaluate
from tests.linear_method import CONFIG
from tests.processes import flags

TINY = [
    *("--data.image-height", "32", "--data.image-width", "16", "--model.width", "8"),
    *("--model.graph-head-dim", "8", "--training.epochs", "1"),
    *("--training.steps-per-epoch", "16"),  # as a dry run has: the same program
    *("--training.images-per-identity", "2", "--optimizer.drop-epochs", "9"),
    *("--evaluation.trials", "2", "--evaluation.batch-size", "32"),
]
PAIR = Experiment(
    "Two rows",
    (
        Row("b", "B", "b", published={("sysu_mm01", "all"): {"rank1": 48.18, "mAP": 47.64}}),
        Row("b_noisy", "B, 50 % noise", "b", {"data.label_noise": 0.5}),
    ),
    (Curve("noise", "B", {0: "b", 50: "b_noisy"}),),
)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch, debug_data: Path) -> Callable[..., int]:
    """`main` of an experiment of two rows on tiny people."""
    monkeypatch.setitem(EXPERIMENTS, "pair", PAIR)
    # The children need no more than one device, and share what they compile.
    monkeypatch.setenv("XLA_FLAGS", flags(devices=1))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

    def start(workdir: Path | str, *words: str) -> int:
        return main(
            [
                *("pair", "--dataset", "people", "--workdir", str(workdir), "--seeds", "2"),
                *("--data.dir", str(debug_data), "--quiet", *TINY, *words),
            ]
        )

    return start


@pytest.mark.slow
def test_a_stopped_table_goes_on_and_finished_runs_stay(
    pair: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    really = runs_module.in_own_process
    started: list[str] = []

    def killed_in_the_second(prepare: Any, folder: epath.Path, *more: Any) -> Any:
        started.append(folder.name)
        result = really(prepare, folder, *more)
        if len(started) == 2:  # trained, and its result not yet written
            raise KeyboardInterrupt
        return result

    work = tmp_path / "table"
    monkeypatch.setattr(runs_module, "in_own_process", killed_in_the_second)
    assert pair(work) == 130
    assert started == ["b_seed0", "b_noisy_seed0"]
    half = (work / "pair.md").read_text()
    assert "1 of 2" in half
    assert "not run" in half
    finished = [work / "b_seed0.json", *(work / "b_seed0").rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in finished}

    started.clear()
    trained = (work / "b_noisy_seed0" / "log.jsonl").read_bytes()

    def counted(prepare: Any, folder: epath.Path, *more: Any) -> Any:
        started.append(folder.name)
        return really(prepare, folder, *more)

    monkeypatch.setattr(runs_module, "in_own_process", counted)
    assert pair(work) == 0
    assert started == ["b_noisy_seed0", "b_seed1", "b_noisy_seed1"]
    assert (work / "b_noisy_seed0" / "log.jsonl").read_bytes() == trained  # not trained again
    assert {path: path.stat().st_mtime_ns for path in finished} == before
    page = (work / "pair.md").read_text()
    assert "not run" not in page
    assert not re.search(r"[01] of 2", page)
    assert "published" not in page + (work / "pair.csv").read_text()
    for kind, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert (work / f"pair.{kind}").read_bytes().startswith(magic)

    # The table is of what was evaluated.
    scores = [json.loads((work / f"b_seed{n}.json").read_text())["records"][0] for n in (0, 1)]
    assert scores[0]["mode"] == "all"
    ranks = [record["rank1"] for record in scores]
    mean, spread = sum(ranks) / 2, abs(ranks[0] - ranks[1]) / 2**0.5
    assert f"| B | 2 | {mean:.2f} ± {spread:.2f} |" in page
    agree(work, "pair")

    # Nothing is left to do, and nothing is done.
    started.clear()
    capsys.readouterr()
    assert pair(work) == 0
    assert started == []
    assert capsys.readouterr().out.strip() == page.strip()

    # What is there belongs to another configuration.
    assert pair(work, "--model.margin", "0.5") == 2
    assert "model.margin was 0.3, now 0.5" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished} == before


@pytest.mark.slow
def test_a_dry_run_measures_elsewhere(
    pair: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "table"
    assert pair(work, "--dry-run", "--training.log-every", "7") == 0
    assert not work.exists()
    printed = capsys.readouterr().out
    for name in ("b_seed0", "b_noisy_seed0", "b_seed1", "b_noisy_seed1"):
        assert re.search(rf"^{name} +from the start +about \d\d:\d\d$", printed, re.MULTILINE)
    assert "4 of 4 runs to do" in printed
    assert re.search(r"measured with b_seed0: 0\.\d{3} s a step", printed)


@pytest.mark.slow
def test_a_row_that_fails_stops_the_table(
    pair: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the row's own words, and how to go on."""
    folder = tmp_path / "table" / "b_seed0"
    folder.mkdir(parents=True)
    (folder / "checkpoints").touch()
    assert pair(tmp_path / "table") == 2
    *_, error = capfd.readouterr().err.splitlines()
    assert error.startswith("error: b_seed0: ")
    assert "checkpoints: is a file" in error
    assert "when that is fixed, the same command continues" in error


@pytest.mark.slow
def test_a_row_whose_process_is_killed_stops_the_table(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path / "b_seed0")
    with pytest.raises(UserError, match=r"was ended by signal 9; .* the same command continues"):
        runs_module.in_own_process(kill_this_process, folder, Config(), None, True)


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow  # trains a linear model
def test_a_table_in_a_bucket(
    pair: Callable[..., int],
    bucket: Any,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its own files; that a run can be in a bucket, tests/runs/test_buckets.py shows."""
    run = shutil.copytree(finished, tmp_path / "run")
    records = evaluate(run, config=load_config(CONFIG), quiet=True)
    started: list[str] = []

    def trained(prepare: Any, folder: epath.Path, *more: Any) -> tuple[list[Any], float]:
        started.append(os.fspath(folder))
        return records, 1.0

    monkeypatch.setattr(runs_module, "in_own_process", trained)
    assert pair(bucket / "table", "--seeds", "1") == 0
    page = capsys.readouterr().out
    assert started == [bucket / "table/b_seed0", bucket / "table/b_noisy_seed0"]
    assert bucket.names("table") == [
        "b_noisy_seed0.json",
        "b_seed0.json",
        *(f"pair.{kind}" for kind in ("csv", "md", "png", "svg", "tex")),
    ]
    assert bucket.read("table/pair.md").decode().strip() == page.strip()
    assert pair(bucket / "table", "--seeds", "1") == 0
    assert len(started) == 2
    assert capsys.readouterr().out == page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.seed", "3"], "--training.seed: --seeds sets it"),
        (["--model.graph-attention", "False"], "the rows differ in it"),
        (["--data.label-noise", "0.1"], "the rows differ in it"),
        (["--trials", "1"], "has no trials, only regdb"),
        (["--init", "nowhere"], "nowhere: neither a run"),
        (["--training.identities-per-batch", "64"], "there are only 20 identities"),
        (["--training.epochz", "64"], "did you mean --training.epochs?"),
        (["--seeds", "0", "0"], "--seeds 0 0"),
        (["--data.image-height", "96"], "no prepared dataset"),
    ],
)
def test_errors_come_before_anything_is_done(
    pair: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert pair(tmp_path / "table", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "table").exists()


def test_the_rows_are_the_papers() -> None:
    def row(experiment: str, name: str) -> Row:
        return next(row for row in EXPERIMENTS[experiment].rows if row.name == name)

    assert [r.title for r in EXPERIMENTS["table1"].rows] == ["B", "B+P", "B+G", "B+P+G"]
    for name, experiment in EXPERIMENTS.items():
        names = [r.name for r in experiment.rows]
        assert len(set(names)) == len(names)
        for curve in experiment.curves:
            assert set(curve.points.values()) <= set(names), name
        for one in experiment.rows:  # each makes a valid configuration of each dataset
            for dataset in ("sysu_mm01", "regdb", "llcm", "people"):
                changed = runs_module._changes(one)
                runs_module._with(load_config(dataset), changed, name)
    # One name, one configuration, in whatever table: they may share a folder.
    meanings: dict[str, Config] = {}
    for experiment in EXPERIMENTS.values():
        for one in experiment.rows:
            config = runs_module._with(Config(), runs_module._changes(one), "")
            assert meanings.setdefault(one.name, config) == config
    assert meanings["b_p"] == load_config("ablations/b_p")
    assert row("table3", "b").published["sysu_mm01", "all"]["mAP"] == 47.64
    assert row("table2", "b_p").published["sysu_mm01", "all"]["rank1"] == 53.69


def made(tmp_path: Path, *, rendered: bool, experiment: str = "table1") -> list[Run]:
    """Runs that never were, of an experiment's rows on SYSU-MM01."""
    config = load_config("sysu_mm01")
    return [
        Run(
            row,
            seed,
            dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed)),
            epath.Path(tmp_path / f"{row.name}_seed{seed}"),
            Meta(config, 395, "x"),
            None,
            rendered,
        )
        for seed in (0, 1, 2)
        for row in EXPERIMENTS[experiment].rows
    ]


def scored(run: Run, shift: float) -> Result:
    """Made-up records of SYSU-MM01's searches."""
    records = [
        {
            "direction": "infrared_to_visible",
            "mode": mode,
            "feature": feature,
            **{name: 10 * number + shift for number, name in enumerate(FIGURES)},
        }
        for mode in ("all", "indoor")
        for feature in ("global", "part")
    ]
    return Result(records, 2.0)  # type: ignore[arg-type]


def agree(folder: Path, name: str) -> None:
    """Markdown, CSV and LaTeX hold the same."""
    lines = list(csv.DictReader((folder / f"{name}.csv").open()))
    page, paper = (folder / f"{name}.md").read_text(), (folder / f"{name}.tex").read_text()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ") and not line.startswith(("|  |", "| ---"))
    ]
    typeset = [
        [cell.strip().replace(r"$\pm$", "±").replace("--", "–") for cell in line[:-3].split("&")]
        for line in paper.splitlines()
        if line.endswith(r"\\") and not line.startswith(" & ")
    ]
    assert len(cells) == len(lines) > 0
    assert [[c.replace("\\", "") for c in row] for row in typeset] == cells
    for line, row in zip(lines, cells, strict=True):
        for column, figure in enumerate(FIGURES, start=2):
            if not line[figure]:
                assert row[column] in ("–", "not run")
                continue
            spread = line[f"{figure}_std"]
            shown = f"{float(line[figure]):.2f}"
            assert row[column] == (f"{shown} ± {float(spread):.2f}" if spread else shown)


@pytest.mark.parametrize("rendered", [False, True])
def test_the_published_column_is_for_real_images_only(tmp_path: Path, rendered: bool) -> None:
    runs = made(tmp_path, rendered=rendered)
    done = {run.folder.name: scored(run, run.seed) for run in runs if run.row.name != "b_p_g"}
    experiment = EXPERIMENTS["table1"]
    lines = table.lines(experiment, runs, done)
    said = table.caption(experiment, runs)
    for name, text in (
        ("t.md", table.markdown(said, lines)),
        ("t.csv", table.comma_separated(lines)),
        ("t.tex", table.latex(said, lines)),
    ):
        (tmp_path / name).write_text(text)
        assert ("published" in text) is not rendered
        assert ("54.75" in text) is not rendered
        assert ("39.62" in text) is not rendered
    agree(tmp_path, "t")
    page = (tmp_path / "t.md").read_text()
    assert ("rendered people" in page) is rendered
    # Seeds 0, 1, 2: mean 1, sample deviation 1.
    assert "| B | 3 | 1.00 ± 1.00 | 11.00 ± 1.00 |" in page
    assert "| B+P+G | 0 of 3 | not run | – |" in page
    all_search, indoor = page.split("## indoor-search")
    assert ("| 53.69 |" in all_search) is not rendered
    assert ("| 58.08 |" in indoor) is not rendered


@pytest.mark.parametrize("name", [name for name, one in EXPERIMENTS.items() if one.curves])
def test_curves_lie_within_their_picture(tmp_path: Path, name: str) -> None:
    runs = made(tmp_path, rendered=True, experiment=name)
    lines = table.lines(
        EXPERIMENTS[name], runs, {run.folder.name: scored(run, run.seed) for run in runs}
    )
    said = table.caption(EXPERIMENTS[name], runs)
    curves.draw(EXPERIMENTS[name], lines, said, epath.Path(tmp_path / name))
    with PIL.Image.open(tmp_path / f"{name}.png") as file:
        picture = np.asarray(file.convert("L"))
    ink = picture < 255
    assert ink.any()
    assert not ink[[0, -1]].any()
    assert not ink[:, [0, -1]].any()


def test_regdb_averages_its_trials_then_the_seeds(tmp_path: Path) -> None:
    config = load_config("regdb")
    row = EXPERIMENTS["table5"].rows[0]
    runs, done = [], {}
    for seed in (0, 1):
        for trial in (1, 2):
            data = dataclasses.replace(config.data, trial=trial)
            one = dataclasses.replace(config, data=data)
            name = f"b_p_g_seed{seed}_trial{trial}"
            meta = Meta(one, 206, "x")
            runs.append(Run(row, seed, one, epath.Path(tmp_path / name), meta, None, False))
            records = [
                {
                    "direction": direction,
                    "mode": None,
                    "feature": feature,
                    "halves": [trial],
                    "rendered": False,
                    "runs": 1,
                    **dict.fromkeys(FIGURES, 60.0 + 2 * trial + seed),
                }
                for direction in ("visible_to_infrared", "infrared_to_visible")
                for feature in ("global", "part")
            ]
            done[name] = Result(records, None)  # type: ignore[arg-type]
    forth, back = table.lines(EXPERIMENTS["table5"], runs, done)
    assert forth.mean["rank1"] == 63.5  # of 63 and 64
    assert forth.deviation["rank1"] == pytest.approx(0.5**0.5)
    assert (forth.published["rank1"], back.published["rank1"]) == (69.34, 68.06)
    del done["b_p_g_seed1_trial2"]  # a seed counts when all of its trials are there
    forth, _ = table.lines(EXPERIMENTS["table5"], runs, done)
    assert (forth.done, forth.seeds, forth.mean["rank1"], forth.deviation) == (1, 2, 63.0, {})


def test_a_result_of_other_weights_is_refused(tmp_path: Path) -> None:
    run = made(tmp_path, rendered=False)[0]
    content = {"meta": run.meta.to_json(), "init": "weights/a", "minutes": 1.0, "records": []}
    run.result.write_text(json.dumps(content))
    assert read_json(run.result)["init"] == "weights/a"
    with pytest.raises(UserError, match="was started from weights/a, not from random weights"):
        runs_module.read_result(run)
    run.result.write_text("{")
    with pytest.raises(UserError, match="not a result that this version can read"):
        runs_module.read_result(run)


def test_people_are_not_the_datasets_images(
    tmp_path: Path, debug_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = runs_module._training_images
    monkeypatch.setattr(
        runs_module,
        "_training_images",
        lambda *words: dataclasses.replace(really(*words), rendered=False),
    )
    config = override(load_config("people"), ["--data.dir", str(debug_data), *TINY], "test")
    with pytest.raises(UserError, match="give --dataset sysu_mm01"):
        plan(PAIR, "people", config, tmp_path, seeds=[0])
