"""What a dataset's folder holds, and checks that the layouts of all datasets share."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from etils import epath
from jaxtyping import UInt8

from ddag_jax.datasets.images import SUFFIXES, ImageFile, with_range
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import is_bucket
from ddag_jax.io.files import is_file
from ddag_jax.io.storable import is_utf8

RENDERED = "rendered.txt"
"""A folder with a file of this name holds rendered images, in a dataset's layout."""

REHEARSAL = "rehearsal"
"""First word of that file where the folder has as many images as the dataset."""

_OTHER_IMAGES = tuple(
    f".{name}"
    for name in ("gif", "jp2", "j2k", "heic", "heif", "avif", "pgm", "ppm", "pnm", "dng", "mat")
)
"""Suffixes of images that are not read."""

_ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".tar.gz", ".tgz")

_LIST_BYTES = 16 * 2**20
"""Longest accepted list; those of the published datasets are far shorter."""

_T = TypeVar("_T")


class ImageEntry(NamedTuple):
    """One image; entries sort by identity, camera, name."""

    identity: int
    camera: int
    """The dataset's own number; 0 if it is not known."""
    name: str
    """Path below the dataset's folder: `cam1/0001/0001.jpg`."""
    infrared: bool


class Counts(NamedTuple):
    """Number of identities and images of a split."""

    identities: int
    visible: int
    infrared: int

    @classmethod
    def of(cls, entries: Sequence[ImageEntry]) -> "Counts":
        """Count entries."""
        infrared = sum(entry.infrared for entry in entries)
        return cls(len({e.identity for e in entries}), len(entries) - infrared, infrared)

    def __str__(self) -> str:
        return (
            f"{self.identities:,} identities, {self.visible:,} visible and {self.infrared:,}"
            " infrared images"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderContent:
    """What a dataset's folder holds; `Dataset.inspect` returns it."""

    folder: epath.Path
    images: dict[str, list[ImageEntry]]
    """Sorted images by stored split, each image once."""
    subsets: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    """Splits that overlap, as positions in the one stored split."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Remarks that are not faults: how many identities are ignored."""
    unread: list[str] = dataclasses.field(default_factory=list)
    """Remarks on files that are not read, though they may be meant as images."""
    draws: dict[str, list[list[int]]] = dataclasses.field(default_factory=dict)
    """Published gallery draws by folder, `cam1/0007`: each draw's first images, as 1-based
    positions among the folder's sorted files. Empty if there are none."""
    arrays: Mapping[str, UInt8[np.ndarray, "h w 3"]] = dataclasses.field(default_factory=dict)
    """Images without a file of their own, by name."""
    infrared_range: tuple[int, int] | None = None
    """Values that become black and white of infrared images with 16 bits."""
    source: str
    """Fingerprint: changes with the lists and with any image's name or size in bytes."""

    @property
    def rendered(self) -> bool:
        """Whether the images are rendered people in the dataset's layout."""
        return (self.folder / RENDERED).exists()

    @property
    def rehearsal(self) -> bool:
        """Whether the rendered images are as many as the dataset's."""
        if not is_file(self.folder / RENDERED):
            return False
        with (self.folder / RENDERED).open("rb") as file:  # untrusted: of any size
            return file.read(len(REHEARSAL)) == REHEARSAL.encode()

    def image(self, entry: ImageEntry) -> ImageFile:
        """Return the image's file, or its pixels if it has none."""
        found = self.arrays.get(entry.name)
        if found is not None:
            return found
        return with_range(self.folder / entry.name, entry.infrared, self.infrared_range)

    @functools.cached_property
    def stamp(self) -> str:
        """Fingerprint that changes with a file's name, size or modification time."""
        return fingerprint([(name, *file_stamp(self.folder / name)) for name in self._files()], [])

    @functools.cached_property
    def checksum(self) -> str:
        """Fingerprint that changes with any image file's name or content.

        Raises:
          UserError: a file cannot be read.
        """

        def one(name: str) -> str:
            try:
                with (self.folder / name).open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UserError(
                    f"{self.folder / name}: cannot be read ({error.strerror}); correct its"
                    " permissions"
                ) from None

        names = self._files()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return fingerprint(list(zip(names, pool.map(one, names), strict=True)), [])

    def _files(self) -> list[str]:
        """Return the names of the images' files, in order; many images may be in one."""
        entries = (entry for entries in self.images.values() for entry in entries)
        return list(
            dict.fromkeys(
                e.name.rpartition("/")[0] if e.name in self.arrays else e.name for e in entries
            )
        )

    def split(self, name: str) -> list[ImageEntry]:
        """Return the images of a split, or of several joined by +."""
        entries: list[ImageEntry] = []
        for part in name.split("+"):
            if part in self.subsets:
                (stored,) = self.images.values()
                entries += [stored[position] for position in self.subsets[part]]
            else:
                entries += self.images[part]
        return entries

    def unlike_published(self, counts: Mapping[str, Counts]) -> list[str]:
        """Return a warning for each split whose counts are not the published ones.

        None for rendered images, unless they are a rehearsal.

        Args:
          counts: published ones by split, `Dataset.counts`.
        """
        if self.rendered and not self.rehearsal:
            return []
        pairs = {
            name: (Counts.of(self.split(name)), published) for name, published in counts.items()
        }
        return [
            f"warning: {names}: {found}; published are {published}"
            for names, (found, published) in _alike(pairs)
            if found != published
        ]

    def summary(self, counts: Mapping[str, Counts]) -> str:
        """Return a table of identities and images of each split, then notes and warnings.

        Numbered splits share a row if their counts are the same.

        Args:
          counts: published ones by split, `Dataset.counts`; empty: nothing is compared.
        """
        found = {name: Counts.of(self.split(name)) for name in (*self.images, *self.subsets)}
        rows = list(_alike(found))
        width = max(14, *(len(names) + 2 for names, _ in rows))
        lines = [f"{'split':<{width}}{'identities':>12}{'visible':>10}{'infrared':>10}"]
        lines += [f"{names:<{width}}" + "{:>12}{:>10}{:>10}".format(*row) for names, row in rows]
        lines += [f"({note})" for note in (*self.notes, *self.unread)]
        if self.rehearsal:
            lines.append("(rendered images, a rehearsal of the whole dataset)")
        elif self.rendered:
            lines.append("(rendered images in the dataset's layout: not compared with its counts)")
            return "\n".join(lines)
        if counts:
            lines += self.unlike_published(counts) or ["counts are the published ones"]
        return "\n".join(lines)


def _alike(splits: Mapping[str, _T]) -> Iterator[tuple[str, _T]]:
    """Yield splits and their values; numbered splits of one value as `train_1 ... train_10`."""
    families: dict[str, list[str]] = {}
    for name in splits:
        families.setdefault(re.sub(r"_[0-9]+$", "", name), []).append(name)
    for names in families.values():
        for value, run in itertools.groupby(names, key=splits.__getitem__):
            first, *rest = run
            yield (f"{first} ... {rest[-1]}" if rest else first), value


def raise_faults(faults: Sequence[str]) -> None:
    """Raise one UserError with all faults, a line each, if there are any."""
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults:
        raise UserError("\n  ".join([f"{len(faults)} faults:", *faults]))


def check_folder(root: epath.Path, wanted: Sequence[str], description: str) -> None:
    """Check that a folder holds what a dataset's does; name a nearby folder that does.

    Args:
      root: the folder that the user gave.
      wanted: names of folders that it must hold.
      description: these in words, for messages: "the folder that holds ...".

    Raises:
      UserError: the folder does not exist, is empty, is an archive, cannot be listed, or lacks
        some of `wanted`.
    """
    if not root.exists():
        raise UserError(f"{root}: no such folder; give {description}")
    if not root.is_dir():
        what = "an archive; unpack it" if root.name.lower().endswith(_ARCHIVES) else "a file"
        raise UserError(f"{root}: is {what}; give {description}")
    inside = sorted(children(root))
    if not inside:
        raise UserError(f"{root}: is empty; give {description}")
    missing = [name for name in wanted if not (root / name).is_dir()]
    if not missing:
        return
    nearby = [root.parent, *(child for child in inside if child.is_dir())]
    # A folder with all of them comes before one with the first and last.
    for required in (wanted, (wanted[0], wanted[-1])):
        for other in nearby:
            if all((other / name).is_dir() for name in required):
                raise UserError(f"{root}: has no {', '.join(missing)}; did you mean {other}?")
    archives = [child.name for child in inside if child.name.lower().endswith(_ARCHIVES)]
    if archives:
        raise UserError(
            f"{root}: has no {', '.join(missing)}; {archives[0]} is not unpacked: unpack it there"
        )
    raise UserError(f"{root}: has no {', '.join(missing)}; give {description}")


def children(folder: epath.Path) -> list[epath.Path]:
    """Return what is in a folder. Raises UserError if it cannot be listed."""
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error}); correct its permissions") from error


def is_image(name: str) -> bool:
    """Return whether a file of this name is read as an image: by its suffix, and not hidden."""
    # Copies made on a Mac carry "._0001.jpg" beside each "0001.jpg".
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def check_utf8(where: epath.Path, names: Iterable[str], faults: list[str]) -> None:
    """Add a fault if names of files are not UTF-8, as those of another system's archive may be.

    Python has surrogates in place of their bytes, which no text can store.
    """
    wrong = [name for name in names if not is_utf8(name)]
    if wrong:
        faults.append(
            f"{where}: {count(wrong, 'name is', 'names are')} not UTF-8"
            f" ({_first([ascii(name) for name in wrong])}); rename the files, with convmv for"
            " example, or unpack the archive with its own encoding (unzip -O)"
        )


def passed_over(names: Iterable[str]) -> list[str]:
    """Return remarks on what is not read, though it may be meant as an image; perhaps none.

    Args:
      names: of files and folders below some folder, as they are to be named; those that are read,
        and those that are certainly no images, are ignored.

    >>> passed_over(["anna/1.jpg", "anna/2.gif", "anna/.3.jpg", "list.txt"])
    ['1 file is not read: anna/2.gif; convert to .png or .jpg', \
'1 hidden file or folder is not read: anna/.3.jpg']
    """
    hidden, other = list[str](), list[str]()
    for name in names:
        last = name.rstrip("/").rpartition("/")[2]
        lower = last.lower()
        if last.startswith("."):
            if name.endswith("/") or lower.endswith((*SUFFIXES, *_OTHER_IMAGES)):
                hidden.append(name)
        elif lower.endswith(_OTHER_IMAGES):
            other.append(name)
    remarks = []
    if other:
        what = count(other, "file is", "files are")
        remarks.append(f"{what} not read: {examples(other)}; convert to .png or .jpg")
    if hidden:
        what = count(hidden, "hidden file or folder is", "hidden files or folders are")
        remarks.append(f"{what} not read: {examples(hidden)}")
    return remarks


def note_turned(turned: Collection[int], notes: list[str]) -> None:
    """Add a remark on images that were turned upright, if there are any."""
    if turned:
        what = count(turned, "image is", "images are")
        notes.append(f"{what} turned upright, as their EXIF orientation says")


def list_people(
    root: epath.Path, top: str, faults: list[str], others: list[str]
) -> dict[int, dict[str, int]]:
    """List the images `top/{identity}/{image}` of a folder.

    Args:
      root: the dataset's folder.
      top: folder below it; if it does not exist, nothing is listed.
      faults: a sentence is added if two folders have the same identity, such as 7 and 0007.
      others: names of files that are not listed are added, for `passed_over`.

    Returns:
      {identity: {image's name below `root`: size in bytes}}, sorted by file name.

    Raises:
      UserError: a folder cannot be listed.
    """
    people: dict[int, dict[str, int]] = {}
    folders: dict[int, list[str]] = {}
    for person in sorted(children(root / top)) if (root / top).is_dir() else ():
        if not re.fullmatch(r"[0-9]{1,9}", person.name) or not person.is_dir():
            continue
        identity = int(person.name)
        folders.setdefault(identity, []).append(f"{top}/{person.name}")
        found = people.setdefault(identity, {})
        for path in sorted(children(person)):
            name = f"{top}/{person.name}/{path.name}"
            if is_image(path.name):
                found[name] = file_size(path)
            else:
                others.append(name)
    check_utf8(root, (name for found in people.values() for name in found), faults)
    if twice := [" and ".join(names) for names in folders.values() if len(names) > 1]:
        faults.append(
            f"{root}: {count(twice, 'identity has', 'identities have')} two folders"
            f" ({examples(twice)}); keep one of each"
        )
    return people


def file_size(path: epath.Path) -> int:
    """Return the size of a file in bytes; 0 if it cannot be found out, as of a broken link."""
    if not is_bucket(path):
        return file_stamp(path)[0]
    try:
        return path.stat().length
    except OSError:
        return 0


def file_stamp(path: epath.PathLike) -> tuple[int, int]:
    """Return a file's size in bytes and the time of its last change in nanoseconds; zeros if it
    cannot be found out, as of a broken link."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def read_list(path: epath.Path, longest: int = _LIST_BYTES) -> str:
    """Return the text of a list of identities or images.

    Args:
      path: the list.
      longest: bytes that are accepted.

    Raises:
      UserError: the file does not exist, is not text, or is too long.
    """
    if not is_file(path):
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            content = file.read(longest + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it again") from error
    if len(content) > longest:
        raise UserError(
            f"{path}: is longer than any list ({longest // 2**20} MiB); copy it again from the"
            " original"
        )
    try:
        return content.decode("utf-8-sig")  # Windows editors put a byte order mark in front
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text in UTF-8; save it as UTF-8") from None


def read_identities(path: epath.Path, faults: list[str]) -> set[int]:
    """Read identities separated by commas; what is wrong is added to `faults`."""
    if not is_file(path):
        faults.append(f"{path}: no such file; it lists identities separated by commas")
        return set()
    try:
        words = [word for word in re.split(r"[,\s]+", read_list(path)) if word]
    except UserError as error:
        faults.append(str(error))
        return set()
    if not words:
        faults.append(f"{path}: names no identity; list at least one")
    if wrong := [word for word in words if not re.fullmatch(r"[0-9]{1,9}", word)]:
        faults.append(
            f"{path}: {count(wrong, 'entry is not', 'entries are not')} a whole number"
            f" ({examples(map(quoted, wrong))}); list identities like 1,2,3"
        )
    listed = collections.Counter(int(word) for word in words if word not in wrong)
    if twice := [identity for identity, times in listed.items() if times > 1]:
        faults.append(
            f"{path}: {count(twice, 'identity is', 'identities are')} listed more than once"
            f" ({examples(twice)}); list each once"
        )
    return set(listed)


class ListedImage(NamedTuple):
    """An image as a line `PATH LABEL` of a list names it."""

    where: str
    """`idx/train_vis.txt line 7`."""
    identity: int
    """The number of the image's folder."""
    name: str
    """Path below the dataset's folder, spelt as the file is; the file may not exist."""
    label: int


_LINE_FAULTS = {
    "unreadable": ("is not a path and a label", "are not a path and a label"),
    "outside": ("leads out of the folder", "lead out of the folder"),
    "elsewhere": ("names no image of its list's folder", "name no image of their list's folder"),
    "repeated": ("repeats a line before it", "repeat a line before them"),
}


def read_image_lists(
    root: epath.Path, lists: Mapping[str, str], images: Collection[str], faults: list[str]
) -> dict[str, list[ListedImage]]:
    """Read lists of images, lines `TOP/{identity}/{image} LABEL`.

    Paths of a list are looked up among `images`, never opened. The case of a suffix may differ
    (`.bmp`, `.BMP`). Blank lines, and Windows line ends and backslashes are accepted.

    Args:
      root: the dataset's folder.
      lists: {list below `root`: folder (TOP) of its images}.
      images: names of all existing images below `root`.
      faults: a sentence is added for each kind of fault in all lists.

    Returns:
      The valid lines of each list, including those whose image does not exist.
    """
    spellings = {_spelling(name): name for name in images}
    present = set(images)
    found: dict[str, list[ListedImage]] = {name: [] for name in lists}
    missing: list[str] = []
    empty: list[str] = []
    absent: dict[str, str] = {}
    wrong: dict[str, list[str]] = {kind: [] for kind in _LINE_FAULTS}
    for list_name, top in lists.items():
        if not is_file(root / list_name):
            missing.append(list_name)
            continue
        try:
            texts = [text.strip() for text in read_list(root / list_name).split("\n")]
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
                wrong[line].append(f"{list_name} line {number}: {quoted(text)}")
                continue
            if line.name not in present:
                line = line._replace(name=spellings.get(_spelling(line.name), line.name))
            if line.name in seen:
                wrong["repeated"].append(f"{line.where}: {quoted(text)}")
                continue
            seen.add(line.name)
            if line.name not in present:
                absent.setdefault(line.name, f"{quoted(line.name)} of {line.where}")
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


def _parse_line(where: str, text: str, top: str) -> ListedImage | str:
    """Return the image that a line names, or the kind of the line's fault."""
    path, *rest = text.replace("\\", "/").rsplit(maxsplit=1)
    if not rest or not re.fullmatch(r"[0-9]{1,9}", rest[0]):
        return "unreadable"
    if path[0] == "/" or ":" in path or ".." in path.split("/"):
        return "outside"
    match = re.fullmatch(rf"{re.escape(top)}/([0-9]{{1,9}})/[^/]+", path)
    if match is None:
        return "elsewhere"
    return ListedImage(where, int(match[1]), path, int(rest[0]))


def _spelling(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem + dot + suffix.lower()


def check_labels(
    root: epath.Path, splits: Mapping[str, Iterable[ListedImage]], faults: list[str]
) -> None:
    """Add faults where labels and identities of a split are not one to one.

    Args:
      root: the dataset's folder.
      splits: {split: images of all its lists}.
      faults: where to add them.
    """
    wrong: list[str] = []
    shared: list[str] = []
    for split, lines in splits.items():
        lines = list(lines)
        times = collections.Counter((line.identity, line.label) for line in lines)
        # The most frequent label of an identity comes last and overwrites the others.
        usual = dict(sorted(times, key=times.__getitem__))
        wrong += [
            f"{line.where}: {line.label}, not {usual[line.identity]}, for {quoted(line.name)}"
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
    """Add a fault for each two lists, {file name: identities}, that share an identity."""
    names = list(lists)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if both := set(lists[first]) & set(lists[second]):
                faults.append(
                    f"{where}: {count(both, 'identity', 'identities')} in both {first} and"
                    f" {second} ({examples(both)}); keep each in one list"
                )


def lacking_modality(
    where: str, listed: Iterable[int], entries: Iterable[ImageEntry], faults: list[str]
) -> None:
    """Add a fault for each modality in which listed identities have no image.

    Args:
      where: the list, as messages name it.
      listed: its identities.
      entries: images, of these identities and perhaps others.
      faults: where to add them.
    """
    kinds: dict[int, set[bool]] = {}
    for entry in entries:
        kinds.setdefault(entry.identity, set()).add(entry.infrared)
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
    """Return a hash of lists (any values of a stable `repr`) and of file names and sizes."""
    digest = hashlib.sha256(repr(lists).encode(errors="surrogateescape"))
    for name, size in sizes:
        digest.update(f"{name} {size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def count(things: Collection[object], one: str, several: str) -> str:
    """Return the number of things with its noun: "1 image", "2 images"."""
    return f"{len(things):,} {one if len(things) == 1 else several}"


def examples(things: Iterable[int] | Iterable[str]) -> str:
    """Return the first three, sorted, for a message."""
    return _first([str(thing) for thing in sorted(things)])


def _first(things: Sequence[str]) -> str:
    return ", ".join(things[:3]) + (", ..." if len(things) > 3 else "")


def quoted(text: str) -> str:
    """Quote untrusted text for a message: on one line, cut to 80 characters."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
