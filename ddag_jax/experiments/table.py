"""Write an experiment's figures as Markdown, CSV and LaTeX."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from ddag_jax.datasets.dataset import label
from ddag_jax.datasets.find import find_dataset
from ddag_jax.evaluation.protocols import FIGURES, Record, average
from ddag_jax.experiments.rows import Experiment
from ddag_jax.experiments.runs import Result, Run
from ddag_jax.methods.build import build_method

TITLES = {name: name.replace("rank", "r") for name in FIGURES}
"""Column titles of the figures: r1, r5, r10, r20, mAP, mINP."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One row of a table in one search; figures in per cent by name."""

    search: str
    """`all-search`, `indoor-search`, or the direction."""
    name: str
    """Name of the experiment's row."""
    title: str
    done: int
    """Seeds that are finished (RegDB: in all requested trials)."""
    seeds: int
    mean: Mapping[str, float]
    """Over the finished seeds; empty if there are none."""
    deviation: Mapping[str, float]
    """Sample deviation (n - 1) over the finished seeds; empty for fewer than two."""
    published: Mapping[str, float]
    minutes: float | None
    """Of training and evaluating a run, mean over those that were not interrupted."""


def lines(experiment: Experiment, runs: Sequence[Run], results: Mapping[str, Result]) -> list[Line]:
    """Return the table: for each search, a line for each row.

    Args:
        experiment: the rows.
        runs: all runs of the experiment.
        results: of the finished runs, by the name of their folder.
    """
    found = []
    config = runs[0].config
    dataset = find_dataset(config.data.dataset)
    for direction, mode in dataset.searches(config.evaluation):
        for row in experiment.rows:
            own = [run for run in runs if run.row.name == row.name]
            seeds = sorted({run.seed for run in own})
            scored = []
            for seed in seeds:
                group = [run for run in own if run.seed == seed]
                if all(run.folder.name in results for run in group):
                    scored.append(_record(group, results, direction, mode))
            figures = {name: [cast(Mapping[str, Any], r)[name] for r in scored] for name in FIGURES}
            timed = [results[run.folder.name].minutes for run in own if run.folder.name in results]
            minutes = [value for value in timed if value is not None]
            published = row.published.get((dataset.name, mode or direction), {})
            found.append(
                Line(
                    label(direction, mode),
                    row.name,
                    row.title,
                    len(scored),
                    len(seeds),
                    {k: float(np.mean(v)) for k, v in figures.items() if v},
                    {k: float(np.std(v, ddof=1)) for k, v in figures.items() if len(v) > 1},
                    {} if any(run.rendered for run in runs) else published,
                    float(np.mean(minutes)) if minutes else None,
                )
            )
    return found


def _record(
    group: Sequence[Run], results: Mapping[str, Result], direction: str, mode: str | None
) -> Record:
    """Return one seed's figures: of its run, or the mean over RegDB's trials."""
    config = group[0].config
    chosen = config.evaluation.feature
    feature = build_method(config.model, classes=1).features[-1] if chosen == "both" else chosen
    records = [results[run.folder.name].records for run in group]
    if len(group) > 1:
        records = [average(records, [run.folder.name for run in group])]
    return next(
        record
        for record in records[0]
        if (record["direction"], record["mode"], record["feature"]) == (direction, mode, feature)
    )


def caption(experiment: Experiment, runs: Sequence[Run]) -> list[str]:
    """Return the table's heading, then sentences that say how the figures were made."""
    config = runs[0].config
    dataset, settings = find_dataset(config.data.dataset), config.evaluation
    title = dataset.title
    where = f"{title}'s layout, rendered people" if runs[0].rendered else title
    seeds = sorted({run.seed for run in runs})
    said = [f"{experiment.title}; {where}"]
    over = "mean ± sample deviation (n - 1) over the seeds " if len(seeds) > 1 else "seed "
    said.append(f"Per cent; {over}{', '.join(map(str, seeds))}.")
    if settings.feature == "both":
        said.append("Feature: part where P is on, else global.")
    else:
        said.append(f"Feature: {settings.feature}.")
    if dataset.splits:
        trials = sorted({run.config.data.trial for run in runs})
        said.append(f"Each seed: mean of {title}'s trials {', '.join(map(str, trials))}.")
    if dataset.drawn:
        shots = f"{settings.shots}-shot, " if len(dataset.drawn) > 1 else ""
        said.append(f"Each run: {shots}mean of {settings.trials} {settings.draw} gallery draws.")
    plus = [name for name in ("flip", "rerank") if getattr(settings, name)]
    if plus:
        said.append(f"With {' and '.join(plus)}, unlike what is published.")
    return said


def cells(table: Sequence[Line]) -> dict[str, list[list[str]]]:
    """Return the table as text: by search, the column titles and the cells of each row.

    Columns of published figures are added where at least one row has them.
    """
    blocks = {}
    for search in dict.fromkeys(line.search for line in table):
        own = [line for line in table if line.search == search]
        published = [name for name in FIGURES if any(name in line.published for line in own)]
        head = ["", "seeds", *TITLES.values(), *(f"published {TITLES[n]}" for n in published)]
        body = [
            [
                line.title,
                str(line.done) if line.done == line.seeds else f"{line.done} of {line.seeds}",
                *(_cell(line, name) for name in FIGURES),
                *(
                    f"{line.published[name]:.2f}" if name in line.published else "–"
                    for name in published
                ),
                "–" if line.minutes is None else f"{line.minutes:.1f}",
            ]
            for line in own
        ]
        blocks[search] = [[*head, "minutes a run"], *body]
    return blocks


def _cell(line: Line, name: str) -> str:
    if name not in line.mean:
        return "not run" if name == FIGURES[0] else "–"
    spread = f" ± {line.deviation[name]:.2f}" if name in line.deviation else ""
    return f"{line.mean[name]:.2f}{spread}"


def markdown(said: Sequence[str], table: Sequence[Line]) -> str:
    """Return the table as a page of Markdown."""
    text = [f"# {said[0]}", "", " ".join(said[1:])]
    for search, (head, *body) in cells(table).items():
        text += ["", f"## {search}", "", _bar(head), _bar(["---"] + ["---:"] * (len(head) - 1))]
        text += [_bar(line) for line in body]
    return "\n".join(text) + "\n"


def _bar(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def latex(said: Sequence[str], table: Sequence[Line]) -> str:
    """Return LaTeX tables (package booktabs), one for each search."""
    text = [f"% {sentence}" for sentence in said]
    for search, (head, *body) in cells(table).items():
        text += [
            f"% {search}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            _row(head),
            r"\midrule",
            *(_row(line) for line in body),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    return "\n".join(text) + "\n"


def _row(values: Sequence[str]) -> str:
    special = {"%": r"\%", "_": r"\_", "&": r"\&", "±": r"$\pm$", "–": "--"}
    return " & ".join("".join(special.get(c, c) for c in value) for value in values) + r" \\"


def comma_separated(table: Sequence[Line]) -> str:
    """Return CSV at full precision; a missing figure is empty."""
    file = io.StringIO()
    head = ["search", "row", "seeds_done", "seeds"]
    for name in FIGURES:
        head += [name, f"{name}_std"]
    published = [name for name in FIGURES if any(name in line.published for line in table)]
    head += [*(f"published_{name}" for name in published), "minutes"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for line in table:
        values: list[Any] = [line.search, line.name, line.done, line.seeds]
        for name in FIGURES:
            values += [line.mean.get(name, ""), line.deviation.get(name, "")]
        values += [line.published.get(name, "") for name in published]
        writer.writerow([*values, "" if line.minutes is None else line.minutes])
    return file.getvalue()
