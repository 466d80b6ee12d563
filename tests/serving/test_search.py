"""A search ranks as NumPy does, in a file of features or among images, and knows what it may leave
out."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ddag_jax
from ddag_jax.cli.search import main as search_command
from ddag_jax.config import Config
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from ddag_jax.serving.embed import embed
from ddag_jax.serving.index import open_index
from ddag_jax.serving.model import Model, load
from ddag_jax.serving.search import search
from ddag_jax.serving.threshold import find_threshold, parse_threshold
from tests.linear_method import CONFIG

pytestmark = pytest.mark.slow  # trains


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(CONFIG)


@pytest.fixture(scope="module")
def run(finished: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("evaluated") / "run")
    ddag_jax.evaluate(folder, config=config, quiet=True)
    return folder


@pytest.fixture(scope="module")
def model(run: Path, config: Config) -> Model:
    return load(run, config=config)


@pytest.fixture
def pictures(debug_data: Path, tmp_path: Path) -> Path:
    """Five people of two images in each of two cameras, as folders that name their modality."""
    tree, folder = debug_data.parent / "people", tmp_path / "pictures"
    for camera, modality in ((1, "visible"), (3, "infrared")):
        for who in sorted((tree / f"cam{camera}").iterdir())[:5]:
            shutil.copytree(who, folder / modality / who.name)
    return folder


@pytest.fixture
def index(run: Path, config: Config, pictures: Path, tmp_path: Path) -> Path:
    """The visible pictures, embedded."""
    return Path(embed(run, pictures / "visible", tmp_path / "gallery.npz", config=config).path)


@pytest.fixture
def query(pictures: Path) -> Path:
    return min((pictures / "infrared").glob("*/*.jpg"))


def expected(model: Model, query: Path, gallery: list[Path]) -> list[tuple[str, float]]:
    """The gallery by similarity, with NumPy."""
    asked = model.embed([query], "infrared")["part"]
    similarity = (model.embed(gallery, "visible")["part"] @ asked.T)[:, 0]
    order = np.argsort(-similarity, kind="stable")
    return [(str(gallery[place]), float(similarity[place])) for place in order]


def test_hits_are_those_of_a_plain_ranking(
    run: Path, config: Config, model: Model, pictures: Path, tmp_path: Path
) -> None:
    gallery = sorted((pictures / "visible").glob("*/*.jpg"))
    index = tmp_path / "gallery.npz"
    embed(run, pictures / "visible", index, config=config)
    by_image = search(run, pictures / "visible", pictures / "infrared", top=4, config=config)
    by_file = search(run, index, pictures / "infrared", top=4, config=config)
    assert by_image == by_file
    assert (by_file.gallery, by_file.notes, by_file.unreadable) == (10, [], [])
    files = [result.file for result in by_file.results]
    assert files == sorted(map(str, (pictures / "infrared").glob("*/*.jpg")))
    for result in by_file.results:
        plain = expected(model, Path(result.file), gallery)[:4]
        assert [hit.rank for hit in result.hits] == [1, 2, 3, 4]
        assert [hit.file for hit in result.hits] == [file for file, _ in plain]
        np.testing.assert_allclose(
            [hit.similarity for hit in result.hits], [value for _, value in plain], atol=1e-6
        )
        assert all(hit.identity == Path(hit.file).parent.name for hit in result.hits)


def test_both_modalities_are_searched_unless_one_is_wanted(
    run: Path, config: Config, pictures: Path, tmp_path: Path
) -> None:
    index = tmp_path / "gallery.npz"
    embed(run, pictures, index, config=config)
    query = min((pictures / "infrared").glob("*/*.jpg"))
    (both,) = search(run, index, query, top=20, config=config).results
    assert both.hits[0].file == str(query)  # no camera rule: itself
    assert both.hits[0].similarity == pytest.approx(1, abs=1e-6)
    assert len({hit.file for hit in both.hits}) == 20
    assert sorted(both.hits, key=lambda hit: -hit.similarity) == list(both.hits)
    found = search(run, index, query, top=20, gallery_modality="visible", config=config)
    assert {hit.modality for hit in found.results[0].hits} == {"visible"}
    assert found.notes == ["--top 20: the gallery has 10 entries, so each query lists all of it"]


def write_list(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "modality", "identity", "tracklet"), *rows])
    return path


def test_a_tracklet_is_the_mean_of_its_images(
    run: Path, config: Config, model: Model, pictures: Path, tmp_path: Path
) -> None:
    visible = sorted((pictures / "visible").glob("*/*.jpg"))
    rows = [(image, "visible", image.parent.name, image.parent.name) for image in visible[:6]]
    rows += [(image, "visible", "", "") for image in visible[6:]]
    table = write_list(tmp_path / "gallery.csv", rows)
    infrared = sorted((pictures / "infrared").glob("*/*.jpg"))
    asked = write_list(tmp_path / "q.csv", [(i, "infrared", "", "night") for i in infrared[:3]])
    index = tmp_path / "gallery.npz"
    embed(run, table, index, config=config)
    found = search(run, index, asked, config=config)
    assert found == search(run, table, asked, config=config)
    assert found.gallery == 3 + 4
    (result,) = found.results
    assert (result.file, result.images) == (str(infrared[0]), 3)

    def unit(features: np.ndarray) -> np.ndarray:
        return features / np.linalg.norm(features)

    features = model.embed(visible, "visible")["part"]
    query = unit(model.embed(infrared[:3], "infrared")["part"].mean(0))
    means = [unit(features[i : i + 2].mean(0)) for i in (0, 2, 4)] + list(features[6:])
    firsts = [*visible[:6:2], *visible[6:]]
    similarity = np.stack(means) @ query
    order = np.argsort(-similarity)
    assert [hit.file for hit in result.hits] == [str(firsts[place]) for place in order]
    np.testing.assert_allclose([h.similarity for h in result.hits], similarity[order], atol=1e-6)
    assert {hit.images for hit in result.hits if hit.tracklet} == {2}

    # One labelled image names its tracklet.
    rows[0] = (*rows[0][:2], "", rows[0][3])
    partly = search(run, write_list(tmp_path / "partly.csv", rows), asked, config=config)
    assert partly.results == found.results

    rows[0] = (*rows[0][:2], "anybody", rows[0][3])
    rows[1] = (*rows[1][:2], "somebody", rows[1][3])
    with pytest.raises(UserError, match=rf"bad.csv: 1 tracklet has .* \({rows[1][3]}\)"):
        search(run, write_list(tmp_path / "bad.csv", rows), asked, config=config)


def test_thresholds_are_those_of_the_evaluation(
    run: Path,
    config: Config,
    model: Model,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (record,) = (
        one
        for one in json.loads((run / "evaluation.json").read_text())
        if (one["feature"], one["mode"]) == ("part", "all")
    )
    points = record["operating_points"]["points"]
    assert find_threshold(model.trained, "part", "eer")[0] == points["eer"]["threshold"]
    assert points["far=1e-3"] is None
    with pytest.raises(UserError, match="pairs of different people are too few"):
        find_threshold(model.trained, "part", "far=1e-3")
    query = min((pictures / "infrared").glob("*/*.jpg"))
    options = ["--gallery", str(pictures / "visible"), "--query", str(query), "--config", CONFIG]
    target = tmp_path / "found.json"
    assert search_command([str(run), *options, "--threshold", "eer", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert re.match(
        r"threshold -?0\.[0-9]{4}, that of eer: false accepts .*held out of tr", printed
    )
    found = json.loads(target.read_text())
    assert found["threshold"] == points["eer"]["threshold"]
    assert "identities held out of training" in found["threshold_from"]
    (result,) = found["results"]
    (everything,) = search(run, pictures / "visible", query, config=config).results
    kept = [hit for hit in everything.hits if hit.similarity >= found["threshold"]]
    assert [hit["file"] for hit in result["hits"]] == [hit.file for hit in kept]
    assert all(f"{hit.similarity:6.3f}" in printed for hit in kept)

    nobody = search(run, pictures / "visible", query, threshold=1.0, config=config)
    assert [result.hits for result in nobody.results] == [[]]
    assert search_command([str(run), *options, "--threshold", "1"]) == 0
    assert "nobody known" in capsys.readouterr().out

    # Thresholds are of the network that was evaluated.
    for change in ({"checksum": 1}, {"flip": True}):
        other = shutil.copytree(run, tmp_path / f"other_{next(iter(change))}")
        for file in other.glob("evaluation*.json"):
            records = json.loads(file.read_text())
            for one in records:
                one["operating_points"].update(change)
            file.write_text(json.dumps(records))
        with pytest.raises(UserError, match=r"no evaluation of .* stored thresholds of part"):
            search(other, pictures / "visible", query, threshold="eer", config=config)


@pytest.mark.parametrize("text", ["err", "far=1e-4", "far=", "2", "nan", "", np.nan, 2, True, [1]])
def test_what_is_no_threshold(text: Any) -> None:
    with pytest.raises(
        UserError, match=rf"--threshold {re.escape(str(text))}: give eer, far=1e-2, far=1e-3, or"
    ):
        parse_threshold(text)


def test_images_that_cannot_be_read_are_left_out_and_named_at_the_end(
    run: Path, config: Config, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [pictures / kind / "broken.jpg" for kind in ("visible", "infrared")]
    for file in broken:
        file.write_bytes(b"no image")
    words = ["--gallery", str(pictures / "visible"), "--query", str(pictures / "infrared")]
    assert search_command([str(run), *words, "--config", CONFIG]) == 1
    error = capsys.readouterr().err
    assert "2 images cannot be read and are left out:\n" in error
    for file in broken:
        assert f"  {file}: is not an image" in error
    found = search(run, pictures / "visible", pictures / "infrared", config=config)
    assert (found.gallery, len(found.results)) == (10, 10)
    for result in found.results:
        assert len(result.hits) == 10


def test_what_cannot_be_searched(run: Path, config: Config, pictures: Path, tmp_path: Path) -> None:
    index, taken = tmp_path / "visible.npz", tmp_path / "taken.json"
    embed(run, pictures / "visible", index, feature="global", config=config)
    taken.write_text("mine")
    query = min((pictures / "infrared").glob("*/*.jpg"))
    for options, message in (
        ({"top": 0}, "--top: 0 must be a whole number of at least 1"),
        ({"top": 2.5}, "--top: 2.5 must be a whole number"),
        ({"top": True}, "--top: True must be a whole number"),
        ({"query": []}, "--query: is empty; give files"),
        ({"gallery": [None]}, "--gallery: None is not a path"),
        ({"query_modality": "ir"}, "--query-modality: 'ir' must be visible or infrared"),
        ({"gallery_modality": "Visible"}, "--gallery-modality: 'Visible' must be visible or"),
        ({"threshold": "0,5"}, "--threshold 0,5: give eer"),
        ({"sheet": tmp_path / "a.htm", "json": tmp_path / "a.htm"}, "both are .*a.htm; name two"),
        ({"sheet": True}, "--sheet: True is not a path"),
        ({"query": None}, "--query: is a NoneType; give a path"),
        ({"sheet": tmp_path / "a.txt"}, r"--sheet .*a.txt: is a page; name it .*a.txt.html"),
        ({"json": taken}, "taken.json: exists already"),
        ({"gallery": tmp_path / "no.npz"}, "no.npz: no such file"),
        ({"gallery": [index, index]}, r"--gallery: give one file of features \(.npz\), or images"),
        ({"gallery_modality": "infrared"}, "visible.npz: holds no infrared image"),
        ({"feature": "part"}, "visible.npz: holds the feature global, not part; give --feature gl"),
        ({"threshold": "far=1e-3", "gallery": pictures / "visible"}, "too few"),
        ({"query": tmp_path / "nobody"}, "nobody: no such file or folder"),
    ):
        given: dict[str, Any] = {"gallery": index, "query": query, "config": config} | options
        with pytest.raises(UserError, match=message):
            search(run, **given)
    assert taken.read_text() == "mine"
    # The feature is that of the file, and a gallery of one is one.
    assert search(run, index, query, config=config).feature == "global"
    (only,) = search(run, min((pictures / "visible").glob("*/*.jpg")), query, config=config).results
    assert len(only.hits) == 1
    assert open_index(index).embedded_by.feature == "global"


def test_a_threshold_between_modalities_is_no_promise_within_one(
    run: Path, config: Config, pictures: Path, query: Path
) -> None:
    found = search(run, pictures, query, threshold="eer", config=config)
    assert re.match("[0-9]+ hits? (is|are) of the query's own modality", found.notes[-1])
    assert search(run, pictures, query, config=config).notes == []


def test_images_that_are_gone_are_counted(
    run: Path, config: Config, pictures: Path, index: Path, query: Path
) -> None:
    min((pictures / "visible").glob("*/*.jpg")).unlink()
    (note,) = search(run, index, query, config=config).notes
    assert note.startswith("1 image that was found is not there any more; python -m ddag_jax.serv")
    assert f"prune {index}" in note


def test_a_file_of_another_method_or_with_broken_rows_is_refused(
    run: Path, config: Config, pictures: Path, index: Path, query: Path
) -> None:
    stored = dict(np.load(index))
    said = json.loads(stored["embedded_by"].item())
    other = said | {"checksum": 1, "feature": "pooled"}
    np.savez(index, **stored | {"embedded_by": np.array(json.dumps(other).encode())})
    with pytest.raises(UserError, match=r"gallery.npz: its features .* \(another checkpoint\)"):
        search(run, index, query, config=config)
    stored["gallery_features"][3, 5] = np.nan
    np.savez(index, **stored)
    with pytest.raises(UserError, match=r"gallery.npz: features: a row is not finite"):
        search(run, index, query, config=config)
    with pytest.raises(UserError, match=r"gallery.npz: has features that are not finite"):
        embed(run, pictures / "infrared", index, config=config, add=True)


def test_the_thresholds_of_a_feature_that_was_not_evaluated_can_be_had(
    run: Path, config: Config, pictures: Path, query: Path
) -> None:
    how = r"run evaluate.py .*run --feature concatenation, or give a number"
    with pytest.raises(UserError, match=how):
        search(run, pictures, query, threshold="eer", feature="concatenation", config=config)
