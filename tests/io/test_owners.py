"""Files and processes of a user that has no name: in a container, on a shared file system."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

import ddag_jax.io.owners  # noqa: F401
from tests.linear_method import CONFIG
from tests.reliability.debug_runs import differences

ROOT = Path(__file__).parents[2]
NAMELESS = """
import grp, os, pwd, sys
def unknown(number):
    raise KeyError(f"not found: {number}")
pwd.getpwuid = grp.getgrgid = unknown
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
"""
"""Makes a process one of a user without a name and a home."""

MAINS = {
    "data": "import sys; from ddag_jax.cli.data import main; main(sys.argv[1:])",
    "train": "import sys; from ddag_jax.cli.train import main; sys.exit(main())",
    "evaluate": "import sys; from ddag_jax.cli.evaluate import main; sys.exit(main())",
    "convert": "import sys; from ddag_jax.cli.convert import main; sys.exit(main())",
    "embed": "import sys; from ddag_jax.cli.embed import main; sys.exit(main())",
}


def test_a_file_without_an_owner_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    named = epath.Path(tmp_path / "file").stat()
    for look_up in ("pwd.getpwuid", "grp.getgrgid"):
        with monkeypatch.context() as patch:
            patch.setattr(look_up, {}.__getitem__)
            found = epath.Path(tmp_path / "file").stat()
            folder = epath.Path(tmp_path).stat()
        assert (found.length, found.mtime, found.mode) == (5, named.mtime, named.mode)
        assert (found.is_directory, folder.is_directory) == (False, True)
        assert found.owner is None
    assert named.owner is not None or not os.path.exists("/etc/passwd")


def test_a_missing_file_is_still_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(FileNotFoundError):
        epath.Path(tmp_path / "none").stat()


def imitated(main: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NAMELESS + MAINS[main], *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def as_another(main: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The real thing: another user, who may read all that root may, in case Python is root's."""
    gone = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in gone}
    user = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    user += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return subprocess.run(
        [*user, sys.executable, "-c", MAINS[main], *words],
        cwd=ROOT,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1", "JAX_ENABLE_COMPILATION_CACHE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def real_is_possible() -> bool:
    if not hasattr(os, "getuid") or os.getuid() != 0 or shutil.which("setpriv") is None:
        return False
    return as_another("data", "--help").returncode == 0


@pytest.mark.slow  # prepares and trains in processes of their own
def test_everything_works_without_a_name(finished: Path, tmp_path: Path) -> None:
    """As another user where that is possible, which root can with setpriv; else imitated."""
    real = real_is_possible()
    run = as_another if real else imitated
    tmp_path.chmod(0o777)

    def done(main: str, *words: str) -> str:
        ended = run(main, *words)
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout

    people = ["--train-identities", "14", "--val-identities", "6", "--test-identities", "6"]
    people += ["--images-per-camera", "2", "--height", "64"]
    done("data", "people", "--to", f"{tmp_path}/people", *people)
    size = ["--image-size", "32", "16"]
    prepare = ["sysu_mm01", "--from", f"{tmp_path}/people", "--to", f"{tmp_path}/data", *size]
    done("data", "prepare", *prepare)
    words = ["--workdir", f"{tmp_path}/run", "--data.dir", f"{tmp_path}/data"]
    done("train", CONFIG, *words)
    assert differences(tmp_path / "run", finished) == []
    assert "finished already" in done("train", CONFIG, *words, "--resume")
    done("evaluate", f"{tmp_path}/run", "--config", CONFIG, "--report", f"{tmp_path}/report")
    assert (tmp_path / "run" / "evaluation.json").exists()
    images = ["--modality", "visible", "--to", f"{tmp_path}/f.npz", "--config", CONFIG]
    done("embed", f"{tmp_path}/run", f"{tmp_path}/people/cam1", *images)
    refused = run("convert", "torchvision", f"{tmp_path}/none.pth", f"{tmp_path}/ours")
    assert "Traceback" not in refused.stderr
    if importlib.util.find_spec("torch") is not None:
        assert refused.stderr == f"error: {tmp_path}/none.pth: no such file\n"
    if real:
        assert (tmp_path / "run" / "log.jsonl").stat().st_uid == 54321
