"""The folder that SYSU-MM01 is distributed as: who is in which list, and what is wrong with it.

cam1 ... cam6/{identity:04d}/{number:04d}.jpg    cameras 3 and 6 are infrared
exp/{train,val,test}_id.txt                      one line, identities separated by commas
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from etils import epath

from ddag_jax.data.images import SUFFIXES
from ddag_jax.errors import InputError

SPLITS = ("train", "val", "test")
CAMERAS = (1, 2, 3, 4, 5, 6)
INFRARED_CAMERAS = (3, 6)

_FIX_LAYOUT = "SYSU-MM01 is cam1 ... cam6 and exp side by side"


class Record(NamedTuple):
    """One image; records sort by identity, camera, file name."""

    identity: int
    camera: int
    name: str
    """Path below the dataset's folder: `cam1/0001/0001.jpg`."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a folder holds."""

    folder: epath.Path
    splits: dict[str, list[Record]]
    """Images of the identities of each list, sorted."""
    unlisted: int
    """Identities that have a folder and are in no list; they are ignored."""
    source: str
    """Fingerprint: changes with the lists and with any image's name or size in bytes."""

    def path(self, record: Record) -> epath.Path:
        """Where the image is."""
        return self.folder / record.name

    def summary(self) -> str:
        """Identities and images per modality of each split, as a table."""
        lines = [f"{'split':<8}{'identities':>12}{'visible':>10}{'infrared':>10}"]
        for split, records in self.splits.items():
            infrared = sum(record.camera in INFRARED_CAMERAS for record in records)
            identities = len({record.identity for record in records})
            lines.append(f"{split:<8}{identities:>12}{len(records) - infrared:>10}{infrared:>10}")
        if self.unlisted:
            lines.append(f"({self.unlisted} more identities are in no list: ignored)")
        return "\n".join(lines)


def read_layout(folder: epath.PathLike) -> Layout:
    """Lists a folder and checks it, all but the images' content.

    Raises:
      InputError: all faults, a line each.
    """
    layout, faults = inspect(folder)
    raise_faults(faults)
    return layout


def raise_faults(faults: Sequence[str]) -> None:
    """Raises one InputError that holds all faults, a line each; none: returns."""
    if len(faults) == 1:
        raise InputError(faults[0])
    if faults:
        raise InputError("\n  ".join([f"{len(faults)} faults:", *faults]))


def inspect(folder: epath.PathLike) -> tuple[Layout, list[str]]:
    """Lists a folder and looks for faults that do not keep it from being listed.

    Raises:
      InputError: there is nothing to list: no folder, or another layout.
    """
    root = epath.Path(folder)
    _check_folders(root)
    faults: list[str] = []
    lists = {split: _read_identities(root / "exp" / f"{split}_id.txt", faults) for split in SPLITS}
    images, sizes = _list_images(root)

    for first, second in itertools.combinations(SPLITS, 2):
        if both := lists[first] & lists[second]:
            faults.append(
                f"{root}/exp: {_count(both, 'identity', 'identities')} in both {first}_id.txt and"
                f" {second}_id.txt ({_examples(both)}); keep each in one list"
            )
    faults.extend(_modality_faults(root, lists, images))
    splits = {
        split: sorted(record for identity in lists[split] for record in images.get(identity, ()))
        for split in SPLITS
    }
    digest = hashlib.sha256(repr(sorted((k, sorted(v)) for k, v in lists.items())).encode())
    for record in itertools.chain.from_iterable(splits.values()):
        digest.update(f"{record.name} {sizes[record.name]}\n".encode())
    unlisted = len(images.keys() - set().union(*lists.values()))
    return Layout(root, splits, unlisted, digest.hexdigest()), faults


def _looks_right(folder: epath.Path) -> bool:
    return (folder / "exp").is_dir() and (folder / "cam1").is_dir()


def _check_folders(root: epath.Path) -> None:
    if not root.exists():
        raise InputError(
            f"{root}: no such folder; give the folder that holds cam1 ... cam6 and exp"
        )
    if not root.is_dir():
        raise InputError(f"{root}: is a file; give the folder that holds cam1 ... cam6 and exp")
    children = sorted(root.iterdir())
    if not children:
        raise InputError(f"{root}: is empty; {_FIX_LAYOUT}")
    wanted = ["exp", *(f"cam{camera}" for camera in CAMERAS)]
    if missing := [name for name in wanted if not (root / name).is_dir()]:
        nearby = [root.parent, *(child for child in children if child.is_dir())]
        if right := next((other for other in nearby if _looks_right(other)), None):
            raise InputError(f"{root}: has no {', '.join(missing)}; did you mean {right}?")
        raise InputError(f"{root}: has no {', '.join(missing)}; {_FIX_LAYOUT}")


def _read_identities(path: epath.Path, faults: list[str]) -> set[int]:
    if not path.exists():
        faults.append(f"{path}: no such file; it lists identities separated by commas")
        return set()
    words = re.split(r"[,\s]+", path.read_text().strip(", \t\r\n"))
    words = [word for word in words if word]
    if not words:
        faults.append(f"{path}: names no identity; list at least one")
    if wrong := [word for word in words if not re.fullmatch(r"[0-9]+", word)]:
        faults.append(
            f"{path}: {_count(wrong, 'entry is', 'entries are')} no whole number"
            f" ({_examples(map(repr, wrong))}); list identities like 1,2,3"
        )
    return {int(word) for word in words if word not in wrong}


def _list_images(root: epath.Path) -> tuple[dict[int, list[Record]], dict[str, int]]:
    """Images of each identity that has a folder, and each image's size in bytes."""
    images: dict[int, list[Record]] = {}
    sizes: dict[str, int] = {}
    for camera in CAMERAS:
        for person in (root / f"cam{camera}").iterdir():
            if not re.fullmatch(r"[0-9]+", person.name) or not person.is_dir():
                continue
            records = images.setdefault(int(person.name), [])
            for path in person.iterdir():
                # Copies made on a Mac carry "._0001.jpg" beside each "0001.jpg".
                if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."):
                    record = Record(
                        int(person.name), camera, f"cam{camera}/{person.name}/{path.name}"
                    )
                    records.append(record)
                    sizes[record.name] = path.stat().length
    return images, sizes


def _modality_faults(
    root: epath.Path, lists: dict[str, set[int]], images: dict[int, list[Record]]
) -> list[str]:
    faults: list[str] = []
    for split, identities in lists.items():
        without: dict[str, list[int]] = {"any": [], "visible": [], "infrared": []}
        for identity in sorted(identities):
            kinds = {record.camera in INFRARED_CAMERAS for record in images.get(identity, ())}
            if not kinds:
                without["any"].append(identity)
            elif True not in kinds:
                without["infrared"].append(identity)
            elif False not in kinds:
                without["visible"].append(identity)
        faults.extend(
            f"{root}: {_count(lacking, 'identity', 'identities')} of exp/{split}_id.txt without"
            f" {modality} image ({_examples(lacking)}); add the images or take them off the list"
            for modality, lacking in without.items()
            if lacking
        )
    return faults


def _count(things: Collection[object], one: str, several: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else several}"


def _examples(things: Iterable[int] | Iterable[str]) -> str:
    first = [str(thing) for thing in sorted(things)]
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")
