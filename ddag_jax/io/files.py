"""Reads files that strangers may have written: regular ones only, and none without end."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from etils import epath

from ddag_jax.errors import UserError

_OLD = ".replaced"


def read_bytes(path: epath.PathLike, limit: int) -> bytes:
    """A file's content.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file (reading a pipe waits for ever), or longer than `limit`
            bytes.
    """
    path = epath.Path(path)
    if path.exists() and not is_file(path):
        raise ValueError("is no regular file")
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) > limit:
            raise ValueError(f"is longer than {limit:,} bytes")
        file.seek(0)
        content: bytes = file.read()
    return content


def is_file(path: epath.Path) -> bool:
    """Whether this is a regular file; epath itself takes a pipe for one."""
    name = os.fspath(path)
    return path.is_file() if "://" in name else os.path.isfile(name)


def read_json(path: epath.PathLike, limit: int = 2**20) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON in UTF-8, too long, or nested too deeply.
    """
    return parse_json(read_bytes(path, limit))


def parse_json(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError where it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike[str], *, replace: bool = False) -> Iterator[pathlib.Path]:
    """Gives a hidden folder beside `folder` to write into; it becomes `folder` at the end.

    What was written is removed where the block fails or is interrupted, and where a process was
    killed meanwhile, by the next one that makes this folder.

    Args:
      folder: must not exist, unless it may be replaced; folders above it are made.
      replace: one that exists makes room when the new one is whole.

    Raises:
      UserError: it exists, or cannot be made or written.
    """
    target = pathlib.Path(os.path.abspath(folder))
    if os.path.lexists(target) and not replace:
        raise UserError(f"{folder} exists: remove it or name another folder")
    prefix = f".{target.name}.partial-"
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
            raise UserError(f"{folder} was made by somebody else meanwhile: name another folder")
        os.rename(partial, target)
        shutil.rmtree(target / _OLD, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether another process of this number is alive; our own has not begun to write."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
