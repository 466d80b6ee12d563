"""A dataset is one value: what it accepts, who names one, and one of the user's own."""

import ast
import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from ddag_jax.cli.options import override
from ddag_jax.config import Config, DataConfig, EvaluationConfig, differences, to_dict
from ddag_jax.data.loader import open_split
from ddag_jax.datasets.builder import VERSION, ImageSize, builder_class
from ddag_jax.datasets.dataset import Dataset, check_settings
from ddag_jax.datasets.find import DATASETS, find_dataset
from ddag_jax.datasets.prepare import prepare
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from tests.conftest import ROOT
from tests.datasets.commands import call, call_prepare

# --- Who names a dataset ----------------------------------------------------------------------

NAMES = {*DATASETS, "sysu"}

LITERALS = {
    "ddag_jax/config.py": 1,  # the default
    "ddag_jax/datasets/sysu_mm01.py": 1,
    "ddag_jax/datasets/regdb.py": 1,
    "ddag_jax/datasets/llcm.py": 1,
    "ddag_jax/experiments/rows.py": 12,  # the published tables
}


def test_no_other_file_names_a_dataset() -> None:
    found = {}
    for file in sorted((ROOT / "ddag_jax").rglob("*.py")):
        literals = [
            node.value
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Constant) and node.value in NAMES
        ]
        if literals:
            found[file.relative_to(ROOT).as_posix()] = len(literals)
    assert found == LITERALS


def test_the_value_alone_is_light() -> None:
    code = (
        "import sys, ddag_jax.datasets.dataset, ddag_jax.evaluation.protocols;"
        " sys.exit(any(name in sys.modules for name in ('jax', 'tensorflow_datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


# --- Settings that a dataset does not know ----------------------------------------------------

REFUSED = [
    ("sysu_mm01", {"trial": 2}, {}, "data.trial: .* not sysu_mm01; leave it at 1"),
    ("regdb", {"trial": 11}, {}, "data.trial: 11 is not among the trials of RegDB, 1 to 10"),
    ("regdb", {"train_on": "train"}, {}, "data.train_on: regdb has no val list; leave it at"),
    ("llcm", {"train_on": "train"}, {}, "data.train_on: llcm has no val list"),
    (
        "sysu_mm01",
        {},
        {"direction": "visible_to_infrared"},
        "evaluation.direction: .* SYSU-MM01 searches infrared to visible only",
    ),
    ("sysu_mm01", {}, {"mode": "outdoor"}, "evaluation.mode: .*; give both or all or indoor"),
    ("regdb", {}, {"mode": "all"}, "evaluation.mode: regdb has no mode all; leave it out"),
    ("llcm", {}, {"shots": "multi"}, "evaluation.shots: .* LLCM has no multi-shot gallery"),
    ("regdb", {}, {"shots": "multi"}, "evaluation.shots: .* RegDB has no multi-shot"),
    ("llcm", {}, {"draw": "rand_perm_cam"}, "evaluation.draw: .* no published permutations of"),
]


@pytest.mark.parametrize(("name", "data", "evaluation", "message"), REFUSED)
def test_settings_of_another_dataset(name: str, data: dict, evaluation: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_settings(
            find_dataset(name), DataConfig(dataset=name, **data), EvaluationConfig(**evaluation)
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "evaluation"),
    [
        ("sysu_mm01", {"train_on": "train"}, {"mode": "indoor", "shots": "multi"}),
        ("sysu_mm01", {}, {"draw": "rand_perm_cam", "direction": "infrared_to_visible"}),
        ("regdb", {"trial": 10}, {"direction": "visible_to_infrared"}),
        ("llcm", {"holdout_identities": 5}, {"trials": 3}),
    ],
)
def test_settings_of_its_own(name: str, data: dict, evaluation: dict) -> None:
    check_settings(find_dataset(name), DataConfig(**data), EvaluationConfig(**evaluation))


def test_unknown_datasets_are_refused() -> None:
    for command in ("prepare sysu --from x", "check sysu --from x", "rehearse sysu --to x"):
        code, out, error = call(*command.split())
        assert (code, out) == (2, "")
        assert "sysu: not a published dataset" in error
        assert "\n" not in error
    with pytest.raises(UserError, match=r"sysu: not a published dataset.*sysu_mm01, regdb, llcm"):
        find_dataset("sysu")

    class Other:
        name = "other"

    with pytest.raises(UserError, match=r"data\.dataset: other is a Other; give a name or a"):
        find_dataset(Other())
    with pytest.raises(UserError, match="dataset 'My set': the name is used for folders"):
        Dataset(name="My set", title="x", folder="x", inspect=DATASETS["llcm"].inspect)


# --- One of the user's own --------------------------------------------------------------------

CONFIG = '''
import dataclasses

from etils import epath

from ddag_jax.config import Config, DataConfig
from ddag_jax.datasets.checks import FolderContent, ImageEntry, check_folder, fingerprint
from ddag_jax.datasets.dataset import CameraRule, Dataset
from ddag_jax.io.config_file import load_config
from tests.linear_method import LinearConfig

FOLDER = "the folder that holds train and test"


def inspect(folder):
    """{train,test}/{visible,infrared}/{identity}_{camera}_{number}.png"""
    root = epath.Path(folder)
    check_folder(root, ("train", "test"), FOLDER)
    images, sizes, faults = {}, [], []
    for split in ("train", "test"):
        images[split] = []
        for path in sorted((root / split).glob("*/*.png")):
            identity, camera, _ = map(int, path.stem.split("_"))
            name = f"{split}/{path.parent.name}/{path.name}"
            images[split].append(
                ImageEntry(identity, camera, name, path.parent.name == "infrared")
            )
            sizes.append((name, path.stat().length))
        images[split].sort()
        if not images[split]:
            faults.append(f"{root}: {split} holds no images; copy them again")
    content = FolderContent(folder=root, images=images, source=fingerprint("", sizes))
    return content, faults


OWN = Dataset(
    name="hallway",
    title="Hallway",
    folder=FOLDER,
    inspect=inspect,
    drawn={"single": 1},
    camera_rule=CameraRule(skips_own_camera=True, counts="identities"),
)


def get_config():
    config = load_config("debug")
    data = dataclasses.replace(config.data, dataset=OWN, train_on="train+val", dir="DATA")
    training = dataclasses.replace(config.training, epochs=1, steps_per_epoch=2)
    return dataclasses.replace(config, data=data, training=training, model=LinearConfig())
'''


@pytest.fixture
def hallway(tmp_path: Path) -> Path:
    """The images of ten people, and hallway.py beside them."""
    random = np.random.default_rng(0)
    for split, identities in (("train", range(1, 11)), ("test", range(11, 15))):
        for modality in ("visible", "infrared"):
            (tmp_path / "hallway" / split / modality).mkdir(parents=True)
            for identity in identities:
                for camera, number in ((1, 1), (1, 2), (2, 1)):
                    pixels = random.integers(0, 256, (32, 16, 3), dtype=np.uint8)
                    name = f"{identity}_{camera}_{number}.png"
                    PIL.Image.fromarray(pixels).save(tmp_path / "hallway" / split / modality / name)
    (tmp_path / "hallway.py").write_text(CONFIG.replace("DATA", str(tmp_path / "data")))
    return tmp_path


@pytest.mark.slow  # trains
def test_a_dataset_of_ones_own(hallway: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a configuration file: checked, prepared, trained on, evaluated."""
    from ddag_jax.runs.train import train

    file, source = hallway / "hallway.py", hallway / "hallway"
    code, out, error = call("check", file, "--from", source)
    assert (code, error) == (0, "")
    assert [line.split() for line in out.splitlines()[1:3]] == [
        ["train", "10", "30", "30"],
        ["test", "4", "12", "12"],
    ]
    assert "published" not in out
    code, out, error = call_prepare(str(file), source, hallway / "data")
    assert (code, error) == (0, "")
    assert out.endswith(f"{hallway / 'data' / 'hallway' / '32x16' / VERSION}: prepared\n")
    assert call_prepare(str(file), source, hallway / "data")[1].endswith("are the same)\n")

    config = override(load_config(str(file)), ["--training.seed", "3"], "train.py")
    assert isinstance(config.data.dataset, Dataset)
    assert train(config, hallway / "run") == 0
    assert train(load_again(file), hallway / "run", resume=True) == 0
    lines = [json.loads(line) for line in (hallway / "run" / "log.jsonl").read_text().splitlines()]
    (evaluation,) = [line for line in lines if line["kind"] == "evaluation"]
    record = evaluation["records"][0]
    assert (record["dataset"], record["dataset_title"]) == ("hallway", "Hallway")
    assert (record["queries"], record["gallery"], record["shots"]) == (12, 8, "single")
    capsys.readouterr()

    (source / "test" / "visible" / "11_1_1.png").write_bytes(b"")
    code, out, error = call("check", file, "--from", source)
    assert (code, out) == (2, "")
    assert "11_1_1.png: is empty" in error


def load_again(file: Path) -> Config:
    """The same settings with another value of the same dataset, as a second process has it."""
    return override(load_config(str(file)), ["--training.seed", "3"], "train.py")


def test_a_dataset_of_ones_own_from_python(hallway: Path) -> None:
    dataset = load_config(str(hallway / "hallway.py")).data.dataset
    assert isinstance(dataset, Dataset)
    path, content, kept = prepare(dataset, hallway / "hallway", hallway / "data", 8, 4)
    assert kept is None
    assert len(content.images["train"]) == 60
    source = open_split(hallway / "data", "hallway", (8, 4), "train")
    assert source.folder == path
    assert source.classes == 10
    builder = builder_class(dataset)(data_dir=hallway / "data", config="8x4")
    assert len(builder.as_data_source("test")) == 24


def test_a_dataset_of_ones_own_on_the_command_line(hallway: Path) -> None:
    config = load_config(str(hallway / "hallway.py"))
    assert override(config, ["--training.epochs", "2"], "x").data.dataset is config.data.dataset
    assert override(config, ["--data.dataset", "llcm"], "x").data.dataset == "llcm"
    assert to_dict(config)["data"]["dataset"] == "hallway"
    assert differences(config, load_config(str(hallway / "hallway.py"))) == {}
    named = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="hallway"))
    assert differences(config, named) == {}


# --- tensorflow-datasets ----------------------------------------------------------------------


def test_the_documented_lines_read_any_prepared_size(tree: Path, tmp_path: Path) -> None:
    """In a process of its own: importing ddag_jax.data is all that registers the datasets."""
    text = (ROOT / "docs" / "datasets.md").read_text()
    (code,) = re.findall(r"```python\n(import ddag_jax\.data\b.*?)```", text, re.S)
    assert "tfds.builder(" in code
    assert "tfds.data_source(" in code
    code = code.replace('data_dir="data"', f"data_dir={str(tmp_path)!r}")
    for height, width in ((8, 4), (32, 16)):
        prepare("sysu_mm01", tree, tmp_path, height, width)
        script = code.replace("288x144", f"{height}x{width}") + textwrap.dedent(
            f"""
            assert examples[0]["image"].shape == ({height}, {width}, 3)
            assert len(examples) == 24, len(examples)
            import sys
            assert "tensorflow" not in sys.modules
            """
        )
        ran = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("name", DATASETS)
def test_any_size_is_a_configuration(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for size in ("7x5", ImageSize.of(7, 5)):
            builder = tfds.builder(name, data_dir=tmp_path, config=size)
            assert builder.info.features["image"].shape == (7, 5, 3)
            assert builder.data_path == tmp_path / name / "7x5" / VERSION
    assert not caplog.records


def test_preparing_and_reading_warn_of_nothing(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare("sysu_mm01", tree, tmp_path, 8, 4)
        open_split(tmp_path, "sysu_mm01", (8, 4), "train+val").images(np.arange(3))
    assert not caplog.records


def test_what_0_1_0_prepared_is_read(data_dir: Path, tree: Path, tmp_path: Path) -> None:
    """Its files name a module that no longer exists."""
    shutil.copytree(data_dir, tmp_path / "data")
    folder = tmp_path / "data" / "sysu_mm01" / "32x16" / VERSION
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["moduleName"] == "ddag_jax.datasets.builder"
    info["moduleName"] = "ddag_jax.data.sysu_mm01.builder"
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    new = open_split(data_dir, "sysu_mm01", (32, 16), "test")
    old = open_split(tmp_path / "data", "sysu_mm01", (32, 16), "test")
    assert old.names == new.names
    np.testing.assert_array_equal(old.images(np.arange(24)), new.images(np.arange(24)))
    examples = tfds.data_source("sysu_mm01/32x16", data_dir=tmp_path / "data", split="test")
    assert len(examples) == 24
    assert prepare("sysu_mm01", tree, tmp_path / "data", 32, 16).kept
