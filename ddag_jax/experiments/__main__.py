"""`python -m ddag_jax.experiments table1 --dataset people --workdir runs/table1 --seeds 3`."""

import argparse
import sys
from collections.abc import Sequence

from etils import epath

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.errors import UserError
from ddag_jax.io.files import write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs an experiment; the exit code is 0, 2 where the input is at fault, 130 after Ctrl-C."""
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    environment.prepare()
    from ddag_jax.experiments.estimate import estimate
    from ddag_jax.experiments.rows import EXPERIMENTS
    from ddag_jax.experiments.runs import DATASETS, execute, plan, read_result

    parser = argparse.ArgumentParser(
        prog="python -m ddag_jax.experiments",
        description="Run the rows of one of the paper's tables or figures, one after another, and"
        " write the table: WORKDIR/EXPERIMENT.md, .csv and .tex, for curves .png and .svg too,"
        " anew after every run. Stopped, the same command goes on; finished runs are never run"
        " again.",
        epilog="Any field of the configuration follows as --section.field value and holds for all"
        " rows, for example --training.epochs 5. docs/experiments.md says more.",
        allow_abbrev=False,
    )
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--workdir", required=True, help="folder of the runs and of the table")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[1],
        metavar="N",
        help="one number: that many seeds, from 0 on; several: these (default: 1, seed 0 alone)",
    )
    parser.add_argument(
        "--trials",
        nargs="+",
        type=int,
        metavar="T",
        help="RegDB: which of its ten halves (default: all, as published)",
    )
    parser.add_argument(
        "--init", metavar="CHECKPOINT", help="start from its backbone (see convert_weights.py)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run nothing; list the runs, and how long they would take, measured on a few steps",
    )
    parser.add_argument("--quiet", action="store_true", help="print the table and errors only")
    options, fields = parser.parse_known_args(arguments)

    experiment = EXPERIMENTS[options.experiment]
    runs = plan(
        experiment,
        options.dataset,
        options.workdir,
        seeds=_seeds(options.seeds),
        trials=options.trials,
        fields=fields,
        init=options.init,
    )
    if options.dry_run:
        print(estimate(runs))
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
        results[one.folder.name] = execute(one, quiet=options.quiet)
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
    """Writes everything that shows the results so far; returns the Markdown page."""
    from ddag_jax.experiments.curves import draw
    from ddag_jax.experiments.rows import EXPERIMENTS
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
