"""Folders that checkpoints can be stored in: nearly all, once etils searches as it should."""

import functools
import glob
import os
from collections.abc import Iterator

from etils import epath
from etils.epath import gpath

from ddag_jax.errors import UserError
from ddag_jax.io.buckets import absolute, check_scheme


def is_utf8(name: str) -> bool:
    """Return whether a file's name is UTF-8. Python has surrogates in place of other bytes."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_storable(folder: epath.PathLike, *, backslashes: bool = False) -> None:
    """Check that checkpoints, or prepared images, can be written below a folder, and read again.

    Args:
        folder: need not exist.
        backslashes: whether its path may have some: prepared images' may. Tensorstore, which writes
            checkpoints, takes them for slashes.

    Raises:
        UserError: its path has a backslash, is not UTF-8, which neither can name, or is a URL of
            another kind than gs://.
    """
    check_scheme(folder)
    path = absolute(folder)
    why = ""
    if not is_utf8(path):
        why = "is not UTF-8"
    elif "\\" in path and not backslashes:
        why = "has a backslash"
    if why:
        raise UserError(
            f"{folder}: cannot be used for checkpoints or prepared images, since the path"
            f" ({path!a}) {why}; name another folder, or rename it"
        )


def _search_below_the_folder_as_it_is_named() -> None:
    """Make `epath.Path.glob` take only its argument for a pattern, as pathlib does.

    etils searches for the folder's own name joined with the pattern, so that below `runs/a[1]` it
    finds nothing. Orbax merges the files of a checkpoint by such a search: without this, a
    checkpoint there is saved and can never be read.
    """
    original = gpath._GPath.glob

    @functools.wraps(original)
    def searched(self: epath.Path, pattern: str) -> Iterator[epath.Path]:
        path = os.fspath(self)
        if "://" in path:
            yield from original(self, pattern)
            return
        for found in glob.glob(os.path.join(glob.escape(path), pattern)):
            yield epath.Path(found)

    gpath._GPath.glob = searched


_search_below_the_folder_as_it_is_named()
