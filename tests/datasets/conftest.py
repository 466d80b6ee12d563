"""A small SYSU-MM01 of noise images, on disk and prepared."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ddag_jax.datasets.prepare import prepare

LISTS = {"train": (1, 2, 3, 16), "val": (4, 5), "test": (6, 7)}
UNLISTED = 9
SIZE = (32, 16)
"""Height and width of the images, and that they are prepared at: nothing is resized."""
IMAGES = 2
"""Of an identity and a camera."""


def write_tree(root: Path) -> Path:
    """Every identity in all six cameras, as PNGs named .jpg so that pixels survive exactly."""
    rng = np.random.default_rng(0)
    for camera in range(1, 7):
        for identity in (*sum(LISTS.values(), ()), UNLISTED):
            folder = root / f"cam{camera}" / f"{identity:04d}"
            folder.mkdir(parents=True)
            for number in range(1, IMAGES + 1):
                shape = (*SIZE, 3) if camera not in (3, 6) else SIZE
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", format="png")
    (root / "exp").mkdir()
    for split, identities in LISTS.items():
        (root / "exp" / f"{split}_id.txt").write_text(",".join(map(str, identities)) + "\n")
    return root


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[[], Path]:
    """Writes a tree of the test's own, to damage."""
    return lambda: write_tree(tmp_path / "sysu")


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree to read only."""
    return write_tree(tmp_path_factory.mktemp("source") / "sysu")


@pytest.fixture(scope="session")
def data_dir(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, prepared at 32 x 16 pixels; to read only."""
    folder = tmp_path_factory.mktemp("data")
    prepare("sysu_mm01", tree, folder, *SIZE)
    return folder
