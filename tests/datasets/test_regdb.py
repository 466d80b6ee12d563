import os
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
from ddag_jax.datasets.regdb import REGDB, inspect
from ddag_jax.errors import UserError
from tests.datasets.commands import call, call_prepare, fails

IDENTITIES = (3, 7, 12, 30, 41, 285)
SUFFIXES = (".bmp", ".png", ".jpg", ".BMP", ".jpeg", ".PNG")
"""Of each identity's images."""
IMAGES = 2
"""Of an identity and modality."""
SIZE = (32, 16)


def halves(trial: int) -> dict[str, list[int]]:
    """Who is in train and test of a trial, in the order of their labels."""
    order = np.random.default_rng(trial).permutation(IDENTITIES).tolist()
    return {"train": order[:3], "test": order[3:]}


def names(modality: str, identity: int) -> list[str]:
    """The images of an identity, below the dataset's folder."""
    suffix = SUFFIXES[IDENTITIES.index(identity)]
    return [
        f"{modality.title()}/{identity}/male_back_{modality[0]}_{number:05d}_{identity}{suffix}"
        for number in range(1, IMAGES + 1)
    ]


def write_tree(root: Path) -> Path:
    """RegDB of six identities: colour and grey noise, labels that restart and are not in order."""
    rng = np.random.default_rng(0)
    for modality in ("visible", "thermal"):
        for identity in IDENTITIES:
            for name in names(modality, identity):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shape = (*SIZE, 3) if modality == "visible" else SIZE
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(root / name)
    (root / "idx").mkdir()
    for trial in range(1, 11):
        for split, identities in halves(trial).items():
            for modality in ("visible", "thermal"):
                (root / "idx" / f"{split}_{modality}_{trial}.txt").write_text(
                    "".join(
                        f"{name} {label}\n"
                        for label, identity in enumerate(identities)
                        for name in names(modality, identity)
                    )
                )
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree of the test's own, to damage."""
    return write_tree(tmp_path / "regdb")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree to read only."""
    return write_tree(tmp_path_factory.mktemp("source") / "regdb")


@pytest.fixture(scope="module")
def data_dir(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, prepared; to read only."""
    folder = tmp_path_factory.mktemp("data")
    assert call_prepare("regdb", tree, folder)[0] == 0
    return folder


def config(data_dir: Path, **settings: object) -> DataConfig:
    return DataConfig(
        dataset="regdb", dir=str(data_dir), image_height=32, image_width=16, **settings
    )


# --- A sound folder ---------------------------------------------------------------------------


def test_check_says_what_there_is(tree: Path) -> None:
    """Ten alike trials are a row, and a warning where they are not the published ones."""
    code, out, error = call("check", "regdb", "--from", tree)
    assert (code, error) == (0, "")
    assert out.splitlines() == [
        "split                   identities   visible  infrared",
        "everyone                         6        12        12",
        "train_1 ... train_10             3         6         6",
        "test_1 ... test_10               3         6         6",
        "warning: everyone: 6 identities, 12 visible and 12 infrared images; published are 412"
        " identities, 4,120 visible and 4,120 infrared images",
        "warning: train_1 ... train_10: 3 identities, 6 visible and 6 infrared images; published"
        " are 206 identities, 2,060 visible and 2,060 infrared images",
        "warning: test_1 ... test_10: 3 identities, 6 visible and 6 infrared images; published"
        " are 206 identities, 2,060 visible and 2,060 infrared images",
        f"{tree}: no faults",
    ]


def test_a_trial_that_differs_has_a_row_of_its_own(source: Path) -> None:
    for modality in ("visible", "thermal"):
        drop_line(source / "idx" / f"train_{modality}_4.txt", 0)
    code, out, _ = call("check", "regdb", "--from", source)
    assert code == 0
    rows = {line[:24].strip(): line[24:].split() for line in out.splitlines()}
    assert rows["train_1 ... train_3"] == rows["train_5 ... train_10"] == ["3", "6", "6"]
    assert rows["train_4"] == ["3", "5", "5"]


@pytest.mark.parametrize("note", [b"", b"\xff\xfe", b"drawn\n", None])
def test_drawn_images_are_not_compared_with_the_published_counts(
    source: Path, note: bytes | None
) -> None:
    (source / RENDERED).write_bytes(note or b"")
    if note is None:
        os.truncate(source / RENDERED, 2**40)  # takes no room: it is all hole
    code, out, _ = call("check", "regdb", "--from", source)
    assert code == 0
    assert "warning" not in out
    assert "rendered images" in out


@pytest.mark.parametrize("trial", [1, 3, 10])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_trial_is_a_subset_of_what_is_stored_once(data_dir: Path, split: str, trial: int) -> None:
    source = open_split(data_dir, "regdb", SIZE, f"{split}_{trial}")
    identities = sorted(halves(trial)[split])
    assert source.names == [
        name
        for identity in identities
        for modality in ("visible", "thermal")
        for name in names(modality, identity)
    ]
    np.testing.assert_array_equal(source.identities, np.repeat(identities, 2 * IMAGES))
    np.testing.assert_array_equal(source.infrared, source.cameras == 2)
    np.testing.assert_array_equal(source.infrared, [False, False, True, True] * 3)
    # Contiguous, whatever the folders' numbers and the lists' labels are.
    np.testing.assert_array_equal(source.labels, np.repeat([0, 1, 2], 2 * IMAGES))
    assert source.classes == 3


def test_images_are_those_of_the_files(data_dir: Path, tree: Path) -> None:
    """BMP, PNG and JPEG, suffixes of either case, grey as three equal channels."""
    source = open_split(data_dir, "regdb", SIZE, "test_2")
    everything = open_split(data_dir, "regdb", SIZE, "everyone")
    assert len(everything) == len(IDENTITIES) * 2 * IMAGES
    assert {Path(name).suffix for name in everything.names} == set(SUFFIXES)
    for part in (source, everything):
        images = part.images(np.arange(len(part)))
        for name, image in zip(part.names, images, strict=True):
            with PIL.Image.open(tree / name) as file:
                np.testing.assert_array_equal(image, np.asarray(file.convert("RGB")))


def test_training_and_evaluation_are_the_trial_of_the_configuration(data_dir: Path) -> None:
    training, validation = training_split(config(data_dir, trial=3), seed=0)
    assert validation is None
    assert set(training.identities.tolist()) == set(halves(3)["train"])
    test = evaluation_split(config(data_dir, trial=3))
    assert set(test.identities.tolist()) == set(halves(3)["test"])

    sampler = IdentitySampler(
        training.labels, training.infrared, identities_per_batch=2, images_per_identity=3, seed=0
    )
    [batch] = training_batches(training, sampler, steps_per_epoch=1, first_step=0, last_step=1)
    assert batch.visible.shape == batch.infrared.shape == (2, 3, *SIZE, 3)
    assert set(batch.labels.tolist()) <= {0, 1, 2}
    # Thermal images are grey.
    np.testing.assert_array_equal(batch.infrared[..., 0], batch.infrared[..., 2])
    assert (batch.visible[..., 0] != batch.visible[..., 2]).any()


def test_identities_of_a_trial_can_be_held_out(data_dir: Path) -> None:
    training, validation = training_split(config(data_dir, trial=5, holdout_identities=1), seed=0)
    assert validation is not None
    assert (training.classes, validation.classes) == (2, 1)
    everyone = {*training.identities.tolist(), *validation.identities.tolist()}
    assert everyone == set(halves(5)["train"])


def test_tfds_knows_it(data_dir: Path) -> None:
    builder = tfds.builder("regdb", data_dir=data_dir, config=ImageSize.of(*SIZE))
    assert isinstance(builder, builder_class(REGDB))
    assert builder.is_prepared()
    example = builder.as_data_source("everyone")[0]
    assert example["name"].decode() == names("visible", 3)[0]
    assert (example["identity"], example["camera"], example["infrared"]) == (3, 1, False)
    assert "tensorflow" not in sys.modules


def test_tfds_builds_it_from_a_manual_folder(tree: Path, tmp_path: Path) -> None:
    builder = tfds.builder("regdb", data_dir=tmp_path, config=ImageSize.of(8, 4))
    builder.download_and_prepare(
        download_dir=tmp_path / "unused",
        download_config=tfds.download.DownloadConfig(manual_dir=tree, try_download_gcs=False),
    )
    assert len(open_split(tmp_path, "regdb", (8, 4), "train_7")) == 3 * 2 * IMAGES


def test_lists_as_windows_writes_them(source: Path, tmp_path: Path) -> None:
    for path in (source / "idx").iterdir():
        lines = path.read_text().splitlines()
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", " "]).encode())
    assert call_prepare("regdb", source, tmp_path / "data")[0] == 0
    assert len(open_split(tmp_path / "data", "regdb", SIZE, "train_1")) == 3 * 2 * IMAGES


def test_a_suffix_may_be_spelt_otherwise_on_disk(source: Path, tmp_path: Path) -> None:
    [image, _] = names("visible", 3)
    (source / image).rename((source / image).with_suffix(".BMP"))
    assert call_prepare("regdb", source, tmp_path / "data")[0] == 0
    stored = open_split(tmp_path / "data", "regdb", SIZE, "everyone").names
    assert image[:-4] + ".BMP" in stored
    assert image not in stored


def test_what_is_in_no_list_is_ignored_and_may_be_bad(source: Path, tmp_path: Path) -> None:
    (source / "Visible" / "3" / "another.bmp").write_bytes(b"")
    (source / "Visible" / "99").mkdir()
    (source / "Visible" / "99" / "stranger.bmp").write_bytes(b"")
    (source / "Visible" / "3" / "Thumbs.db").write_bytes(b"x")
    (source / "Thermal" / "3" / "._hidden.bmp").write_bytes(b"x")
    (source / "Thermal" / "notes").mkdir()
    (source / "readme.txt").write_text("x")
    code, out, error = call_prepare("regdb", source, tmp_path / "data")
    assert (code, error) == (0, "")
    assert "(2 more images are in no list: ignored)" in out


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image redrawn": lambda root: (root / names("thermal", 7)[0]).write_bytes(
        (root / names("visible", 285)[0]).read_bytes()
    ),
    "one identity trains in another's place": lambda root: [
        swap_identities(root, 3, *halves(3)["train"][:1], *halves(3)["test"][:1])
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_source_is_refused(source: Path, tmp_path: Path, change: str) -> None:
    to = tmp_path / "data"
    assert call_prepare("regdb", source, to)[0] == 0
    code, out, _ = call_prepare("regdb", source, to)
    assert code == 0
    assert "already prepared from this source" in out
    CHANGES[change](source)
    code, _, error = call_prepare("regdb", source, to)
    assert code == 2
    assert "was prepared from another source" in error
    assert call_prepare("regdb", source, to, "--overwrite")[0] == 0
    assert [path.name for path in (to / "regdb" / "32x16").iterdir()] == [VERSION]


# --- A damaged folder -------------------------------------------------------------------------


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Changes the lines of a list."""
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def drop_line(path: Path, number: int) -> None:
    edit(path, lambda lines: lines[:number] + lines[number + 1 :])


def swap_identities(root: Path, trial: int, one: int, other: int) -> None:
    """Puts a person of train into test, and one of test into train."""
    for modality in ("visible", "thermal"):
        for split in ("train", "test"):
            path = root / "idx" / f"{split}_{modality}_{trial}.txt"
            text = path.read_text()
            for mine, theirs in zip(names(modality, one), names(modality, other), strict=True):
                text = text.replace(mine, "\0").replace(theirs, mine).replace("\0", theirs)
            path.write_text(text)


def add(name: str, *more: str) -> Callable[[Path], None]:
    """Adds lines at the end of a list."""
    return lambda root: edit(root / "idx" / f"{name}.txt", lambda lines: lines + list(more))


TRAIN, TEST = halves(3)["train"], halves(3)["test"]
VISIBLE, THERMAL = names("visible", TRAIN[0]), names("thermal", TRAIN[0])
LIKE = "; write lines like Visible/0001/IMAGE.jpg 0"
COPY = "; copy them from the original"

DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a trial missing": (
        lambda root: [path.unlink() for path in root.glob("idx/*_7.txt")],
        [
            "4 lists are not there (idx/train_visible_7.txt, idx/train_thermal_7.txt,"
            " idx/test_visible_7.txt, ...)" + COPY
        ],
    ),
    "a list missing": (
        lambda root: (root / "idx" / "test_thermal_2.txt").unlink(),
        ["1 list is not there (idx/test_thermal_2.txt)" + COPY],
    ),
    "a list empty": (
        lambda root: (root / "idx" / "test_thermal_2.txt").write_text("\n\n"),
        ["1 list names no image (idx/test_thermal_2.txt); copy them again from the original"],
    ),
    "a list of bytes": (
        lambda root: (root / "idx" / "test_thermal_2.txt").write_bytes(b"\xff\xfe\x00V" * 9),
        ["idx/test_thermal_2.txt: is not text in UTF-8; save it as UTF-8"],
    ),
    "a folder in a list's place": (
        lambda root: (
            (root / "idx" / "train_visible_1.txt").unlink(),
            (root / "idx" / "train_visible_1.txt").mkdir(),
        ),
        ["1 list is not there (idx/train_visible_1.txt)" + COPY],
    ),
    "a pipe in a list's place": (
        lambda root: (
            (root / "idx" / "train_visible_1.txt").unlink(),
            os.mkfifo(root / "idx" / "train_visible_1.txt"),
        ),
        ["1 list is not there (idx/train_visible_1.txt)" + COPY],
    ),
    "lines without a label": (
        add("train_visible_3", VISIBLE[0], "nonsense", VISIBLE[1] + " one", VISIBLE[1] + " -1"),
        [
            f"4 lines are not a path and a label (idx/train_visible_3.txt line 7: '{VISIBLE[0]}',"
            " idx/train_visible_3.txt line 8: 'nonsense',"
            f" idx/train_visible_3.txt line 9: '{VISIBLE[1]} one', ...)" + LIKE
        ],
    ),
    "paths that leave the folder": (
        add(
            "test_thermal_3",
            "../secret/1/a.bmp 0",
            "Thermal/../../a.bmp 0",
            "/etc/1/a.bmp 0",
            "..\\secret\\1\\a.bmp 0",
            "C:/Thermal/1/a.bmp 0",
        ),
        [
            "5 lines lead out of the folder (idx/test_thermal_3.txt line 7: '../secret/1/a.bmp 0',"
            " idx/test_thermal_3.txt line 8: 'Thermal/../../a.bmp 0',"
            " idx/test_thermal_3.txt line 9: '/etc/1/a.bmp 0', ...)" + LIKE
        ],
    ),
    "a path of the other modality": (
        add("train_visible_3", THERMAL[0] + " 0"),
        [
            "1 line names no image of its list's folder (idx/train_visible_3.txt line 7:"
            f" '{THERMAL[0]} 0')" + LIKE
        ],
    ),
    "a path with a terminal's codes, without end": (
        add("train_visible_3", "Visible/\x1b[31m" + "x" * 10_000 + " 0"),
        [
            "1 line names no image of its list's folder (idx/train_visible_3.txt line 7:"
            f" 'Visible/\\x1b[31m{'x' * 64}...')" + LIKE
        ],
    ),
    "an image deleted": (
        lambda root: (root / VISIBLE[1]).unlink(),
        [f"1 listed image is not there ('{VISIBLE[1]}' of idx/", COPY],
    ),
    "a person's infrared images deleted": (
        lambda root: shutil.rmtree(root / "Thermal" / str(TRAIN[0])),
        [f"2 listed images are not there ('{THERMAL[0]}' of idx/", COPY],
    ),
    "a person not listed in one modality": (
        lambda root: edit(
            root / "idx" / "train_thermal_3.txt",
            lambda lines: [line for line in lines if f"/{TRAIN[0]}/" not in line],
        ),
        [
            f"the lists of train_3: 1 identity without infrared image ({TRAIN[0]}); add the images"
            " or take them off the list"
        ],
    ),
    "lines twice": (
        add("train_thermal_3", THERMAL[0] + " 0", THERMAL[1] + " 0"),
        [
            "2 lines repeat a line before them (idx/train_thermal_3.txt line 7:"
            f" '{THERMAL[0]} 0', idx/train_thermal_3.txt line 8: '{THERMAL[1]} 0'); list each"
            " image once"
        ],
    ),
    "a wrong label": (
        lambda root: edit(
            root / "idx" / "train_thermal_3.txt",
            lambda lines: [lines[0].replace(" 0", " 2"), *lines[1:]],
        ),
        [
            "1 line has another label than the rest of its identity (idx/train_thermal_3.txt"
            f" line 1: 2, not 0, for '{THERMAL[0]}'); take the lists from one release"
        ],
    ),
    "a label for two people": (
        lambda root: [
            edit(
                root / "idx" / f"test_{modality}_3.txt",
                lambda lines: [line.replace(" 1", " 0") for line in lines],
            )
            for modality in ("visible", "thermal")
        ],
        [
            "1 label stands for more than one identity (test_3: 0 for"
            f" {', '.join(map(str, sorted(TEST[:2])))}); take the lists from one release"
        ],
    ),
    "someone in train and test": (
        lambda root: [
            add(
                f"test_{modality}_3", *(f"{name} 3" for name in names(modality, TRAIN[0]))
            )(root)
            for modality in ("visible", "thermal")
        ],
        [f"idx: 1 identity in both train_3 and test_3 ({TRAIN[0]}); keep each in one list"],
    ),
    "two folders of one number": (
        lambda root: shutil.copytree(root / "Visible" / "3", root / "Visible" / "0003"),
        ["1 identity has two folders (Visible/0003 and Visible/3); keep one of each"],
    ),
    "an empty image": (
        lambda root: (root / VISIBLE[0]).write_bytes(b""),
        [f"{VISIBLE[0]}: is empty (0 bytes)"],
    ),
    "a link to nowhere": (
        lambda root: (
            (root / VISIBLE[0]).unlink(),
            (root / VISIBLE[0]).symlink_to(root / "nowhere.bmp"),
        ),
        [f"{VISIBLE[0]}: cannot be read as an image"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage(source: Path, tmp_path: Path, damage: str) -> None:
    spoil, told = DAMAGE[damage]
    spoil(source)
    error = fails("regdb", source, tmp_path / "data")
    assert "\n" not in error
    for part in told:
        assert part in error


def test_all_faults_at_once(source: Path, tmp_path: Path) -> None:
    (source / "idx" / "test_thermal_7.txt").unlink()
    add("train_visible_1", "../a.bmp 0", "nonsense")(source)
    (source / names("visible", 41)[0]).unlink()
    (source / names("visible", 30)[0]).write_bytes(b"")
    drop_line(source / "idx" / "test_visible_9.txt", 0)
    drop_line(source / "idx" / "test_visible_9.txt", 0)
    first, *rest = fails("regdb", source, tmp_path / "data").split("\n  ")
    assert first == "error: 6 faults:"
    told = (
        "not there",
        "not a path",
        "out of the folder",
        "listed image is not",
        "without",
        "empty",
    )
    for fault, part in zip(rest, told, strict=True):
        assert part in fault


def test_a_list_without_end_is_not_read(source: Path) -> None:
    os.truncate(source / "idx" / "test_visible_1.txt", 2**40)  # takes no room: it is all hole
    faults = inspect(source)[1]
    assert len(faults) == 1
    assert "test_visible_1.txt: is longer than any list (16 MiB); copy it again" in faults[0]


def test_random_damage_to_a_list_is_told_and_leads_nowhere_else(source: Path) -> None:
    """Whatever a list says, inspecting ends, and names only images that were found by looking."""
    path = source / "idx" / "train_visible_3.txt"
    content = path.read_bytes()
    (source.parent / "outside.bmp").write_bytes(b"x")
    found = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    rng = np.random.default_rng(0)
    pieces = [b"../", b"/", b"\\", b"\0", b"\n", b"\r", b" ", b"\xff", b"Thermal/", b"9" * 40, b""]
    for _ in range(150):
        start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        end = min(end, start + 6)
        piece = pieces[rng.integers(len(pieces))]
        path.write_bytes(content[:start] + piece + content[end:])
        layout, faults = inspect(source)
        assert all("\n" not in fault for fault in faults)
        assert {record.name for record in layout.images["everyone"]} <= found


@pytest.mark.parametrize("given", ["up", "idx", "Visible", "missing"])
def test_a_wrong_folder(source: Path, tmp_path: Path, given: str) -> None:
    (source.parent / "elsewhere").mkdir()
    folder = source.parent if given == "up" else source / given
    error = fails("regdb", folder, tmp_path / "data")
    if given == "missing":
        told = "no such folder; give the folder that holds Visible, Thermal and idx"
    else:
        told = f"did you mean {source}?"
    assert told in error


def test_no_lists(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "idx")
    error = fails("regdb", source, tmp_path / "data")
    assert "has no idx; give the folder that holds Visible, Thermal and idx" in error


def test_an_archive_beside_what_is_missing(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "Thermal")
    (source / "Thermal.zip").write_bytes(b"x")
    error = fails("regdb", source, tmp_path / "data")
    assert "has no Thermal; Thermal.zip is not unpacked: unpack it there" in error


def test_an_error_of_the_builder_is_the_same(source: Path, tmp_path: Path) -> None:
    """A folder given to TFDS itself is inspected too."""
    (source / "idx" / "test_thermal_2.txt").unlink()
    builder = tfds.builder("regdb", data_dir=tmp_path / "data", config=ImageSize.of(8, 4))
    with pytest.raises(UserError, match="1 list is not there"):
        builder.download_and_prepare(
            download_dir=tmp_path / "unused",
            download_config=tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False),
        )
