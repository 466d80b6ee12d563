"""`python evaluate.py RUN`, or `ddag-evaluate RUN`."""

import argparse
import dataclasses
import glob
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etils import epath

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import override
from ddag_jax.config import Config, EvaluationConfig, differences
from ddag_jax.errors import UserError
from ddag_jax.io.progress import silence

if TYPE_CHECKING:
    from ddag_jax.evaluation.protocols import Record


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates; the exit code is 0, or 2 where the input is at fault."""
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="Judge runs, or stored features, by their dataset's published protocol. Prints"
        " the table; writes evaluation.json and ranked_lists.png into each run's folder (what is"
        " not the published protocol is in the files' names: evaluation_multi.json). Of several"
        " runs, RegDB's ten halves for one, prints and writes the average too.",
        epilog="Fields of the configuration's part `evaluation` follow by their own names"
        " (--direction, --mode, --shots, --draw, --trials, --feature, --flip, --rerank,"
        " --batch-size; ddag_jax/config.py explains them), and --data.dir. All else is the"
        " checkpoint's; for --features, --data.dataset and --data.trial say whose they are.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folders of runs (their best checkpoint), or a checkpoint",
    )
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="also judge the network as it was before training, for the floor",
    )
    parser.add_argument(
        "--features",
        nargs="+",
        metavar="FILE.npz",
        help="judge stored features in place of runs; evaluation/stored_features.py has the format",
    )
    parser.add_argument(
        "--rand-perm-cam",
        metavar="FILE.mat",
        help="with --features and --draw rand_perm_cam: the authors' permutations",
    )
    parser.add_argument(
        "--save-features",
        metavar="FILE.npz",
        help="write a run's features, the published one or --feature",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="where to write the figures (of several: their average)"
    )
    parser.add_argument("--quiet", action="store_true", help="print the table and errors only")
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="also write a run's report, DIR/index.html: curves, ranked lists, attention, training;"
        " judges the untrained network, too. An earlier report in DIR is replaced",
    )
    environment.add_process_options(parser)
    ours, fields = _split(sys.argv[1:] if arguments is None else arguments)
    options, unknown = parser.parse_known_args(ours)
    fields += unknown
    runs = [found for pattern in options.runs for found in _expand(pattern)]
    if options.quiet:
        silence()
    _check_options(options, runs)
    names = options.features or runs
    judged, what = (
        _judge_files(options, fields) if options.features else _judge_runs(options, runs, fields)
    )
    if not judged:  # of several processes, only the first has them
        return
    records = judged[0]
    target = epath.Path(options.json) if options.json else None
    if len(names) > 1:
        from ddag_jax.evaluation.protocols import average
        from ddag_jax.evaluation.table import format_table

        records = average(judged, names)
        prefix = os.path.commonprefix([epath.Path(name).name for name in names])  # noqa: RUF071
        print("\n" + format_table(records, f"{prefix}*"))
        average_file = f"{prefix}average_of_{len(names)}{what}.json"
        target = target or epath.Path(names[0]).parent / average_file
    if target is not None:
        _write(target, records)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words that are our own options and runs, and those that are fields of the configuration,
    in its spelling: `--shots multi --flip` is `--evaluation.shots multi --evaluation.flip True`."""
    kinds = {field.name: field.type for field in dataclasses.fields(EvaluationConfig)}
    ours: list[str] = []
    fields: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name = word.removeprefix("--").removeprefix("evaluation.").split("=")[0].replace("-", "_")
        if not word.startswith("--") or (name not in kinds and "." not in name):
            ours.append(word)
            continue
        fields.append(
            f"--evaluation.{word[2:].removeprefix('evaluation.')}" if name in kinds else word
        )
        if "=" in word:
            continue
        if kinds.get(name) is bool and (not waiting or waiting[0] not in ("True", "False")):
            fields.append("True")
        elif waiting:
            fields.append(waiting.pop(0))
    return ours, fields


def _expand(pattern: str) -> list[str]:
    """The runs that a quoted pattern means; a plain name means itself."""
    if not glob.has_magic(pattern):
        return [pattern]
    found = sorted(glob.glob(pattern))
    if not found:
        raise UserError(f"{pattern}: matches nothing")
    return found


def _check_options(options: argparse.Namespace, runs: Sequence[str]) -> None:
    if bool(runs) == bool(options.features):
        raise UserError("give the folders of one or more runs, or --features FILE.npz, not both")
    names = options.features or runs
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{min(twice)}: given twice")
    if options.features and (options.untrained or options.save_features or options.report):
        raise UserError(
            "--features: stored features have no network; leave out --untrained, --save-features"
            " and --report"
        )
    if options.rand_perm_cam and not options.features:
        raise UserError(
            "--rand-perm-cam: only with --features; a prepared dataset has its own permutations"
        )
    if options.save_features and len(runs) > 1:
        raise UserError("--save-features: writes one run's features; give one run")
    if options.report:
        from ddag_jax.report.page import check_target

        if len(runs) > 1:
            raise UserError("--report: shows one run; give one run")
        check_target(options.report)
    if options.json:
        target = epath.Path(options.json)
        if target.exists():
            raise UserError(f"--json {target}: exists already; name another file, or remove it")
        if not target.parent.is_dir():
            raise UserError(f"--json {target}: its folder does not exist; make it first")


def _judge_files(
    options: argparse.Namespace, fields: Sequence[str]
) -> "tuple[list[list[Record]], str]":
    """The records of each file, and what tells this evaluation from the published one."""
    from ddag_jax.datasets.dataset import check_settings
    from ddag_jax.datasets.find import find_dataset
    from ddag_jax.datasets.rand_perm_cam import read_permutations
    from ddag_jax.evaluation.protocols import kind, score, searches
    from ddag_jax.evaluation.stored_features import load_features
    from ddag_jax.evaluation.table import format_table

    config = override(Config(), fields, "evaluate.py")
    for name in differences(Config(), config):
        if name not in ("data.dataset", "data.trial") and not name.startswith("evaluation."):
            raise UserError(f"{_option(name)}: has no meaning for stored features; leave it out")
    data, settings = config.data, config.evaluation
    dataset = find_dataset(data.dataset)
    check_settings(dataset, data, settings)
    if settings.feature != "both" or settings.flip:
        raise UserError("--features: the file's own feature is judged; leave out --feature, --flip")
    draws = read_permutations(options.rand_perm_cam).draws() if options.rand_perm_cam else None
    one = len(options.features) == 1
    judged = []
    for file in options.features:
        features, images = load_features(file, dataset)
        records = score(
            {"stored": features},
            images,
            searches(dataset, images, settings, draws),
            dataset,
            settings,
            split=data.trial if dataset.splits and one else None,
        )
        print(format_table(records, file))
        path = epath.Path(file)
        _write(path.with_name(f"{path.stem}.evaluation{kind(settings)}.json"), records)
        judged.append(records)
    return judged, kind(settings)


def _judge_runs(
    options: argparse.Namespace, runs: Sequence[str], fields: Sequence[str]
) -> "tuple[list[list[Record]], str]":
    """The records of each run, and what tells this evaluation from the published one.

    Of several processes all embed, and only the first one prints, writes and has the records.
    """
    environment.prepare(options)
    from ddag_jax.datasets.dataset import check_settings
    from ddag_jax.datasets.find import find_dataset
    from ddag_jax.evaluation.protocols import kind
    from ddag_jax.evaluation.stored_features import check_target
    from ddag_jax.parallel import is_first_process
    from ddag_jax.runs.checkpoint import find_checkpoint, read_meta

    if options.save_features:
        check_target(options.save_features)
    configs = []
    for name in runs:  # all are looked at before the first is judged
        stored = read_meta(find_checkpoint(name)).config
        config = override(stored, fields, "evaluate.py")
        for field in differences(stored, config):
            if field != "data.dir" and not field.startswith("evaluation."):
                raise UserError(
                    f"{_option(field)}: the checkpoint's own value stands; only --data.dir and the"
                    " fields of evaluation may be given"
                )
        check_settings(find_dataset(config.data.dataset), config.data, config.evaluation)
        configs.append(config)
    _check_alike(runs, configs)
    judged = [_judge_run(options, name, config) for name, config in zip(runs, configs, strict=True)]
    return (judged if is_first_process() else []), kind(configs[0].evaluation)


def _check_alike(runs: Sequence[str], configs: Sequence[Config]) -> None:
    """Refuses runs that have no average, before the first is embedded."""
    first = configs[0]
    for name, config in zip(runs, configs, strict=True):
        for field, values in differences(first, config).items():
            if field.startswith("evaluation.") or field in (
                "data.dataset",
                "model.part_attention",
            ):
                raise UserError(
                    f"{runs[0]} and {name}: {field} is {values[0]} and {values[1]}; only runs that"
                    " are judged alike have an average: evaluate them one by one"
                )
    from ddag_jax.datasets.find import find_dataset

    if find_dataset(first.data.dataset).splits:
        splits: dict[int, str] = {}
        for name, config in zip(runs, configs, strict=True):
            other = splits.setdefault(config.data.trial, name)
            if other != name:
                raise UserError(
                    f"{other} and {name}: both are of trial {config.data.trial}; give one run of"
                    " each trial"
                )


def _judge_run(options: argparse.Namespace, name: str, config: Config) -> "list[Record]":
    import jax
    import numpy as np

    from ddag_jax.build import build_model
    from ddag_jax.data.loader import evaluation_split
    from ddag_jax.evaluation.evaluator import Evaluator, pick, reported_feature
    from ddag_jax.evaluation.protocols import kind
    from ddag_jax.evaluation.stored_features import save_features
    from ddag_jax.evaluation.table import format_table
    from ddag_jax.methods.ddag.model import initialise
    from ddag_jax.parallel import device_mesh, is_first_process, on_all_devices, replicated_shapes
    from ddag_jax.report.ranked_lists import ranked_lists
    from ddag_jax.runs.checkpoint import find_checkpoint, read_meta, restore_variables

    checkpoint = find_checkpoint(name)
    source = evaluation_split(config.data)
    mesh = device_mesh()
    model = build_model(config, read_meta(checkpoint).classes)
    evaluator = Evaluator(config, model, mesh, source)

    def fresh() -> dict:
        return initialise(model, jax.random.key(config.training.seed), *source.image_size)

    fresh = on_all_devices(fresh, mesh)
    untrained: list[Record] = []
    floor: dict[str, np.ndarray] = {}
    if options.untrained or options.report:
        floor = evaluator.embed(fresh(), progress="untrained network")
        untrained = evaluator.judge(floor)
    abstract = replicated_shapes(jax.eval_shape(fresh), mesh)
    variables = restore_variables(checkpoint, abstract)
    features = evaluator.embed(variables, progress="embedding")
    records = evaluator.judge(features)
    if not is_first_process():
        return records
    chosen = config.evaluation.feature
    reported = reported_feature(config) if chosen == "both" else chosen
    feature = pick(features, reported)
    if options.save_features:
        save_features(options.save_features, feature, evaluator.images, evaluator.searches[0])
    print(format_table(records, str(checkpoint), untrained))
    folder, what = epath.Path(name), kind(config.evaluation)
    _write(folder / f"evaluation{what}.json", records)
    if untrained:
        _write(folder / f"evaluation{what}_untrained.json", untrained)
    picture = ranked_lists(feature, evaluator.images, evaluator.searches[0], source.images)
    with (folder / f"ranked_lists{what}.png").open("wb") as file:
        picture.save(file, "png")
    if options.report:
        from ddag_jax.report.contents import Judged, gather
        from ddag_jax.report.page import write_page
        from ddag_jax.runs.logs import read_log

        training = config.training
        judged = Judged(
            title=f"{folder.name}, checkpoint {checkpoint.name}",
            images=evaluator.images,
            read_images=source.images,
            searches=evaluator.searches,
            features=features,
            judged=evaluator.judged(features),
            reported=reported,
            reported_feature=feature,
            untrained=evaluator.judged(floor),
            records=records,
            untrained_records=untrained,
            reranked=config.evaluation.rerank,
            model=model,
            variables=jax.tree.map(np.asarray, variables),
            batch=(training.identities_per_batch, training.images_per_identity),
            log=read_log(folder),
        )
        print(f"report: {write_page(options.report, gather(judged))}")
    return records


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _write(path: epath.Path, records: Sequence[object]) -> None:
    """Whole or not at all; an evaluation may be repeated, so its result is replaced."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(records, indent=2) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
