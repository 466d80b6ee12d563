"""The runs behind the rows: what is planned, what is finished, and a process for each.

A run `WORKDIR/NAME_seed0` (RegDB: `NAME_seed0_trial1`) is a folder as train.py writes it. After its
evaluation `WORKDIR/NAME_seed0.json` is written beside it, which marks it as finished:

``meta``     as in its checkpoints: configuration, classes, which data, version
``init``     the checkpoint that it was started from, or null
``minutes``  training and evaluation together; null where it was interrupted
``records``  list of `protocols.Record`
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from etils import epath

from ddag_jax.config import Config, DataConfig, differences
from ddag_jax.data.loader import ImageSource, evaluation_split, training_split
from ddag_jax.data.sampler import IdentitySampler
from ddag_jax.datasets.dataset import check_settings
from ddag_jax.datasets.find import DATASETS as PUBLISHED
from ddag_jax.datasets.find import find_dataset
from ddag_jax.errors import UserError
from ddag_jax.evaluation.protocols import Images, Record, searches
from ddag_jax.experiments.rows import Experiment, Row
from ddag_jax.io.buckets import BucketError
from ddag_jax.io.config_file import load_config
from ddag_jax.io.files import parse_json, read_bytes, read_json, write_text
from ddag_jax.io.progress import silence
from ddag_jax.runs.checkpoint import (
    Meta,
    check_same_run,
    find_checkpoint,
    meta_from_json,
    read_meta,
    saved_steps,
    step_folder,
)
from ddag_jax.runs.evaluate import evaluate
from ddag_jax.runs.train import train

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
    folder: epath.Path
    meta: Meta
    """What its checkpoints say about themselves."""
    init: str | None
    rendered: bool
    """Whether the images are rendered."""

    @property
    def result(self) -> epath.Path:
        """Return the file that marks this run as finished."""
        return self.folder.with_name(f"{self.folder.name}.json")


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a finished run."""

    records: list[Record]
    minutes: float | None


def plan(
    experiment: Experiment,
    dataset: str,
    config: Config,
    workdir: epath.PathLike,
    *,
    seeds: Sequence[int],
    trials: Sequence[int] = (),
    init: str | None = None,
) -> list[Run]:
    """Return every run of an experiment, by seed, then row, then trial, after checking all.

    Args:
        experiment: the rows.
        dataset: of `DATASETS`.
        config: the configuration of that name, with the fields that all rows share.
        workdir: for the runs' folders.
        seeds: of training.
        trials: RegDB's; none for all ten.
        init: a checkpoint whose backbone to start from.

    Raises:
        UserError: a field is set that the rows or seeds set; data or weights are missing, do not
            allow a row's training or protocol, or are drawings or not, against `dataset`.
    """
    if dataset not in DATASETS:
        raise UserError(f"--dataset {dataset}: must be one of {', '.join(DATASETS)}")
    given = config
    changes = {row.name: _changes(row) for row in experiment.rows}
    owned = {
        "training.seed": "--seeds sets it",
        "data.dataset": "--dataset sets it",
        "data.trial": "--trials sets it",
        "model.part_attention": "the rows differ in it",
        "model.graph_attention": "the rows differ in it",
        **{field: "the rows differ in it" for row in changes.values() for field in row},
    }
    for field in differences(load_config(dataset), given):
        if field in owned:
            raise UserError(f"--{field.replace('_', '-')}: {owned[field]}; leave it out")
    own = find_dataset(given.data.dataset)
    if trials and not own.splits:
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
        runs.append(
            Run(
                row,
                seed,
                config,
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
    """Return the fields that a row sets, {"section.field": value}."""
    ablation = differences(Config(), load_config(f"ablations/{row.ablation}"))
    model = {name: values[1] for name, values in ablation.items() if name.startswith("model.")}
    return {**model, **row.changes}


def _with(config: Config, fields: Mapping[str, Any], where: str) -> Config:
    """Return the configuration with these fields, {"section.field": value}."""
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


def _checked(data: DataConfig, config: Config) -> ImageSource:
    """Return the training images; raise what training and evaluation would raise about the data."""
    check_settings(find_dataset(data.dataset), data, config.evaluation)
    images = _training_images(data, config.training.seed)
    IdentitySampler(
        images.labels,
        images.infrared,
        identities_per_batch=config.training.identities_per_batch,
        images_per_identity=config.training.images_per_identity,
        seed=config.training.seed,
    )
    evaluated = _evaluation_images(dataclasses.replace(data, label_noise=0.0))
    known = Images(evaluated.identities, evaluated.cameras, evaluated.infrared, evaluated.names)
    searches(find_dataset(data.dataset), known, config.evaluation, evaluated.draws)
    return images


@functools.lru_cache(maxsize=4)
def _training_images(data: DataConfig, seed: int) -> ImageSource:
    return training_split(data, seed)[0]


@functools.lru_cache(maxsize=4)
def _evaluation_images(data: DataConfig) -> ImageSource:
    return evaluation_split(data)


def training_images(run: Run) -> ImageSource:
    """Return the training images of a run."""
    return _training_images(run.config.data, run.seed)


def _check_started(run: Run) -> None:
    """Raise UserError if the folder holds a run of another configuration."""
    read_result(run)
    steps = saved_steps(run.folder)
    if steps and not run.result.exists():
        check_same_run(read_meta(step_folder(run.folder, steps[-1])), run.meta, run.folder)


def read_result(run: Run) -> Result | None:
    """Return the result of a run, None if it is not finished.

    Raises:
        UserError: the file cannot be read, or is of another configuration, other data or weights.
    """
    path = run.result
    if not path.exists():
        return None
    try:
        stored = read_json(path)
        meta = stored["meta"]
        saved = meta_from_json(path, meta)
        init, minutes, records = stored["init"], stored["minutes"], list(stored["records"])
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a result that this version can read ({error}); remove it, and its run"
            " is evaluated again"
        ) from None
    check_same_run(saved, run.meta, path)
    if init != run.init:
        raise UserError(
            f"{path}: was started from {init or 'random weights'}, not from"
            f" {run.init or 'random weights'}; give the same --init, or another --workdir"
        )
    return Result(records, minutes)


def execute(run: Run, prepare: Callable[[], None], *, quiet: bool = False) -> Result:
    """Train, or resume training, and evaluate; write the result.

    Args:
        run: not finished yet.
        prepare: called first in the process that computes.
        quiet: print errors only.

    Raises:
        UserError: those of training and evaluation, or the process ended early.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    started, fresh = time.monotonic(), not run.folder.exists()
    records, _ = in_own_process(prepare, run.folder, run.config, run.init, quiet)
    minutes = (time.monotonic() - started) / 60 if fresh else None
    content = {
        "meta": run.meta.to_json(),
        "init": run.init,
        "minutes": minutes,
        "records": records,
    }
    write_text(run.result, json.dumps(content, indent=2) + "\n")
    return Result(records, minutes)


_AGAIN = "the same command continues, and leaves finished runs as they are"


def in_own_process(
    prepare: Callable[[], None], folder: epath.Path, config: Config, init: str | None, quiet: bool
) -> tuple[list[Record], float]:
    """Train and evaluate one run in a process of its own.

    A process gives all its memory back, that of the devices too, before the next run starts; and
    Ctrl-C and SIGTERM end the run with a checkpoint while this process waits for it.

    Args:
        prepare: called there first.
        folder: of the run.
        config: of the run.
        init: a checkpoint whose backbone to start from, or None.
        quiet: print errors only.

    Returns:
        The evaluation's records, and the seconds that it took.

    Raises:
        UserError: those of training and evaluation, or the process ended early.
        KeyboardInterrupt: after Ctrl-C, once the process has ended.
    """
    context = multiprocessing.get_context("spawn")  # jax's threads do not survive a fork
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(
        target=_train_and_evaluate, args=(sending, prepare, folder, config, init, quiet)
    )
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    found: tuple[list[Record], float] | UserError | None = None
    interrupted = waiting = True
    try:
        process.start()
        sending.close()  # this side's, so that the other's end is noticed
        interrupted = False
        while waiting:
            try:
                with contextlib.suppress(EOFError):
                    found = receiving.recv()
                process.join()
                waiting = False
            except KeyboardInterrupt:  # the process has it too, and is saving a checkpoint
                interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)
    code = process.exitcode or 0
    if interrupted or code == 130:
        raise KeyboardInterrupt
    if isinstance(found, UserError):
        raise UserError(f"{folder.name}: {found}; when that is fixed, {_AGAIN}")
    if found is None:
        how = f"was ended by signal {-code}" if code < 0 else "failed, for the reason above"
        raise UserError(f"{folder}: its process {how}; when that is fixed, {_AGAIN}")
    return found


def _train_and_evaluate(
    sending: Connection,
    prepare: Callable[[], None],
    folder: epath.Path,
    config: Config,
    init: str | None,
    quiet: bool,
) -> None:
    try:
        prepare()
        if quiet:
            silence()
        if train(config, folder, resume=True, init=init):
            sys.exit(130)
        if not _trained(folder, config.training.epochs):
            raise UserError("training was asked to stop")
        started = time.monotonic()
        records = evaluate(folder, data_dir=config.data.dir, quiet=quiet)
        sending.send((records, time.monotonic() - started))
    except (UserError, BucketError) as error:
        sending.send(UserError(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)


def _trained(folder: epath.Path, epochs: int) -> bool:
    """Return whether the last epoch is in the log."""
    lines = read_bytes(folder / "log.jsonl", _LONGEST).decode().splitlines()
    ended = [line["epoch"] for line in map(parse_json, lines) if line["kind"] == "epoch"]
    return ended[-1:] == [epochs - 1]
