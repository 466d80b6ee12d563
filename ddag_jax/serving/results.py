"""What a search found, as values, as JSON and as a table of text."""

import json
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from ddag_jax.datasets.checks import count
from ddag_jax.methods.base import Modality

NOBODY = "nobody known"

RESULTS_FORMAT = 1
"""Of the JSON text. A key may be added; another meaning of one needs the next number."""


class Hit(NamedTuple):
    """A gallery image, or tracklet, that was found."""

    rank: int
    """From 1, the most similar."""
    similarity: float
    file: str
    """Of a tracklet, its first image."""
    identity: str | None
    """None where it is not known."""
    modality: Modality
    tracklet: str | None = None
    images: int = 1
    """Of the tracklet."""


class Result(NamedTuple):
    """A query, an image or a tracklet, and its hits, the most similar first."""

    file: str
    identity: str | None
    modality: Modality
    hits: Sequence[Hit]
    """Empty where nobody is known: every similarity is below the threshold."""
    tracklet: str | None = None
    images: int = 1

    def above(self, threshold: float) -> "Result":
        """Return the result without the hits below a threshold.

        >>> hits = [Hit(1, 0.8, "a.jpg", None, "visible"), Hit(2, 0.3, "b.jpg", None, "visible")]
        >>> result = Result("query.jpg", None, "infrared", hits)
        >>> [hit.file for hit in result.above(0.5).hits]
        ['a.jpg']
        """
        return self._replace(hits=[hit for hit in self.hits if hit.similarity >= threshold])

    def is_right(self, hit: Hit) -> bool | None:
        """Return whether a hit is of the query's identity; None where either is not known."""
        if self.identity is None or hit.identity is None:
            return None
        return self.identity == hit.identity

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON value.

        >>> Result("query.jpg", "7", "infrared", []).to_json()["nobody_known"]
        True
        """
        hits = [hit._asdict() for hit in self.hits]
        return {**self._asdict(), "hits": hits, "nobody_known": not hits}


def sign(right: bool | None) -> str:
    """Return the sign of a right or wrong hit; empty where it is not known which."""
    return "" if right is None else "✓" if right else "✗"


def format_tables(results: Sequence[Result]) -> str:
    """Return the hits of each query as a table of text, with columns of one width.

    >>> hits = [Hit(1, 0.8125, "a.jpg", "7", "visible"), Hit(2, 0.3, "b.jpg", None, "visible")]
    >>> found = Result("query.jpg", "7", "infrared", hits)
    >>> print(format_tables([found, Result("other.jpg", None, "infrared", [])]))
    query.jpg (infrared, identity 7)
    rank  similarity  identity   file
       1       0.812  7 (right)  a.jpg
       2       0.300  unknown    b.jpg
    <BLANKLINE>
    other.jpg (infrared): nobody known
    """
    names = [[_named(result, hit) for hit in result.hits] for result in results]
    width = max(map(_columns, ["identity", *(name for of_one in names for name in of_one)]))
    tables = []
    for result, of_one in zip(results, names, strict=True):
        whose = "" if result.identity is None else f", identity {_printable(result.identity)}"
        head = f"{_printable(result.file)} ({result.modality}{whose}{several(result)})"
        if not result.hits:
            tables.append(f"{head}: {NOBODY}")
            continue
        lines = [head, f"rank  similarity  {'identity':<{width}}  file"]
        for hit, name in zip(result.hits, of_one, strict=True):
            space = " " * (width - _columns(name))
            row = f"{hit.rank:>4}  {hit.similarity:>10.3f}  {name}{space}  {_printable(hit.file)}"
            lines.append(row + several(hit))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _named(result: Result, hit: Hit) -> str:
    if hit.identity is None:
        return "unknown"
    # Words: not every terminal has the signs.
    said = {None: "", True: " (right)", False: " (wrong)"}[result.is_right(hit)]
    return _printable(hit.identity) + said


def _columns(text: str) -> int:
    """Return the width of text on a terminal: East Asian characters take two columns."""
    return sum(
        0 if unicodedata.combining(one) else 1 + (unicodedata.east_asian_width(one) in "WF")
        for one in text
    )


def several(of: Result | Hit) -> str:
    """Return what to say of a tracklet; nothing of an image."""
    if of.tracklet is None:
        return ""
    return f", tracklet {_printable(of.tracklet)}, {count(range(of.images), 'image', 'images')}"


def _printable(text: str) -> str:
    """Return text without what would move the cursor of a terminal, or start a line."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


class SearchResults(NamedTuple):
    """What was found for all queries."""

    run: str
    """Its folder."""
    checkpoint: str
    """Name of the checkpoint's folder."""
    feature: str
    threshold: float | None
    """Hits are at least this similar; None: all are listed."""
    threshold_from: str | None
    """What the threshold is from, in words."""
    gallery: int
    """Images, or tracklets, searched."""
    results: Sequence[Result]
    """In the queries' order."""
    notes: Sequence[str]
    unreadable: Sequence[str]
    """Why images could not be read, a sentence each; they are left out."""

    def to_json(self) -> str:
        """Return all of it as JSON text."""
        results = [result.to_json() for result in self.results]
        content = {"format": RESULTS_FORMAT, **self._asdict(), "results": results}
        return json.dumps(content, indent=2) + "\n"
