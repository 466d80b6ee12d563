"""A folder that appears under its name whole, or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from ddag_jax.errors import InputError

_OLD = ".replaced"


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike[str], *, replace: bool = False) -> Iterator[pathlib.Path]:
    """Gives a hidden folder beside `folder` to write into; it becomes `folder` at the end.

    What was written is removed where the block fails or is interrupted, and where a process was
    killed meanwhile, by the next one that makes this folder.

    Args:
      folder: must not exist, unless it may be replaced; folders above it are made.
      replace: one that exists makes room when the new one is whole.

    Raises:
      InputError: it exists, or cannot be made or written.
    """
    target = pathlib.Path(os.path.abspath(folder))
    if os.path.lexists(target) and not replace:
        raise InputError(f"{folder} exists: remove it or name another folder")
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
        raise InputError(f"cannot make {folder}: {error.strerror}") from error
    try:
        yield partial
        if replace and os.path.lexists(target):
            os.rename(target, partial / _OLD)
        if os.path.lexists(target):
            raise InputError(f"{folder} was made by somebody else meanwhile: name another folder")
        os.rename(partial, target)
        shutil.rmtree(target / _OLD, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); name another folder") from error
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
