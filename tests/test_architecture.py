"""Who may import whom: DESIGN.md's import rules, held by reading every module's syntax tree."""

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]

DEVICE_NAMES = {
    "AbstractMesh",
    "Mesh",
    "NamedSharding",
    "PartitionSpec",
    "PositionalSharding",
    "SingleDeviceSharding",
    "create_device_mesh",
    "create_hybrid_device_mesh",
    "default_backend",
    "device_count",
    "devices",
    "distributed",
    "local_device_count",
    "local_devices",
    "make_array_from_process_local_data",
    "make_array_from_single_device_arrays",
    "make_mesh",
    "pmap",
    "process_count",
    "process_index",
    "set_mesh",
    "shard_map",
}
"""What of jax says which devices there are, or lays something out over them."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Files of `where`, apart from `exempt`, name nothing of `never`, and of ours only `only`."""

    reason: str
    where: tuple[str, ...]
    """Patterns of paths, `FOLDER/**` for all in a folder, `**` for every file."""
    exempt: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    """Dotted names, each with everything under it."""
    only: tuple[str, ...] | None = None
    """Dotted names under `ddag_jax` that may be imported; None: any."""
    devices: bool = False
    """Nothing of DEVICE_NAMES either."""
    standard_library: bool = False
    """Beside `only`, nothing but the standard library."""
    file_names: tuple[str, ...] = ()
    """No file or folder is called this."""


PACKAGE = ("ddag_jax/**",)
WITHOUT_JAX = (
    "ddag_jax/data/sampler.py",
    "ddag_jax/datasets/dataset.py",
    "ddag_jax/evaluation/ranking.py",
    "ddag_jax/evaluation/reranking.py",
    "ddag_jax/evaluation/protocols.py",
)

LAYERS: tuple[tuple[str, ...], ...] = (
    ("types", "errors", "config"),
    ("io",),
    ("models", "losses", "numerics", "parallel"),
    ("datasets",),
    ("data", "synthetic"),
    ("methods",),
    ("evaluation", "training"),
    ("report",),
    ("runs",),
    ("experiments", "pytorch", "serving"),
    ("cli",),
)
"""Rooms of the package, lowest first: a room imports from lower layers and from itself."""

ENTRY_POINTS = (
    "ddag_jax/__init__.py",
    "ddag_jax/data/__main__.py",
    "ddag_jax/experiments/__main__.py",
    "ddag_jax/pytorch/compare.py",
    "ddag_jax/serving/__main__.py",
)
"""Files that start something: above every layer."""

RULES = (
    Rule(
        "config, types and errors import nothing of ours",
        where=("ddag_jax/config.py", "ddag_jax/types.py", "ddag_jax/errors.py"),
        only=(),
    ),
    Rule(
        "blocks and losses take plain arguments, never the config",
        where=("ddag_jax/models/**", "ddag_jax/losses.py"),
        never=("ddag_jax.config",),
    ),
    Rule(
        "the sampler, the datasets' protocols and the ranking are without jax",
        where=WITHOUT_JAX,
        never=("jax", "jaxlib", "flax", "optax", "chex"),
    ),
    Rule(
        "the step knows no method, no loss and no configuration",
        where=("ddag_jax/training/step.py",),
        only=(
            "ddag_jax.methods.base",
            "ddag_jax.training.flat",
            "ddag_jax.training.state",
            "ddag_jax.data.augment",
            "ddag_jax.types",
        ),
    ),
    Rule(
        "an experiment imports only ddag_jax.config",
        where=("configs/**",),
        only=("ddag_jax.config",),
        standard_library=True,
    ),
    Rule(
        "runs/checkpoint.py is the one file that imports orbax",
        where=("**",),
        exempt=("ddag_jax/runs/checkpoint.py", "tests/**", "benchmarks/**"),
        never=("orbax",),
    ),
    Rule(
        "torch is only in ddag_jax/pytorch",
        where=("**",),
        exempt=("ddag_jax/pytorch/**", "tests/**", "benchmarks/**"),
        never=("torch", "torchvision", "safetensors"),
    ),
    Rule("TensorFlow is nowhere", where=("**",), never=("tensorflow",)),
    Rule(
        "parallel.py is the one file that names devices",
        where=PACKAGE,
        exempt=("ddag_jax/parallel.py",),
        devices=True,
    ),
    Rule(
        "a file is called what is in it",
        where=("**",),
        file_names=("utils", "util", "helpers", "misc", "common"),
    ),
    Rule(
        "io/progress.py is the one file that imports tqdm",
        where=PACKAGE,
        exempt=("ddag_jax/io/progress.py",),
        never=("tqdm",),
    ),
    Rule(
        "io/gcs.py, imported when a bucket is used, is the one file that imports gcsfs",
        where=PACKAGE,
        exempt=("ddag_jax/io/gcs.py",),
        never=("gcsfs", "google.auth", "google.cloud", "aiohttp", "ddag_jax.io.gcs"),
    ),
    Rule(
        "the package imports neither its tests nor its benchmarks",
        where=PACKAGE,
        never=("tests", "benchmarks"),
    ),
    Rule(
        "tests share nothing with the benchmarks, except the tests of these",
        where=("tests/**",),
        exempt=(
            "tests/test_benchmark_data.py",
            "tests/test_benchmarks.py",
            "tests/test_gpu_compile.py",
            "tests/test_speed_benchmarks.py",
            "tests/test_tpu_compile.py",
        ),
        never=("benchmarks",),
    ),
)


def room(path: str) -> str:
    """The room of a file of the package: `ddag_jax/io/files.py` is in `io`."""
    return PurePosixPath(path).with_suffix("").parts[1]


def upward(path: str, source: str) -> Iterator[str]:
    """Imports of a file of the package that are not from a lower layer or its own room."""
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    own = room(path)
    for name, line in names(path, source)[0].items():
        top, *rest = name.split(".")
        other = rest[0] if top == "ddag_jax" and rest and rest[0] in level else own
        if other != own and level[other] >= level[own]:
            yield f"{path}:{line}: {own} imports {name}"


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path is one of the patterns, or lies in a folder given as `FOLDER/**`."""
    return any(
        pattern in ("**", path) or (pattern.endswith("/**") and path.startswith(pattern[:-2]))
        for pattern in patterns
    )


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def names(path: str, source: str) -> tuple[dict[str, int], dict[str, int]]:
    """What a module imports, and every dotted name it uses through an import: name -> line.

    Imports anywhere count: in functions, under TYPE_CHECKING, relative ones, and
    `importlib.import_module` of a literal. `from a import b` imports `a.b`.
    """
    imported: dict[str, int] = {}
    used: dict[str, int] = {}
    meaning: dict[str, str] = {}  # local name -> what it stands for
    package = list(PurePosixPath(path).parent.parts)
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                imported.setdefault(alias.name, node.lineno)
                top = alias.name.split(".")[0]
                meaning[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            for alias in node.names:
                name = ".".join([*base, alias.name])
                imported.setdefault(name, node.lineno)
                used.setdefault(name, node.lineno)
                meaning[alias.asname or alias.name] = name
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            imported.setdefault(node.args[0].value, node.lineno)
    for node in ast.walk(tree):
        parts = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id in meaning:
            used.setdefault(".".join([meaning[inner.id], *reversed(parts)]), node.lineno)
    return imported, used


def violations(path: str, source: str) -> Iterator[tuple[str, str]]:
    """Every rule that a file breaks, and how: (reason, `path:line: what`)."""
    imported, used = names(path, source)
    for rule in RULES:
        if not matches(path, rule.where) or matches(path, rule.exempt):
            continue
        for part in PurePosixPath(path).with_suffix("").parts:
            if part in rule.file_names:
                yield rule.reason, f"{path}: called {part}"
        for name, line in imported.items():
            stranger = rule.only is not None and not under(name, rule.only)
            if rule.standard_library:
                stranger = stranger and name.split(".")[0] not in sys.stdlib_module_names
            else:
                stranger = stranger and under(name, ("ddag_jax",))
            if stranger or under(name, rule.never):
                yield rule.reason, f"{path}:{line}: imports {name}"
        if rule.devices:
            for name, line in used.items():
                top, *rest = name.split(".")
                if top == "jax" and DEVICE_NAMES.intersection(rest):
                    yield rule.reason, f"{path}:{line}: uses {name}"


def sources() -> Iterator[tuple[str, str]]:
    """Every Python file of the project, by its path from the root."""
    for folder in ("ddag_jax", "configs", "tests", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
    for file in sorted(ROOT.glob("*.py")):
        yield file.name, file.read_text(encoding="utf-8")


def package() -> Iterator[tuple[str, str]]:
    """Every file of the package that is not an entry point."""
    for path, source in sources():
        if path.startswith("ddag_jax/") and path not in ENTRY_POINTS:
            yield path, source


def test_every_room_has_a_layer():
    rooms = {room(path) for path, _ in package()}
    assert rooms == {name for layer in LAYERS for name in layer}


def test_no_import_runs_upwards():
    broken = [how for path, source in package() for how in upward(path, source)]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ddag_jax/parallel.py", "from ddag_jax.training.step import Step"),
        ("ddag_jax/data/loader.py", "def f():\n    from ddag_jax.runs import checkpoint"),
        ("ddag_jax/evaluation/embed.py", "import ddag_jax.report.page"),
        ("ddag_jax/evaluation/embed.py", "import ddag_jax.training.step"),
        ("ddag_jax/datasets/regdb.py", "from ..cli import options"),
    ],
)
def test_an_import_upwards_is_found(path, source):
    assert len(list(upward(path, source))) == 1


def test_every_file_keeps_the_rules():
    files = dict(sources())
    assert "ddag_jax/config.py" in files
    assert "train.py" in files
    broken = [
        f"{how} ({reason})"
        for path, source in files.items()
        for reason, how in violations(path, source)
    ]
    assert not broken, "\n" + "\n".join(broken)


BREAKING = [
    (0, "ddag_jax/config.py", "from ddag_jax import errors"),
    (0, "ddag_jax/types.py", "def f():\n    import ddag_jax.config"),
    (0, "ddag_jax/errors.py", "from . import config"),
    (1, "ddag_jax/models/resnet.py", "from ddag_jax.config import DDAGConfig"),
    (1, "ddag_jax/models/resnet.py", "from ..config import DDAGConfig"),
    (1, "ddag_jax/losses.py", "if TYPE_CHECKING:\n    from ddag_jax import config"),
    (2, "ddag_jax/data/sampler.py", "import jax.numpy as jnp"),
    (2, "ddag_jax/evaluation/ranking.py", "def f():\n    from jax import numpy"),
    (3, "ddag_jax/training/step.py", "from ddag_jax.config import Config"),
    (3, "ddag_jax/training/step.py", "from ddag_jax.methods import ddag"),
    (4, "configs/demo.py", "from ddag_jax.models import resnet"),
    (4, "configs/ablations/b.py", "import numpy as np"),
    (5, "ddag_jax/runs/train.py", "import orbax.checkpoint as ocp"),
    (6, "ddag_jax/models/resnet.py", "import importlib\nimportlib.import_module('torch')"),
    (6, "ddag_jax/runs/checkpoint.py", "from torch import nn"),
    (7, "tests/test_data.py", "import tensorflow as tf"),
    (8, "ddag_jax/runs/train.py", "import jax\nprint(jax.devices())"),
    (8, "ddag_jax/training/state.py", "from jax.sharding import PartitionSpec as P"),
    (8, "ddag_jax/data/loader.py", "import jax as j\nj.experimental.shard_map.shard_map(f)"),
    (9, "ddag_jax/utils.py", ""),
    (9, "ddag_jax/data/utils/files.py", ""),
    (10, "ddag_jax/synthetic/person.py", "from tqdm import tqdm"),
    (11, "ddag_jax/io/buckets.py", "import gcsfs"),
    (11, "ddag_jax/io/files.py", "from ddag_jax.io import gcs"),
    (12, "ddag_jax/runs/train.py", "from benchmarks import measure"),
    (13, "tests/conftest.py", "def f():\n    from benchmarks.epoch import write_people"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BREAKING)
def test_a_file_that_breaks_a_rule_is_found(rule, path, source):
    assert {reason for reason, _ in violations(path, source)} == {RULES[rule].reason}


def test_every_rule_has_been_seen_to_fail():
    assert {rule for rule, _, _ in BREAKING} == set(range(len(RULES)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "ddag_jax/models/resnet.py",
            "from ddag_jax.models import pooling\nfrom ddag_jax import types",
        ),
        (
            "ddag_jax/training/step.py",
            "from ddag_jax.methods import base\nfrom jax import lax\nlax.pmean",
        ),
        ("ddag_jax/runs/train.py", "from ddag_jax import config, parallel"),
        ("ddag_jax/datasets/builder.py", "import tensorflow_datasets as tfds"),
        ("ddag_jax/parallel.py", "import jax\njax.shard_map"),
        ("ddag_jax/runs/checkpoint.py", "import orbax.checkpoint"),
        ("ddag_jax/pytorch/keys.py", "import torch"),
        ("configs/demo.py", "import dataclasses\nfrom ddag_jax.config import Config"),
        ("ddag_jax/report/page.py", "from ddag_jax.report import charts\nbox.devices()"),
    ],
)
def test_a_file_that_keeps_the_rules_passes(path, source):
    assert list(violations(path, source)) == []


@pytest.mark.parametrize("path", WITHOUT_JAX)
def test_importing_it_does_not_load_jax(path):
    module = path.removesuffix(".py").replace("/", ".")
    code = f"import sys, {module}; sys.exit('jax' in sys.modules and 'it loaded jax')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
