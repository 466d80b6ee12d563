import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from etils import epath

from ddag_jax.cli.main import run
from ddag_jax.data.loader import open_split
from ddag_jax.datasets.builder import VERSION, ImageSize, builder_class
from ddag_jax.datasets.checks import RENDERED, Counts
from ddag_jax.datasets.images import read_image
from ddag_jax.datasets.prepare import check
from ddag_jax.datasets.sysu_mm01 import SYSU_MM01
from ddag_jax.errors import UserError
from tests.datasets.commands import call, call_prepare, fails

MakeTree = Callable[[], Path]


# --- A sound folder ---------------------------------------------------------------------------


def test_check_says_what_there_is(tree: Path) -> None:
    code, out, error = call("check", "sysu_mm01", "--from", tree)
    assert (code, error) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[:4] == [
        ["split", "identities", "visible", "infrared"],
        ["train", "4", "32", "16"],
        ["val", "2", "16", "8"],
        ["test", "2", "16", "8"],
    ]
    assert "(1 more identity is in no list: ignored)" in out
    assert out.endswith("no faults\n")


def test_counts_are_compared_with_the_published_ones(tree: Path) -> None:
    warnings = [
        line
        for line in call("check", "sysu_mm01", "--from", tree)[1].splitlines()
        if line.startswith("warning: ")
    ]
    assert warnings[:2] == [
        "warning: train: 4 identities, 32 visible and 16 infrared images; published are 296"
        " identities, 20,284 visible and 9,929 infrared images",
        "warning: val: 2 identities, 16 visible and 8 infrared images; published are 99"
        " identities, 1,974 visible and 1,980 infrared images",
    ]
    assert [line.split(":")[1].strip() for line in warnings] == [
        "train",
        "val",
        "train+val",
        "test",
    ]


def test_counts_that_are_the_published_ones(tree: Path) -> None:
    own = {"train": Counts(4, 32, 16), "train+val": Counts(6, 48, 24)}
    summary = check("sysu_mm01", tree).summary(own)
    assert "warning" not in summary
    assert summary.endswith("\ncounts are the published ones")


@pytest.mark.parametrize(
    ("marker", "told", "warnings"),
    [
        ("Rendered by ddag_jax", "rendered images in the dataset's layout: not compared", False),
        ("rehearsal of sysu_mm01", "rendered images, a rehearsal of the whole dataset", True),
    ],
)
def test_rendered_images_are_marked(
    make_tree: MakeTree, tmp_path: Path, marker: str, told: str, warnings: bool
) -> None:
    source = make_tree()
    (source / RENDERED).write_text(marker)
    code, out, _ = call_prepare("sysu_mm01", source, tmp_path / "data")
    assert code == 0
    assert told in out
    assert ("warning: train: 4 identities" in out) == warnings
    assert "published ones" not in out
    assert open_split(tmp_path / "data", "sysu_mm01", (32, 16), "test").rendered


def test_prepare_again_is_reused_and_sizes_coexist(tree: Path, tmp_path: Path) -> None:
    code, out, error = call_prepare("sysu_mm01", tree, tmp_path)
    assert (code, error) == (0, "")
    assert "train                    4        32        16" in out
    folder = tmp_path / "sysu_mm01" / "32x16" / VERSION
    assert f"{folder}: prepared" in out
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["sysu_mm01"]

    code, out, error = call_prepare("sysu_mm01", tree, tmp_path)
    assert (code, error) == (0, "")
    assert "already prepared from this source, kept" in out
    assert written == {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    code, _, _ = call(
        "prepare", "sysu_mm01", "--from", tree, "--to", tmp_path, "--image-size", 8, 4
    )
    assert code == 0
    assert open_split(tmp_path, "sysu_mm01", (8, 4), "val").images(np.arange(2)).shape[1:3] == (
        8,
        4,
    )
    assert len(open_split(tmp_path, "sysu_mm01", (32, 16), "test")) == 24


def test_changed_content_is_noticed_under_the_same_names_and_sizes(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    """As of RegDB's bitmaps, which are all of one size."""
    source, data = make_tree(), tmp_path / "data"
    _, out, _ = call_prepare("sysu_mm01", source, data)
    before = open_split(data, "sysu_mm01", (32, 16), "test").fingerprint
    image = source / "cam3" / "0007" / "0001.jpg"
    os.utime(image, (1, 1))
    code, out, _ = call_prepare("sysu_mm01", source, data)
    assert code == 0
    assert "kept (its files were modified, and have the same checksums)" in out
    content = image.read_bytes()
    pixels = PIL.Image.open(image).convert("RGB").point(lambda value: 255 - value)
    pixels.save(image, "png")
    changed = image.read_bytes()
    size = max(len(content), len(changed))
    image.write_bytes(content.ljust(size, b"\0"))  # what follows an image is not read
    code, out, _ = call_prepare("sysu_mm01", source, data, "--overwrite")
    assert "prepared\n" in out
    image.write_bytes(changed.ljust(size, b"\0"))
    os.utime(image, (1, 1))
    code, _, error = call_prepare("sysu_mm01", source, data)
    assert code == 2
    assert "was prepared from files of the same names and sizes with other content" in error
    code, out, _ = call_prepare("sysu_mm01", source, data, "--overwrite")
    assert code == 0
    assert open_split(data, "sysu_mm01", (32, 16), "test").fingerprint != before


def test_a_store_without_checksums_is_kept_and_says_so(tree: Path, tmp_path: Path) -> None:
    """One of an earlier version."""
    call_prepare("sysu_mm01", tree, tmp_path)
    (stored,) = tmp_path.rglob("metadata.json")
    metadata = json.loads(stored.read_text())
    del metadata["checksum"], metadata["stamp"]
    stored.write_text(json.dumps(metadata))
    _, out, _ = call_prepare("sysu_mm01", tree, tmp_path)
    assert "kept (names and sizes of its files are the same; an earlier version prepared it" in out
    _, out, _ = call_prepare("sysu_mm01", tree, tmp_path, "--overwrite")
    assert out.endswith(": prepared\n")


@pytest.mark.parametrize("dataset", ["sysu_mm01", "folder"])
def test_a_name_that_is_not_utf_8_is_a_fault(
    dataset: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    """As in an archive of a Chinese Windows."""
    source = make_tree()
    if dataset == "folder":
        for camera, modality in ((1, "visible"), (3, "infrared")):
            (source / f"cam{camera}").rename(source / modality)
    folder = next((source / ("visible" if dataset == "folder" else "cam1")).iterdir())
    name = os.fsdecode(b"\xd5\xd5\xc6\xff.jpg")
    try:
        (folder / name).write_bytes((folder / "0001.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    error = fails(dataset, source, tmp_path / "data")
    assert "1 name is not UTF-8 (" in error
    assert "\\udcd5\\udcd5\\udcc6\\udcff.jpg'); rename the files" in error


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image less": lambda source: (source / "cam1" / "0001" / "0001.jpg").unlink(),
    "an image renamed": lambda source: (source / "cam1" / "0001" / "0001.jpg").rename(
        source / "cam1" / "0001" / "0003.jpg"
    ),
    "an image redrawn": lambda source: save(source / "cam1" / "0001" / "0001.jpg", "RGB", "jpeg"),
    "an identity of another list": lambda source: [
        (source / "exp" / f"{split}_id.txt").write_text(line)
        for split, line in (("val", "4,5,6"), ("test", "7"))
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_source_is_refused_then_replaced(
    make_tree: MakeTree, tmp_path: Path, change: str
) -> None:
    source, to = make_tree(), tmp_path / "data"
    assert call_prepare("sysu_mm01", source, to)[0] == 0
    before = open_split(to, "sysu_mm01", (32, 16), "train+val")
    CHANGES[change](source)
    code, out, error = call_prepare("sysu_mm01", source, to)
    assert (code, out) == (2, "")
    assert "was prepared from another source; pass --overwrite" in error
    assert open_split(to, "sysu_mm01", (32, 16), "train+val").names == before.names
    assert call_prepare("sysu_mm01", source, to, "--overwrite")[0] == 0
    after = open_split(to, "sysu_mm01", (32, 16), "train+val")
    splits = check("sysu_mm01", source).images
    assert after.names == [record.name for record in splits["train"] + splits["val"]]
    assert [path.name for path in (to / "sysu_mm01" / "32x16").iterdir()] == [VERSION]


def test_tfds_knows_it(data_dir: Path, tree: Path) -> None:
    """The dataset is an ordinary one of tensorflow-datasets, without TensorFlow."""
    builder = tfds.builder("sysu_mm01", data_dir=data_dir, config=ImageSize.of(32, 16))
    assert isinstance(builder, builder_class(SYSU_MM01))
    assert builder.is_prepared()
    examples = builder.as_data_source("val")
    index = builder.info.metadata["index"]["val"]
    assert len(examples) == len(index["name"]) == 24
    for number in (0, 23):
        example = examples[number]
        assert example["name"].decode() == index["name"][number]
        assert example["identity"] == index["identity"][number]
        assert example["camera"] == index["camera"][number]
        expected = read_image(epath.Path(tree) / index["name"][number], 32, 16)
        np.testing.assert_array_equal(example["image"], expected)
    assert "tensorflow" not in sys.modules


def test_shards_keep_the_order(
    tree: Path, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddag_jax.datasets.builder._SHARD_IMAGES", 7)
    assert call_prepare("sysu_mm01", tree, tmp_path)[0] == 0
    assert len(list(tmp_path.rglob("*train.array_record*"))) == 7
    sharded = open_split(tmp_path, "sysu_mm01", (32, 16), "train+val")
    whole = open_split(data_dir, "sysu_mm01", (32, 16), "train+val")
    assert sharded.names == whole.names
    everything = np.random.default_rng(0).permutation(len(whole))
    np.testing.assert_array_equal(sharded.images(everything), whole.images(everything))


def test_people_to_training_images(tmp_path: Path) -> None:
    """The built-in people are a sound SYSU-MM01."""
    people = "people --train-identities 2 --val-identities 1 --test-identities 1 --height 64"
    to = tmp_path / "people"
    code, out, _ = call(
        *people.split(), "--images-per-camera", 1, "--workers", 1, "--to", to
    )  # fmt: skip
    assert code == 0
    assert str(to) in out
    assert call_prepare("sysu_mm01", to, tmp_path / "data")[0] == 0
    assert len(open_split(tmp_path / "data", "sysu_mm01", (32, 16), "train")) == 12


# --- Images -----------------------------------------------------------------------------------


def save(path: Path, mode: str, file_format: str, **options: object) -> np.ndarray:
    """Writes a noise image; gives what it looks like in RGB."""
    pixels = np.random.default_rng(1).integers(0, 256, (50, 20, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels).convert(mode)
    image.save(path, format=file_format, **options)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
def test_colour_spaces_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.png"
    expected = save(path, mode, "png")
    got = read_image(epath.Path(path), 50, 20)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_resized_with_lanczos_whatever_the_shape(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pixels = save(path, "RGB", "png")
    expected = PIL.Image.fromarray(pixels).resize((24, 8), PIL.Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(read_image(epath.Path(path), 8, 24), np.asarray(expected))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\); copy it again"),
    "text": (lambda path: path.write_text("404 not found"), "is not an image; copy it again"),
    "truncated jpeg": (
        lambda path: (save(path, "RGB", "jpeg"), truncate(path)),
        "cannot be read as an image .*truncated",
    ),
    "truncated png": (
        lambda path: (save(path, "RGB", "png"), truncate(path)),
        "cannot be read as an image",
    ),
    "cmyk": (
        lambda path: save(path, "CMYK", "jpeg"),
        "its pixels are of Pillow's mode CMYK; convert",
    ),
    "16 bits": (
        lambda path: save(path, "I;16", "png"),
        "has 16 bits a pixel; for infrared images give",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_image(make_tree: MakeTree, tmp_path: Path, damage: str) -> None:
    source = make_tree()
    spoil, message = DAMAGE[damage]
    spoil(source / "cam3" / "0006" / "0002.jpg")
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert "\n" not in error
    with pytest.raises(UserError, match=r"cam3/0006/0002\.jpg: " + message):
        check("sysu_mm01", source)


def test_a_refused_prepare_leaves_no_folder(make_tree: MakeTree, tmp_path: Path) -> None:
    source, to = make_tree(), tmp_path / "prepared"
    truncate(next((source / "cam1").rglob("*.jpg")))
    assert call_prepare("sysu_mm01", source, to)[0] == 2
    assert not to.exists()


def test_a_sheet_is_asked_for_where_it_can_be_written(tmp_path: Path) -> None:
    """Which is also a folder that comes with the people's, as `make demo` has it at first."""
    counts = ("--train-identities", "2", "--val-identities", "1", "--test-identities", "1")
    to, sheet = tmp_path / "data" / "people", tmp_path / "data" / "sheet.png"
    command = ("people", "--to", to, *counts, "--images-per-camera", "1", "--workers", "1")
    code, _, error = call(*command, "--sheet", tmp_path / "none" / "sheet.png")
    assert code == 2
    assert "--sheet" in error
    assert not to.parent.exists()
    assert call(*command, "--sheet", sheet)[0] == 0
    assert PIL.Image.open(sheet).size[0] > 0


def test_images_of_no_list_may_be_bad(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    (source / "cam1" / "0009" / "0001.jpg").write_bytes(b"")
    shutil.rmtree(source / "cam2" / "0009")
    (source / "cam1" / "0001" / "Thumbs.db").write_bytes(b"x")
    (source / "cam1" / "0001" / "._0001.jpg").write_bytes(b"x")
    (source / "cam1" / "readme.txt").write_text("x")
    assert call_prepare("sysu_mm01", source, tmp_path / "data")[0] == 0


# --- Folders and lists ------------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    assert "nowhere: no such folder" in fails("sysu_mm01", tmp_path / "nowhere", tmp_path / "data")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "sysu.zip").write_bytes(b"x")
    assert "sysu.zip: is an archive; unpack it; give the folder" in fails(
        "sysu_mm01", tmp_path / "sysu.zip", tmp_path / "data"
    )


@pytest.mark.parametrize("archive", ["SYSU-MM01.zip", "sysu.tar.gz", "SYSU.RAR"])
def test_not_unpacked(tmp_path: Path, archive: str) -> None:
    source = tmp_path / "download"
    source.mkdir()
    (source / archive).write_bytes(b"PK")
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert f"cam6; {archive} is not unpacked: unpack it there" in error
    assert "is an archive; unpack it" in fails("sysu_mm01", source / archive, tmp_path / "data")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "sysu").mkdir()
    assert "sysu: is empty; give the folder that holds cam1" in fails(
        "sysu_mm01", tmp_path / "sysu", tmp_path / "data"
    )


def test_wrong_layout(tmp_path: Path) -> None:
    (tmp_path / "sysu" / "Visible").mkdir(parents=True)
    error = fails("sysu_mm01", tmp_path / "sysu", tmp_path / "data")
    assert (
        "has no exp, cam1, cam2, cam3, cam4, cam5, cam6; give the folder that holds cam1" in error
    )


def test_missing_camera(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    shutil.rmtree(source / "cam5")
    assert "sysu: has no cam5; " in fails("sysu_mm01", source, tmp_path / "data")


@pytest.mark.parametrize("level", ["up", "down"])
def test_a_level_off(make_tree: MakeTree, tmp_path: Path, level: str) -> None:
    source = make_tree()
    given = source.parent if level == "up" else source / "cam1"
    assert f"did you mean {source}?" in fails("sysu_mm01", given, tmp_path / "data")


def test_missing_list(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    (source / "exp" / "val_id.txt").unlink()
    assert "val_id.txt: no such file; " in fails("sysu_mm01", source, tmp_path / "data")


def test_empty_list(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    (source / "exp" / "test_id.txt").write_text("\n")
    assert "test_id.txt: names no identity" in fails("sysu_mm01", source, tmp_path / "data")


def test_list_with_words(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    (source / "exp" / "train_id.txt").write_text("1,two,3.5,16\n")
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert "train_id.txt: 2 entries are not a whole number ('3.5', 'two')" in error


def test_list_with_spaces_and_trailing_comma(make_tree: MakeTree) -> None:
    source = make_tree()
    (source / "exp" / "train_id.txt").write_text("1, 2,\n3,16,\n")
    assert {record.identity for record in check("sysu_mm01", source).images["train"]} == {
        1,
        2,
        3,
        16,
    }


def test_list_saved_on_windows(make_tree: MakeTree) -> None:
    """With a byte order mark and a carriage return."""
    source = make_tree()
    before = check("sysu_mm01", source)
    (source / "exp" / "train_id.txt").write_bytes(b"\xef\xbb\xbf1,2,3,16\r\n")
    assert check("sysu_mm01", source) == before


def test_list_in_another_encoding(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    (source / "exp" / "train_id.txt").write_text("1,2,3,16\n", encoding="utf-16")
    assert "train_id.txt: is not text in UTF-8" in fails("sysu_mm01", source, tmp_path / "data")


def test_identity_with_two_folders(make_tree: MakeTree, tmp_path: Path) -> None:
    """Which of them holds the first image would decide what a gallery draws."""
    source = make_tree()
    shutil.copytree(source / "cam2" / "0003", source / "cam2" / "3")
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert "1 identity has two folders (cam2/0003 and cam2/3); keep one of each" in error


def test_link_to_nowhere(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    (source / "cam2" / "0003" / "0009.jpg").symlink_to(source / "elsewhere.jpg")
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert "cam2/0003/0009.jpg: " in error
    assert "\n" not in error


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_identity_in_two_lists(make_tree: MakeTree, tmp_path: Path, one: str, other: str) -> None:
    source = make_tree()
    both = (source / "exp" / f"{one}_id.txt").read_text().split(",")[0]
    with (source / "exp" / f"{other}_id.txt").open("a") as file:
        file.write(f",{both}")
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert f"1 identity in both {one}_id.txt and {other}_id.txt ({int(both)})" in error


@pytest.mark.parametrize(("cameras", "lacking"), [((3, 6), "infrared"), ((1, 2, 4, 5), "visible")])
def test_identity_of_one_modality(
    make_tree: MakeTree, tmp_path: Path, cameras: tuple[int, ...], lacking: str
) -> None:
    source = make_tree()
    for camera in cameras:
        shutil.rmtree(source / f"cam{camera}" / "0016")
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert "\n" not in error
    assert f"exp/train_id.txt: 1 identity without {lacking} image (16); " in error


def test_all_faults_at_once(make_tree: MakeTree, tmp_path: Path) -> None:
    source = make_tree()
    (source / "exp" / "train_id.txt").write_text("1,2,x,6,20,21,22,23")
    for number in range(1, 7):
        (source / f"cam{number}" / "0001" / "0001.jpg").write_bytes(b"")
        (source / f"cam{number}" / "0002" / "0001.jpg").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        check("sysu_mm01", source)
    first, *rest = str(caught.value).split("\n  ")
    assert first == "14 faults:"
    assert len(rest) == 14
    assert rest[0].endswith("1 entry is not a whole number ('x'); list identities like 1,2,3")
    assert "in both train_id.txt and test_id.txt (6)" in rest[1]
    assert "exp/train_id.txt: 4 identities without any image (20, 21, 22, ...)" in rest[2]
    assert all("0001.jpg: is empty" in fault for fault in rest[3:13])
    assert rest[13] == "... and 2 more images that cannot be read"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_mistyped_option_is_one_line_on_any_terminal(encoding: str) -> None:
    """tyro's box, which depends on the terminal, is not printed."""
    done = subprocess.run(
        [sys.executable, "-m", "ddag_jax.data", "check", "sysu_mm01", "--frm", "x"],
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: --frm: no such option; did you mean --from?\n"


def test_prepare_names_all_bad_images(make_tree: MakeTree, tmp_path: Path) -> None:
    """Its lists are in order, so that it begins to write before it meets the first."""
    source = make_tree()
    for camera, identity in ((1, "0001"), (3, "0007")):
        (source / f"cam{camera}" / identity / "0001.jpg").write_bytes(b"")
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert error.startswith("error: 2 faults:\n")
    assert "cam1/0001/0001.jpg: is empty" in error
    assert "cam3/0007/0001.jpg: is empty" in error


def test_prepare_names_faults_of_lists_and_images_together(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    source = make_tree()
    (source / "exp" / "val_id.txt").unlink()
    (source / "cam1" / "0001" / "0001.jpg").write_bytes(b"")
    error = fails("sysu_mm01", source, tmp_path / "data")
    assert error.startswith("error: 2 faults:\n")
    assert "val_id.txt: no such file" in error
    assert "cam1/0001/0001.jpg: is empty" in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "give one of people, prepare, check, rehearse"),
        ("prepar", "prepar: unexpected argument; did you mean prepare?"),
        ("prepare", "DATASET, --from: missing; python -m ddag_jax.data prepare --help"),
        ("prepare sysu --from x", "sysu: not a published dataset (sysu_mm01, regdb, llcm)"),
        ("check sysu_mm01 --frm x", "--frm: no such option; did you mean --from?"),
        ("prepare sysu_mm01 --from x --image-size 3", "--image-size: needs a value (INT INT)"),
        ("people --to x --train-identties 4", "did you mean --train-identities?"),
        ("people --to x --height 3", "height must be from 32 to 1024, not 3"),
        (
            "people --to x --noise lots",
            "--noise: must be FLOAT (could not convert string to float: 'lots')",
        ),
    ],
)
def test_a_mistyped_option_is_one_line(arguments: str, told: str) -> None:
    code, out, error = call(*arguments.split())
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert told in error
    assert "\n" not in error
    assert not any(mark in error for mark in "│╭─")
    assert "tyro" not in error


def test_an_unknown_dataset_names_the_known() -> None:
    for command in ("prepare sysu --from x", "check sysu --from x", "rehearse sysu --to x"):
        code, out, error = call(*command.split())
        assert (code, out) == (2, "")
        assert "sysu: not a published dataset (sysu_mm01, regdb, llcm)" in error
        assert "\n" not in error


# --- Killed, or nowhere to write --------------------------------------------------------------


def test_killed_prepare_leaves_nothing_that_looks_whole(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    source, to = make_tree(), tmp_path / "data"
    image = source / "cam6" / "0007" / "0002.jpg"
    # Killed when it reads this image of the test split: the training split is written before.
    program = (
        "import os, pathlib, signal, sys\n"
        "def kill(event, arguments):\n"
        f"    if event == 'open' and str(arguments[0]) == {str(image)!r}:\n"
        f"        if list(pathlib.Path({str(to)!r}).rglob('*.array_record*')):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(kill)\n"
        "from ddag_jax.cli.data import main\n"
        "main(sys.argv[1:])\n"
    )
    words = ["prepare", "sysu_mm01", "--from", source, "--to", to, "--image-size", "32", "16"]
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert list(to.rglob("*.array_record*"))
    with pytest.raises(UserError, match="no prepared dataset"):
        open_split(to, "sysu_mm01", (32, 16), "train")

    assert call_prepare("sysu_mm01", source, to)[0] == 0
    assert len(open_split(to, "sysu_mm01", (32, 16), "test")) == 24
    assert [path.name for path in (to / "sysu_mm01" / "32x16").iterdir()] == [VERSION]


def test_nowhere_to_write(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    code, _, error = call_prepare("sysu_mm01", tree, tmp_path / "data")
    assert code == 2
    assert f"cannot be made, since {tmp_path / 'data'} is a file; choose another --to" in error
    assert "\n" not in error


@pytest.mark.parametrize("size", [(0, 16), (32, -1)])
def test_no_size(tree: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    code, _, error = call(
        "prepare", "sysu_mm01", "--from", tree, "--to", tmp_path, "--image-size", *size
    )
    assert code == 2
    assert "--image-size" in error
    assert not list(tmp_path.iterdir())


def test_run_gives_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def faulty() -> None:
        raise UserError("x: is wrong; mend it")

    assert run(lambda: None) == 0
    assert run(lambda: 3) == 3
    assert run(interrupted) == 130
    capsys.readouterr()
    assert run(faulty) == 2
    assert capsys.readouterr().err == "error: x: is wrong; mend it\n"


@pytest.mark.parametrize("dataset", ["sysu_mm01", "regdb", "llcm"])
def test_tfds_knows_the_published_size_by_the_name_alone(dataset: str, tmp_path: Path) -> None:
    builder = tfds.builder(dataset, data_dir=tmp_path)
    assert builder.info.features["image"].shape == (288, 144, 3)
    assert builder.data_path == tmp_path / dataset / "288x144" / VERSION


def test_the_published_size_is_the_default(tree: Path, tmp_path: Path) -> None:
    assert call("prepare", "sysu_mm01", "--from", tree, "--to", tmp_path)[0] == 0
    assert open_split(tmp_path, "sysu_mm01", (288, 144), "val").image_size == (288, 144)
    builder = tfds.builder("sysu_mm01", data_dir=tmp_path)
    assert builder.is_prepared()
    assert builder.as_data_source("val")[0]["image"].shape == (288, 144, 3)
