"""The wheel holds the package and its experiments, and the locks hold what pyproject.toml asks."""

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ddag_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command, cwd=ROOT, **variables):
    """A command in an environment that knows nothing of a make around it, and of no checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the checkout by the locked build backend, nothing downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    result = run(
        *(sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps"),
        *("--quiet", "--wheel-dir", folder, ROOT),
    )
    assert result.returncode == 0, result.stderr
    [path] = folder.glob("*.whl")
    return path


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def tracked(folder):
    """The Python files of a folder of the checkout."""
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}


def test_nothing_is_top_level_but_the_package(wheel):
    tops = {name.split("/")[0] for name in contents(wheel)}
    assert tops == {"ddag_jax", f"ddag_jax-{ddag_jax.__version__}.dist-info"}


def test_every_module_and_experiment_is_in_the_wheel(wheel):
    python = {name for name in contents(wheel) if name.endswith(".py")}
    assert tracked("configs")
    assert python == tracked("ddag_jax") | {f"ddag_jax/{name}" for name in tracked("configs")}


def test_the_report_s_page_is_in_the_wheel(wheel):
    pages = {f"ddag_jax/report/page.{kind}" for kind in ("html", "css", "js")}
    assert pages <= contents(wheel)


def test_the_wheel_names_version_licence_and_commands(wheel):
    info = f"ddag_jax-{ddag_jax.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{info}/METADATA").decode()
        commands = configparser.ConfigParser()
        commands.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert f"\nVersion: {ddag_jax.__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    assert dict(commands["console_scripts"]) == {
        "ddag-train": "ddag_jax.cli.train:main",
        "ddag-evaluate": "ddag_jax.cli.evaluate:main",
        "ddag-convert": "ddag_jax.cli.convert:main",
        "ddag-embed": "ddag_jax.cli.embed:main",
        "ddag-search": "ddag_jax.cli.search:main",
        "ddag-export": "ddag_jax.cli.export:main",
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_an_installed_command_runs_outside_a_checkout(wheel, tmp_path, command):
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    module, function = PROJECT["scripts"][command].split(":")
    code = f"""
import sys, {module}
assert {module}.__file__.startswith({str(installed)!r}), {module}.__file__
sys.argv = [{command!r}, "--help"]
sys.exit({module}.{function}())
"""
    result = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()


def pins(name):
    """A lock's packages: name -> (version, number of hashes)."""
    text = (ROOT / name).read_text(encoding="utf-8")
    entries = re.findall(r"^([\w.-]+)==([^\s;]+)(.*(?:\n +--hash.*)*)", text, re.MULTILINE)
    return {
        canonicalize_name(name): (version, rest.count("--hash=sha256:"))
        for name, version, rest in entries
    }


def test_the_lock_holds_every_declared_dependency_within_its_bounds():
    lock = pins("requirements.lock") | pins("requirements-torch.lock")
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["test"], *extras["torch"], *extras["export"]]:
        requirement = Requirement(line)
        version, _ = lock[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, line


def test_the_lock_holds_what_torch_needs():
    torch = pytest.importorskip("torch")
    if torch.version.cuda is not None:
        pytest.skip("this torch is a build with CUDA, whose packages the lock leaves out")
    assert pins("requirements-torch.lock") == {"torch": (torch.__version__.split("+")[0], 0)}
    lock = pins("requirements.lock")
    for line in importlib.metadata.requires("torch"):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version, _ = lock[canonicalize_name(requirement.name)]
            assert version in requirement.specifier, line


def test_every_pin_has_a_hash_and_no_address():
    lock = pins("requirements.lock")
    assert len(lock) > 50
    assert "torch" not in lock
    assert all(hashes > 0 for _, hashes in lock.values())
    for name in ("requirements.lock", "requirements-torch.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text
        assert not re.search(r"^\s*--(?!hash)", text, re.MULTILINE)


@pytest.mark.parametrize("python", ["/nowhere/python3", "false"])
def test_setup_without_a_python_is_one_clear_error(tmp_path, python):
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-torch.lock"):
        shutil.copy(ROOT / name, tmp_path)
    result = run(make, "setup", f"PYTHON={python}", cwd=tmp_path)
    assert result.returncode == 2
    assert f"error: PYTHON={python} is no Python 3.11 or newer" in result.stderr
    assert not (tmp_path / ".venv").exists()
