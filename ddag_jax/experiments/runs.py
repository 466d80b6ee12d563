"""The runs behind the rows: what is planned, what is there already, a process for each.

A run `WORKDIR/NAME_seed0` (RegDB: `NAME_seed0_trial1`) is a folder of train.py's own. When it has
been evaluated, `WORKDIR/NAME_seed0.json` appears beside it, which is what says that it is finished:

``meta``     as in its checkpoints: configuration, classes, which data, version
``init``     the checkpoint that it was started from, or null
``minutes``  training and evaluation together; null where it was interrupted
``records``  list of `protocols.Record`
"""

import dataclasses
import functools
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from etils import epath

from ddag_jax.cli.options import load_config, override
from ddag_jax.config import Config, DataConfig, differences, from_dict
from ddag_jax.data.loader import ImageSource, evaluation_split, training_split
from ddag_jax.data.sampler import IdentitySampler
from ddag_jax.datasets.dataset import check_settings
from ddag_jax.datasets.find import DATASETS as PUBLISHED
from ddag_jax.datasets.find import find_dataset
from ddag_jax.errors import UserError
from ddag_jax.evaluation.protocols import Images, Record, kind, searches
from ddag_jax.experiments.rows import Experiment, Row
from ddag_jax.io.files import parse_json, read_bytes, read_json
from ddag_jax.runs.checkpoint import (
    Meta,
    check_same_run,
    find_checkpoint,
    read_meta,
    saved_steps,
    step_folder,
)

PEOPLE = "people"
"""The rendered people, whose configuration is of this name."""
DATASETS = (*PUBLISHED, PEOPLE)
"""Names of datasets, each with a configuration of its name."""

_LONGEST = 2**30


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    row: Row
    seed: int
    config: Config
    words: tuple[str, ...]
    """What train.py is given: the configuration's name, then fields."""
    folder: epath.Path
    meta: Meta
    """What its checkpoints will say."""
    init: str | None
    rendered: bool
    """Whether the images are drawings."""

    @property
    def result(self) -> epath.Path:
        """The file that says that this run is finished."""
        return self.folder.with_name(f"{self.folder.name}.json")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run scored."""

    records: list[Record]
    minutes: float | None


def plan(
    experiment: Experiment,
    dataset: str,
    workdir: epath.PathLike,
    *,
    seeds: Sequence[int],
    trials: Sequence[int] | None = None,
    fields: Sequence[str] = (),
    init: str | None = None,
) -> list[Run]:
    """Every run of an experiment, by seed, then row, then trial, checked before anything is done.

    Args:
        experiment: the rows.
        dataset: of `DATASETS`.
        workdir: for the runs' folders.
        seeds: of training.
        trials: RegDB's halves; None for all ten.
        fields: of the configuration, for all rows, as train.py takes them.
        init: a checkpoint whose backbone to start from.

    Raises:
        UserError: a field is set that the rows or seeds set; data or weights are missing, do not
            allow a row's training or protocol, or are drawings or not, against `dataset`.
    """
    base = load_config(dataset)
    given = override(base, fields, "python -m ddag_jax.experiments")
    changes = {row.name: _changes(row) for row in experiment.rows}
    owned = {
        "training.seed": "--seeds sets it",
        "data.dataset": "--dataset sets it",
        "data.trial": "--trials sets it",
        "model.part_attention": "the rows differ in it",
        "model.graph_attention": "the rows differ in it",
        **{field: "the rows differ in it" for row in changes.values() for field in row},
    }
    for field in differences(base, given):
        if field in owned:
            raise UserError(f"--{field.replace('_', '-')}: {owned[field]}; leave it out")
    own = find_dataset(given.data.dataset)
    if trials is not None and not own.splits:
        raise UserError(f"--trials: {dataset} has no trials, only regdb; leave it out")
    if init is not None:
        find_checkpoint(init)
    splits = (trials or range(1, own.splits + 1)) if own.splits else (None,)
    runs = []
    for seed, row, trial in itertools.product(seeds, experiment.rows, splits):
        fixed: dict[str, Any] = {**changes[row.name], "training.seed": seed}
        if trial is not None:
            fixed["data.trial"] = trial
        config = _with(given, fixed, row.name)
        images = _checked(config.data, config)
        if dataset == PEOPLE and not images.rendered:
            raise UserError(
                f"{images.folder}: holds images of {own.title}, not rendered people; give --dataset"
                f" {own.name}, or the people's --data.dir"
            )
        name = f"{row.name}_seed{seed}" + (f"_trial{trial}" if trial is not None else "")
        delta = {field: values[1] for field, values in differences(base, config).items()}
        runs.append(
            Run(
                row,
                seed,
                config,
                (dataset, *_words(delta)),
                epath.Path(workdir) / name,
                Meta(config, images.classes, images.fingerprint),
                init,
                images.rendered,
            )
        )
    for run in runs:
        _check_started(run)
    return runs


def _changes(row: Row) -> dict[str, Any]:
    """What a row sets, {"section.field": value}."""
    ablation = differences(Config(), load_config(f"ablations/{row.ablation}"))
    model = {name: values[1] for name, values in ablation.items() if name.startswith("model.")}
    return {**model, **row.changes}


def _with(config: Config, fields: Mapping[str, Any], where: str) -> Config:
    """The configuration with fields of these values, {"section.field": value}."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = value
    try:
        return dataclasses.replace(
            config,
            **{
                name: dataclasses.replace(getattr(config, name), **values)
                for name, values in sections.items()
            },
        )
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _words(fields: Mapping[str, Any]) -> list[str]:
    """Fields as train.py takes them."""
    words = []
    for name, value in fields.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def _checked(data: DataConfig, config: Config) -> ImageSource:
    """The training images, after a look at all that train.py and evaluate.py would refuse."""
    check_settings(find_dataset(data.dataset), data, config.evaluation)
    images = _training_images(data, config.training.seed)
    IdentitySampler(
        images.labels,
        images.infrared,
        identities_per_batch=config.training.identities_per_batch,
        images_per_identity=config.training.images_per_identity,
        seed=config.training.seed,
    )
    judged = _evaluation_images(dataclasses.replace(data, label_noise=0.0))
    known = Images(judged.identities, judged.cameras, judged.infrared, judged.names)
    searches(find_dataset(data.dataset), known, config.evaluation, judged.draws)
    return images


@functools.lru_cache(maxsize=4)
def _training_images(data: DataConfig, seed: int) -> ImageSource:
    return training_split(data, seed)[0]


@functools.lru_cache(maxsize=4)
def _evaluation_images(data: DataConfig) -> ImageSource:
    return evaluation_split(data)


def training_images(run: Run) -> ImageSource:
    """What a run trains on."""
    return _training_images(run.config.data, run.seed)


def _check_started(run: Run) -> None:
    """Raises UserError where the run that is there is of another configuration."""
    read_result(run)
    steps = saved_steps(run.folder)
    if steps and not run.result.exists():
        check_same_run(read_meta(step_folder(run.folder, steps[-1])), run.meta, run.folder)


def read_result(run: Run) -> Result | None:
    """What a run scored, None where it is not finished.

    Raises:
        UserError: the file cannot be read, or is of another configuration, other data or weights.
    """
    path = run.result
    if not path.exists():
        return None
    try:
        stored = read_json(path)
        meta = stored["meta"]
        saved = Meta(
            from_dict(meta["config"]), int(meta["classes"]), str(meta["data"]), meta["version"]
        )
        init, minutes, records = stored["init"], stored["minutes"], list(stored["records"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no result that this version can read ({error}); remove it, and its run is"
            " evaluated again"
        ) from None
    check_same_run(saved, run.meta, path)
    if init != run.init:
        raise UserError(
            f"{path}: was started from {init or 'random weights'}, not from"
            f" {run.init or 'random weights'}; give the same --init, or another --workdir"
        )
    return Result(records, minutes)


def execute(run: Run, *, quiet: bool = False) -> Result:
    """Trains, or goes on training, and evaluates, each in a process of its own.

    Raises:
        UserError: one of them ended early; it has said why itself.
    """
    started, fresh = time.monotonic(), not run.folder.exists()
    epochs = run.config.training.epochs
    train(run, run.folder, [*run.words, "--resume"], epochs=epochs, quiet=quiet)
    evaluate(run, run.folder, quiet=quiet)
    minutes = (time.monotonic() - started) / 60 if fresh else None
    records = read_json(run.folder / f"evaluation{kind(run.config.evaluation)}.json")
    content = {
        "meta": run.meta.to_json(),
        "init": run.init,
        "minutes": minutes,
        "records": records,
    }
    write(run.result, json.dumps(content, indent=2) + "\n")
    return Result(records, minutes)


_AGAIN = "the same command goes on, and leaves finished runs as they are"


def train(run: Run, folder: epath.Path, words: Sequence[str], *, epochs: int, quiet: bool) -> None:
    """train.py in a process of its own, which is to end after so many epochs.

    Raises:
        UserError: it failed, or was asked to stop before.
    """
    init = ["--init", run.init] if run.init else []
    _start("ddag_jax.cli.train", [*words, "--workdir", str(folder), *init], folder, quiet)
    if not _trained(folder, epochs):
        raise UserError(f"{folder}: training was asked to stop; {_AGAIN}")


def evaluate(run: Run, folder: epath.PathLike, *, quiet: bool) -> None:
    """evaluate.py in a process of its own."""
    words = [str(folder), "--data.dir", run.config.data.dir]
    _start("ddag_jax.cli.evaluate", words, folder, quiet)


def _start(module: str, words: Sequence[str], folder: epath.PathLike, quiet: bool) -> None:
    """Waits for a command; Ctrl-C reaches it by itself, SIGTERM is passed on.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the command has ended.
        UserError: it failed.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words, *(["--quiet"] if quiet else [])],
        stdout=subprocess.DEVNULL if quiet else None,
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    interrupted = False
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # it is saving a checkpoint
                interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)
    if interrupted or code == 130:
        raise KeyboardInterrupt
    if code:
        how = f"was ended by signal {-code}" if code < 0 else "failed, for the reason above"
        raise UserError(f"{folder}: {module} {how}; when that is mended, {_AGAIN}")


def _trained(folder: epath.Path, epochs: int) -> bool:
    """Whether the last epoch is in the log."""
    lines = read_bytes(folder / "log.jsonl", _LONGEST).decode().splitlines()
    ended = [line["epoch"] for line in map(parse_json, lines) if line["kind"] == "epoch"]
    return ended[-1:] == [epochs - 1]


def write(path: epath.Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
