"""A table with a line an image: .csv (commas), .tsv (tabs) or .parquet."""

import collections
import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from ddag_jax.datasets.checks import count, examples, quoted, read_list
from ddag_jax.datasets.images import SUFFIX_LIST, SUFFIXES
from ddag_jax.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

MODALITIES = ("visible", "infrared")
_SPLITS = ("train", "val", "test")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST = 2**30
"""Longest accepted table, bytes."""


class Row(NamedTuple):
    """An image as a line of a table, or a folder, describes it. Empty text: not said."""

    where: str
    """For messages: `line 7`, or the path."""
    path: str
    """Absolute, or relative to the table, with / between folders."""
    identity: str = ""
    modality: str = ""
    camera: str = ""
    split: str = ""
    tracklet: str = ""


def read_table(
    path: epath.Path,
    required: Sequence[str],
    optional: Sequence[str],
    faults: list[str],
    notes: list[str],
) -> list[Row]:
    """Return the lines of a table.

    Args:
      path: of the table.
      required: columns that it must have, in a header.
      optional: columns that it may have; others are ignored, with a note.
      faults: to add lines to that are not as wide as the header.
      notes: to add a sentence to.

    Raises:
      UserError: it cannot be read as a table, lacks a column, or lists no image.
    """
    rows = iter(_parquet(path) if path.suffix.lower() == ".parquet" else _text_rows(path))
    _, names = next(rows, (0, []))
    header = [name.strip().lower() for name in names]
    if not any(header):
        raise UserError(
            f"{path}: its first line is empty; begin it with {','.join((*required, *optional))}, of"
            f" which {', '.join(optional)} may be missing"
        )
    if len(header) == 1 and (other := re.search("[,;|\t]", header[0])):
        wanted = {",": "commas", "\t": "tabs"}[_DELIMITERS.get(path.suffix.lower(), ",")]
        raise UserError(
            f"{path}: its first line ({quoted(names[0])}) has {quoted(other[0])} between columns; a"
            f" {path.suffix} file has {wanted}"
        )
    if missing := [name for name in required if name not in header]:
        raise UserError(
            f"{path}: has no column {', '.join(missing)} in its first line"
            f" ({quoted(','.join(names))}); begin it with {','.join((*required, *optional))}, of"
            f" which {', '.join(optional)} may be missing"
        )
    if twice := [name for name, times in collections.Counter(header).items() if times > 1]:
        raise UserError(f"{path}: has two columns {', '.join(twice)}; keep one of them")
    if ignored := [name for name in header if name not in (*required, *optional)]:
        notes.append(f"{count(ignored, 'column', 'columns')} ignored: {', '.join(ignored)}")
    images, uneven = [], []
    for number, row in rows:
        if not any(row):
            continue
        if len(row) != len(header):
            uneven.append(f"line {number}: {len(row)} of {len(header)}")
            continue
        cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
        known = {name: cells.get(name, "") for name in (*required, *optional)}
        if "\\" in known["path"] and not os.path.lexists(path.parent / known["path"]):
            known["path"] = known["path"].replace("\\", "/")  # written on Windows
        lower = {name: known[name].lower() for name in ("modality", "split") if name in known}
        images.append(Row(where=f"line {number}", **(known | lower)))
    if uneven:
        faults.append(
            f"{path}: {count(uneven, 'line has', 'lines have')} another number of columns than the"
            f" first line ({', '.join(uneven[:3])}); put text that contains the separator into"
            " quotes"
        )
    if not images and not faults:
        raise UserError(f"{path}: lists no image; write a line for each")
    return images


def _text_rows(path: epath.Path) -> Iterator[tuple[int, list[str]]]:
    delimiter = _DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        raise UserError(f"{path}: is not a .csv, .tsv or .parquet file; give a list of images")
    reader = csv.reader(
        io.StringIO(read_list(path, _LONGEST), newline=""), delimiter=delimiter, strict=True
    )
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} cannot be read ({error})") from None


def _parquet(path: epath.Path) -> Iterator[tuple[int, list[str]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow: pip install pyarrow, or save the list as .csv"
        ) from None
    try:
        table = parquet.read_table(os.fspath(path))
    except (ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})"
        ) from None
    yield 1, list(table.column_names)
    columns: list[Any] = [column.to_pylist() for column in table.columns]
    for number, row in enumerate(zip(*columns, strict=True), start=2):
        yield number, ["" if cell is None else str(cell) for cell in row]


def plausible_rows(
    rows: Sequence[Row], required: Sequence[str], where: epath.Path, faults: list[str]
) -> list[Row]:
    """Return the images whose fields make sense, each once; the others are faults.

    Fields of `required` must not be empty.
    """
    empty = " or no ".join(name for name in required if name != "modality")
    wrong: dict[tuple[str, str, str], list[str]] = {}
    seen: set[str] = set()
    kept = []
    for image in rows:
        kind, text = None, ""
        if not all(getattr(image, name) for name in required if name != "modality"):
            kind = f"has no {empty}", f"have no {empty}", "fill it in"
        elif (image.modality or "modality" in required) and image.modality not in MODALITIES:
            kind, text = _of_a_list("modality", "visible or infrared"), image.modality
        elif image.split not in ("", *_SPLITS):
            kind, text = _of_a_list("split", "train, val or test"), image.split
        elif not image.path.lower().endswith(SUFFIXES):
            what = f"no {SUFFIX_LIST} file"
            repair = "name an image, or convert it to one of these"
            kind, text = (f"names {what}", f"name {what}", repair), image.path
        elif image.path in seen:
            kind, text = ("repeats an image", "repeat an image", "list each once"), image.path
        if kind is None:
            seen.add(image.path)
            kept.append(image)
        else:
            wrong.setdefault(kind, []).append(image.where + (f": {quoted(text)}" if text else ""))
    for (one, several, repair), lines in wrong.items():
        faults.append(
            f"{where}: {count(lines, f'line {one}', f'lines {several}')} ({'; '.join(lines[:3])}"
            f"{', ...' if len(lines) > 3 else ''}); {repair}"
        )
    return kept


def _of_a_list(field: str, known: str) -> tuple[str, str, str]:
    what = f"another {field} than {known}"
    return f"has {what}", f"have {what}", f"write {known}"


def file_stats(
    root: epath.Path, rows: Iterable[Row], where: epath.Path, faults: list[str]
) -> dict[str, os.stat_result]:
    """Return the status of each file that exists, by path; the others are a fault that names all.

    Paths are absolute, or relative to `root`.
    """
    stats, missing = {}, []
    for image in rows:
        try:
            stats[image.path] = os.stat(root / image.path)
        except (OSError, ValueError):  # a ValueError of a name with a null character
            missing.append(f"{image.where}: {quoted(image.path)}")
    if missing:
        how = "a path is absolute, or relative to the list"
        faults.append(
            f"{where}: {count(missing, 'listed image is', 'listed images are')} not there; {how}:"
            + "".join(f"\n    {line}" for line in missing)
        )
    return stats


def numbered(
    one: str,
    several: str,
    texts: Iterable[str],
    faults: list[str],
    notes: list[str],
    least: int = 0,
) -> dict[str, int]:
    """Return a number for each text: its own if all are whole numbers of at least `least`, else its
    place among them, from 1."""
    distinct = sorted(set(texts))
    if not all(re.fullmatch(r"[0-9]{1,9}", text) and int(text) >= least for text in distinct):
        if distinct:
            notes.append(
                f"{several} are numbered in the order of their names:"
                f" {', '.join(f'{i} {text}' for i, text in enumerate(distinct[:3], start=1))}"
                + (", ..." if len(distinct) > 3 else "")
            )
        return {text: i for i, text in enumerate(distinct, start=1)}
    spelled: dict[int, list[str]] = {}
    for text in distinct:
        spelled.setdefault(int(text), []).append(text)
    if twice := [" and ".join(texts) for texts in spelled.values() if len(texts) > 1]:
        faults.append(
            f"{count(twice, f'{one} is', f'{several} are')} written in two ways"
            f" ({examples(twice)}); write each in one way"
        )
    return {text: int(text) for text in distinct}
