"""Folders in the exact layout of a dataset, for a rehearsal before its images are available.

Folders, file names, lists and their counts are those of the dataset. The images are a few rendered
people, repeated: enough to test counts, layouts and protocols, not for training.
"""

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
from etils import epath
from jaxtyping import UInt8

from ddag_jax.datasets import llcm, regdb, sysu_mm01
from ddag_jax.datasets.checks import (
    REHEARSAL,
    RENDERED,
    count,
    examples,
    raise_faults,
    read_identities,
)
from ddag_jax.datasets.dataset import Dataset
from ddag_jax.datasets.find import find_dataset
from ddag_jax.datasets.llcm import LLCM
from ddag_jax.datasets.rand_perm_cam import read_permutations
from ddag_jax.datasets.regdb import REGDB
from ddag_jax.datasets.sysu_mm01 import SYSU_MM01
from ddag_jax.errors import UserError
from ddag_jax.io.files import new_folder
from ddag_jax.io.progress import Progress
from ddag_jax.synthetic.camera import INFRARED, VISIBLE
from ddag_jax.synthetic.image import People, render


@dataclasses.dataclass(frozen=True)
class Tree:
    """The files of a folder."""

    images: list[tuple[str, int, int]]
    """Name below the folder, identity, and the camera in `camera.py` that renders it."""
    lists: Mapping[str, bytes]
    """All other files, by name."""
    note: str
    """Content of rendered.txt."""


def rehearsal_tree(dataset: str, *, exp: str | None, scale: float, seed: int) -> Tree:
    """Return the files of a rehearsal of a published dataset.

    Args:
      dataset: its name.
      exp: SYSU-MM01 only: a folder with the dataset's own lists and `rand_perm_cam.mat`.
      scale: LLCM only: share of its identities and images, 0.01 to 1.
      seed: of what is drawn.

    Raises:
      UserError: the dataset has no rehearsal, an argument is missing, out of range or another
        dataset's.
    """
    chosen = find_dataset(dataset)
    if (exp is None) == (chosen is SYSU_MM01):
        raise UserError(
            "--exp: sysu_mm01 needs the folder of its published lists and rand_perm_cam.mat;"
            " other datasets have none"
        )
    if scale != 1 and chosen is not LLCM:
        raise UserError(f"--scale: only llcm can be scaled, not {dataset}; leave it out")
    if not 0.01 <= scale <= 1:
        raise UserError(f"--scale {scale}: must be from 0.01 to 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more")
    if exp is not None:
        return sysu_mm01_tree(exp)
    return regdb_tree(seed) if chosen is REGDB else llcm_tree(seed, scale)


def _note(dataset: Dataset, scale: float = 1.0) -> str:
    if scale != 1:
        return f"Rendered by ddag_jax: a share of {scale} of {dataset.name}'s counts\n"
    return f"{REHEARSAL} of {dataset.name}, rendered by ddag_jax: a few people stand for all\n"


def sysu_mm01_tree(exp: epath.PathLike) -> Tree:
    """Return SYSU-MM01's tree: every folder of its permutations, also of unlisted identities.

    Args:
      exp: a folder with the dataset's own lists and `rand_perm_cam.mat`, which are copied.

    Raises:
      UserError: one of these is missing or damaged, or they are of different releases.
    """
    exp = epath.Path(exp)
    if not exp.is_dir():
        raise UserError(f"--exp {exp}: no such folder")
    names = [f"{split}_id.txt" for split in sysu_mm01.SPLITS]
    faults: list[str] = []
    listed = set().union(*(read_identities(exp / name, faults) for name in names))
    folders: Mapping[str, int] = {}
    try:
        folders = read_permutations(exp / "rand_perm_cam.mat").folders
    except UserError as error:
        faults.append(str(error))
    raise_faults(faults)
    images = []
    for folder, files in folders.items():
        camera, identity = (int(part) for part in folder.removeprefix("cam").split("/"))
        images += [(f"{folder}/{n:04d}.jpg", identity, camera) for n in range(1, files + 1)]
    if missing := listed - {identity for _, identity, _ in images}:
        raise UserError(
            f"{exp}: {count(missing, 'listed identity has', 'listed identities have')} no image"
            f" in rand_perm_cam.mat ({examples(missing)}); take all from the same release"
        )
    lists = {f"exp/{name}": (exp / name).read_bytes() for name in (*names, "rand_perm_cam.mat")}
    return Tree(images, lists, _note(SYSU_MM01))


def regdb_tree(seed: int) -> Tree:
    """Return the files of RegDB, with random halves of its identities as its ten splits."""
    rng = np.random.default_rng(seed)
    published = REGDB.counts["train_1"].identities + REGDB.counts["test_1"].identities
    identities = range(1, published + 1)
    images = []
    lines: dict[tuple[str, int], list[str]] = {}
    for identity in identities:
        person = "_".join([rng.choice(["male", "female"]), rng.choice(["front", "back"])])
        for modality, top, camera in (("visible", "Visible", 1), ("thermal", "Thermal", 3)):
            for number in range(10 * identity, 10 * identity + 10):
                name = f"{top}/{identity}/{person}_{modality[0]}_{number:05d}_{identity}.bmp"
                images.append((name, identity, camera))
                lines.setdefault((modality, identity), []).append(name)
    lists = {}
    for number in regdb.SPLITS:
        order = rng.permutation(identities).tolist()
        half = len(order) // 2
        for split, members in (("train", order[:half]), ("test", order[half:])):
            for modality in ("visible", "thermal"):
                lists[f"idx/{split}_{modality}_{number}.txt"] = "".join(
                    f"{name} {label}\n"
                    for label, identity in enumerate(members)
                    for name in lines[modality, identity]
                ).encode()
    return Tree(images, lists, _note(REGDB))


def llcm_tree(seed: int, scale: float) -> Tree:
    """Return the files of LLCM, with random splits and random cameras of each identity.

    Args:
        seed: of the random numbers.
        scale: share of the dataset's identities and images.
    """
    rng = np.random.default_rng(seed)
    sizes = {split: round(scale * counts.identities) for split, counts in LLCM.counts.items()}
    order = (1 + rng.permutation(sum(sizes.values()))).tolist()
    splits = {
        "train": sorted(order[: sizes["train"]]),
        "test": sorted(order[sizes["train"] :]),
    }
    images = []
    lists = {"idx/test_id.txt": (",".join(map(str, splits["test"])) + "\n").encode()}
    for split, members in splits.items():
        published = LLCM.counts[split]
        for kind, cameras, drawn_as, total in (
            ("vis", llcm.CAMERAS["test_vis"], VISIBLE, published.visible),
            ("nir", llcm.CAMERAS["test_nir"], INFRARED, published.infrared),
        ):
            lines = []
            shares = _shares(round(total * len(members) / published.identities), len(members))
            for label, (identity, share) in enumerate(zip(members, shares, strict=True)):
                # Three to five cameras in turn, so that few identities cover all cameras.
                turn = range(3 * label, 3 * label + int(rng.integers(3, 6)))
                seen = sorted(cameras[place % len(cameras)] for place in turn)
                for camera, files in zip(seen, _shares(share, len(seen)), strict=True):
                    place = f"{kind}/{identity:04d}"
                    if split == "test":
                        place = f"test_{kind}/cam{camera}/{identity:04d}"
                    second = rng.integers(190_000, 200_000)
                    for frame in range(7_000, 7_000 + 10 * files, 10):
                        file = f"{identity:04d}_c{camera:02d}_s{second}_f{frame}_{kind}.jpg"
                        view = drawn_as[camera % len(drawn_as)]
                        images.append((f"{place}/{file}", identity, view))
                        lines.append(f"{place}/{file} {label}\n")
            if split == "train":
                lists[f"idx/train_{kind}.txt"] = "".join(lines).encode()
    return Tree(images, lists, _note(LLCM, scale))


def _shares(total: int, parts: int) -> list[int]:
    """Divide a total into parts that differ by 1 at most."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def write_tree(
    tree: Tree,
    folder: epath.PathLike,
    *,
    distinct: int,
    heights: Sequence[int],
    seed: int,
    linked: bool = True,
    progress: bool = True,
) -> None:
    """Render a few people and write their images under all names of a tree.

    Each distinct image is one file with many hard links, where the file system supports them: some
    200 files in place of tens of thousands are written, and above all removed, much faster. The
    files are read-only, since a change of one would change all of its links.

    Args:
        tree: the files.
        folder: must not exist; it appears when it is complete.
        distinct: number of people to render, 1 to 1000; identities take them in turn.
        heights: of the images in pixels. Each person has one image of each height per camera; the
            names take them in turn.
        seed: of the people.
        linked: whether to use hard links.
        progress: show a progress bar on standard error.

    Raises:
        UserError: a number is out of its range; the folder exists, or cannot be created or written.
    """
    if not 1 <= distinct <= 1000:
        raise UserError(f"--distinct {distinct}: must be from 1 to 1000")
    people = [People(train_identities=distinct, height=height, seed=seed) for height in heights]
    drawn: dict[tuple[int, int], list[bytes]] = {}
    written: dict[tuple[int, int, int], pathlib.Path] = {}
    made: set[str] = set()
    with (
        new_folder(folder) as partial,
        Progress(len(tree.images), "writing", "image", shown=progress) as bar,
    ):
        for number, (name, identity, camera) in enumerate(tree.images):
            person = 1 + identity % distinct
            parent, _, file_name = name.rpartition("/")
            if (person, camera) not in drawn:
                drawn[person, camera] = [
                    _encoded(render(one, person, camera, variant), file_name)
                    for variant, one in enumerate(people, start=1)
                ]
            if parent not in made:
                (partial / parent).mkdir(parents=True)
                made.add(parent)
            variant = number % len(people)
            path, before = partial / name, written.get((person, camera, variant))
            if not (linked and before and _link(before, path)):
                path.write_bytes(drawn[person, camera][variant])
                if linked:
                    path.chmod(0o444)
                    written[person, camera, variant] = path
            bar.update()
        for name, content in tree.lists.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(content)
        (partial / RENDERED).write_text(tree.note)


def _link(before: pathlib.Path, path: pathlib.Path) -> bool:
    """Return whether a hard link was made; not every file system, nor any number, is supported."""
    try:
        path.hardlink_to(before)
    except OSError:
        return False
    return True


def _encoded(pixels: UInt8[np.ndarray, "h w 3"], name: str) -> bytes:
    """Encode an image in the format of the name's suffix."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format="bmp" if name.endswith(".bmp") else "jpeg")
    return file.getvalue()
