"""A loaded model embeds as the evaluation does, whatever the images come as."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import ddag_jax
from ddag_jax.data.loader import ImageSource, evaluation_split
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from ddag_jax.serving.model import Model
from tests.linear_method import CONFIG

pytestmark = pytest.mark.slow  # trains


@pytest.fixture(scope="module")
def model(finished: Path) -> Model:
    return ddag_jax.load(finished, config=load_config(CONFIG))


@pytest.fixture(scope="module")
def source(model: Model) -> ImageSource:
    return evaluation_split(model.config.data)


def test_features_are_those_of_the_evaluation_bit_for_bit(
    finished: Path, model: Model, source: ImageSource, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "features.npz"
    ddag_jax.evaluate(run, config=load_config(CONFIG), save_features=file, quiet=True)
    stored = np.load(file)
    names = {name: number for number, name in enumerate(source.names)}
    for side, modality in (("query", "infrared"), ("gallery", "visible")):
        # In the order in which the evaluation embeds: that of the dataset.
        numbers = np.flatnonzero(source.infrared == (modality == "infrared"))
        found = model.embed(source.images(numbers), modality)
        assert tuple(found) == model.features == ("global", "part")
        where = {number: row for row, number in enumerate(numbers.tolist())}
        rows = [where[names[name]] for name in stored[f"{side}_names"].tolist()]
        assert found["part"].dtype == np.float32
        np.testing.assert_array_equal(found["part"][rows], stored[f"{side}_features"])


def test_files_and_arrays_of_any_size_are_resized_as_in_preparation(
    model: Model, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    arrays: list[Any] = [
        draw.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((40, 30), (64, 9))
    ]
    for number, array in enumerate(arrays):
        PIL.Image.fromarray(array).save(tmp_path / f"{number}.png")
    size = model.image_size[::-1]
    resized = [
        np.asarray(PIL.Image.fromarray(array).resize(size, PIL.Image.Resampling.LANCZOS))
        for array in arrays
    ]
    expected = model.embed(np.stack(resized), "visible")
    for given in (arrays, [str(tmp_path / "0.png"), tmp_path / "1.png"]):
        found = model.embed(given, "visible")
        for name in model.features:
            np.testing.assert_array_equal(found[name], expected[name])


def test_any_number_of_images_is_embedded(model: Model, source: ImageSource) -> None:
    images = source.images(np.arange(len(source)))
    few, many = model.embed(images[:3], "visible"), model.embed(images, "visible")
    assert len(images) > 32  # more than a batch
    for name in model.features:
        np.testing.assert_allclose(np.linalg.norm(many[name], axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(few[name], many[name][:3], atol=1e-5)


@pytest.mark.parametrize(
    ("images", "modality", "message"),
    [
        ([], "visible", "no images"),
        ([np.zeros((4, 4, 3), np.float32)], "visible", "image 0: is float32"),
        ([np.zeros((4, 4), np.uint8)], "visible", r"image 0: is uint8 of shape \(4, 4\)"),
        (["nowhere.png"], "visible", "nowhere.png"),
        ([np.zeros((4, 4, 3), np.uint8)], "thermal", "modality: 'thermal'"),
    ],
)
def test_what_is_not_an_image_is_refused(
    model: Model, images: list, modality: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        model.embed(images, modality)


def test_a_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run with a finished checkpoint"):
        ddag_jax.load(tmp_path)


OWN = """
import dataclasses
from ddag_jax.io.config_file import load_config
from tests.linear_method import Linear, LinearConfig

@dataclasses.dataclass(frozen=True)
class MyConfig:
    '''Mine.'''
    my_dropout: float = 0.1
    '''Of my pixels.'''

    def build(self, classes, axis_name):
        return Linear(LinearConfig(dropout=self.my_dropout), classes, axis_name)

def get_config():
    return dataclasses.replace(load_config("debug"), model=MyConfig())
"""


def test_a_method_of_ones_own_from_the_command_line_to_a_loaded_model(
    tmp_path: Path, debug_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddag_jax.cli.evaluate import main as evaluate
    from ddag_jax.cli.train import main as train

    file, run = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(OWN)
    words = [str(file), "--workdir", str(run), "--data.dir", str(debug_data), "--quiet"]
    fields = ["--model.my-dropout", "0.5", "--training.epochs", "1"]
    assert train([*words, *fields]) == 0
    assert train([*words, "--model.my-dropuot", "0.5"]) == 2
    assert "did you mean --model.my-dropout?" in capsys.readouterr().err

    assert evaluate([str(run)]) == 2
    assert "--config FILE" in capsys.readouterr().err
    assert evaluate([str(run), "--config", str(file)]) == 0
    with pytest.raises(UserError, match="--config FILE"):
        ddag_jax.load(run)
    model = ddag_jax.load(run, config=load_config(str(file)))
    assert model.config.model.my_dropout == 0.5
    assert model.embed(np.zeros((1, 9, 9, 3), np.uint8), "visible")["global"].shape == (1, 64)
