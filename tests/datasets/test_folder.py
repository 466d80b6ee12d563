"""Own images: lists, folders, splits, the protocol, and what both refuse."""

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from ddag_jax.cli.evaluate import main as evaluate
from ddag_jax.cli.train import main as train
from ddag_jax.config import Config, DataConfig, EvaluationConfig
from ddag_jax.data.loader import ImageSource, open_split, training_split
from ddag_jax.datasets.dataset import check_settings
from ddag_jax.datasets.find import DATASETS
from ddag_jax.datasets.folder import FOLDER, Drawn, inspect
from ddag_jax.datasets.prepare import prepare
from ddag_jax.datasets.sysu_mm01 import SYSU_MM01
from ddag_jax.errors import UserError
from ddag_jax.evaluation.protocols import Images, kind, score, searches
from ddag_jax.synthetic.files import write_people
from ddag_jax.synthetic.image import People
from tests.datasets.commands import call_prepare, fails
from tests.linear_method import CONFIG
from tests.reliability.debug_runs import notes

Line = tuple[str, str, str, str, str]
COLUMNS = ("path", "identity", "modality", "camera", "split")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered people in SYSU-MM01's layout."""
    folder = tmp_path_factory.mktemp("own") / "people"
    drawn = People(train_identities=8, val_identities=3, test_identities=6, height=32)
    write_people(drawn, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def lines(people: Path) -> list[Line]:
    """What a list says of them."""
    splits = {
        int(identity): split
        for split in ("train", "val", "test")
        for identity in (people / "exp" / f"{split}_id.txt").read_text().split(",")
    }
    found = []
    for file in sorted(people.glob("cam*/*/*.jpg")):
        camera, identity = file.parent.parent.name[3:], file.parent.name
        modality = "infrared" if camera in "36" else "visible"
        name = file.relative_to(people).as_posix()
        found.append((name, identity, modality, camera, splits[int(identity)]))
    return found


def write_list(file: Path, lines: Iterable[Iterable[str]], columns: Iterable[str]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writerows([columns, *lines])
    return file


@pytest.fixture
def own(people: Path, tmp_path: Path) -> Callable[..., Path]:
    """`own(lines, columns)` writes a list beside the images."""
    shutil.copytree(people, tmp_path / "own")

    def write(lines: Iterable[Iterable[str]], columns: Iterable[str] = COLUMNS) -> Path:
        return write_list(tmp_path / "own" / "list.csv", lines, columns)

    return write


def images_of(source: ImageSource) -> Images:
    return Images(source.identities, source.cameras, source.infrared, source.names)


def test_a_list_gives_the_figures_of_the_layout(
    people: Path, lines: list[Line], own: Callable[..., Path], tmp_path: Path
) -> None:
    """Without camera 2, whose images SYSU-MM01's queries of camera 3 skip."""
    prepare("sysu_mm01", people, tmp_path / "data", 16, 8)
    prepare("folder", own(line for line in lines if line[3] != "2"), tmp_path / "data", 16, 8)
    layout = open_split(tmp_path / "data", "sysu_mm01", (16, 8), "test")
    layout = layout.subset(layout.cameras != 2)
    listed = open_split(tmp_path / "data", "folder", (16, 8), "test")
    assert listed.names == layout.names
    numbers = np.arange(len(listed))
    np.testing.assert_array_equal(listed.images(numbers), layout.images(numbers))

    features = np.random.default_rng(0).normal(size=(len(listed), 8)).astype(np.float32)
    features += np.eye(100, 8, dtype=np.float32)[listed.identities % 8]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    figures = []
    for dataset, source, settings in (
        (SYSU_MM01, layout, EvaluationConfig(mode="all")),
        (FOLDER, listed, EvaluationConfig(direction="infrared_to_visible")),
    ):
        images = images_of(source)
        found = searches(dataset, images, settings)
        (record,) = score({"x": features}, images, found, dataset, settings)
        about = ("dataset", "dataset_title", "mode")
        figures.append({key: value for key, value in record.items() if key not in about})
    assert figures[0] == figures[1]
    assert 0 < figures[0]["rank1"] < 100


def test_the_splits_of_a_list(lines: list[Line], own: Callable[..., Path], tmp_path: Path) -> None:
    code, out, error = call_prepare("folder", own(lines), tmp_path / "data")
    assert (code, error) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:5]}
    assert rows["images"][0] == "17"
    assert (rows["train"][0], rows["val"][0], rows["test"][0]) == ("8", "3", "6")
    config = Config(
        data=DataConfig("folder", str(tmp_path / "data"), image_height=32, image_width=16)
    )
    whole, none = training_split(config.data, 0)
    assert (whole.classes, none) == (11, None)
    trained, held_out = training_split(
        DataConfig("folder", config.data.dir, 32, 16, train_on="train"), 0
    )
    assert held_out is not None
    assert (trained.classes, held_out.classes) == (8, 3)
    assert not set(trained.identities) & set(held_out.identities)


def test_every_kind_of_list_says_the_same(
    people: Path, lines: list[Line], own: Callable[..., Path], tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table

    first = own(lines)
    expected = inspect(first)[0]
    absolute = [(str(people / name), *rest) for name, *rest in lines]
    columns: dict[str, list] = {
        name: list(values) for name, values in zip(COLUMNS, zip(*lines, strict=True), strict=True)
    }
    columns["camera"] = [int(camera) for camera in columns["camera"]]
    parquet.write_table(table(columns), first.with_suffix(".parquet"))
    write_list(first.with_suffix(".tsv"), lines, COLUMNS)
    first.with_name("excel.csv").write_bytes(
        b"\xef\xbb\xbf" + first.read_bytes().replace(b"path,identity", b"Path, Identity")
    )
    for other in (first.with_suffix(".parquet"), first.with_suffix(".tsv"), "excel.csv"):
        content, faults = inspect(first.parent / other)
        assert faults == []
        assert content.images == expected.images
        assert content.source == expected.source
    elsewhere, faults = inspect(write_list(tmp_path / "elsewhere.csv", absolute, COLUMNS))
    assert faults == []
    entries = elsewhere.images["images"]
    assert [entry[:2] for entry in entries] == [entry[:2] for entry in expected.images["images"]]
    assert elsewhere.image(entries[0]) == people / lines[0][0]


@pytest.fixture
def folders(people: Path, tmp_path: Path) -> Path:
    """`visible/ANNA/...`, `infrared/ANNA/...`; identity and camera are not numbers."""
    names = ("anna", "Bea", "çağla", "dora 2", "eve", "Ada", "fay", "gül")
    for file in sorted(people.glob("cam[13]/*/*.jpg")):
        number = int(file.parent.name)
        if number <= len(names):
            modality = "visible" if file.parent.parent.name == "cam1" else "infrared"
            target = tmp_path / "mine" / modality / names[number - 1] / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    (tmp_path / "mine" / "visible" / ".DS_Store").write_bytes(b"")
    return tmp_path / "mine"


def test_folders_without_a_list(folders: Path, tmp_path: Path) -> None:
    code, out, error = call_prepare("folder", folders, tmp_path / "data")
    assert (code, error) == (0, "")
    assert "(identities are numbered in the order of their names: 1 Ada, 2 Bea, 3 anna, ...)" in out
    assert "(no cameras given: 1 stands for visible, 2 for infrared)" in out
    assert "(identities divided by seed 0: 4 to train on, 4 to test)" in out
    test = open_split(tmp_path / "data", "folder", (32, 16), "test")
    assert "identities divided by seed 0: 4 to train on, 4 to test" in test.notes
    assert test.classes == 4
    assert set(test.cameras[test.infrared]) == {2}
    assert call_prepare("folder", folders, tmp_path / "data")[1].endswith("are the same)\n")
    code, _, error = call_prepare("folder", folders, tmp_path / "data", "--split-seed", 1)
    assert code == 2
    assert "was prepared from another source; pass --overwrite" in error
    with pytest.raises(
        UserError, match=r"data\.train_on: train, but .* has no image of the .* val"
    ):
        training_split(DataConfig("folder", str(tmp_path / "data"), 32, 16, train_on="train"), 0)


def test_the_seed_and_the_share_divide(folders: Path) -> None:
    def tested(drawn: Drawn) -> set[int]:
        content, faults = inspect(folders, drawn)
        assert faults == []
        return {entry.identity for entry in content.split("test")}

    assert tested(Drawn()) == tested(Drawn(seed=0, test_share=0.5))
    assert len({frozenset(tested(Drawn(seed=seed))) for seed in range(8)}) > 4
    assert len(tested(Drawn(test_share=0.25))) == 2
    assert tested(Drawn(test_share=0.25)) < tested(Drawn())


def test_a_training_identity_of_one_modality_is_left_out(
    lines: list[Line], own: Callable[..., Path]
) -> None:
    content, faults = inspect(own(x for x in lines if x[1] != "0002" or x[2] == "visible"))
    assert faults == []
    assert 2 not in {entry.identity for entry in content.images["images"]}
    assert any("1 training identity has images of one modality only (0002)" in note
               for note in content.notes)  # fmt: skip


def test_a_camera_of_both_modalities_is_skipped(
    lines: list[Line], own: Callable[..., Path]
) -> None:
    """The query's own identity by its own camera; with camera_rule=none nothing is skipped."""
    gates = {"1": "gate", "3": "gate", "2": "yard", "4": "yard", "5": "hall", "6": "hall"}
    content, faults = inspect(own((*x[:3], gates[x[3]], x[4]) for x in lines))
    assert faults == []
    assert "cameras are numbered in the order of their names: 1 gate, 2 hall, 3 yard" in " ".join(
        content.notes
    )
    entries = content.split("test")
    images = Images(
        np.array([e.identity for e in entries]),
        np.array([e.camera for e in entries]),
        np.array([e.infrared for e in entries]),
        [e.name for e in entries],
    )
    features = np.eye(int(images.identities.max()) + 1, dtype=np.float32)[images.identities]
    for rule, skips in (("protocol", True), ("none", False)):
        settings = EvaluationConfig(shots="all", camera_rule=rule)
        found = searches(FOLDER, images, settings)
        assert [search.camera_rule.skips_own_camera for search in found] == [skips, skips]
        assert all(search.camera_rule.counts == "identities" for search in found)
        records = score({"x": features}, images, found, FOLDER, settings)
        assert {(r["camera_rule"], r["trials"], r["draw"]) for r in records} == {(rule, 1, None)}
        # The whole gallery, in both directions.
        assert [r["gallery"] for r in records] == [images.infrared.sum(), (~images.infrared).sum()]
    assert kind(settings) == "_whole_gallery_no_camera_rule"


REFUSED = {
    "no such column": (("path", "who", "modality"), [], r"has no column identity in its first"),
    "semicolons": (("path;identity;modality",), [], r"has ';' between columns; a .csv file has c"),
    "a column twice": ((*COLUMNS, "path"), [], r"has two columns path; keep one"),
    "nothing": (COLUMNS, [], r"lists no image; write a line for each"),
    "modality": (COLUMNS, [("a.jpg", "1", "thermal", "1", "test")],
                 r"1 line has another modality than visible or infrared \(line 2: 'thermal'\)"),
    "split": (COLUMNS, [("a.jpg", "1", "visible", "1", "query")],
              r"1 line has another split than train, val or test \(line 2: 'query'\)"),
    "identity": (COLUMNS, [("a.jpg", "", "visible", "1", "test")],
                 r"1 line has no path or no identity \(line 2\); fill it in"),
    "suffix": (COLUMNS, [("a.gif", "1", "visible", "1", "test")],
               r"1 line names no \.jpg, .* file \(line 2: 'a\.gif'\)"),
    "width": (COLUMNS, [("a.jpg", "1", "visible")],
              r"1 line has another number of columns .* \(line 2: 3 of 5\)"),
    "missing": (COLUMNS, [(f"{i}.jpg", "1", "visible", "1", "test") for i in range(5)],
                r"5 listed images are not there(.|\n)*line 2: '0.jpg'(.|\n)*line 6: '4.jpg'"),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "rows", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_list_may_not_say(
    columns: tuple[str, ...], rows: list, message: str, own: Callable[..., Path], tmp_path: Path
) -> None:
    error = fails("folder", own(rows, columns), tmp_path / "data")
    assert re.search(message, error), error


def changed(lines: list[Line], name: str, **fields: str) -> list[list[str]]:
    """The lines, those of an identity with other fields."""
    return [
        [fields.get(column, cell) if line[1] == name else cell
         for column, cell in zip(COLUMNS, line, strict=True)]
        for line in lines
    ]  # fmt: skip


def test_what_contradicts_itself(
    lines: list[Line], own: Callable[..., Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    torn = [(*x[:4], "test" if x[0] == "cam1/0001/0001.jpg" else x[4]) for x in lines]
    assert "1 identity is in more than one split (0001)" in fails("folder", own(torn), data)
    assert "no split, and others have one" in fails(
        "folder", own(changed(lines, "0003", split="")), data
    )
    assert "no camera, and others have one" in fails(
        "folder", own(changed(lines, "0003", camera="")), data
    )
    twice = [(x[0], "1" if x[0] == "cam1/0001/0001.jpg" else x[1], *x[2:]) for x in lines]
    assert "1 identity is written in two ways (0001 and 1)" in fails("folder", own(twice), data)
    assert "line 3" in fails("folder", own([lines[0], lines[0], *lines[1:]]), data)
    assert "the split test has 0 identities with visible and infrared" in fails(
        "folder", own([*x[:4], "train"] for x in lines), data
    )
    assert "--split-seed: " in fails("folder", own(lines), data, "--split-seed", 1)
    for option, value in (("--split-seed", -1), ("--test-share", 1)):
        assert f"{option} {value}" in fails("folder", own(lines), data, option, value)
    assert "--test-share: llcm has splits of its own" in fails(
        "llcm", own(lines), data, "--test-share", 0.3
    )


def test_files_that_are_no_list(own: Callable[..., Path], tmp_path: Path) -> None:
    file = own([("a.jpg", "1", "visible", "1", "test")])
    other = file.with_suffix(".xlsx")
    other.write_bytes(b"PK")
    assert "is not a .csv, .tsv or .parquet file" in fails("folder", other, tmp_path / "data")
    assert "no such file or folder" in fails("folder", file.with_name("no.csv"), tmp_path / "data")
    file.write_bytes(file.read_bytes() + "é.jpg".encode("latin-1"))
    assert "is not text in UTF-8" in fails("folder", file, tmp_path / "data")
    file.write_text('path,identity,modality\n"a.jpg,1,visible\n')
    assert "line 2 cannot be read" in fails("folder", file, tmp_path / "data")
    broken = file.with_suffix(".parquet")
    broken.write_bytes(b"PAR1")
    assert "cannot be read as Parquet" in fails("folder", broken, tmp_path / "data")
    empty = tmp_path / "empty"
    for modality in ("visible", "infrared"):
        (empty / modality / "anna").mkdir(parents=True)
    assert "holds no images in visible/IDENTITY" in fails("folder", empty, tmp_path / "data")


def test_a_published_protocol_keeps_its_camera_rule() -> None:
    settings = EvaluationConfig(camera_rule="none")
    for dataset in DATASETS.values():
        with pytest.raises(UserError, match=r"evaluation\.camera_rule: .* prescribes it"):
            check_settings(dataset, DataConfig(dataset.name), settings)
    check_settings(FOLDER, DataConfig("folder"), settings)


@pytest.mark.slow
def test_from_pictures_to_a_table(
    lines: list[Line],
    own: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracked = own(((*line, "7") for line in lines), (*COLUMNS, "tracklet"))
    assert call_prepare("folder", tracked, tmp_path / "data")[0] == 0
    words = [CONFIG, "--data.dataset", "folder", "--data.dir", str(tmp_path / "data")]
    assert train([*words, "--workdir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "log.jsonl").read_text().count('"held_out"')  # the list's val
    assert "data: 1 column ignored: tracklet" in notes(tmp_path / "run")
    for more, said in (
        ([], "own images' layout, rendered people, single-shot, seeded draw, 10 trials"),
        (
            ["--shots", "all", "--camera-rule", "none"],
            "rendered people, whole gallery, no camera rule",
        ),
    ):
        capsys.readouterr()
        assert evaluate([str(tmp_path / "run"), "--config", CONFIG, *more]) == 0
        assert said in capsys.readouterr().out
    names = {file.name for file in (tmp_path / "run").glob("evaluation*.json")}
    assert names >= {"evaluation.json", "evaluation_whole_gallery_no_camera_rule.json"}
    records = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {record["direction"] for record in records} == {
        "visible_to_infrared",
        "infrared_to_visible",
    }


def test_a_list_written_on_windows_is_read(
    lines: list[Line], own: Callable[..., Path], tmp_path: Path
) -> None:
    """Backslashes between folders; a file with one in its name keeps it."""
    expected, _ = inspect(own(lines))
    found, faults = inspect(own([(name.replace("/", "\\"), *rest) for name, *rest in lines]))
    assert (found, faults) == (expected, [])
    odd = tmp_path / "own" / "odd\\name.jpg"
    shutil.copy(tmp_path / "own" / lines[0][0], odd)
    (entries,) = inspect(own([*lines, (odd.name, *lines[0][1:])]))[0].images.values()
    assert odd.name in {entry.name for entry in entries}
