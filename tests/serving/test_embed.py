"""Features of files are the evaluation's, whatever stops the work or is wrong with an image."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import ddag_jax
from ddag_jax.config import Config, DataConfig
from ddag_jax.data.loader import evaluation_split
from ddag_jax.errors import UserError
from ddag_jax.evaluation import embed as embedding
from ddag_jax.io.config_file import load_config
from ddag_jax.runs.evaluate import evaluate_features
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
    result = embed(finished, pictures, target, config=config, batch_size=4)
    assert taken == [0, 3]
    assert not partial.exists()
    assert result[1:] == whole[1:]
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
        embed(finished, pictures, half, add=True, config=config)


def test_features_of_another_network_are_not_added_to(
    finished: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index.npz"
    embed(finished, pictures, index, config=config)
    with pytest.raises(UserError, match=r"of .*finished, not of .*finished \(feature: part"):
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
        "of 6 images 2 are said to be visible and have three equal channels; check their modality",
        "of 6 images 1 are said to be infrared and have colours; check their modality",
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
    with pytest.raises(UserError, match=r"no such file"):
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
    one = pictures / "visible" / who / min(
        path.name for path in (pictures / "visible" / who).iterdir()
    )  # fmt: skip
    table = tmp_path / "list.tsv"
    table.write_text(f"path\tmodality\n{one.relative_to(tmp_path)}\tinfrared\n")
    (listed,), _ = find_images([table])
    assert (listed.modality, listed.identity, listed.file) == ("infrared", "", str(one))
    # Named twice: the first one counts.
    both, notes = find_images([table, one])
    assert both == [listed]
    assert notes == ["1 images are named twice and taken once"]


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
