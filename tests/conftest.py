"""Set up every test: eight CPU devices, a compilation cache, folders of recorded figures.

Options:
    --golden DIR: folder of cases for tests/test_golden.py. Default: tests/golden.
    --sysu-split DIR: SYSU-MM01's published split as data. Default: ../shared/data/sysu_mm01_split
        beside the checkout; without it the tests that read it are skipped, since the project may
        not ship it.
"""

import functools
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

from tests.processes import HAS_OLDER_EMITTER, ROOT, flags

# Before anything imports jax. Settings from outside win.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [flags(devices=8), os.environ.get("XLA_FLAGS", "")]  # of two the last one counts
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
        "ddag_jax.methods",
        "ddag_jax.models",
        "ddag_jax.training.optimizer",
        "ddag_jax.report",
        "ddag_jax.runs.train",
        "ddag_jax.training.step",
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# After the settings, since they import jax.
from ddag_jax import parallel  # noqa: E402
from tests import programs  # noqa: E402
from tests.linear_method import CONFIG  # noqa: E402

programs.share()

# Tracing makes many objects that live: looking through them so often takes a tenth of its time.
gc.set_threshold(50_000, 10, 10)

LONGEST = (
    "test_parallel",
    "test_golden",
    "test_promises",
    "test_speed_benchmarks",
    "test_processes",
    "test_buckets",
    "test_recipes",
    "test_experiments",
    "test_extending",
    "test_train",
    "test_tpu_compile",
    "test_compare",
)
"""Files that take about a minute of CPU time or more, the longest first."""
GOLDEN = ROOT / "tests" / "golden"
SYSU_SPLIT = ROOT.parent / "shared" / "data" / "sysu_mm01_split"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        metavar="DIR",
        default=GOLDEN,
        help="cases recorded from the authors' code (default: tests/golden)",
    )
    parser.addoption(
        "--sysu-split",
        type=Path,
        metavar="DIR",
        help="SYSU-MM01's split as data (default: ../shared/data/sysu_mm01_split, if it is there)",
    )


def pytest_configure(config: pytest.Config) -> None:
    for option in ("--golden", "--sysu-split"):
        folder = config.getoption(option)
        if folder is not None and not folder.is_dir():
            raise pytest.UsageError(f"{option} {folder}: no such folder")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests first, of those the longest files, so that several processes end together."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        name = item.path.stem
        return (
            item.get_closest_marker("slow") is None,
            LONGEST.index(name) if name in LONGEST else len(LONGEST),
        )

    items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """No file uses another's compiled programs; together they are gigabytes."""
    yield
    programs.forget()


@pytest.fixture(autouse=True)
def _not_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with --quiet silences its process, and here many share one."""
    monkeypatch.setattr("ddag_jax.io.progress._quiet", False)


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the product compiles is compiled as without haste (see `flags`)."""
    options = parallel.compiler_options
    more: dict[str, Any] = {"xla_backend_optimization_level": 1}
    if HAS_OLDER_EMITTER:
        more["xla_cpu_use_fusion_emitters"] = True
    monkeypatch.setattr(parallel, "compiler_options", lambda mesh: options(mesh) | more)
    monkeypatch.setenv("XLA_FLAGS", flags(devices=8, hasty=False))  # for processes that it starts


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Return the repository's own recorded figures, whatever --golden names."""
    return GOLDEN


@pytest.fixture(scope="session")
def split_dir(pytestconfig: pytest.Config) -> Path:
    """Return the folder of SYSU-MM01's split; skip where there is none."""
    folder: Path | None = pytestconfig.getoption("--sysu-split")
    if folder is None and not SYSU_SPLIT.is_dir():
        pytest.skip("SYSU-MM01's split is not here; name its folder with --sysu-split DIR")
    return folder or SYSU_SPLIT


@pytest.fixture(scope="session")
def debug_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rendered people, prepared at the size that the configuration `debug` wants."""
    from tests.reliability.debug_runs import prepared_people

    return prepared_people(tmp_path_factory.mktemp("debug"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The Chromium that CHROMIUM names, or the first that there is."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium found; install one (Debian: chromium), or name it by CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        # As root, as CI is, it has no sandbox to offer.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


Run = Callable[..., int]


def _run(config: str, data: Path) -> Run:
    from ddag_jax.cli.train import main as train

    def run(workdir: Path | str, *arguments: str) -> int:
        return train([config, "--workdir", str(workdir), "--data.dir", str(data), *arguments])

    return run


@pytest.fixture(scope="session")
def run_ddag(debug_data: Path) -> Run:
    """The training command with the configuration `debug`: `run(workdir, *arguments)`."""
    return _run("debug", debug_data)


@pytest.fixture(scope="session")
def run_linear(debug_data: Path) -> Run:
    """The same with a linear model, for what does not depend on the network: it compiles fast."""
    return _run(CONFIG, debug_data)


@pytest.fixture(scope="session")
def finished_ddag(tmp_path_factory: pytest.TempPathFactory, run_ddag: Run) -> Path:
    """A run of `debug` from the first step to the last."""
    folder = tmp_path_factory.mktemp("runs") / "finished_ddag"
    assert run_ddag(folder) == 0
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, run_linear: Run) -> Path:
    """A run of the linear model from the first step to the last."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert run_linear(folder) == 0
    return folder


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A bucket of Cloud Storage on this machine, a `tests.buckets.Bucket`."""
    from tests.buckets import serving

    # For the session, since tensorstore keeps the first address that it is given.
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(tmp_path_factory.mktemp("server"), patch.setenv) as started,
    ):
        yield started


@pytest.fixture(scope="session")
def run_small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of the linear model on a small RegDB or LLCM: `run(dataset, workdir, trial)`."""
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
        words = [CONFIG, "--workdir", str(workdir), "--data.dir", str(prepared(dataset))]
        words += ["--data.dataset", dataset, "--data.trial", trial, "--data.train-on", "train+val"]
        return train(
            [*words, "--training.epochs", "1", "--training.steps-per-epoch", "2", *arguments]
        )

    return run
