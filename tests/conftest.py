"""What every test stands on: eight CPU devices, a compilation cache, the recorded figures.

``--golden DIR`` and ``--sysu-split DIR`` say where the reference's recorded figures and
SYSU-MM01's published split lie. A test that needs a folder which is not there is skipped; where
the environment variable CI is ``true`` it fails.
"""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest

ROOT = Path(__file__).parent.parent

# Before anything imports jax. Settings from outside win.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Annotations, those of shapes above all, are checked while the tests run. The tower lets an int
# pass for a float, as type checkers do. Not training.state: a tree holds shapes, too, or nothing.
jaxtyping.install_import_hook(
    [
        "ddag_jax.evaluation",
        "ddag_jax.runs.logs",
        "ddag_jax.losses",
        "ddag_jax.models",
        "ddag_jax.training.optimizer",
        "ddag_jax.report",
        "ddag_jax.runs.train",
        "ddag_jax.training.step",
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        metavar="DIR",
        default=ROOT.parent / "shared" / "golden",
        help="figures recorded from the reference (default: ../shared/golden beside the checkout)",
    )
    parser.addoption(
        "--sysu-split",
        type=Path,
        metavar="DIR",
        default=ROOT.parent / "shared" / "data" / "sysu_mm01_split",
        help="SYSU-MM01's split as data (default: ../shared/data/sysu_mm01_split)",
    )


def _folder(config: pytest.Config, option: str) -> Path:
    folder: Path = config.getoption(option)
    if not folder.is_dir():
        message = f"no folder {folder}; name it with {option} DIR"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """No file uses another's compiled programs; together they are gigabytes."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(scope="session")
def golden_dir(pytestconfig: pytest.Config) -> Path:
    return _folder(pytestconfig, "--golden")


@pytest.fixture(scope="session")
def split_dir(pytestconfig: pytest.Config) -> Path:
    return _folder(pytestconfig, "--sysu-split")


@pytest.fixture(scope="session")
def debug_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rendered people, prepared at the size that the configuration `debug` wants."""
    from tests.reliability.debug_runs import prepared_people

    return prepared_people(tmp_path_factory.mktemp("debug"))


@pytest.fixture(scope="session")
def run_debug(debug_data: Path) -> Callable[..., int]:
    from ddag_jax.cli.train import main as train

    def run(workdir: Path, *arguments: str) -> int:
        return train(
            ["debug", "--workdir", str(workdir), "--data.dir", str(debug_data), *arguments]
        )

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, run_debug: Callable[..., int]) -> Path:
    """A run of `debug` from the first step to the last."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert run_debug(folder) == 0
    return folder


@pytest.fixture(scope="session")
def run_small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """Two steps of `debug` on a rehearsed RegDB or LLCM: `run(dataset, workdir, trial)`."""
    from ddag_jax.cli.data import main as data
    from ddag_jax.cli.train import main as train

    @functools.cache
    def prepared(dataset: str) -> Path:
        folder = tmp_path_factory.mktemp(dataset)
        scale = ["--scale", "0.05"] if dataset == "llcm" else []
        data(["rehearse", dataset, "--to", str(folder / "tree"), *scale])
        size = ["--image-size", "32", "16"]
        data(["prepare", dataset, "--from", str(folder / "tree"), "--to", str(folder), *size])
        return folder

    def run(dataset: str, workdir: Path, trial: str, *arguments: str) -> int:
        words = ["debug", "--workdir", str(workdir), "--data.dir", str(prepared(dataset))]
        words += ["--data.dataset", dataset, "--data.trial", trial, "--data.train-on", "train+val"]
        return train(
            [*words, "--training.epochs", "1", "--training.steps-per-epoch", "2", *arguments]
        )

    return run
