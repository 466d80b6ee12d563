"""AGW, CAJ and DDAG with CAJ's recipe, as shipped, on tiny people; and what their fields refuse."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from ddag_jax.cli.evaluate import main as evaluate
from ddag_jax.cli.train import main as train_command
from ddag_jax.config import AugmentConfig, BaselineConfig, Config
from ddag_jax.datasets.prepare import prepare
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from ddag_jax.runs.checkpoint import saved_steps
from ddag_jax.runs.preemption import StopRequest
from ddag_jax.runs.train import train
from tests import linear_method
from tests.reliability.debug_runs import differences, log_lines, notes, prepared_people

pytestmark = pytest.mark.slow

SMALL = [
    *("--data.image-height", "32", "--data.image-width", "16", "--augment.padding", "2"),
    *("--data.train-on", "train", "--model.backbone", "resnet18", "--model.width", "8"),
    *("--training.epochs", "2", "--training.steps-per-epoch", "3", "--training.log-every", "1"),
    *("--training.images-per-identity", "2", "--optimizer.drop-epochs", "1"),
    *("--evaluation.trials", "1", "--evaluation.batch-size", "32"),
]
CAJ = AugmentConfig(
    padding=2, erasing=0.5, visible_channels="exchange", infrared_channels="adaptive-grey"
)


@pytest.mark.parametrize(
    ("name", "views", "terms", "features"),
    [
        ("agw", 2, {"identity", "triplet"}, ["pooled", "global"]),
        ("caj", 3, {"identity", "triplet", "clamped"}, ["pooled", "global"]),
        ("ddag_caj", 3, {"identity", "triplet", "part", "graph"}, ["global", "part"]),
    ],
)
def test_from_training_to_the_table(
    name: str,
    views: int,
    terms: set[str],
    features: list[str],
    debug_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And stopped within an epoch and resumed, to the same bits."""
    run, more = tmp_path / "run", []
    if name == "ddag_caj":
        more = ["--model.graph-head-dim", "8", "--model.graph-heads", "2"]
    words = [name, "--data.dir", str(debug_data), *SMALL, *more, "--workdir"]
    assert train_command([*words, str(run)]) == 0
    steps = [line for line in log_lines(run) if line["kind"] == "train"]
    assert len(steps) == 6
    for line in steps:
        assert terms <= set(line)
        assert np.isfinite([line[term] for term in terms]).all()
    assert steps[-1]["identity"] < steps[0]["identity"]
    # Images per second, times seconds: those of all views.
    counts = [
        after["images_per_second"] * (after["time"] - before["time"])
        for before, after in itertools.pairwise(steps)
    ]
    assert np.median(counts) == pytest.approx(views * 8 * 2, rel=0.2)
    assert evaluate([str(run), "--json", str(tmp_path / "table.json")]) == 0
    records = json.loads((tmp_path / "table.json").read_text())
    assert list(dict.fromkeys(record["feature"] for record in records)) == features

    resumed = [*words, str(tmp_path / "resumed"), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "after", lambda self, step: step == 2)
        assert train_command(resumed) == 0
    assert saved_steps(tmp_path / "resumed") == [2]
    assert train_command(resumed) == 0
    assert differences(tmp_path / "resumed", run) == []


def linear(data: Path, **sections: Any) -> Config:
    """One epoch of the method that compiles in a second."""
    config = load_config(linear_method.CONFIG)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(data)),
        training=dataclasses.replace(config.training, epochs=1, **sections.pop("training", {})),
        **sections,
    )


def test_a_method_of_two_views_is_refused(debug_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.views: 3, but Linear takes two"):
        train(linear(debug_data, training={"views": 3}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_triplet_without_a_gradient_is_in_the_log(debug_data: Path, tmp_path: Path) -> None:
    """A warning, once."""
    config = load_config("debug")
    model = BaselineConfig(backbone="resnet18", width=8, triplet="squared", triplet_gamma=1e6)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(debug_data)),
        model=model,
        training=dataclasses.replace(config.training, epochs=1),
        optimizer=dataclasses.replace(config.optimizer, drop_epochs=()),
    )
    assert train(config, tmp_path / "run") == 0
    lines = [line for line in log_lines(tmp_path / "run") if line["kind"] == "train"]
    assert len(lines) == 4
    assert all(line["clamped"] > 0.5 for line in lines)
    warnings = [note for note in notes(tmp_path / "run") if "clamped" in note]
    assert len(warnings) == 1
    assert "--model.triplet-gamma" in warnings[0]


def test_channels_of_grey_visible_images_are_refused(tmp_path: Path) -> None:
    """One with a colour is enough for the run to start."""
    prepared_people(tmp_path)
    visible = [path for camera in (1, 2, 4, 5) for path in tmp_path.glob(f"people/cam{camera}/*/*")]
    assert visible
    for path in visible:
        PIL.Image.open(path).convert("L").save(path)
    prepare("sysu_mm01", tmp_path / "people", tmp_path / "grey", 32, 16)
    config = linear(tmp_path / "grey", augment=CAJ)
    with pytest.raises(UserError, match=r"augment\.visible_channels: all 16 visible .* grey"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for changed in (AugmentConfig(infrared_channels="adaptive-grey"), AugmentConfig()):
        assert allowed(dataclasses.replace(config, augment=changed), tmp_path)
    assert allowed(dataclasses.replace(config, data=linear(tmp_path / "data").data), tmp_path)


def allowed(config: Config, folder: Path) -> bool:
    """Whether the check passes: a later one refuses then, of a profile that is too long."""
    with pytest.raises(UserError) as error:
        train(config, folder / "run", profile=1000)
    return str(error.value).startswith("--profile 1000")
