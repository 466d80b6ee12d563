import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddag_jax.errors import UserError
from ddag_jax.io.files import new_folder, parse_json, read_bytes, read_json, whole_file, write_text

KILLED = """
import os, signal, sys
from ddag_jax.io.files import new_folder
with new_folder(sys.argv[1]) as partial:
    (partial / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_FILE = """
import os, signal, sys
from ddag_jax.io.files import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_reads_regular_files_of_bounded_size_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(ValueError, match="longer than 4 bytes"):
        read_bytes(path, 4)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "absent", 5)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match="is not a regular file"):
            read_bytes(tmp_path / name, 5)


def test_reads_json(tmp_path: Path) -> None:
    write_text(tmp_path / "file", '{"a": [1]}')
    assert read_json(tmp_path / "file") == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 200_000)
    with pytest.raises(ValueError, match="longer than"):
        read_json(tmp_path / "file", limit=3)


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with whole_file(path) as file:
        file.write(b"newer")
        assert path.read_bytes() == b"new"
    assert path.read_bytes() == b"newer"
    write_text(path, "größer\n")
    assert path.read_text(encoding="utf-8") == "größer\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OSError])
@pytest.mark.parametrize("existing", [b"old", None])
def test_a_failure_keeps_an_existing_file(
    tmp_path: Path, error: type[BaseException], existing: bytes | None
) -> None:
    path = tmp_path / "file"
    if existing is not None:
        path.write_bytes(existing)
    before = list(tmp_path.iterdir())

    def fail(path: Path) -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail(path)
    assert list(tmp_path.iterdir()) == before
    assert existing is None or path.read_bytes() == existing


def test_a_killed_process_leaves_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    subprocess.run([sys.executable, "-c", KILLED_FILE, str(path)], check=False)
    assert path.read_bytes() == b"old"
    [leftover] = set(tmp_path.iterdir()) - {path}
    assert leftover.name.startswith(".file.partial-")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for place in ("absent/file", "file/file", "folder"):
        with pytest.raises(OSError, match="directory"):
            write_text(tmp_path / place, "x")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


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
