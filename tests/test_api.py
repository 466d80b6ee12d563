"""The public API: what `import ddag_jax` gives, without jax; README's quick start."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import ddag_jax

ROOT = Path(__file__).parents[1]


def python(*arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_does_not_import_jax():
    code = "import sys, ddag_jax; ddag_jax.Config(); print('jax' in sys.modules, dir(ddag_jax))"
    assert python("-c", code).startswith("False [")


@pytest.mark.parametrize("name", ddag_jax.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(ddag_jax, name).__doc__
    assert name in dir(ddag_jax)


def test_another_name_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        ddag_jax.evaluat  # noqa: B018


@pytest.mark.slow
def test_readme_s_quick_start_runs(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().split("## From Python")[1].split("\n## ")[0]
    (commands,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for command in commands.splitlines():
        program, *words = shlex.split(command)
        assert program == "python"
        python(*words, cwd=tmp_path)
    (tmp_path / "quick_start.py").write_text(code)
    printed = python("quick_start.py", cwd=tmp_path)
    assert "all-search" in printed
    assert re.search(r"\{'global': \d+\.\d+, 'part': \d+\.\d+\}", printed)
    assert re.search(r"rank-1 0\.\d\d, mAP 0\.\d\d, mINP 0\.\d\d", printed)
    assert (tmp_path / "runs" / "first" / "evaluation.json").exists()
