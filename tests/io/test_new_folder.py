import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddag_jax.errors import UserError
from ddag_jax.io.files import new_folder

KILLED = """
import os, signal, sys
from ddag_jax.io.files import new_folder
with new_folder(sys.argv[1]) as partial:
    (partial / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_appears_at_the_end(tmp_path: Path) -> None:
    with new_folder(tmp_path / "above" / "set") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "above" / "set").exists()
        assert partial.name.startswith(".set.partial-")
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["set"]
    assert (tmp_path / "above" / "set" / "file").read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(partial: Path) -> None:
        (partial / "file").touch()
        raise error

    with pytest.raises(error), new_folder(tmp_path / "set") as partial:
        fail(partial)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_in_a_line(tmp_path: Path) -> None:
    full = pytest.raises(UserError, match=r"set: cannot be written \(.*No space left")
    with full, new_folder(tmp_path / "set"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "set"
    subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    [leftover] = tmp_path.iterdir()
    assert (leftover / "half").exists()
    alive = tmp_path / f".set.partial-{os.getppid()}"  # somebody who is still writing
    other = tmp_path / ".sets.partial-1"
    ours = tmp_path / f".set.partial-{os.getpid()}"  # of an earlier process of our number
    for path in (alive, other, ours):
        path.mkdir()
    (ours / "half").touch()
    with new_folder(target):
        pass
    assert set(tmp_path.iterdir()) == {target, alive, other}
    assert not list(target.iterdir())


def test_an_existing_one_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="exists"), new_folder(tmp_path / "set"):
        pass
    with pytest.raises(UserError, match="meanwhile"), new_folder(tmp_path / "other"):
        (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make"), new_folder(tmp_path / "file" / "set"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"set", "other", "file"}
