"""`python evaluate.py RUN`, or `ddag-evaluate RUN`."""

import argparse
import json
from collections.abc import Sequence

from etils import epath

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import override
from ddag_jax.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates; the exit code is 0, or 2 where the input is at fault."""
    return run(lambda: _evaluate(arguments))


def _evaluate(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="Judge a run by SYSU-MM01's protocol: all-search and indoor-search. Writes"
        " evaluation.json (evaluation_multi.json for multi-shot) and ranked_lists.png into its"
        " folder.",
        epilog="The configuration is the checkpoint's; --data.dir and the fields of evaluation"
        " (--evaluation.shots multi) may be given anew.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="a run's folder (its best checkpoint) or a checkpoint")
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="also judge the network as it was before training, for the floor",
    )
    options, fields = parser.parse_known_args(arguments)

    environment.prepare()
    import jax

    from ddag_jax.build import build_model
    from ddag_jax.checkpoint import find_checkpoint, read_meta, restore_variables
    from ddag_jax.config import differences
    from ddag_jax.data.loader import evaluation_split
    from ddag_jax.evaluation.evaluator import Evaluator, reported_feature
    from ddag_jax.evaluation.protocols import Record, format_table
    from ddag_jax.models.ddag import initialise
    from ddag_jax.parallel import device_mesh, replicate, replicated_shapes
    from ddag_jax.report.ranked_lists import ranked_lists

    checkpoint = find_checkpoint(options.run)
    meta = read_meta(checkpoint)
    config = override(meta.config, fields, parser.prog)
    for name in differences(meta.config, config):
        if name != "data.dir" and not name.startswith("evaluation."):
            raise InputError(
                f"--{name.replace('_', '-')}: the checkpoint's own value stands; only --data.dir"
                " and --evaluation... may be given"
            )
    size = (config.data.image_height, config.data.image_width)
    source = evaluation_split(config.data)
    mesh = device_mesh()
    model = build_model(config, meta.classes)
    evaluator = Evaluator(config, model, mesh, source)

    def fresh() -> dict:
        return initialise(model, jax.random.key(config.training.seed), *size)

    untrained: list[Record] = []
    if options.untrained:
        start = replicate(fresh(), mesh)
        untrained = evaluator.judge(evaluator.embed(start, progress="untrained network"))
    abstract = replicated_shapes(jax.eval_shape(fresh), mesh)
    features = evaluator.embed(restore_variables(checkpoint, abstract), progress="embedding")
    records = evaluator.judge(features)
    print(format_table(records, str(checkpoint), untrained))
    folder = epath.Path(options.run)
    kind = "" if config.evaluation.shots == "single" else f"_{config.evaluation.shots}"
    _write(folder / f"evaluation{kind}.json", records)
    if untrained:
        _write(folder / f"evaluation{kind}_untrained.json", untrained)
    picture = ranked_lists(
        features[reported_feature(config)],
        source.identities,
        source.cameras,
        source.names,
        source.images,
    )
    with (folder / "ranked_lists.png").open("wb") as file:
        picture.save(file, "png")


def _write(path: epath.Path, records: Sequence[object]) -> None:
    """Whole or not at all; an evaluation may be repeated, so its result is replaced."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(records, indent=2) + "\n")
    temporary.replace(path)
