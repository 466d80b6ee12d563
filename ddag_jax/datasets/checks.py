"""What the folder of any dataset holds, and how its faults are told: shared by the three."""

import collections
import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from etils import epath
from jaxtyping import UInt8

from ddag_jax.datasets.images import SUFFIXES
from ddag_jax.errors import UserError
from ddag_jax.io.files import is_file

RENDERED = "rendered.txt"
"""A file of this name says that a folder's images were drawn by us, in a dataset's layout."""

REHEARSAL = "rehearsal"
"""What this file begins with where the counts are to be the dataset's, too."""

_ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".tar.gz", ".tgz")

_LIST_BYTES = 16 * 2**20
"""No list of the three datasets comes near this; what is longer is none."""

_T = TypeVar("_T")


class Record(NamedTuple):
    """One image; records sort by identity, camera, name."""

    identity: int
    camera: int
    """The dataset's own number; 0 where it is not known."""
    name: str
    """Path below the dataset's folder: `cam1/0001/0001.jpg`."""
    infrared: bool


class Counts(NamedTuple):
    """How many of what a split holds."""

    identities: int
    visible: int
    infrared: int

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Counts":
        """Counts records."""
        infrared = sum(record.infrared for record in records)
        return cls(len({r.identity for r in records}), len(records) - infrared, infrared)

    def __str__(self) -> str:
        return (
            f"{self.identities:,} identities, {self.visible:,} visible and {self.infrared:,}"
            " infrared images"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a folder holds."""

    folder: epath.Path
    images: dict[str, list[Record]]
    """Each image once, sorted, by the split that it is stored in."""
    subsets: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    """Splits that are no stored split: positions in the one that is."""
    published: dict[str, Counts]
    """What the dataset's publication counts, by split; `train+val` joins two."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What is worth knowing and no fault: who is ignored."""
    draws: dict[str, list[list[int]]] = dataclasses.field(default_factory=dict)
    """Published gallery draws, by the images' folder: each trial's first images, as 1-based
    positions among the folder's sorted files. Empty where there are none."""
    arrays: Mapping[str, UInt8[np.ndarray, "h w 3"]] = dataclasses.field(default_factory=dict)
    """Images that are no files of their own, by name."""
    source: str
    """Fingerprint: changes with the lists and with any image's name or size in bytes."""

    @property
    def rendered(self) -> bool:
        """Whether the images are our own drawings, not the dataset's."""
        return (self.folder / RENDERED).exists()

    @property
    def rehearsal(self) -> bool:
        """Whether our drawings stand for the whole dataset, image for image."""
        if not is_file(self.folder / RENDERED):
            return False
        with (self.folder / RENDERED).open("rb") as file:  # a stranger's may be of any size
            return file.read(len(REHEARSAL)) == REHEARSAL.encode()

    def image(self, record: Record) -> "epath.Path | UInt8[np.ndarray, 'h w 3']":
        """Where the image is, or itself."""
        found = self.arrays.get(record.name)
        return self.folder / record.name if found is None else found

    def split(self, name: str) -> list[Record]:
        """The images of a split, or of several joined by +."""
        records: list[Record] = []
        for part in name.split("+"):
            if part in self.subsets:
                (stored,) = self.images.values()
                records += [stored[position] for position in self.subsets[part]]
            else:
                records += self.images[part]
        return records

    def unlike_published(self) -> list[str]:
        """Splits whose counts are not the published ones; none for rendered images, unless they
        are a rehearsal."""
        if self.rendered and not self.rehearsal:
            return []
        pairs = {
            name: (Counts.of(self.split(name)), published)
            for name, published in self.published.items()
        }
        return [
            f"warning: {names}: {found}; published are {published}"
            for names, (found, published) in _alike(pairs)
            if found != published
        ]

    def summary(self) -> str:
        """Identities and images per modality of each split, as a table; notes and warnings.

        RegDB's trials share a row where their counts are the same.
        """
        counts = {name: Counts.of(self.split(name)) for name in (*self.images, *self.subsets)}
        rows = list(_alike(counts))
        width = max(14, *(len(names) + 2 for names, _ in rows))
        lines = [f"{'split':<{width}}{'identities':>12}{'visible':>10}{'infrared':>10}"]
        lines += [f"{names:<{width}}" + "{:>12}{:>10}{:>10}".format(*row) for names, row in rows]
        lines += [f"({note})" for note in self.notes]
        if self.rehearsal:
            lines.append("(rendered images, a rehearsal of the whole dataset)")
        elif self.rendered:
            lines.append("(rendered images in the dataset's layout: not compared with its counts)")
            return "\n".join(lines)
        return "\n".join([*lines, *(self.unlike_published() or ["counts are the published ones"])])


def _alike(splits: Mapping[str, _T]) -> Iterator[tuple[str, _T]]:
    """Splits and their values; neighbours that differ only in their number, and not in the value,
    as one: `train_1 ... train_10`."""
    families: dict[str, list[str]] = {}
    for name in splits:
        families.setdefault(re.sub(r"_[0-9]+$", "", name), []).append(name)
    for names in families.values():
        for value, run in itertools.groupby(names, key=splits.__getitem__):
            first, *rest = run
            yield (f"{first} ... {rest[-1]}" if rest else first), value


def raise_faults(faults: Sequence[str]) -> None:
    """Raises one UserError that holds all faults, a line each; none: returns."""
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults:
        raise UserError("\n  ".join([f"{len(faults)} faults:", *faults]))


def check_folder(root: epath.Path, wanted: Sequence[str], description: str) -> None:
    """Checks that a folder is the one meant, and says which is if it is one level off.

    Args:
      root: what the user gave.
      wanted: folders that it must hold.
      description: these in words: "the folder that holds ...".

    Raises:
      UserError: no such folder, nothing in it, not to be listed, an archive, or folders are
        missing.
    """
    if not root.exists():
        raise UserError(f"{root}: no such folder; give {description}")
    if not root.is_dir():
        what = "an archive; unpack it" if root.name.lower().endswith(_ARCHIVES) else "a file"
        raise UserError(f"{root}: is {what}; give {description}")
    children = sorted(_children(root))
    if not children:
        raise UserError(f"{root}: is empty; give {description}")
    missing = [name for name in wanted if not (root / name).is_dir()]
    if not missing:
        return
    nearby = [root.parent, *(child for child in children if child.is_dir())]
    # One that has everything comes before one that only looks alike.
    for required in (wanted, (wanted[0], wanted[-1])):
        for other in nearby:
            if all((other / name).is_dir() for name in required):
                raise UserError(f"{root}: has no {', '.join(missing)}; did you mean {other}?")
    archives = [child.name for child in children if child.name.lower().endswith(_ARCHIVES)]
    if archives:
        raise UserError(
            f"{root}: has no {', '.join(missing)}; {archives[0]} is not unpacked: unpack it there"
        )
    raise UserError(f"{root}: has no {', '.join(missing)}; give {description}")


def image_files(folder: epath.Path) -> list[epath.Path]:
    """A folder's images, sorted by name; hidden files and other kinds are passed over.

    Raises:
      UserError: the folder cannot be listed.
    """
    return sorted(path for path in _children(folder) if _is_image(path.name))


def _children(folder: epath.Path) -> list[epath.Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error}); mend its permissions") from error


def _is_image(name: str) -> bool:
    # Copies made on a Mac carry "._0001.jpg" beside each "0001.jpg".
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def list_people(root: epath.Path, top: str, faults: list[str]) -> dict[int, dict[str, int]]:
    """The images below a folder that has a folder for each identity, `top/{identity}/{image}`.

    Args:
      root: the dataset's folder.
      top: folder below it; where there is none, nothing is listed.
      faults: where to add folders that stand for one identity.

    Returns:
      Of each identity, the images' names below `root` and their sizes in bytes, in the files'
      order.

    Raises:
      UserError: a folder cannot be listed.
    """
    people: dict[int, dict[str, int]] = {}
    folders: dict[int, list[str]] = {}
    for person in sorted(_children(root / top)) if (root / top).is_dir() else ():
        if not re.fullmatch(r"[0-9]{1,9}", person.name) or not person.is_dir():
            continue
        identity = int(person.name)
        folders.setdefault(identity, []).append(f"{top}/{person.name}")
        people.setdefault(identity, {}).update(
            (f"{top}/{person.name}/{path.name}", file_size(path)) for path in image_files(person)
        )
    if twice := [" and ".join(names) for names in folders.values() if len(names) > 1]:
        faults.append(
            f"{root}: {count(twice, 'identity has', 'identities have')} two folders"
            f" ({examples(twice)}); keep one of each"
        )
    return people


def file_size(path: epath.Path) -> int:
    """Bytes of a file; 0 for a link to nowhere, which whoever reads it tells of."""
    try:
        # epath's own fails on a file whose owner has no name here, as in a container.
        return os.stat(path).st_size if _is_local(path) else path.stat().length
    except OSError:
        return 0


def _is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def _read_list(path: epath.Path) -> str:
    """Text of a list of identities or images.

    Raises:
      UserError: it is not there, is no text, or is too long for a list.
    """
    if not is_file(path):
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            content = file.read(_LIST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it again") from error
    if len(content) > _LIST_BYTES:
        raise UserError(
            f"{path}: is longer than any list ({_LIST_BYTES // 2**20} MiB); copy it again from the"
            " original"
        )
    try:
        return content.decode("utf-8-sig")  # Windows editors put a byte order mark in front
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8; save it as such") from None


def read_identities(path: epath.Path, faults: list[str]) -> set[int]:
    """Identities of a file that lists them separated by commas; what is wrong goes to `faults`."""
    if not is_file(path):
        faults.append(f"{path}: no such file; it lists identities separated by commas")
        return set()
    try:
        words = [word for word in re.split(r"[,\s]+", _read_list(path)) if word]
    except UserError as error:
        faults.append(str(error))
        return set()
    if not words:
        faults.append(f"{path}: names no identity; list at least one")
    if wrong := [word for word in words if not re.fullmatch(r"[0-9]{1,9}", word)]:
        faults.append(
            f"{path}: {count(wrong, 'entry is', 'entries are')} no whole number"
            f" ({examples(map(_quoted, wrong))}); list identities like 1,2,3"
        )
    listed = collections.Counter(int(word) for word in words if word not in wrong)
    if twice := [identity for identity, times in listed.items() if times > 1]:
        faults.append(
            f"{path}: {count(twice, 'identity is', 'identities are')} listed more than once"
            f" ({examples(twice)}); list each once"
        )
    return set(listed)


class Line(NamedTuple):
    """A line `PATH LABEL` of a list of images."""

    where: str
    """`idx/train_vis.txt line 7`."""
    identity: int
    """The number of the image's folder."""
    name: str
    """The image below the dataset's folder, spelt as it is there; perhaps it is not there."""
    label: int


_LINE_FAULTS = {
    "unreadable": ("is no path and label", "are no path and label"),
    "outside": ("leads out of the folder", "lead out of the folder"),
    "elsewhere": ("names no image of its list's folder", "name no image of their list's folder"),
    "repeated": ("repeats a line before it", "repeat a line before them"),
}


def read_image_lists(
    root: epath.Path, lists: Mapping[str, str], images: Collection[str], faults: list[str]
) -> dict[str, list[Line]]:
    """Reads lists of images, a line `TOP/{identity}/{image} LABEL` each.

    No file is opened by a path that a list gives: it is looked up among `images`. Its suffix may
    be spelt otherwise there (`.bmp`, `.BMP`). Blank lines and Windows line ends are fine.

    Args:
      root: the dataset's folder.
      lists: each list below it, and the folder (TOP) that its images lie in.
      images: names below it of all images there are.
      faults: where to add what is wrong, a sentence for each kind of fault in all lists.

    Returns:
      The sound lines of each list; those whose image is not there are among them.
    """
    spellings = {_spelling(name): name for name in images}
    present = set(images)
    found: dict[str, list[Line]] = {name: [] for name in lists}
    missing: list[str] = []
    empty: list[str] = []
    absent: dict[str, str] = {}
    wrong: dict[str, list[str]] = {kind: [] for kind in _LINE_FAULTS}
    for list_name, top in lists.items():
        if not is_file(root / list_name):
            missing.append(list_name)
            continue
        try:
            texts = [text.strip() for text in _read_list(root / list_name).split("\n")]
        except UserError as error:
            faults.append(str(error))
            continue
        if not any(texts):
            empty.append(list_name)
        seen: set[str] = set()
        for number, text in enumerate(texts, start=1):
            if not text:
                continue
            line = _parse_line(f"{list_name} line {number}", text, top)
            if isinstance(line, str):
                wrong[line].append(f"{list_name} line {number}: {_quoted(text)}")
                continue
            if line.name not in present:
                line = line._replace(name=spellings.get(_spelling(line.name), line.name))
            if line.name in seen:
                wrong["repeated"].append(f"{line.where}: {_quoted(text)}")
                continue
            seen.add(line.name)
            if line.name not in present:
                absent.setdefault(line.name, f"{_quoted(line.name)} of {line.where}")
            found[list_name].append(line)
    if missing:
        faults.append(
            f"{root}: {count(missing, 'list is', 'lists are')} not there ({_first(missing)});"
            " copy them from the original"
        )
    if empty:
        faults.append(
            f"{root}: {count(empty, 'list names', 'lists name')} no image ({_first(empty)}); copy"
            " them again from the original"
        )
    like = f"write lines like {next(iter(lists.values()))}/0001/IMAGE.jpg 0"
    for kind, (one, several) in _LINE_FAULTS.items():
        if wrong[kind]:
            faults.append(
                f"{root}: {count(wrong[kind], f'line {one}', f'lines {several}')}"
                f" ({_first(wrong[kind])});"
                f" {'list each image once' if kind == 'repeated' else like}"
            )
    if absent:
        faults.append(
            f"{root}: {count(absent, 'listed image is', 'listed images are')} not there"
            f" ({_first(list(absent.values()))}); copy them from the original"
        )
    return found


def _parse_line(where: str, text: str, top: str) -> Line | str:
    """The line, or the kind of its fault."""
    path, *rest = text.rsplit(maxsplit=1)
    if not rest or not re.fullmatch(r"[0-9]{1,9}", rest[0]):
        return "unreadable"
    if path[0] == "/" or "\\" in path or ":" in path or ".." in path.split("/"):
        return "outside"
    match = re.fullmatch(rf"{re.escape(top)}/([0-9]{{1,9}})/[^/]+", path)
    if match is None:
        return "elsewhere"
    return Line(where, int(match[1]), path, int(rest[0]))


def _spelling(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem + dot + suffix.lower()


def check_labels(root: epath.Path, splits: Mapping[str, Iterable[Line]], faults: list[str]) -> None:
    """Adds faults where, within a split, labels and identities are not one to one.

    Args:
      root: the dataset's folder.
      splits: by name, the lines of all lists that share their labels.
      faults: where to add them.
    """
    wrong: list[str] = []
    shared: list[str] = []
    for split, lines in splits.items():
        lines = list(lines)
        times = collections.Counter((line.identity, line.label) for line in lines)
        # The most frequent label comes last, and stays.
        usual = dict(sorted(times, key=times.__getitem__))
        wrong += [
            f"{line.where}: {line.label}, not {usual[line.identity]}, for {_quoted(line.name)}"
            for line in lines
            if line.label != usual[line.identity]
        ]
        owners: dict[int, list[int]] = {}
        for identity, label in usual.items():
            owners.setdefault(label, []).append(identity)
        shared += [
            f"{split}: {label} for {examples(identities)}"
            for label, identities in sorted(owners.items())
            if len(identities) > 1
        ]
    if wrong:
        faults.append(
            f"{root}: {count(wrong, 'line has', 'lines have')} another label than the rest of its"
            f" identity ({_first(wrong)}); take the lists from one release"
        )
    if shared:
        faults.append(
            f"{root}: {count(shared, 'label stands', 'labels stand')} for more than one identity"
            f" ({_first(shared)}); take the lists from one release"
        )


def shared_identities(
    where: epath.Path, lists: Mapping[str, Collection[int]], faults: list[str]
) -> None:
    """Adds a fault for each two of the lists, by their file names, that share an identity."""
    names = list(lists)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if both := set(lists[first]) & set(lists[second]):
                faults.append(
                    f"{where}: {count(both, 'identity', 'identities')} in both {first} and"
                    f" {second} ({examples(both)}); keep each in one list"
                )


def lacking_modality(
    where: str, listed: Iterable[int], records: Iterable[Record], faults: list[str]
) -> None:
    """Adds a fault for each modality that identities of a list have no image in.

    Args:
      where: the list, as messages name it.
      listed: its identities.
      records: images, of these identities and perhaps others.
      faults: where to add them.
    """
    kinds: dict[int, set[bool]] = {}
    for record in records:
        kinds.setdefault(record.identity, set()).add(record.infrared)
    without: dict[str, list[int]] = {"any": [], "visible": [], "infrared": []}
    for identity in sorted(listed):
        found = kinds.get(identity, set())
        if not found:
            without["any"].append(identity)
        elif True not in found:
            without["infrared"].append(identity)
        elif False not in found:
            without["visible"].append(identity)
    faults.extend(
        f"{where}: {count(lacking, 'identity', 'identities')} without {modality} image"
        f" ({examples(lacking)}); add the images or take them off the list"
        for modality, lacking in without.items()
        if lacking
    )


def fingerprint(lists: object, sizes: Iterable[tuple[str, int]]) -> str:
    """Of lists (anything whose `repr` is the same for the same content) and images' sizes."""
    digest = hashlib.sha256(repr(lists).encode())
    for name, size in sizes:
        digest.update(f"{name} {size}\n".encode())
    return digest.hexdigest()


def count(things: Collection[object], one: str, several: str) -> str:
    """How many, with the right word."""
    return f"{len(things)} {one if len(things) == 1 else several}"


def examples(things: Iterable[int] | Iterable[str]) -> str:
    """The first three."""
    return _first([str(thing) for thing in sorted(things)])


def _first(things: Sequence[str]) -> str:
    return ", ".join(things[:3]) + (", ..." if len(things) > 3 else "")


def _quoted(text: str) -> str:
    """A stranger's text for a message: of one line, and not without end."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
