"""Features of files are the evaluation's, whatever stops the work or is wrong with an image."""

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import ddag_jax
from ddag_jax.cli.embed import main as embed_command
from ddag_jax.config import Config, DataConfig
from ddag_jax.data.loader import evaluation_split
from ddag_jax.errors import UserError
from ddag_jax.evaluation import embed as embedding
from ddag_jax.io.config_file import load_config
from ddag_jax.runs.evaluate import evaluate_features
from ddag_jax.runs.lock import RunLock
from ddag_jax.serving.embed import embed, prune
from ddag_jax.serving.images import find_images
from ddag_jax.serving.index import open_index
from tests.linear_method import CONFIG

pytestmark = pytest.mark.slow  # trains

SIDES = ("query", "gallery")


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(CONFIG)


@pytest.fixture
def pictures(debug_data: Path, tmp_path: Path) -> Path:
    """Six people of two images in each of two cameras, as folders that name their modality."""
    tree, folder = debug_data.parent / "people", tmp_path / "pictures"
    for camera, modality in ((1, "visible"), (3, "infrared")):
        for who in sorted((tree / f"cam{camera}").iterdir())[:6]:
            shutil.copytree(who, folder / modality / who.name)
    return folder


@pytest.fixture(scope="module")
def test_list(debug_data: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of the test images, in another order than the evaluation's."""
    data = DataConfig(dir=str(debug_data), image_height=32, image_width=16)
    source = evaluation_split(data)
    file = tmp_path_factory.mktemp("list") / "test.csv"
    tree = debug_data.parent / "people"
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("path", "Identity", "camera", "modality", "tracklet"))
        for number in np.random.default_rng(0).permutation(len(source)).tolist():
            kind = "infrared" if source.infrared[number] else "visible"
            who, camera = source.identities[number], source.cameras[number]
            rows.writerow((tree / source.names[number], who, camera, kind, f"{who}-{camera}"))
    return file


def test_features_are_those_of_the_evaluation_bit_for_bit(
    finished: Path, config: Config, test_list: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    stored, ours = tmp_path / "stored.npz", tmp_path / "ours.npz"
    ddag_jax.evaluate(run, config=config, save_features=stored, quiet=True)
    result = embed(run, test_list, ours, config=config)
    expected, found = np.load(stored), np.load(ours)
    assert (result.images, result.unreadable) == (sum(len(expected[f"{s}_ids"]) for s in SIDES), [])
    for side in SIDES:
        names = [name.decode().split("/people/")[1] for name in found[f"{side}_names"].tolist()]
        where = {name: row for row, name in enumerate(names)}
        rows = [where[name] for name in expected[f"{side}_names"].tolist()]
        for column in ("features", "ids", "cameras"):
            values = found[f"{side}_{column}"]
            np.testing.assert_array_equal(values[rows], expected[f"{side}_{column}"])
    # The evaluation reads the file.
    figures = [
        [(record["rank1"], record["mAP"]) for record in evaluate_features(file, quiet=True)]
        for file in (stored, ours)
    ]
    assert figures[0] == figures[1]


class Stopped(Exception):
    """In place of a kill."""


def test_what_is_stopped_goes_on_and_ends_the_same(
    finished: Path,
    config: Config,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = pictures / "visible" / next((pictures / "visible").iterdir()).name / "broken.jpg"
    broken.write_bytes(b"no image")
    whole = embed(finished, pictures, tmp_path / "whole.npz", config=config, batch_size=4)
    target, partial = tmp_path / "stopped.npz", tmp_path / "stopped.npz.partial"
    read = embedding.embedded_batches
    taken = []

    def stops(*arguments: Any, **options: Any) -> Any:
        taken.append(options["first"])
        for number, batch in enumerate(read(*arguments, **options)):
            if number == 3 and len(taken) < 2:
                raise Stopped
            yield batch

    monkeypatch.setattr("ddag_jax.serving.embed.embedded_batches", stops)
    with pytest.raises(Stopped):
        embed(finished, pictures, target, config=config, batch_size=4)
    assert not target.exists()
    # Other images, or another batch size, are not what is unfinished there.
    for changed in ({"batch_size": 20}, {"dtype": "float16"}):
        options: dict[str, Any] = {"config": config, "batch_size": 4} | changed
        with pytest.raises(UserError, match=r"stopped.npz.partial: holds unfinished features"):
            embed(finished, pictures, target, **options)
    capsys.readouterr()
    result = embed(finished, pictures, target, config=config, batch_size=4)
    assert taken == [0, 3]
    assert not partial.exists()
    assert capsys.readouterr().out == f"{partial}: goes on after 21 of 25 images\n"
    assert result == whole._replace(path=target, embedded=4)
    assert len(result.unreadable) == 1
    assert "broken.jpg: is not an image" in result.unreadable[0]
    one, other = np.load(whole.path), np.load(target)
    assert one.files == other.files
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_file_of_features_is_added_to_and_pruned(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    people = sorted(path.name for path in (pictures / "visible").iterdir())
    index = tmp_path / "index.npz"
    embed(finished, pictures, index, config=config)
    before = features(index)
    added, changed = pictures / "visible" / "new" / "1.jpg", Path(min(before))
    added.parent.mkdir()
    shutil.copy(changed, added)
    PIL.Image.open(changed).rotate(180).save(changed)
    result = embed(finished, pictures, index, add=True, config=config)
    after = features(index)
    assert result.embedded == 2
    assert any("1 image has changed: embedded again" in note for note in result.notes)
    assert any(f"{len(before) - 1} images are in" in note for note in result.notes)
    assert set(after) == {*before, str(added)}
    assert np.array_equal(after[str(added)], before[str(changed)])
    assert not np.array_equal(after[str(changed)], before[str(changed)])
    assert all(np.array_equal(after[file], before[file]) for file in before if file != str(changed))
    again = embed(finished, pictures, index, add=True, config=config)
    assert (again.embedded, again.images) == (0, len(after))

    added.unlink()
    gone = prune(index, identities=[people[1]])
    assert {image.identity for image in gone} == {"new", people[1]}
    left = features(index)
    assert set(left) == {file for file in before if f"/{people[1]}/" not in file}
    assert all(np.array_equal(left[file], after[file]) for file in left)
    content = index.read_bytes()
    assert prune(index) == []
    with pytest.raises(UserError, match="has no image of nobody"):
        prune(index, identities=["nobody"])
    shutil.rmtree(pictures)
    with pytest.raises(UserError, match="would be left without images"):
        prune(index)
    assert index.read_bytes() == content


def features(path: Path) -> dict[str, np.ndarray]:
    index = open_index(path)
    rows = np.concatenate(list(index.features.values()))
    return {image.file: row for image, row in zip(index.images, rows, strict=True)}


def test_features_are_mapped_into_memory_and_take_half_the_space(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    full, half = tmp_path / "full.npz", tmp_path / "half.npz"
    embed(finished, pictures, full, config=config)
    embed(finished, pictures, half, config=config, dtype="float16")
    for path, dtype in ((full, np.float32), (half, np.float16)):
        for modality, rows in open_index(path).features.items():
            assert isinstance(rows, np.memmap)
            assert rows.dtype == dtype
            assert rows.flags.aligned
            assert rows.offset % 64 == 0
            expected = np.load(full)[f"{SIDES[modality == 'visible']}_features"]
            np.testing.assert_array_equal(rows, expected.astype(dtype))
    with pytest.raises(UserError, match=r"--dtype float32: .*half.npz has float16"):
        embed(finished, pictures, half, add=True, config=config, dtype="float32")
    shutil.copytree(pictures, tmp_path / "more")
    added = embed(finished, tmp_path / "more", half, add=True, config=config)
    assert added.embedded == added.images / 2 == len(open_index(half).images) / 2
    assert open_index(half).features["visible"].dtype == np.float16


def test_features_of_another_network_are_not_added_to(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index.npz"
    embed(finished, pictures, index, config=config)
    with pytest.raises(UserError, match=r"index.npz: holds the feature part, not global; give"):
        embed(finished, pictures, index, add=True, config=config, feature="global")
    stored = dict(np.load(index))
    said = json.loads(stored["embedded_by"].item())
    for change, how in (
        ({"checksum": 1}, "another checkpoint"),
        ({"model": said["model"] | {"width": 9}}, "model.width: 9, and here 64"),
        ({"flip": True}, "flip: True, and here False"),
    ):
        stored["embedded_by"] = np.array(json.dumps(said | change).encode())
        np.savez(index, **stored)
        with pytest.raises(UserError, match=how):
            embed(finished, pictures, index, add=True, config=config)


def test_a_modality_that_the_pixels_contradict_is_counted(
    finished: Path, config: Config, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    for modality in ("visible", "infrared"):
        (tmp_path / modality).mkdir()
        for number in range(3):
            pixels = draw.integers(0, 256, (20, 10, 3), np.uint8)
            if number:  # one with colours, two without
                pixels[:] = pixels[:, :, :1]
            PIL.Image.fromarray(pixels).save(tmp_path / modality / f"{number}.png")
    sources = [tmp_path / "visible", tmp_path / "infrared"]
    found = embed(finished, sources, tmp_path / "f.npz", config=config)
    assert found.notes == [
        "2 visible images have three equal channels (2 of 6); check their modality",
        "1 infrared image has colours (1 of 6); check their modality",
    ]


def test_nothing_is_overwritten_or_left(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.npz"
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        embed(finished, pictures, mine, config=config)
    with pytest.raises(UserError, match="cannot be read as features"):
        embed(finished, pictures, mine, add=True, config=config)
    assert mine.read_bytes() == b"mine"
    with pytest.raises(UserError, match="its folder does not exist"):
        embed(finished, pictures, tmp_path / "no" / "f.npz", config=config)
    with pytest.raises(UserError, match=r"f.npz: no such file to add to; leave out --add"):
        embed(finished, pictures, tmp_path / "f.npz", add=True, config=config)
    with pytest.raises(UserError, match=r"feature: .*global, part"):
        embed(finished, pictures, tmp_path / "f.npz", feature="head", config=config)
    for file in pictures.rglob("*.jpg"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no image can be read:\n"):
        embed(finished, pictures, tmp_path / "f.npz", config=config)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.npz", "pictures"}


def test_images_are_found_with_what_is_known_of_them(pictures: Path, tmp_path: Path) -> None:
    who = min(path.name for path in (pictures / "visible").iterdir())
    found, notes = find_images([pictures])
    assert [image.file for image in found] == sorted(image.file for image in found)
    assert {(i.modality, i.name.split("/")[0]) for i in found} == {
        ("visible", "visible"),
        ("infrared", "infrared"),
    }
    assert all(image.identity == image.name.split("/")[1] for image in found)
    assert notes == []
    # The folder's own path counts too: inside pictures/visible, `.` is visible.
    with contextlib.chdir(pictures / "visible"):
        inside, _ = find_images(".")
    assert inside == [
        i._replace(name=i.name[len("visible/") :]) for i in found if i.modality == "visible"
    ]
    one = pictures / "visible" / who / min(
        path.name for path in (pictures / "visible" / who).iterdir()
    )  # fmt: skip
    table = tmp_path / "list.tsv"
    table.write_text(f"path\tmodality\n{one.relative_to(tmp_path)}\tinfrared\n")
    (listed,), _ = find_images([table])
    assert (listed.modality, listed.identity, listed.file) == ("infrared", "", str(one))
    # Named twice: the first one counts, with what the other adds.
    both, notes = find_images([table, one])
    assert both == [listed._replace(identity=who)]
    assert notes == ["1 image is named twice and taken once"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "no.jpg", r"no.jpg: no such file or folder"),
        (lambda at: at / "text.txt", r"text.txt: is neither an image .* nor a list"),
        (lambda at: at / "empty", r"empty: holds no .jpg"),
        (lambda at: at / "plain", r"2 images have no modality \(first: .*plain/a.png\)"),
        (lambda at: at / "visible" / "a.png", r"--modality infrared: 1 image is of the other one"),
        (lambda at: at / "gone.csv", r"2 listed images are not there.*\n    line 2: '1.jpg'\n  "),
        (lambda at: at / "odd.csv", r"1 line has another modality than visible or infrared"),
    ],
)
def test_images_that_cannot_be_found(make: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("")
    for folder, names in (("plain", ("a.png", "b.png")), ("visible", ("a.png",))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(b"")
    (tmp_path / "gone.csv").write_text("path,modality\n1.jpg,visible\n2.jpg,visible\n")
    (tmp_path / "odd.csv").write_text("path,modality\nplain/a.png,thermal\n")
    source = make(tmp_path)
    modality: Any = "infrared" if source.parent.name == "visible" else None
    with pytest.raises(UserError, match=message):
        find_images([source], modality)


def test_only_one_process_writes_a_file(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    """Two additions at once would each keep its own images only."""
    index = tmp_path / "index.npz"
    embed(finished, pictures / "visible", index, config=config)
    before = index.read_bytes()
    folder = tmp_path / "index.npz.partial"
    folder.mkdir()
    with RunLock(folder):
        for write in (
            lambda: embed(finished, pictures / "infrared", index, config=config, add=True),
            lambda: prune(index, identities=[next((pictures / "visible").iterdir()).name]),
        ):
            with pytest.raises(UserError, match=r"index.npz.partial: process [0-9]+ .* is writing"):
                write()
    assert index.read_bytes() == before
    assert embed(finished, pictures / "infrared", index, config=config, add=True).images == 24
    assert not folder.exists()


def test_the_file_is_read_when_no_other_process_writes_it(
    finished: Path, config: Config, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process adds between the call and the lock is kept."""
    index, other = tmp_path / "index.npz", tmp_path / "other.npz"
    embed(finished, pictures / "visible", index, config=config)
    embed(finished, pictures, other, config=config)
    enter = RunLock.__enter__

    def replaced_first(self: RunLock) -> RunLock:
        if other.exists():
            other.replace(index)
        return enter(self)

    monkeypatch.setattr(RunLock, "__enter__", replaced_first)
    people = sorted((pictures / "visible").iterdir())
    prune(index, identities=[people[0].name])
    assert len(open_index(index).images) == 24 - 4


def test_a_folder_of_the_users_is_not_taken(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "f.npz.partial" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"f.npz.partial: holds mine.txt, which ddag-embed has not"):
        embed(finished, pictures, tmp_path / "f.npz", config=config)
    mine.rename(mine.with_name("state.json"))
    with pytest.raises(UserError, match=r"partial: holds unfinished features that cannot be read"):
        embed(finished, pictures, tmp_path / "f.npz", config=config)
    assert mine.with_name("state.json").read_text() == "mine"


def test_what_is_known_of_an_image_may_come_later(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    """Labels are added to a file without embedding its images again; another modality is not."""
    images = sorted((pictures / "visible").rglob("*.jpg"))
    index, table = tmp_path / "index.npz", tmp_path / "list.csv"
    embed(finished, images, index, config=config, modality="visible")
    before = features(index)
    rows = [f"{image},visible,somebody,gate" for image in images[:2]]
    table.write_text("\n".join(["path,modality,identity,camera", *rows]))
    result = embed(finished, table, index, config=config, add=True)
    assert result.embedded == 0
    assert result.notes == [
        f"2 images are in {index} already: kept",
        "2 kept images have another identity, camera or tracklet now: noted, not embedded again",
    ]
    after = open_index(index)
    said = [(image.identity, image.camera) for image in after.images]
    folders = [(image.parent.name, "") for image in images]
    assert said == [("somebody", "gate")] * 2 + folders[2:]
    assert all(np.array_equal(before[file], row) for file, row in features(index).items())
    # Nothing is forgotten where less is said.
    table.write_text(f"path,modality,camera\n{images[0]},visible,yard\n")
    assert embed(finished, table, index, config=config, add=True).embedded == 0
    assert open_index(index).images[0][3:5] == ("somebody", "yard")
    table.write_text(f"path,modality\n{images[0]},infrared\n")
    assert embed(finished, table, index, config=config, add=True).embedded == 1
    found = {image.file: image.modality for image in open_index(index).images}
    assert found[str(images[0])] == "infrared"
    assert len(found) == len(images)


def test_what_is_not_read_is_said(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    who = min((pictures / "visible").iterdir())
    (who / "gone.jpg").symlink_to("nowhere.jpg")
    (who / ".hidden.jpg").write_bytes(b"")
    (who / "more.GIF").write_bytes(b"")
    (who / "notes.txt").write_bytes(b"")
    (pictures / ".night").mkdir()
    result = embed(finished, pictures, tmp_path / "f.npz", config=config)
    assert result.notes == [
        f"{pictures}: 1 file is not read: visible/{who.name}/more.GIF; convert to .png or .jpg",
        f"{pictures}: 2 hidden files or folders are not read: .night/, visible/{who.name}/.hidden.j"
        "pg",
    ]
    (unreadable,) = result.unreadable
    assert unreadable.startswith(f"{who}/gone.jpg: cannot be read as an image")
    # With nothing to add but that, the file stays as it is.
    again = embed(finished, pictures, tmp_path / "f.npz", config=config, add=True)
    assert (again.images, again.embedded, again.unreadable) == (24, 0, [unreadable])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": []}, "images: is empty; give files, folders or lists"),
        ({"images": [3]}, "images: 3 is not a path"),
        ({"images": None}, "images: is a NoneType; give a path, or a list of paths"),
        ({"images": np.zeros(3)}, "images: is a ndarray; give a path"),
        ({"to": None}, "to: None is not a path"),
        ({"run": None}, "run: None is not a path"),
        ({"config": "folder"}, "config: is a str; give a Config, as load_config"),
        ({"modality": "Visible"}, "--modality: 'Visible' must be visible or infrared"),
        ({"dtype": "float64"}, "dtype: 'float64' must be float32 or float16"),
        ({"batch_size": 2.5}, "batch_size: 2.5 must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size: 0 must be a whole number"),
    ],
)
def test_arguments_from_python_are_checked(
    options: Any, message: str, finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"run": finished, "images": pictures, "to": tmp_path / "f.npz"}
    with pytest.raises(UserError, match=message):
        embed(**given | {"config": config} | options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_a_tracklet_of_two_people_is_refused(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    images, table, index = sorted(pictures.rglob("*.jpg")), tmp_path / "l.csv", tmp_path / "f.npz"

    def listed(*rows: tuple[int, str]) -> Path:
        lines = [f"{images[number]},infrared,{who},t" for number, who in rows]
        table.write_text("\n".join(["path,modality,identity,tracklet", *lines]))
        return table

    with pytest.raises(UserError, match=r"l.csv: 1 tracklet has images of several ident.* \(t\)"):
        embed(finished, listed((0, "anna"), (1, "ben")), index, config=config)
    embed(finished, listed((0, "anna")), index, config=config)
    with pytest.raises(UserError, match=r"f.npz and these images: 1 tracklet has images of sever"):
        embed(finished, listed((1, "ben")), index, config=config, add=True)
    # Renamed, it is of one person.
    embed(finished, listed((0, "ben"), (1, "ben")), index, config=config, add=True)
    assert [image.identity for image in open_index(index).images] == ["ben", "ben"]


def test_a_command_without_images_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert embed_command(["run", "--to", "e.npz"]) == 2
    assert "IMAGES: none is given (the first argument, run, is RUN)" in capsys.readouterr().err


def test_sigterm_records_how_far_it_is(finished: Path, pictures: Path, tmp_path: Path) -> None:
    """And the same command goes on from there."""
    target = tmp_path / "f.npz"
    code = f"""
import os, signal
from ddag_jax.serving import embed
real = embed.embedded_batches
def batches(*arguments, **options):
    for number, batch in enumerate(real(*arguments, **options)):
        yield batch
        if number == 2 and not options["first"]:
            os.kill(os.getpid(), signal.SIGTERM)
embed.embedded_batches = batches
from ddag_jax.cli.embed import main
raise SystemExit(main([{str(finished)!r}, {str(pictures)!r}, "--to", {str(target)!r},
    "--batch-size", "4", "--config", {CONFIG!r}]))
"""
    results = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        for _ in range(2)
    ]
    assert [result.returncode for result in results] == [143, 0], results
    assert (
        f"{target}.partial: keeps what is embedded; the same command goes on" in results[0].stdout
    )
    assert "Traceback" not in results[0].stderr
    assert f"{target}.partial: goes on after 20 of 24 images\n" in results[1].stdout
    assert f"{target}: 24 images, 4 embedded now" in results[1].stdout


def test_a_folder_s_name_does_not_replace_what_a_list_said(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    """Labels given by a list outlive further additions of the folder, also of changed images."""
    index, table = tmp_path / "index.npz", tmp_path / "list.csv"
    image = min((pictures / "visible").rglob("*.jpg"))
    table.write_text(f"path,modality,identity,camera,tracklet\n{image},visible,Anna,gate,t1\n")

    def labels() -> tuple[str, str, str]:
        (found,) = (one for one in open_index(index).images if one.file == str(image))
        return found.identity, found.camera, found.tracklet

    embed(finished, pictures, index, config=config)
    assert labels() == (image.parent.name, "", "")
    embed(finished, table, index, config=config, add=True)
    assert embed(finished, pictures, index, config=config, add=True).notes == [
        f"24 images are in {index} already: kept"
    ]
    assert labels() == ("Anna", "gate", "t1")
    os.utime(image, (1, 1))
    assert embed(finished, pictures, index, config=config, add=True).embedded == 1
    assert labels() == ("Anna", "gate", "t1")
    table.write_text(f"path,modality\n{image},infrared\n")
    assert embed(finished, table, index, config=config, add=True).embedded == 1
    assert labels() == ("Anna", "gate", "t1")


@pytest.mark.parametrize("first", ["list", "folder"])
def test_an_image_named_twice_has_the_labels_of_both(
    pictures: Path, tmp_path: Path, first: str
) -> None:
    image = min((pictures / "visible").rglob("*.jpg"))
    table = tmp_path / "list.csv"
    table.write_text(f"path,identity,camera\n{image},Anna,gate\n")
    sources = [table, image] if first == "list" else [image, table]
    ((found,), _) = find_images(sources)
    assert (found.identity, found.camera, found.modality) == ("Anna", "gate", "visible")


def test_names_are_the_same_in_a_locale_without_utf_8(
    finished: Path, pictures: Path, tmp_path: Path
) -> None:
    """The person of a folder is the person of the file, and files are found."""
    who = min((pictures / "visible").iterdir())
    image = min(who.rename(who.with_name("王芳")).iterdir())
    words = [str(finished), str(pictures / "visible"), "--to", str(tmp_path / "f.npz")]
    assert embed_command([*words, "--config", CONFIG]) == 0
    code = f"""
from ddag_jax.serving.search import search
from ddag_jax.serving.embed import prune
from ddag_jax.io.config_file import load_config
from pathlib import Path
import os
image = os.fsdecode({os.fsencode(image)!r})
index = {str(tmp_path / "f.npz")!r}
found = search({str(finished)!r}, index, image, config=load_config({CONFIG!r}), top=1)
(result,) = found.results
assert result.is_right(result.hits[0]) is True, result
assert result.hits[0].file == image
assert prune(index) == []
"""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("url", ["https://example.com/x.jpg", "s3://b/x.jpg"])
def test_urls_are_refused_in_one_line(
    finished: Path, pictures: Path, tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, images, target = str(finished), str(pictures), str(tmp_path / "f.npz")
    for words in (
        [run, url, "--to", target],
        [url, images, "--to", target],
        [run, images, "--to", url.replace(".jpg", ".npz")],
    ):
        assert embed_command([*words, "--config", CONFIG]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert re.search(r"://.*: (https|s3):// is not read or written; give a path", error)
