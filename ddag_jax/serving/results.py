"""What a search found, as JSON and as a table of text, and the threshold below which nobody is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ddag_jax.errors import UserError
from ddag_jax.methods.base import Modality

NOBODY = "nobody known"


class Hit(NamedTuple):
    """A gallery image that was found."""

    rank: int
    """From 1, the most similar."""
    similarity: float
    file: str
    identity: str | None
    """None where it is not known."""
    modality: Modality


class Result(NamedTuple):
    """A query and its hits, the most similar first."""

    file: str
    identity: str | None
    modality: Modality
    hits: Sequence[Hit]
    """Empty where nobody is known: every similarity is below the threshold."""

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


def format_table(result: Result) -> str:
    """Return the hits of a query as a table of text.

    >>> hits = [Hit(1, 0.8125, "a.jpg", "7", "visible"), Hit(2, 0.3, "b.jpg", None, "visible")]
    >>> print(format_table(Result("query.jpg", "7", "infrared", hits)))
    query.jpg (infrared, identity 7)
    rank  similarity  identity  file
       1       0.812  7 ✓       a.jpg
       2       0.300  unknown   b.jpg
    >>> print(format_table(Result("other.jpg", None, "infrared", [])))
    other.jpg (infrared): nobody known
    """
    whose = "" if result.identity is None else f", identity {_printable(result.identity)}"
    head = f"{_printable(result.file)} ({result.modality}{whose})"
    if not result.hits:
        return f"{head}: {NOBODY}"
    names = [
        "unknown"
        if hit.identity is None
        else f"{_printable(hit.identity)} {sign(result.is_right(hit))}".rstrip()
        for hit in result.hits
    ]
    width = max(len("identity"), *map(len, names))
    lines = [head, f"rank  similarity  {'identity':<{width}}  file"]
    for hit, name in zip(result.hits, names, strict=True):
        row = f"{hit.rank:>4}  {hit.similarity:>10.3f}  {name:<{width}}  {_printable(hit.file)}"
        lines.append(row)
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Return text without what would move the cursor of a terminal, or start a line."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


class OperatingPoint(NamedTuple):
    """A threshold that an evaluation of the run determines."""

    false_accept_rate: float | None
    """The share of wrong pairs at or above it; None: equal to the share of right pairs below it."""


def parse_threshold(text: str) -> OperatingPoint | float:
    """Return the operating point, or the similarity, that `--threshold` names.

    Raises:
        UserError: it names neither.

    >>> parse_threshold("eer"), parse_threshold("far=1e-3"), parse_threshold("0.42")
    (OperatingPoint(false_accept_rate=None), OperatingPoint(false_accept_rate=0.001), 0.42)
    """
    if text == "eer":
        return OperatingPoint(None)
    number = text.removeprefix("far=")
    is_rate = number != text
    try:
        value = float(number)
    except ValueError:
        raise UserError(
            f"--threshold {text}: give eer, far=RATE such as far=1e-3, or a similarity such as 0.42"
        ) from None
    if is_rate and not 0 < value < 1:
        raise UserError(f"--threshold {text}: a false accept rate is between 0 and 1, such as 1e-3")
    if not -1 <= value <= 1:
        raise UserError(f"--threshold {text}: a similarity is from -1 to 1, such as 0.42")
    return OperatingPoint(value) if is_rate else value
