import itertools
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from ddag_jax.config import DataConfig
from ddag_jax.data.loader import evaluation_split, open_split, training_batches, training_split
from ddag_jax.data.sampler import IdentitySampler
from ddag_jax.datasets.builder import VERSION, ImageSize, builder_class
from ddag_jax.datasets.checks import RENDERED
from ddag_jax.datasets.llcm import LLCM, inspect
from tests.datasets.commands import call, call_prepare, fails

TRAIN = (1, 4, 20, 713)
TEST = (3, 9, 1064)
STRANGER = 77
"""In the folders, in no list."""
CAMERAS = {"vis": range(1, 10), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}
FOLDERS = [f"test_{kind}/cam{camera}" for kind in CAMERAS for camera in CAMERAS[kind]]
SIZE = (32, 16)
SUFFIXES = (".jpg", ".PNG", ".bmp", ".png")


def training_names(kind: str, identity: int) -> list[str]:
    """Images of a training identity, of cameras 1 and 9."""
    suffix = SUFFIXES[TRAIN.index(identity)]
    return [
        f"{kind}/{identity:04d}/{identity:04d}_c{camera:02d}_s185535_f7010_{kind}{suffix}"
        for camera in (1, 9)
    ]


def names_to_test(kind: str, camera: int, identity: int) -> list[str]:
    """Images of a test identity: of a camera, as many as its number's remainder by 3, plus 1."""
    return [
        f"test_{kind}/cam{camera}/{identity:04d}/{identity:04d}_c{camera:02d}_s1_f{n}_{kind}.jpg"
        for n in (900, 1000, 99)[: camera % 3 + 1]  # f99 sorts after f1000
    ]


def save(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = SIZE if "nir" in path.name else (*SIZE, 3)
    kind = {".jpg": "png"}.get(path.suffix.lower(), path.suffix[1:].lower())
    # PNGs named .jpg, so that pixels survive.
    PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path, format=kind)


def write_tree(root: Path) -> Path:
    """LLCM of four identities to train on and three to test; not each camera sees everyone."""
    rng = np.random.default_rng(0)
    labels = np.random.default_rng(1).permutation(len(TRAIN)).tolist()
    (root / "idx").mkdir(parents=True)
    for kind in CAMERAS:
        lines = []
        for label, identity in zip(labels, TRAIN, strict=True):
            for name in training_names(kind, identity):
                save(root / name, rng)
                lines.append(f"{name} {label}\n")
        (root / "idx" / f"train_{kind}.txt").write_text("".join(lines))
        for identity in (*TEST, STRANGER):
            # As distributed, these folders hold the test images too.
            save(root / kind / f"{identity:04d}" / f"{identity:04d}_c01_s1_f1_{kind}.jpg", rng)
            for camera in CAMERAS[kind]:
                if (identity, camera) != (9, 2):
                    for name in names_to_test(kind, camera, identity):
                        save(root / name, rng)
    (root / "idx" / "test_id.txt").write_text(",".join(map(str, TEST)) + "\n")
    # What the authors' plots read; the protocol does not.
    (root / "idx" / "test_vis.txt").write_text("no such file 0\n")
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree of the test's own, to damage."""
    return write_tree(tmp_path / "llcm")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree to read only."""
    return write_tree(tmp_path_factory.mktemp("source") / "llcm")


@pytest.fixture(scope="module")
def data_dir(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, prepared; to read only."""
    folder = tmp_path_factory.mktemp("data")
    assert call_prepare("llcm", tree, folder)[0] == 0
    return folder


def config(data_dir: Path, **settings: object) -> DataConfig:
    return DataConfig(
        dataset="llcm", dir=str(data_dir), image_height=32, image_width=16, **settings
    )


# --- A sound folder ---------------------------------------------------------------------------


def test_check_says_what_there_is(tree: Path) -> None:
    code, out, error = call("check", "llcm", "--from", tree)
    assert (code, error) == (0, "")
    # 18 visible and 17 infrared test images of each identity, less camera 2's of one.
    assert out.splitlines() == [
        "split           identities   visible  infrared",
        "train                    4         8         8",
        "test                     3        51        48",
        "(1 more identity is in no list: ignored)",
        "warning: train: 4 identities, 8 visible and 8 infrared images; published are 713"
        " identities, 16,946 visible and 13,975 infrared images",
        "warning: test: 3 identities, 51 visible and 48 infrared images; published are 351"
        " identities, 8,680 visible and 7,166 infrared images",
        f"{tree}: no faults",
    ]


def test_drawn_images_are_not_compared_with_the_published_counts(source: Path) -> None:
    (source / RENDERED).write_text("")
    code, out, _ = call("check", "llcm", "--from", source)
    assert code == 0
    assert "warning" not in out


def test_the_training_images_are_the_lists(data_dir: Path, tree: Path) -> None:
    source, validation = training_split(config(data_dir), seed=0)
    assert validation is None
    assert source.names == [
        name
        for identity in TRAIN
        for camera in (0, 1)
        for kind in ("nir", "vis")
        for name in [training_names(kind, identity)[camera]]
    ]
    np.testing.assert_array_equal(source.identities, np.repeat(TRAIN, 4))
    np.testing.assert_array_equal(source.cameras, [1, 1, 9, 9] * 4)
    np.testing.assert_array_equal(source.infrared, [True, False] * 8)
    np.testing.assert_array_equal(source.labels, np.repeat([0, 1, 2, 3], 4))
    images = source.images(np.arange(len(source)))
    for name, image in zip(source.names, images, strict=True):
        with PIL.Image.open(tree / name) as file:
            np.testing.assert_array_equal(image, np.asarray(file.convert("RGB")))

    sampler = IdentitySampler(
        source.labels, source.infrared, identities_per_batch=3, images_per_identity=2, seed=0
    )
    [batch] = training_batches(source, sampler, steps_per_epoch=1, first_step=0, last_step=1)
    assert batch.visible.shape == batch.infrared.shape == (3, 2, *SIZE, 3)
    np.testing.assert_array_equal(batch.infrared[..., 0], batch.infrared[..., 2])
    assert (batch.visible[..., 0] != batch.visible[..., 2]).any()


@pytest.mark.parametrize("kind", ["vis", "nir"])
def test_the_test_images_lie_in_the_order_that_galleries_are_drawn_in(
    data_dir: Path, tree: Path, kind: str
) -> None:
    """Identities as numbers, cameras ascending, files as sorted: a draw by position is theirs."""
    source = evaluation_split(config(data_dir))
    of_kind = source.subset(source.infrared == (kind == "nir"))
    folders = [
        f"test_{kind}/cam{camera}/{identity:04d}"
        for identity in sorted(TEST)
        for camera in CAMERAS[kind]
        if (tree / f"test_{kind}/cam{camera}/{identity:04d}").is_dir()
    ]
    files = [sorted(f"{folder}/{name}" for name in os.listdir(tree / folder)) for folder in folders]
    assert of_kind.names == list(itertools.chain(*files))
    np.testing.assert_array_equal(
        of_kind.cameras, [int(name.split("cam")[1][0]) for name in of_kind.names]
    )
    draw = random.Random(5)
    drawn = [draw.choice(of_folder) for of_folder in files]
    again = random.Random(5)
    ours = np.stack([of_kind.identities, of_kind.cameras])
    starts = np.flatnonzero((ours[:, 1:] != ours[:, :-1]).any(axis=0)) + 1
    groups = np.split(np.arange(len(of_kind)), starts)
    assert [of_kind.names[again.choice(group.tolist())] for group in groups] == drawn


def test_identities_can_be_held_out(data_dir: Path) -> None:
    training, validation = training_split(config(data_dir, holdout_identities=2), seed=0)
    assert validation is not None
    assert (training.classes, validation.classes) == (2, 2)


def test_tfds_knows_it(data_dir: Path) -> None:
    builder = tfds.builder("llcm", data_dir=data_dir, config=ImageSize.of(*SIZE))
    assert isinstance(builder, builder_class(LLCM))
    assert builder.is_prepared()
    example = builder.as_data_source("train")[0]
    assert example["name"].decode() == training_names("nir", 1)[0]
    assert (example["identity"], example["camera"], example["infrared"]) == (1, 1, True)
    assert len(builder.as_data_source("test")) == 99
    assert "tensorflow" not in sys.modules


def test_names_that_say_no_camera(source: Path, tmp_path: Path) -> None:
    [name, _] = training_names("vis", 4)
    (source / name).rename(source / "vis" / "0004" / "a.png")
    path = source / "idx" / "train_vis.txt"
    path.write_text(path.read_text().replace(name, "vis/0004/a.png"))
    code, out, _ = call_prepare("llcm", source, tmp_path / "data")
    assert code == 0
    assert "(1 training image has no camera in the name: taken for camera 0)" in out
    stored = open_split(tmp_path / "data", "llcm", SIZE, "train")
    assert stored.cameras[stored.names.index("vis/0004/a.png")] == 0


def test_what_is_in_no_list_may_be_bad(source: Path, tmp_path: Path) -> None:
    for folder in ("vis/0001", "nir/0077", "test_vis/cam1/0077", "test_nir/cam3/0003"):
        (source / folder).mkdir(parents=True, exist_ok=True)
        (source / folder / "bad.jpg").write_bytes(b"")
    for name in ("Thumbs.db", "._0003.jpg", ".DS_Store"):
        (source / "test_vis/cam1/0003" / name).write_bytes(b"x")
    (source / "test_vis/cam1/notes").mkdir()
    assert call_prepare("llcm", source, tmp_path / "data")[0] == 0
    assert len(open_split(tmp_path / "data", "llcm", SIZE, "test")) == 99


def test_links_within_the_folder_are_followed(source: Path, tmp_path: Path) -> None:
    """Some copies have links in test_vis and test_nir to the images of vis and nir."""
    path = source / names_to_test("vis", 1, 3)[0]
    path.unlink()
    path.symlink_to("../../../vis/0003/0003_c01_s1_f1_vis.jpg")
    assert call_prepare("llcm", source, tmp_path / "data")[0] == 0


def test_files_of_an_owner_without_a_name(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, or of someone who has left."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert inspect(source)[1] == []


CHANGES: dict[str, Callable[[Path], object]] = {
    "a test image less": lambda root: (root / names_to_test("nir", 1, 3)[0]).unlink(),
    "a training image less": lambda root: edit(
        root / "idx" / "train_nir.txt", lambda lines: lines[1:]
    ),
    "a person less": lambda root: (root / "idx" / "test_id.txt").write_text("3,9"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_source_is_refused(source: Path, tmp_path: Path, change: str) -> None:
    to = tmp_path / "data"
    assert call_prepare("llcm", source, to)[0] == 0
    assert "already prepared from this source" in call_prepare("llcm", source, to)[1]
    CHANGES[change](source)
    code, _, error = call_prepare("llcm", source, to)
    assert code == 2
    assert "was prepared from another source" in error
    assert call_prepare("llcm", source, to, "--overwrite")[0] == 0
    assert [path.name for path in (to / "llcm" / "32x16").iterdir()] == [VERSION]


# --- A damaged folder -------------------------------------------------------------------------


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Changes the lines of a list."""
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def add(kind: str, *more: str) -> Callable[[Path], None]:
    """Adds lines at the end of a training list."""
    return lambda root: edit(root / "idx" / f"train_{kind}.txt", lambda lines: lines + list(more))


def without(root: Path, part: str, kind: str) -> None:
    """Takes lines out of a training list."""
    edit(
        root / "idx" / f"train_{kind}.txt",
        lambda lines: [line for line in lines if part not in line],
    )


def remove(root: Path, pattern: str) -> None:
    for folder in root.glob(pattern):
        shutil.rmtree(folder)


LIKE = "; write lines like vis/0001/IMAGE.jpg 0"
COPY = "; copy them from the original"
IMAGE = training_names("nir", 20)[0]

DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a training list missing": (
        lambda root: (root / "idx" / "train_nir.txt").unlink(),
        ["1 list is not there (idx/train_nir.txt)" + COPY],
    ),
    "a training list empty": (
        lambda root: (root / "idx" / "train_vis.txt").write_text(""),
        ["1 list names no image (idx/train_vis.txt)"],
    ),
    "no list of test identities": (
        lambda root: (root / "idx" / "test_id.txt").unlink(),
        ["idx/test_id.txt: no such file; it lists identities separated by commas"],
    ),
    "words among the test identities": (
        lambda root: (root / "idx" / "test_id.txt").write_text("3,9,x,1064"),
        ["idx/test_id.txt: 1 entry is not a whole number ('x'); list identities like 1,2,3"],
    ),
    "a test identity twice": (
        lambda root: (root / "idx" / "test_id.txt").write_text("3,9,1064,9"),
        ["idx/test_id.txt: 1 identity is listed more than once (9); list each once"],
    ),
    "a line without label": (
        add("nir", IMAGE),
        [f"1 line is not a path and a label (idx/train_nir.txt line 9: '{IMAGE}')" + LIKE],
    ),
    "a path that leaves the folder": (
        add("nir", "nir/../../outside.jpg 0"),
        [
            "1 line leads out of the folder (idx/train_nir.txt line 9: 'nir/../../outside.jpg 0')"
            + LIKE
        ],
    ),
    "a test image to train on": (
        add("vis", f"{names_to_test('vis', 1, 3)[0]} 4"),
        ["1 line names no image of its list's folder (idx/train_vis.txt line 9: 'test_vis/"],
    ),
    "an image deleted": (
        lambda root: (root / IMAGE).unlink(),
        [f"1 listed image is not there ('{IMAGE}' of idx/train_nir.txt line 5)" + COPY],
    ),
    "a line twice": (
        lambda root: edit(root / "idx" / "train_nir.txt", lambda lines: [lines[0], *lines]),
        ["1 line repeats a line before it (idx/train_nir.txt line 2: 'nir/0001/"],
    ),
    "someone listed in one modality": (
        lambda root: without(root, "/0020/", "nir"),
        ["idx/train_vis.txt and idx/train_nir.txt: 1 identity without infrared image (20); add"],
    ),
    "a wrong label": (
        lambda root: edit(
            root / "idx" / "train_vis.txt", lambda lines: [lines[0][:-1] + "8", *lines[1:]]
        ),
        ["1 line has another label than the rest of its identity (idx/train_vis.txt line 1: 8"],
    ),
    "a label for two people": (
        lambda root: [
            edit(
                root / "idx" / f"train_{kind}.txt",
                lambda lines: [*lines[:6], *(line[:-1] + lines[0][-1] for line in lines[6:])],
            )
            for kind in CAMERAS
        ],
        ["1 label stands for more than one identity (train: ", " for 1, 713); take"],
    ),
    "someone in train and test": (
        lambda root: [
            add(kind, f"{kind}/0009/0009_c01_s1_f1_{kind}.jpg 4")(root) for kind in CAMERAS
        ],
        ["idx: 1 identity in both the training lists and test_id.txt (9); keep each in one list"],
    ),
    "a camera missing": (
        lambda root: [remove(root, "test_vis/cam3"), remove(root, "test_nir/cam8")],
        ["2 folders are not there (test_nir/cam8, test_vis/cam3)" + COPY],
    ),
    "a test identity without folders": (
        lambda root: (root / "idx" / "test_id.txt").write_text("3,9,10,1064"),
        ["idx/test_id.txt: 1 identity without any image (10); add the images or take them off"],
    ),
    "a test identity in one modality": (
        lambda root: remove(root, "test_nir/cam*/0009"),
        ["idx/test_id.txt: 1 identity without infrared image (9); add the images or take them off"],
    ),
    "two folders of one number": (
        lambda root: shutil.copytree(root / "test_nir/cam1/0003", root / "test_nir/cam1/3"),
        ["1 identity has two folders (test_nir/cam1/0003 and test_nir/cam1/3); keep one of each"],
    ),
    "an image cut short": (
        lambda root: (root / names_to_test("vis", 1, 3)[0]).write_bytes(
            (root / names_to_test("vis", 1, 3)[0]).read_bytes()[:-200]
        ),
        [f"{names_to_test('vis', 1, 3)[0]}: cannot be read as an image"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage(source: Path, tmp_path: Path, damage: str) -> None:
    spoil, told = DAMAGE[damage]
    spoil(source)
    error = fails("llcm", source, tmp_path / "data")
    assert "\n" not in error
    for part in told:
        assert part in error


def test_all_faults_at_once(source: Path, tmp_path: Path) -> None:
    add("vis", "nonsense", "../a.jpg 0")(source)
    (source / "idx" / "test_id.txt").write_text("3,9,1064,x")
    (source / training_names("vis", 4)[0]).unlink()
    (source / training_names("vis", 4)[1]).write_bytes(b"")
    remove(source, "test_nir/cam8")
    first, *rest = fails("llcm", source, tmp_path / "data").split("\n  ")
    assert first == "error: 6 faults:"
    told = (
        "not a path",
        "out of the",
        "listed image is not",
        "whole number",
        "1 folder is",
        "empty",
    )
    for fault, part in zip(rest, told, strict=True):
        assert part in fault


@pytest.mark.parametrize("given", ["up", "idx", "test_vis", "missing"])
def test_a_wrong_folder(source: Path, tmp_path: Path, given: str) -> None:
    (source.parent / "elsewhere").mkdir()
    folder = source.parent if given == "up" else source / given
    error = fails("llcm", folder, tmp_path / "data")
    if given == "missing":
        told = "no such folder; give the folder that holds vis, nir, test_vis, test_nir and idx"
    else:
        told = f"did you mean {source}?"
    assert told in error


def test_the_training_half_alone(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "test_vis")
    shutil.rmtree(source / "test_nir")
    assert "llcm: has no test_vis, test_nir; give" in fails("llcm", source, tmp_path / "data")


def test_lists_written_on_windows_are_read(source: Path) -> None:
    """Backslashes between folders."""
    expected, _ = inspect(source)
    for kind in ("vis", "nir"):
        path = source / "idx" / f"train_{kind}.txt"
        path.write_text(path.read_text().replace("/", "\\"))
    assert inspect(source) == (expected, [])
