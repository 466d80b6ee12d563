"""Read files of untrusted origin, and write files and folders whole or not at all.

Reads accept regular files of bounded size only. Writes go to a hidden name beside the target and
are renamed when complete, so that a reader never sees a part of a file. A path may be in a bucket
(io/buckets.py), where an object appears when it is complete; of a folder, its files appear one by
one, those at its top last.
"""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.io import (
    buckets,
    owners,  # noqa: F401  # before the first stat
)
from ddag_jax.io.buckets import check_scheme, is_bucket

_OLD = ".replaced"


def read_bytes(path: epath.PathLike, limit: int) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a regular file (reading a pipe would block), or is longer than
            `limit` bytes.
    """
    if is_bucket(path):
        return buckets.read(path, limit)
    path = epath.Path(path)
    if path.exists() and not is_file(path):
        raise ValueError("is not a regular file")
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) > limit:
            raise ValueError(f"is longer than {limit:,} bytes")
        file.seek(0)
        content: bytes = file.read()
    return content


def as_path(name: str, value: Any) -> epath.Path:
    """Return a path. Raises UserError if the value is not one, or of a kind that is not read."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        what = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
        raise UserError(f"{name}: {what} is not a path")
    check_scheme(value)
    return epath.Path(value)


def is_file(path: epath.Path) -> bool:
    """Return whether `path` is a regular file; `epath.Path.is_file` is true of pipes too."""
    return path.is_file() if is_bucket(path) else os.path.isfile(path)


def read_json(path: epath.PathLike, limit: int = 2**20) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON in UTF-8, longer than `limit` bytes, or nested too deeply.
    """
    return parse_json(read_bytes(path, limit))


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON text. Raises ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


@contextlib.contextmanager
def whole_file(path: epath.PathLike) -> Iterator[IO[Any]]:
    """Open a binary file that replaces `path` when the block ends.

    If the block or the replacement fails or is interrupted, the new content is removed and an
    existing file at `path` is kept.

    Raises:
        OSError: the file cannot be written.
    """
    target = epath.Path(path)
    if is_bucket(target):
        with tempfile.NamedTemporaryFile(prefix="ddag_jax_") as file:
            yield file
            file.flush()
            buckets.upload(file.name, target)
        return
    partial = target.with_name(f"{_partial(target.name)}{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_file(path: epath.PathLike) -> Iterator[IO[Any]]:
    """Open a binary file as `whole_file` does, for a target that the user has named.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); name another file") from None


def write_text(path: epath.PathLike, text: str) -> None:
    """Write text as UTF-8, whole or not at all (see `whole_file`)."""
    with whole_file(path) as file:
        file.write(text.encode())


def check_new_file(path: epath.PathLike) -> epath.Path:
    """Check that a path is free and can be written, before any work is done.

    Raises:
        UserError: the file exists, its folder or bucket does not, or the folder refuses a file.
    """
    check_scheme(path)
    target = epath.Path(path)
    if is_bucket(target):
        buckets.check_bucket(target)
    if target.exists():
        raise UserError(f"{target}: exists already; name another file, or remove it")
    if is_bucket(target):
        return target
    if not target.parent.is_dir():
        what = "is not a folder" if target.parent.exists() else "does not exist; create it first"
        raise UserError(f"{target}: its folder {what}")
    if why := refusal(target.parent):
        raise UserError(f"{target}: cannot be written ({why}); name another file")
    return target


def refusal(folder: epath.PathLike) -> str | None:
    """Return why a folder takes no new file; None if it does. It is tried: permissions alone do not
    show a file system that is full or read-only."""
    trial = pathlib.Path(folder) / f"{_partial('trial')}{os.getpid()}"
    try:
        trial.write_bytes(b"0")
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
    return None


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike[str], *, replace: bool = False) -> Iterator[pathlib.Path]:
    """Yield a hidden folder beside `folder` that is renamed to `folder` when the block ends.

    If the block fails or is interrupted, its content is removed. What a killed process left is
    removed by the next process that makes this folder. For a folder in a bucket, the content is
    copied there when the block ends, and what it replaces is removed after that.

    Args:
        folder: must not exist unless `replace` is set; its parents are created.
        replace: remove an existing folder once the new one is complete.

    Raises:
        UserError: the folder exists, or cannot be created or written.
    """
    check_scheme(folder)
    if is_bucket(folder):
        with _new_bucket_folder(epath.Path(folder), replace) as local:
            yield local
        return
    target = pathlib.Path(os.path.abspath(folder))
    if os.path.lexists(target) and not replace:
        raise UserError(f"{folder} exists: remove it or name another folder")
    prefix = _partial(target.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f"{prefix}*"):
            process = leftover.name.removeprefix(prefix)
            if process.isdecimal() and not _runs(int(process)):
                shutil.rmtree(leftover)
        partial = target.with_name(f"{prefix}{os.getpid()}")
        partial.mkdir()
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from error
    try:
        yield partial
        if replace and os.path.lexists(target):
            os.rename(target, partial / _OLD)
        if os.path.lexists(target):
            raise UserError(f"{folder} was made by another process meanwhile: name another folder")
        os.rename(partial, target)
        shutil.rmtree(target / _OLD, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _new_bucket_folder(folder: epath.Path, replace: bool) -> Iterator[pathlib.Path]:
    buckets.check_bucket(folder)
    old = buckets.objects_below(folder)
    if old and not replace:
        raise UserError(f"{folder} exists: remove it or name another folder")
    with tempfile.TemporaryDirectory(prefix="ddag_jax_") as temporary:
        local = pathlib.Path(temporary)
        try:
            yield local
            buckets.upload_folder(local, folder)
            for name in old:
                if not (local / name).exists():
                    (folder / name).unlink()
        except (OSError, buckets.BucketError) as error:
            raise UserError(
                f"{folder}: cannot be written ({error}); name another folder"
            ) from error


@contextlib.contextmanager
def on_disk(path: epath.PathLike) -> Iterator[pathlib.Path]:
    """Yield a file of this machine: the one given, or a temporary copy of one in a bucket.

    Raises:
        UserError: the one in the bucket does not exist or cannot be read.
    """
    if not is_bucket(path):
        yield pathlib.Path(path)
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(buckets.downloaded(path))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except buckets.BucketError as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
        yield file


@contextlib.contextmanager
def one_at_a_time(guard: epath.PathLike) -> Iterator[None]:
    """Exclude the other processes of this machine, where it has file locks; these end with their
    process.

    Args:
        guard: file on a disk that all of them lock. It stays: a lock on a file that is removed
            excludes nobody who makes it anew.

    Raises:
        OSError: the file cannot be made.
    """
    with open(guard, "a") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _partial(name: str) -> str:
    """Return the hidden name for the unfinished content of `name`, to be followed by a process."""
    return f".{name}.partial-"


def _runs(process: int) -> bool:
    """Return whether another process of this number is alive; ours has not begun to write."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True
