"""`python -m ddag_jax.experiments table1 --dataset people --workdir runs/table1 --seeds 3`."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from etils import epath

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import parse_with_config
from ddag_jax.errors import UserError
from ddag_jax.experiments.rows import EXPERIMENTS
from ddag_jax.io.config_file import load_config
from ddag_jax.io.files import write_text


@dataclasses.dataclass(frozen=True)
class Options:
    """Run the rows of one of the paper's tables or figures, one after another.

    After every run the table is written: WORKDIR/EXPERIMENT.md, .csv and .tex, for curves .png and
    .svg too. The same command continues a stopped experiment; finished runs are never run again.
    Any field of the configuration follows as --section.field value and holds for all rows, for
    example --training.epochs 5. docs/experiments.md says more.
    """

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")]
    """table1, table2, table3, table5, figure5 or noise."""
    dataset: str
    """sysu_mm01, regdb, llcm or people."""
    workdir: str
    """Folder of the runs and of the table."""
    seeds: tuple[int, ...] = (1,)
    """One number: that many seeds, from 0 on. Several: these."""
    trials: tuple[int, ...] = ()
    """RegDB: which of its ten trials. None: all, as published."""
    init: str | None = None
    """Checkpoint to take the backbone from (see convert_weights.py)."""
    dry_run: bool = False
    """Run nothing; list the runs, and how long they would take, measured on a few steps."""
    quiet: bool = False
    """Print the table and errors only."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment. Return 0, 2 after an error of the user's, 130 after Ctrl-C."""
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    options, config = parse_with_config(
        Options,
        lambda known: load_config(known.dataset),
        arguments,
        "python -m ddag_jax.experiments",
    )
    if options.experiment not in EXPERIMENTS:
        raise UserError(f"{options.experiment}: must be one of {', '.join(EXPERIMENTS)}")
    environment.prepare()
    from ddag_jax.experiments.estimate import estimate
    from ddag_jax.experiments.runs import execute, plan, read_result

    runs = plan(
        EXPERIMENTS[options.experiment],
        options.dataset,
        config,
        options.workdir,
        seeds=_seeds(options.seeds),
        trials=options.trials,
        init=options.init,
    )
    if options.dry_run:
        print(estimate(runs, environment.prepare))
        return
    folder = epath.Path(options.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for one in runs:
        found = read_result(one)
        if found is not None:
            results[one.folder.name] = found
    page = _write(folder, options.experiment, runs, results)
    for number, one in enumerate(runs, start=1):
        if one.folder.name in results:
            continue
        if not options.quiet:
            print(f"== {number}/{len(runs)}: {one.folder.name}", flush=True)
        results[one.folder.name] = execute(one, environment.prepare, quiet=options.quiet)
        page = _write(folder, options.experiment, runs, results)
    print(page)


def _seeds(given: Sequence[int]) -> list[int]:
    if len(given) == 1 and given[0] >= 1:
        return list(range(given[0]))
    if len(given) == 1 or len(set(given)) != len(given) or min(given) < 0:
        raise UserError(
            f"--seeds {' '.join(map(str, given))}: give how many, or several different ones of 0"
            " or more"
        )
    return list(given)


def _write(folder: epath.Path, name: str, runs: list, results: dict) -> str:
    """Write the table of the results so far in all its formats. Return the Markdown page."""
    from ddag_jax.experiments.curves import draw
    from ddag_jax.experiments.table import caption, comma_separated, latex, lines, markdown

    experiment = EXPERIMENTS[name]
    table, said = lines(experiment, runs, results), caption(experiment, runs)
    page = markdown(said, table)
    write_text(folder / f"{name}.md", page)
    write_text(folder / f"{name}.csv", comma_separated(table))
    write_text(folder / f"{name}.tex", latex(said, table))
    if experiment.curves and results:
        draw(experiment, table, said, folder / name)
    return page


if __name__ == "__main__":
    sys.exit(main())
