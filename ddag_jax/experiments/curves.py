"""An experiment's curves as a picture: rank-1 and mAP over what was varied."""

import textwrap
from collections.abc import Sequence

from etils import epath
from matplotlib.figure import Figure

from ddag_jax.experiments.rows import Experiment
from ddag_jax.experiments.table import Line
from ddag_jax.io.files import whole_file

_STYLES = {"rank1": ("-", "rank-1"), "mAP": ("--", "mAP")}
_COLOURS = ("#0b5394", "#b45f06")
_MARKS = ("o", "s")


def draw(
    experiment: Experiment, table: Sequence[Line], said: Sequence[str], path: epath.Path
) -> None:
    """Writes PATH.png and PATH.svg: a row a search, a panel for each thing varied.

    Rows that are not finished leave a gap. Bars are the deviations over the seeds.
    """
    searches = list(dict.fromkeys(line.search for line in table))
    panels = list(dict.fromkeys(curve.panel for curve in experiment.curves))
    figure = Figure(figsize=(5.5 * len(panels), 3.6 * len(searches)), layout="constrained")
    grid = figure.subplots(len(searches), len(panels), squeeze=False)
    for search, axes in zip(searches, grid, strict=True):
        rows = {line.name: line for line in table if line.search == search}
        for panel, axis in zip(panels, axes, strict=True):
            own = [curve for curve in experiment.curves if curve.panel == panel]
            for curve, colour, mark in zip(own, _COLOURS, _MARKS, strict=False):
                for figure_name, (style, name) in _STYLES.items():
                    points = [
                        (place, rows[row].mean[figure_name], rows[row].deviation.get(figure_name))
                        for place, row in curve.points.items()
                        if rows[row].mean
                    ]
                    if not points:
                        continue
                    x, y, spread = zip(*points, strict=True)
                    axis.errorbar(
                        x,
                        y,
                        [value or 0 for value in spread],
                        label=f"{curve.label}, {name}",
                        color=colour,
                        marker=mark,
                        linestyle=style,
                        capsize=3,
                    )
            axis.set(xlabel=panel, ylabel="per cent", title=search)
            axis.grid(alpha=0.3)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize="small")
    # Some 60 letters of this size go over a panel; the layout makes room for lines, not for width.
    figure.suptitle(textwrap.fill(said[0], 60 * len(panels)), fontsize="medium")
    for kind in ("png", "svg"):
        target = path.with_name(f"{path.name}.{kind}")
        with whole_file(target) as file:
            figure.savefig(file, format=kind, dpi=150)
