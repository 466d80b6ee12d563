"""Write the report as a folder: one self-contained HTML page, and each figure as a file."""

import html
import json
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from etils import epath

import ddag_jax
from ddag_jax.evaluation.pairs import OperatingPoints
from ddag_jax.evaluation.protocols import FIGURES, Record
from ddag_jax.evaluation.table import describe_pairs
from ddag_jax.io.files import new_folder
from ddag_jax.report.figures import Figure
from ddag_jax.report.target import FIGURES_MARK, MARK, check_target

LIMIT = 15 * 10**6
"""Upper bound on the size of the page in bytes."""

_HEADINGS = {"rank1": "r1", "rank5": "r5", "rank10": "r10", "rank20": "r20"}


class Block(NamedTuple):
    """The rows of the table for one search."""

    label: str
    rows: Sequence[tuple[str, Record]]
    """(Name of the feature, its record); "untrained NAME" is the untrained network's."""


class Page(NamedTuple):
    """Content of the page, in its order."""

    title: str
    protocol: str
    several: bool
    """Whether the table's figures are means over several galleries, with deviations."""
    blocks: Sequence[Block]
    curves: Sequence[Figure]
    lists: Mapping[str, Any]
    """Ranked lists, identities and thumbnails, in the form that page.js reads."""
    embeddings: Sequence[Figure]
    operating_points: Mapping[str, OperatingPoints | None]
    attention: Sequence[Figure]
    training: Sequence[Figure]

    def figures(self) -> list[Figure]:
        """Return all figures, in the page's order."""
        return [*self.curves, *self.embeddings, *self.attention, *self.training]


def write_page(folder: epath.PathLike, page: Page) -> epath.Path:
    """Write index.html and figures/NAME.svg, whole or not at all; an earlier report is replaced.

    In a bucket, index.html comes last.

    Returns:
        Path of the page.

    Raises:
        UserError: as `check_target`, or the folder cannot be written.
    """
    target = check_target(folder)
    text = render(page)
    with new_folder(target, replace=True) as partial:
        (partial / "index.html").write_text(text, encoding="utf-8")
        (partial / "figures").mkdir()
        for figure in page.figures():
            path = partial / "figures" / f"{figure.name}.svg"
            path.write_text(figure.standalone(), encoding="utf-8")
    return target / "index.html"


def render(page: Page) -> str:
    """Return the page as HTML."""
    files = resources.files(__package__)

    def read(name: str) -> str:
        return files.joinpath(name).read_text(encoding="utf-8")

    names = " ".join(figure.name for figure in page.figures())
    absent = '<p class="note">The run\'s folder has no log of its training.</p>'
    text = string.Template(read("page.html")).substitute(
        mark=MARK + FIGURES_MARK.format(names),
        style=page_style(),
        script=read("page.js"),
        title=html.escape(page.title),
        protocol=html.escape(page.protocol),
        version=html.escape(ddag_jax.__version__),
        table="".join(_block(block, page.several) for block in page.blocks),
        over="; mean ± deviation over the trials" * page.several,
        curves=_figures(page.curves),
        # Escaped, so that no "<" ends the script element or starts a comment in it.
        data=json.dumps(page.lists, separators=(",", ":")).replace("<", "\\u003c"),
        embeddings=_figures(page.embeddings),
        thresholds=_thresholds(page.operating_points),
        attention=_figures(page.attention),
        training=_figures(page.training) if page.training else absent,
    )
    size = len(text.encode())
    if size >= LIMIT:
        raise AssertionError(f"the report has {size:,} bytes, more than its limit of {LIMIT:,}")
    return text


def page_style() -> str:
    """Return the style sheet of the package's pages."""
    return resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")


def _figures(figures: Sequence[Figure]) -> str:
    return "".join(
        f'<figure id="{figure.name}"><figcaption>{html.escape(figure.title)}</figcaption>'
        f"{figure.inline()}</figure>"
        for figure in figures
    )


def _block(block: Block, several: bool) -> str:
    head = "".join(f'<th scope="col">{_HEADINGS.get(name, name)}</th>' for name in FIGURES)
    first = block.rows[0][1]
    counts = f"{first['queries']:,} queries, {first['gallery']:,} gallery images"
    rows = "".join(
        f'<tr{" class=floor" * name.startswith("untrained ")}><th scope="row">{html.escape(name)}'
        f"</th>{''.join(_cell(record, figure, several) for figure in FIGURES)}</tr>"
        for name, record in block.rows
    )
    label = html.escape(block.label)
    return (
        f"<h3>{label} <small>({counts})</small></h3>"
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}">'
        f'<table aria-label="{label}"><thead><tr><th scope="col">feature</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _thresholds(found: Mapping[str, OperatingPoints | None]) -> str:
    """Return the operating points as a table with a row for each feature and point."""
    known = {feature: one for feature, one in found.items() if one is not None}
    if not known:
        return '<p class="note">All pairs are of the same person, or none is: no thresholds.</p>'
    rows = []
    for feature, one in known.items():
        for name, point in one["points"].items():
            cells = "<td>too few pairs</td><td></td><td></td>"
            if point is not None:
                far, tar = 100 * point["false_accept_rate"], 100 * point["true_accept_rate"]
                cells = f"<td>{point['threshold']:.4f}</td><td>{far:.3f}</td><td>{tar:.2f}</td>"
            rows.append(f'<tr><th scope="row">{html.escape(feature)}, {name}</th>{cells}</tr>')
    heads = ("feature, point", "threshold", "false accepts, %", "true accepts, %")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    said = html.escape(describe_pairs(next(iter(known.values()))))
    return (
        f"<p>A pair of at least this cosine similarity is taken for one person. From {said}.</p>"
        '<div class="wide" tabindex="0" role="region" aria-label="Thresholds">'
        f'<table id="thresholds" aria-label="Thresholds"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(record: Mapping[str, Any], figure: str, several: bool) -> str:
    deviation = f" <small>± {record[figure + '_std']:.2f}</small>" * several
    return f"<td>{record[figure]:.2f}{deviation}</td>"
