"""`python evaluate.py RUN`, or `ddag-evaluate RUN`."""

import dataclasses
import glob
import os
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from etils import epath

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import parse
from ddag_jax.config import DataConfig, EvaluationConfig
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import is_bucket
from ddag_jax.io.config_file import load_config
from ddag_jax.io.progress import silence


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the images are; of stored features and converted checkpoints, which they are. A run is
    evaluated on the dataset, the trial and the image size that it was trained with."""

    dir: str | None = None
    """Folder of the prepared dataset. None: the checkpoint's own."""
    cache: str | None = None
    """Folder of this machine to copy a dataset in a bucket to. None: the checkpoint's own."""
    dataset: str | None = None
    """With --features: sysu_mm01 (if none is given), regdb, llcm or folder (own images). Of a
    converted checkpoint: in place of what its conversion said."""
    trial: int | None = None
    """The same: which of RegDB's ten trials."""
    image_height: int | None = None
    """Of a converted checkpoint: pixels, in place of what its conversion said."""
    image_width: int | None = None
    """The same."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Evaluate runs, or stored features, by the published protocol of their dataset.

    Prints the table; writes evaluation.json and ranked_lists.png into each run's folder (settings
    that differ from the published protocol are in the files' names: evaluation_multi.json). Of
    several runs, the ten trials of RegDB for example, also prints and writes the average. What is
    not given is as the checkpoint has it.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]")] = ()
    """Folders of runs (their best checkpoint), or a checkpoint."""
    config: str | None = None
    """Configuration file with the method or dataset of your own that a checkpoint names."""
    untrained: bool = False
    """Also evaluate the network as it was before training."""
    features: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE.npz ...")] = ()
    """Evaluate stored features instead of runs; evaluation/stored_features.py has the format."""
    rand_perm_cam: Annotated[str | None, tyro.conf.arg(metavar="FILE.mat")] = None
    """With --features and --draw rand_perm_cam: the authors' permutations."""
    save_features: Annotated[str | None, tyro.conf.arg(metavar="FILE.npz")] = None
    """Write a run's features, the published one or --feature."""
    json: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write the figures (of several: their average)."""
    quiet: bool = False
    """Print the table and errors only."""
    report: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Also write a run's report, DIR/index.html: curves, ranked lists, attention, training.
    Evaluates the untrained network, too. An earlier report in DIR is replaced."""
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationConfig] = dataclasses.field(
        default_factory=EvaluationConfig
    )
    data: Data = dataclasses.field(default_factory=Data)
    processes: tyro.conf.OmitArgPrefixes[environment.Processes] = dataclasses.field(
        default_factory=environment.Processes
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate. Return 0, or 2 after an error of the user's."""
    return run(lambda: _evaluate(arguments))


def _evaluate(arguments: Sequence[str] | None) -> None:
    options = _parse(arguments, EvaluationConfig())
    runs = [found for pattern in options.runs for found in _expand(pattern)]
    if bool(runs) == bool(options.features):
        raise UserError("give the folders of one or more runs, or --features FILE.npz, not both")
    if options.quiet:
        silence()
    if options.features:
        _evaluate_features(options)
        return
    if options.rand_perm_cam:
        raise UserError(
            "--rand-perm-cam: only with --features; a prepared dataset has its own permutations"
        )
    environment.prepare(options.processes)
    from ddag_jax.runs.evaluate import evaluate_trained, find_trained

    config = load_config(options.config) if options.config else None
    networks = []
    for one in (find_trained(name, config) for name in runs):
        settings = _parse(arguments, one.config.evaluation).evaluation
        data, stored = options.data, one.config.data
        height = stored.image_height if data.image_height is None else data.image_height
        width = stored.image_width if data.image_width is None else data.image_width
        networks.append(
            one.set(
                settings,
                data.dir,
                data.dataset,
                data.trial,
                (height, width),
                data_cache=data.cache,
            )
        )
    evaluate_trained(
        networks,
        untrained=options.untrained,
        report=options.report,
        save_features=options.save_features,
        json=options.json,
    )


def _evaluate_features(options: Options) -> None:
    if options.untrained or options.save_features or options.report or options.config:
        raise UserError(
            "--features: stored features have no network; leave out --untrained, --save-features,"
            " --report and --config"
        )
    for name in ("dir", "cache", "image_height", "image_width"):
        if getattr(options.data, name) is not None:
            option = name.replace("_", "-")
            raise UserError(f"--data.{option}: has no meaning for stored features; leave it out")
    given: dict[str, Any] = {"dataset": options.data.dataset, "trial": options.data.trial}
    try:
        data = DataConfig(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UserError(str(error)) from None
    environment.prepare()
    from ddag_jax.runs.evaluate import evaluate_features

    evaluate_features(
        *options.features,
        data=data,
        evaluation=options.evaluation,
        rand_perm_cam=options.rand_perm_cam,
        json=options.json,
    )


def _parse(arguments: Sequence[str] | None, evaluation: EvaluationConfig) -> Options:
    """Return the options; those of `evaluation` that are not given are as they are there."""
    options: Options = parse(
        Options,
        arguments,
        "evaluate.py",
        default=Options(evaluation=evaluation),
        hint="the checkpoint's own value stands for all but the fields of data and evaluation;"
        " evaluate.py --help lists the options",
    )
    return options


def _expand(pattern: str) -> list[str]:
    """Return the runs that a quoted pattern matches; the name of a file or folder is itself."""
    if not glob.has_magic(pattern) or os.path.lexists(pattern):
        return [pattern]
    if is_bucket(pattern):
        bucket, _, below = pattern.removeprefix("gs://").partition("/")
        found = sorted(os.fspath(path) for path in epath.Path(f"gs://{bucket}").glob(below))
    else:
        found = sorted(glob.glob(pattern))
    if not found:
        raise UserError(f"{pattern}: matches nothing")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
