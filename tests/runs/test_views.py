"""Runs with three views and with changed channels: a real one, and what is refused."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from ddag_jax.config import AugmentConfig, BaselineConfig, Config
from ddag_jax.datasets.prepare import prepare
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from ddag_jax.methods.baseline import Baseline
from ddag_jax.runs.train import train
from tests.reliability.debug_runs import log_lines, prepared_people

pytestmark = pytest.mark.slow

CAJ = AugmentConfig(
    padding=2, erasing=0.5, visible_channels="exchange", infrared_channels="adaptive-grey"
)


@dataclasses.dataclass(frozen=True)
class ThreeViewsConfig(BaselineConfig):
    """The baseline of V' and I, with the distance between V' and V as a term."""

    def build(self, classes: int, axis_name: str | None) -> Any:
        return ThreeViews(self, classes, axis_name)


class ThreeViews(Baseline):
    third_view = True

    def loss(self, variables: Any, views: Any, memory: Any, keys: Any) -> Any:
        first, second, infrared = views
        total, terms, batch_stats = super().loss(variables, (second, infrared), memory, keys)
        difference = jnp.abs(first.images - second.images).mean()
        return total, terms | {"difference": difference}, batch_stats


def short(data: Path, **sections: Any) -> Config:
    """`debug`, ten steps."""
    config = load_config("debug")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(data)),
        training=dataclasses.replace(
            config.training, epochs=1, steps_per_epoch=10, **sections.pop("training", {})
        ),
        **sections,
    )


def test_a_run_of_three_views(debug_data: Path, tmp_path: Path) -> None:
    config = short(
        debug_data,
        augment=CAJ,
        model=ThreeViewsConfig(backbone="resnet18", width=8),
        training={"views": 3},
    )
    assert train(config, tmp_path / "run") == 0
    steps = [line for line in log_lines(tmp_path / "run") if line["kind"] == "train"]
    assert len(steps) == 10
    assert all(line["difference"] > 0.1 for line in steps)
    # Images per second, times seconds: those of all views.
    counts = [
        after["images_per_second"] * (after["time"] - before["time"])
        for before, after in itertools.pairwise(steps)
    ]
    assert np.median(counts) == pytest.approx(3 * 8 * 2, rel=0.2)


def test_a_method_of_two_views_is_refused(debug_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.views: 3, but DDAG takes two"):
        train(short(debug_data, training={"views": 3}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_channels_of_grey_visible_images_are_refused(tmp_path: Path) -> None:
    """One with a colour is enough for the run to start."""
    prepared_people(tmp_path)
    visible = [path for camera in (1, 2, 4, 5) for path in tmp_path.glob(f"people/cam{camera}/*/*")]
    assert visible
    for path in visible:
        PIL.Image.open(path).convert("L").save(path)
    prepare("sysu_mm01", tmp_path / "people", tmp_path / "grey", 32, 16)
    config = short(tmp_path / "grey", augment=CAJ)
    with pytest.raises(UserError, match=r"augment\.visible_channels: all 16 visible .* grey"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for changed in (AugmentConfig(infrared_channels="adaptive-grey"), AugmentConfig()):
        assert allowed(dataclasses.replace(config, augment=changed), tmp_path)
    assert allowed(dataclasses.replace(config, data=short(tmp_path / "data").data), tmp_path)


def allowed(config: Config, folder: Path) -> bool:
    """Whether the check passes: a later one refuses then, of a profile that is too long."""
    with pytest.raises(UserError) as error:
        train(config, folder / "run", profile=1000)
    return str(error.value).startswith("--profile 1000")
