"""Write a search's results as one self-contained HTML page: each query beside its hits."""

import html
import string
from collections.abc import Callable, Sequence
from importlib import resources
from typing import NamedTuple, TypeAlias

import numpy as np
from etils import epath
from jaxtyping import UInt8

import ddag_jax
from ddag_jax.datasets.checks import count
from ddag_jax.io.files import check_new_file, new_file
from ddag_jax.methods.base import Modality
from ddag_jax.report.page import page_style
from ddag_jax.report.thumbnails import BUDGET, LARGEST, encode_jpeg
from ddag_jax.serving.results import NOBODY, Hit, Result, sign

QUERIES, HITS = 200, 50
"""Largest number of queries on a page, and of hits beside a query."""

_SCROLLED = 10
"""Number of queries above which the page begins with links to them."""

Picture: TypeAlias = Callable[[str, Modality], UInt8[np.ndarray, "h w 3"] | None]
"""Returns the pixels of a query's or hit's file; None where there is no picture of it."""


class ContactSheet(NamedTuple):
    """Content of the page."""

    title: str
    notes: Sequence[str]
    """Sentences under the title."""
    threshold: float | None
    """Similarity below which hits are left out; None: none are."""
    results: Sequence[Result]


def write_contact_sheet(path: epath.PathLike, sheet: ContactSheet, picture: Picture) -> None:
    """Write the page, whole or not at all.

    Its size is bounded for any number of results: it shows the first queries, as many as the
    thumbnails' budget allows and at most 200, with at most 50 hits each, and says what it leaves
    out.

    Args:
        path: of the page, must not exist.
        sheet: its content.
        picture: called for each image that is shown, in order.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    target = check_new_file(path)
    text = _render(sheet, picture)
    with new_file(target) as file:
        file.write(text.encode())


def _render(sheet: ContactSheet, picture: Picture) -> str:
    files = resources.files(__package__)
    rows: list[str] = []
    spent = 0
    for number, result in enumerate(sheet.results[:QUERIES], start=1):
        row, characters = _row(number, result, sheet.threshold, picture)
        spent += characters
        if rows and spent > BUDGET:
            break
        rows.append(row)
    shown, total = len(rows), len(sheet.results)
    nobody = sum(not result.hits for result in sheet.results)
    said = f"{total:,} {'query' if total == 1 else 'queries'}"
    if nobody:
        said += f", {nobody:,} with {NOBODY}"
    if shown < total:
        said += f". The first {shown:,} are shown, {total - shown:,} are left out"
    legend = "Each query and the gallery images most similar to it, with their cosine similarity."
    if sheet.threshold is not None:
        legend += f" Hits below the threshold {sheet.threshold:.3f} are left out."
    if any(result.is_right(hit) is not None for result in sheet.results for hit in result.hits):
        legend += (
            " A green frame and ✓: the same identity. A red dashed frame and ✗: another one. A grey"
            " frame: an identity is not known."
        )
    legend += " Choose a file name to see the whole path."
    notes = "".join(f"<p>{_escaped(note)}</p>" for note in sheet.notes)
    return string.Template(
        files.joinpath("contact_sheet.html").read_text(encoding="utf-8")
    ).substitute(
        title=_escaped(sheet.title),
        style=page_style() + files.joinpath("contact_sheet.css").read_text(encoding="utf-8"),
        notes=notes,
        legend=html.escape(legend),
        count=f"{said}.",
        jump=_jump(sheet.results[:shown]),
        rows="\n".join(rows),
        version=html.escape(ddag_jax.__version__),
    )


def _jump(results: Sequence[Result]) -> str:
    """Return links to the queries of a long page; nothing for a short one."""
    if len(results) <= _SCROLLED:
        return ""
    links = []
    for number, result in enumerate(results, start=1):
        first = sign(result.is_right(result.hits[0])) if result.hits else NOBODY
        name = _escaped("/".join(result.file.split("/")[-2:]))
        links.append(f'<li><a href="#query-{number}">{name}</a> {first}</li>')
    return (
        f"<details><summary>Go to one of the {len(results)} queries (✓ ✗: its first hit)</summary>"
        f'<ol id="jump">{"".join(links)}</ol></details>'
    )


def _row(number: int, result: Result, threshold: float | None, picture: Picture) -> tuple[str, int]:
    """Return a query and its hits as HTML, and the characters of their thumbnails."""
    query, spent = _shot(result, "query", "?", "query", None, picture)
    if result.hits:
        shots = []
        for hit in result.hits[:HITS]:
            right = result.is_right(hit)
            kind = {True: "right", False: "wrong", None: "unknown"}[right]
            badge = f"{hit.rank} {sign(right)}".rstrip()
            said = f"rank {hit.rank}" + f", {kind}" * (right is not None)
            shot, characters = _shot(hit, kind, badge, said, hit.similarity, picture)
            shots.append(f"<li>{shot}</li>")
            spent += characters
        if len(result.hits) > HITS:
            rest = f"{HITS} of {len(result.hits):,} hits are shown"
            shots.append(f'<li class="more">{rest}.</li>')
        found = f'<ol class="found">{"".join(shots)}</ol>'
    else:
        why = "" if threshold is None else f"<small>no similarity reaches {threshold:.3f}</small>"
        found = f'<p class="nobody">{NOBODY.capitalize()}{why}</p>'
    return f'<li class="row" id="query-{number}">{query}{found}</li>', spent


def _shot(
    of: Result | Hit,
    kind: str,
    badge: str,
    said: str,
    similarity: float | None,
    picture: Picture,
) -> tuple[str, int]:
    """Return an image with its caption as HTML, and the characters of its thumbnail."""
    pixels = picture(of.file, of.modality)
    jpeg = "" if pixels is None else encode_jpeg(pixels, *LARGEST)
    alt = html.escape(f"{said}, {of.modality}")
    if jpeg:
        image = f'<img src="data:image/jpeg;base64,{jpeg}" alt="{alt}">'
    else:
        image = f'<span class="blank" role="img" aria-label="{alt}, no picture">no picture</span>'
    lines = [] if similarity is None else [f'<span class="value">{similarity:.3f}</span>']
    if of.identity is not None:
        lines.append(f"<span>id {_escaped(of.identity)}</span>")
    if of.tracklet is not None:
        images = count(range(of.images), "image", "images")
        lines.append(f"<span>tracklet {_escaped(of.tracklet)}, {images}</span>")
    lines += [f"<span>{of.modality}</span>", _file(of.file)]
    return (
        f'<div class="shot {kind}">{image}<b aria-hidden="true">{badge}</b>{"".join(lines)}</div>',
        len(jpeg),
    )


def _file(name: str) -> str:
    """Return a file's name, with its folder where it is focused."""
    start = name.rstrip("/").rfind("/") + 1
    return (
        f'<span class="file" tabindex="0" title="{_escaped(name)}">'
        f'<span class="folder">{_escaped(name[:start])}</span>{_escaped(name[start:])}</span>'
    )


def _escaped(text: str) -> str:
    """Return text for HTML in UTF-8; bytes of a file name that are not UTF-8 become "?"."""
    return html.escape(text.encode(errors="replace").decode())
