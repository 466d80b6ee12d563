"""docs/extending.md: its four files run as they are printed there."""

import doctest
import re
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ddag_jax.cli.data import main as data
from ddag_jax.cli.evaluate import main as evaluate
from ddag_jax.cli.train import main as train
from ddag_jax.io.config_file import load_config
from ddag_jax.runs.logs import read_log
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`(my_\w+\.py)`:\n\n```python\n(.*?)^```$", TEXT, re.M | re.S))

pytestmark = pytest.mark.slow


def test_there_are_four() -> None:
    assert set(FILES) == {"my_loss.py", "my_augmentation.py", "my_dataset.py", "my_method.py"}


def write(name: str, folder: Path) -> str:
    path = folder / name
    path.write_text(FILES[name])
    return str(path)


def terms(run: Path) -> list[dict]:
    return [line for line in read_log(run) if line["kind"] == "train"]


def train_and_evaluate(file: str, run: Path, *more: str) -> None:
    assert train([file, "--workdir", str(run), "--training.log-every", "1", *more]) == 0
    assert len(terms(run)) == 2


def evaluated(file: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the file an error asks for it; with it there is a table."""
    assert evaluate([str(run)]) == 2
    assert "--config FILE" in capsys.readouterr().err
    assert evaluate([str(run), "--config", file, "--trials", "1"]) == 0
    assert "gallery images" in capsys.readouterr().out


def test_a_loss(tmp_path: Path, debug_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write("my_loss.py", tmp_path)
    module = sys.modules[type(load_config(file).model).__module__]
    assert doctest.testmod(module) == (0, 2)
    run = tmp_path / "run"
    train_and_evaluate(file, run, "--data.dir", str(debug_data), "--model.centre-weight", "0.5")
    for line in terms(run):
        expected = line["identity"] + line["triplet"] + 0.5 * line["centre"]
        assert line["total"] == pytest.approx(expected, rel=1e-5)
        assert line["centre"] > 0
    evaluated(file, run, capsys)


def test_an_augmentation(tmp_path: Path, debug_data: Path) -> None:
    file = write("my_augmentation.py", tmp_path)
    module = sys.modules[type(load_config(file).model).__module__]
    import jax
    import jax.numpy as jnp

    image = jnp.ones((32, 16, 3))
    keys = jax.random.split(jax.random.key(0), 200)
    share = 1 - np.asarray(jax.vmap(lambda key: module.erase(image, key, 1.0))(keys)).mean(
        (1, 2, 3)
    )
    assert share.min() >= 1 / 16
    assert share.max() <= 1 / 4
    assert (np.asarray(module.erase(image, keys[0], 0.0)) == 1).all()

    runs = {}
    for erasing in ("0.0", "1.0"):
        runs[erasing] = tmp_path / erasing
        options = ("--data.dir", str(debug_data), "--model.erasing", erasing)
        train_and_evaluate(file, runs[erasing], *options)
    first = {erasing: terms(run)[0]["triplet"] for erasing, run in runs.items()}
    assert first["0.0"] != first["1.0"]


def test_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = write("my_dataset.py", tmp_path), tmp_path / "corridor"
    random = np.random.default_rng(0)
    for split, people in (("train", range(9)), ("test", range(9, 13))):
        for kind in ("visible", "infrared"):
            for identity in people:
                place = folder / split / kind / str(identity)
                place.mkdir(parents=True)
                for number in range(3):
                    pixels = random.integers(0, 256, (40, 20, 3), np.uint8)
                    PIL.Image.fromarray(pixels).save(place / f"{number}.jpg")
    data(["check", file, "--from", str(folder)])
    size = ("--image-size", "32", "16")
    data(["prepare", file, "--from", str(folder), "--to", str(tmp_path / "data"), *size])
    run = tmp_path / "run"
    train_and_evaluate(file, run, "--data.dir", str(tmp_path / "data"))
    capsys.readouterr()
    assert evaluate([str(run)]) == 2
    assert "--config FILE" in capsys.readouterr().err
    assert evaluate([str(run), "--config", file]) == 0
    table = capsys.readouterr().out
    assert "Corridor" in table
    assert "visible → infrared (12 queries, 12 gallery images)" in table


def test_a_method(tmp_path: Path, debug_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = write("my_method.py", tmp_path), tmp_path / "run"
    train_and_evaluate(file, run, "--data.dir", str(debug_data))
    evaluated(file, run, capsys)
