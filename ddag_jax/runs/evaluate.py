"""Evaluate runs, checkpoints or stored features by their dataset's protocol, and write the result.

The first process prints, and writes what it found; all processes return the records.
"""

import contextlib
import dataclasses
import json as jsonlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from ddag_jax.config import Config, DataConfig, EvaluationConfig, NamedDataset, differences
from ddag_jax.data.loader import ImageSource, evaluation_split, training_split
from ddag_jax.datasets.dataset import check_settings
from ddag_jax.datasets.find import find_dataset
from ddag_jax.datasets.rand_perm_cam import read_permutations
from ddag_jax.errors import UserError
from ddag_jax.evaluation import protocols, stored_features
from ddag_jax.evaluation.evaluator import Evaluator, pick
from ddag_jax.evaluation.pairs import OperatingPoints, compare_pairs
from ddag_jax.evaluation.protocols import Images, Record
from ddag_jax.evaluation.table import format_points, format_table
from ddag_jax.io.files import as_path, check_new_file, new_file, read_json, whole_file
from ddag_jax.methods.base import Method
from ddag_jax.methods.build import build_method
from ddag_jax.numerics import own_settings
from ddag_jax.parallel import Mesh, device_mesh, is_first_process, on_all_devices, replicated_shapes
from ddag_jax.report import page
from ddag_jax.report.contents import EvaluatedRun, page_contents
from ddag_jax.report.ranked_lists import ranked_lists
from ddag_jax.report.target import check_target
from ddag_jax.runs.checkpoint import (
    find_checkpoint,
    read_meta,
    restore_variables,
    variables_checksum,
)
from ddag_jax.runs.logs import read_log


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network: what its checkpoint says, not yet its variables."""

    name: str
    """Of the run or checkpoint, as it was given."""
    checkpoint: epath.Path
    config: Config
    classes: int
    """Training identities, the width of the classifiers."""
    converted: bool = False
    """Whether its weights were converted: what its checkpoint says of its data was said then."""

    @property
    def checksum(self) -> int:
        """Checksum of its variables: equal for equal networks. Raises UserError if damaged."""
        return variables_checksum(self.checkpoint)

    def method(self) -> Method:
        """Return its method, for one device."""
        return build_method(self.config.model, self.classes)

    def restore(self, mesh: Mesh) -> tuple[Any, Any]:
        """Return its variables on every device, and a function that returns fresh ones."""
        data = self.config.data
        size = data.image_height, data.image_width
        key = jax.random.key(self.config.training.seed)
        fresh = on_all_devices(lambda: self.method().init(key, size), mesh)
        like = replicated_shapes(jax.eval_shape(fresh), mesh)
        return restore_variables(self.checkpoint, like), fresh

    def set(
        self,
        evaluation: EvaluationConfig | None = None,
        data_dir: epath.PathLike | None = None,
        dataset: str | NamedDataset | None = None,
        trial: int | None = None,
        image_size: tuple[int, int] | None = None,
        data_cache: epath.PathLike | None = None,
    ) -> "Trained":
        """Return it with other settings of the evaluation, or other folders of its dataset.

        Raises:
            UserError: a value is not valid; dataset, trial or image size are not those of a run.
        """
        folders = {"dir": data_dir, "cache": data_cache}
        data = dataclasses.replace(
            self.config.data,
            **{name: os.fspath(path) for name, path in folders.items() if path is not None},
        )
        height, width = image_size or (None, None)
        given = {"dataset": dataset, "trial": trial, "image_height": height, "image_width": width}
        changed: dict[str, Any] = {}
        for field, value in given.items():
            stored = getattr(data, field)
            name = getattr(stored, "name", stored)
            if value is None or getattr(value, "name", value) == name:
                continue
            if not self.converted:
                raise UserError(
                    f"data.{field}: {self.name} was trained with {name}, and is evaluated with it;"
                    " leave it out. Only a converted checkpoint takes another"
                )
            changed[field] = value
        try:
            data = dataclasses.replace(data, **changed)
            config = dataclasses.replace(
                self.config, data=data, evaluation=evaluation or self.config.evaluation
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        return dataclasses.replace(self, config=config)


def find_trained(run: epath.PathLike, config: Config | None = None) -> Trained:
    """Return the network of a run (its best checkpoint, or the last one) or of a checkpoint.

    Args:
        run: folder of a run, or of a checkpoint.
        config: with a method or dataset of your own that the checkpoint names. A checkpoint says
            how it is set; code is never loaded because a checkpoint names it.

    Raises:
        UserError: there is no checkpoint, it cannot be read, or `config` is needed.
    """
    if config is not None and not isinstance(config, Config):
        raise UserError(
            f"config: is a {type(config).__name__}; give a Config, as load_config(FILE) returns"
        )
    checkpoint = find_checkpoint(as_path("run", run))
    meta = read_meta(checkpoint, config)
    for note in meta.notes:
        print(f"note: {checkpoint}: {note}", file=sys.stderr)
    return Trained(os.fspath(run), checkpoint, meta.config, meta.classes, converted=not meta.data)


def evaluate(
    *runs: epath.PathLike,
    evaluation: EvaluationConfig | None = None,
    data_dir: epath.PathLike | None = None,
    dataset: str | NamedDataset | None = None,
    trial: int | None = None,
    image_size: tuple[int, int] | None = None,
    config: Config | None = None,
    untrained: bool = False,
    report: epath.PathLike | None = None,
    save_features: epath.PathLike | None = None,
    json: epath.PathLike | None = None,
    quiet: bool = False,
) -> list[Record]:
    """Evaluate runs or checkpoints by the protocol of their dataset, on all devices.

    Of each run the table and its thresholds (`evaluation.pairs`) are printed, and
    `evaluation.json` and `ranked_lists.png` are written into its folder; settings that differ from
    the published protocol are in the files' names (`evaluation_multi.json`). Of several runs the
    average is printed and written too, beside the first one's folder.

    Args:
        runs: folders of runs (their best checkpoint, or the last one), or of checkpoints.
        evaluation: the protocol's settings; None for each checkpoint's own.
        data_dir: folder of the prepared dataset; None for the checkpoint's own.
        dataset: of a converted checkpoint, in place of what its conversion said. A run is
            evaluated on what it was trained on.
        trial: the same, of RegDB.
        image_size: the same, height and width in pixels.
        config: with a method or dataset of your own that the checkpoints name.
        untrained: also evaluate the network as it was before training.
        report: folder to write a run's report to, which evaluates the untrained network too. An
            earlier report there is replaced.
        save_features: file to write a run's features to (.npz), the published ones or those that
            `evaluation.feature` names.
        json: file to write the records to.
        quiet: do not print the tables.

    Returns:
        A record for each search and feature: of the run, or of several runs their average.

    Raises:
        UserError: a run, its dataset or a target is missing or does not fit; two runs are not
            evaluated alike. All are checked before the first image is read.
    """
    return evaluate_trained(
        [
            find_trained(run, config).set(evaluation, data_dir, dataset, trial, image_size)
            for run in runs
        ],
        untrained=untrained,
        report=report,
        save_features=save_features,
        json=json,
        quiet=quiet,
    )


@own_settings()
def evaluate_trained(
    networks: Sequence[Trained],
    *,
    untrained: bool = False,
    report: epath.PathLike | None = None,
    save_features: epath.PathLike | None = None,
    json: epath.PathLike | None = None,
    quiet: bool = False,
) -> list[Record]:
    """Evaluate networks with the settings of their configurations; see `evaluate`."""
    names = [one.name for one in networks]
    _check_target(names, json)
    if len(names) > 1 and (report is not None or save_features is not None):
        raise UserError("a report and a file of features are of one run; give one run")
    if report is not None:
        check_target(report)
    if save_features is not None:
        stored_features.check_target(save_features)
    for one in networks:
        data = one.config.data
        check_settings(find_dataset(data.dataset), data, one.config.evaluation)
    _check_alike(networks)
    what = protocols.kind(networks[0].config.evaluation)
    _check_replaced(_average_target(names, what))
    found = []
    for one in networks:
        result = _embed_and_rank(one, untrained=untrained or report is not None)
        found.append(result.records)
        if is_first_process():
            _show(result, what, save_features, quiet)
            if report is not None:
                print(f"report: {page.write_page(report, page_contents(_evaluated_run(result)))}")
    return _average(names, found, what, json, quiet, writes=is_first_process())


@own_settings()
def evaluate_features(
    *files: epath.PathLike,
    data: DataConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    rand_perm_cam: epath.PathLike | None = None,
    json: epath.PathLike | None = None,
    quiet: bool = False,
) -> list[Record]:
    """Evaluate stored features by the protocol of their dataset.

    The table is printed, and the records are written to FILE.evaluation.json beside each file; of
    several files the average too.

    Args:
        files: as evaluation/stored_features.py describes them.
        data: the dataset that they are of, and of RegDB the trial; None for SYSU-MM01.
        evaluation: the protocol's settings; None for the published ones.
        rand_perm_cam: file of the published gallery draws, for `evaluation.draw="rand_perm_cam"`.
        json: file to write the records to.
        quiet: do not print the tables.

    Returns:
        A record for each search: of the file, or of several files their average.

    Raises:
        UserError: a file, the dataset, the settings or the target are missing or do not fit.
    """
    names = [os.fspath(file) for file in files]
    _check_target(names, json)
    what = protocols.kind(evaluation or EvaluationConfig())
    targets = [
        file.with_name(f"{file.stem}.evaluation{what}.json") for file in map(epath.Path, files)
    ]
    _check_replaced([*targets, *_average_target(names, what)])
    try:
        config = Config(data=data or DataConfig(), evaluation=evaluation or EvaluationConfig())
    except ValueError as error:
        raise UserError(str(error)) from None
    data, settings = config.data, config.evaluation
    dataset = find_dataset(data.dataset)
    check_settings(dataset, data, settings)
    if settings.feature != "both" or settings.flip:
        raise UserError(
            "stored features are evaluated as they are: leave out evaluation.feature (--feature)"
            " and evaluation.flip (--flip)"
        )
    draws = None if rand_perm_cam is None else read_permutations(rand_perm_cam).draws()
    found = []
    for file, target in zip(map(epath.Path, files), targets, strict=True):
        features, images = stored_features.load_features(file, dataset)
        records = protocols.score(
            {"stored": features},
            images,
            protocols.searches(dataset, images, settings, draws),
            dataset,
            settings,
            split=data.trial if dataset.splits and len(files) == 1 else None,
        )
        points = {"stored": _points(features, images, "test", None, flip=False)}
        records = _with_points(records, points)
        with _noted(target):
            _write(target, records)
        if not quiet:
            print(format_table(records, os.fspath(file)))
            print("\n" + format_points(points))
        found.append(records)
    return _average(names, found, what, json, quiet, writes=True)


@dataclasses.dataclass(frozen=True)
class _Result:
    """Of one network."""

    network: Trained
    method: Method
    variables: Any
    evaluator: Evaluator
    source: ImageSource
    features: dict[str, np.ndarray]
    records: list[Record]
    points: dict[str, OperatingPoints | None]
    """Of the features in the table."""
    untrained: dict[str, np.ndarray]
    """Features of the untrained network; empty if it is not evaluated."""
    untrained_records: list[Record]

    @property
    def reported(self) -> str:
        """Name of the feature that is shown and stored."""
        chosen = self.network.config.evaluation.feature
        return self.method.features[-1] if chosen == "both" else chosen

    @property
    def reported_feature(self) -> np.ndarray:
        """float32 [images, d]"""
        return pick(self.features, self.reported)


def _embed_and_rank(network: Trained, *, untrained: bool) -> _Result:
    data = network.config.data
    source = evaluation_split(data)
    training, held_out = training_split(data, network.config.training.seed)
    mesh, method = device_mesh(), network.method()
    _compare_classes(network, training)
    evaluator = Evaluator(network.config, method, mesh, source)
    variables, fresh = network.restore(mesh)
    floor: dict[str, np.ndarray] = {}
    if untrained:
        floor = evaluator.embed(fresh(), progress="untrained network")
    features = evaluator.embed(variables, progress="embedding")
    points = _operating_points(network, evaluator, variables, features, held_out)
    return _Result(
        network,
        method,
        variables,
        evaluator,
        source,
        features,
        _with_points(evaluator.score(features), points),
        points,
        floor,
        evaluator.score(floor) if floor else [],
    )


def _compare_classes(network: Trained, training: ImageSource) -> None:
    """Note that a network was not trained on the identities of its dataset."""
    if network.classes == training.classes or not is_first_process():
        return
    title = find_dataset(network.config.data.dataset).title
    print(
        f"note: {network.name}: has {network.classes} classes, and {title} in {training.folder}"
        f" {training.classes} training identities: it was trained on another dataset, or on others"
        " of its people"
        + ("; if so, name its own with --data.dataset" if network.converted else ""),
        file=sys.stderr,
    )


def _operating_points(
    network: Trained,
    evaluator: Evaluator,
    variables: Any,
    features: dict[str, np.ndarray],
    held_out: ImageSource | None,
) -> dict[str, OperatingPoints | None]:
    """Return the thresholds of the features in the table, by identities that are held out of
    training, or by the test images where there are none."""
    checksum, flip = network.checksum, network.config.evaluation.flip
    points: dict[str, OperatingPoints | None] = {}
    if held_out is not None:
        images = Images(held_out.identities, held_out.cameras, held_out.infrared, held_out.names)
        found = evaluator.embed(variables, progress="held-out identities", source=held_out)
        for name, feature in evaluator.selected(found).items():
            points[name] = _points(feature, images, "held-out", checksum, flip=flip)
    for name, feature in evaluator.selected(features).items():
        if points.get(name) is None:
            points[name] = _points(feature, evaluator.images, "test", checksum, flip=flip)
    return points


def _points(
    feature: np.ndarray,
    images: Images,
    which: Literal["held-out", "test"],
    checksum: int | None,
    *,
    flip: bool,
) -> OperatingPoints | None:
    pairs = compare_pairs(feature, images.identities, images.infrared)
    if pairs is None:
        return None
    return OperatingPoints(
        images=which,
        checksum=checksum,
        flip=flip,
        same=int(pairs.same.sum()),
        different=int(pairs.different.sum()),
        points=pairs.points,
    )


def _with_points(records: list[Record], points: dict[str, OperatingPoints | None]) -> list[Record]:
    return [{**record, "operating_points": points[record["feature"]]} for record in records]


def _show(result: _Result, what: str, save_features: epath.PathLike | None, quiet: bool) -> None:
    images, search = result.evaluator.images, result.evaluator.searches[0]
    folder = epath.Path(result.network.name)
    with _noted(folder / f"evaluation{what}.json") as target:
        _write(target, result.records)
    if result.untrained_records:
        with _noted(folder / f"evaluation{what}_untrained.json") as target:
            _write(target, result.untrained_records)
    picture = ranked_lists(result.reported_feature, images, search, result.source.images)
    with _noted(folder / f"ranked_lists{what}.png") as target, whole_file(target) as file:
        picture.save(file, "png")
    if not quiet:
        title = os.fspath(result.network.checkpoint)
        print(format_table(result.records, title, result.untrained_records))
        print("\n" + format_points(result.points))
    if save_features is not None:
        stored_features.save_features(save_features, result.reported_feature, images, search)


@contextlib.contextmanager
def _noted(target: epath.Path) -> Iterator[epath.Path]:
    """Yield a file that is written by default; print a note if it cannot be."""
    try:
        yield target
    except OSError as error:
        print(
            f"note: {target}: cannot be written ({error.strerror or error}); --json and --report"
            " write elsewhere",
            file=sys.stderr,
        )


def _evaluated_run(result: _Result) -> EvaluatedRun:
    """Return the input of the report."""
    network, evaluator = result.network, result.evaluator
    training = network.config.training
    return EvaluatedRun(
        title=f"{epath.Path(network.name).name}, checkpoint {network.checkpoint.name}",
        images=evaluator.images,
        read_images=result.source.images,
        searches=evaluator.searches,
        features=result.features,
        evaluated=evaluator.selected(result.features),
        reported=result.reported,
        reported_feature=result.reported_feature,
        untrained=evaluator.selected(result.untrained),
        records=result.records,
        operating_points=result.points,
        untrained_records=result.untrained_records,
        reranked=network.config.evaluation.rerank,
        method=result.method,
        variables=jax.tree.map(np.asarray, result.variables),
        batch=(training.identities_per_batch, training.images_per_identity),
        log=read_log(epath.Path(network.name)),
    )


def _check_target(names: Sequence[str], json: epath.PathLike | None) -> None:
    if not names:
        raise UserError("nothing to evaluate; give a run, a checkpoint or a file of features")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{min(twice)}: given twice")
    if json is not None:
        check_new_file(json)


def _check_alike(networks: Sequence[Trained]) -> None:
    """Raise UserError if the networks can have no average, before the first is evaluated."""
    first = networks[0]
    for one in networks:
        for field, values in differences(first.config, one.config).items():
            if field.startswith("evaluation.") or field in (
                "data.dataset",
                "model",
                "model.part_attention",
            ):
                raise UserError(
                    f"{first.name} and {one.name}: {field} is {values[0]} and {values[1]}; only"
                    " runs that are evaluated alike have an average: evaluate them one by one"
                )
    dataset = find_dataset(first.config.data.dataset)
    if dataset.splits:
        trials: dict[int, str] = {}
        for one in networks:
            trial = one.config.data.trial
            other = trials.setdefault(trial, one.name)
            if other != one.name:
                raise UserError(
                    f"{other} and {one.name}: both are of trial {trial}; the average of"
                    f" {dataset.title} is over different ones"
                )


def _average(
    names: Sequence[str],
    found: Sequence[list[Record]],
    what: str,
    json: epath.PathLike | None,
    quiet: bool,
    *,
    writes: bool,
) -> list[Record]:
    """Return one network's records or the average; print and write the latter."""
    records = found[0]
    if len(names) > 1:
        records = protocols.average(found, names)
    if not writes:
        return records
    fault = None
    if json is not None:
        try:
            with new_file(json) as file:
                file.write(_as_json(records))
        except UserError as error:  # after the table, which is not lost
            fault = error
    elif len(names) > 1:
        with _noted(_average_target(names, what)[0]) as target:
            _write(target, records)
    if len(names) > 1 and not quiet:
        print("\n" + format_table(records, f"{_common(names)}*"))
    if fault is not None:
        raise fault
    return records


def _common(names: Sequence[str]) -> str:
    """Return what the names of several runs begin with."""
    return os.path.commonprefix([epath.Path(name).name for name in names])  # noqa: RUF071


def _average_target(names: Sequence[str], what: str) -> list[epath.Path]:
    """Return the file for the average of several runs; nothing for one."""
    if len(names) < 2:
        return []
    name = f"{_common(names)}average_of_{len(names)}{what}.json"
    return [epath.Path(names[0]).parent / name]


def _check_replaced(targets: Sequence[epath.Path]) -> None:
    """Raise UserError if a file that would be replaced is not an earlier evaluation's."""
    for target in targets:
        if not target.exists():
            continue
        try:
            records = read_json(target, 2**26)
            ours = isinstance(records, list) and all("rank1" in record for record in records)
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise UserError(
                f"{target}: is where the figures are written, and is not an earlier evaluation;"
                " move it"
            )


def _write(path: epath.Path, records: Sequence[Record]) -> None:
    """Write an evaluation's result; one of an earlier evaluation is replaced."""
    with whole_file(path) as file:
        file.write(_as_json(records))


def _as_json(records: Sequence[Record]) -> bytes:
    return (jsonlib.dumps(records, indent=2) + "\n").encode()
