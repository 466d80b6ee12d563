"""What the folder of any dataset holds, and how its faults are told: shared by the three."""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8

from ddag_jax.data.images import SUFFIXES
from ddag_jax.errors import InputError

RENDERED = "rendered.txt"
"""A file of this name says that a folder's images were drawn by us, in a dataset's layout."""

_ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".tar.gz", ".tgz")


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
    """Splits that are no stored split: positions in the one stored split, `all`."""
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

    def image(self, record: Record) -> "epath.Path | UInt8[np.ndarray, 'h w 3']":
        """Where the image is, or itself."""
        found = self.arrays.get(record.name)
        return self.folder / record.name if found is None else found

    def split(self, name: str) -> list[Record]:
        """The images of a split, or of several joined by +."""
        records: list[Record] = []
        for part in name.split("+"):
            if part in self.subsets:
                stored = self.images["all"]
                records += [stored[position] for position in self.subsets[part]]
            else:
                records += self.images[part]
        return records

    def unlike_published(self) -> list[str]:
        """Splits whose counts are not the published ones; none for rendered images."""
        if self.rendered:
            return []
        found = {name: Counts.of(self.split(name)) for name in self.published}
        return [
            f"warning: {name}: {found[name]}; published are {published}"
            for name, published in self.published.items()
            if found[name] != published
        ]

    def summary(self) -> str:
        """Identities and images per modality of each split, as a table; notes and warnings."""
        lines = [f"{'split':<14}{'identities':>12}{'visible':>10}{'infrared':>10}"]
        previous = None
        for split in self.subsets or self.images:
            counts = Counts.of(self.split(split))
            lines.append(f"{split:<14}" + "{:>12}{:>10}{:>10}".format(*counts))
            previous = counts
        assert previous is not None
        lines += [f"({note})" for note in self.notes]
        if self.rendered:
            lines.append("(rendered images in the dataset's layout: not compared with its counts)")
        return "\n".join([*lines, *self.unlike_published()])


def raise_faults(faults: Sequence[str]) -> None:
    """Raises one InputError that holds all faults, a line each; none: returns."""
    if len(faults) == 1:
        raise InputError(faults[0])
    if faults:
        raise InputError("\n  ".join([f"{len(faults)} faults:", *faults]))


def check_folder(root: epath.Path, wanted: Sequence[str], description: str) -> None:
    """Checks that a folder is the one meant, and says which is if it is one level off.

    Args:
      root: what the user gave.
      wanted: folders that it must hold.
      description: these in words: "the folder that holds ...".

    Raises:
      InputError: no such folder, nothing in it, an archive, or folders are missing.
    """
    if not root.exists():
        raise InputError(f"{root}: no such folder; give {description}")
    if not root.is_dir():
        what = "an archive; unpack it" if root.name.lower().endswith(_ARCHIVES) else "a file"
        raise InputError(f"{root}: is {what}; give {description}")
    children = sorted(root.iterdir())
    if not children:
        raise InputError(f"{root}: is empty; give {description}")
    missing = [name for name in wanted if not (root / name).is_dir()]
    if not missing:
        return
    nearby = [root.parent, *(child for child in children if child.is_dir())]
    # One that has everything comes before one that only looks alike.
    for required in (wanted, (wanted[0], wanted[-1])):
        for other in nearby:
            if all((other / name).is_dir() for name in required):
                raise InputError(f"{root}: has no {', '.join(missing)}; did you mean {other}?")
    archives = [child.name for child in children if child.name.lower().endswith(_ARCHIVES)]
    if archives:
        raise InputError(
            f"{root}: has no {', '.join(missing)}; {archives[0]} is not unpacked: unpack it there"
        )
    raise InputError(f"{root}: has no {', '.join(missing)}; give {description}")


def image_files(folder: epath.Path) -> list[epath.Path]:
    """A folder's images, sorted by name; hidden files and other kinds are passed over."""
    return sorted(path for path in folder.iterdir() if _is_image(path.name))


def _is_image(name: str) -> bool:
    # Copies made on a Mac carry "._0001.jpg" beside each "0001.jpg".
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def read_identities(path: epath.Path, faults: list[str]) -> set[int]:
    """Identities of a file that lists them separated by commas; what is wrong goes to `faults`."""
    if not path.exists():
        faults.append(f"{path}: no such file; it lists identities separated by commas")
        return set()
    words = [word for word in re.split(r"[,\s]+", path.read_text()) if word]
    if not words:
        faults.append(f"{path}: names no identity; list at least one")
    if wrong := [word for word in words if not re.fullmatch(r"[0-9]{1,9}", word)]:
        faults.append(
            f"{path}: {count(wrong, 'entry is', 'entries are')} no whole number"
            f" ({examples(map(repr, wrong))}); list identities like 1,2,3"
        )
    return {int(word) for word in words if word not in wrong}


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
    first = [str(thing) for thing in sorted(things)]
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")
