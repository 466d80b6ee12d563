"""Buckets of Google Cloud Storage: `gs://bucket/folder/file` wherever a folder or file is named.

`epath.Path` names what is in a bucket as it names files. What differs: a folder is there while
something is in it, an object appears when it is complete, cannot be appended to, and has a
generation that changes whenever it is written.

The connection (io/gcs.py) is made, and gcsfs imported, at the first use of such a path. Whatever
uses it may raise a `BucketError`.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath

from ddag_jax.errors import UserError

_SCHEME = "gs://"

# The name by which etils, and through it orbax, ask fsspec for buckets; a program's own use of
# gcsfs, as "gs", is not affected.
fsspec.register_implementation("gcs", "ddag_jax.io.gcs.FileSystem", clobber=True)
os.environ.setdefault("EPATH_USE_TF", "false")  # or etils would use TensorFlow where it is there


class BucketError(Exception):
    """A bucket cannot be reached, or refuses what is asked of it; the message says why.

    Not an OSError: it says nothing about what is in the bucket, where an OSError may mean that a
    file is damaged. That there is no such object is a FileNotFoundError.
    """


def is_bucket(path: epath.PathLike) -> bool:
    """Return whether a path is in a bucket.

    >>> is_bucket("gs://bucket/run"), is_bucket("runs/gs")
    (True, False)
    """
    return os.fspath(path).startswith(_SCHEME)


def absolute(path: epath.PathLike) -> str:
    """Return a path that means the same in every working directory."""
    return os.fspath(path) if is_bucket(path) else os.path.abspath(path)


def check_scheme(path: epath.PathLike) -> None:
    """Raise UserError if a path is a URL of another kind than `gs://`."""
    scheme, separator, _ = os.fspath(path).partition("://")
    if separator and scheme.isalnum() and not is_bucket(path) and not os.path.lexists(path):
        raise UserError(
            f"{path}: {scheme}:// is not read or written; give a path on a disk, or in a bucket"
            " (gs://)"
        )


def file_system() -> Any:
    """Return the file system of all buckets, the one that `epath.Path` uses.

    Raises:
        UserError: gcsfs is not installed.
    """
    return fsspec.filesystem("gcs", finalize_on_close=True)  # as etils says it: the same instance


def check_bucket(path: epath.PathLike) -> None:
    """Raise UserError if the bucket of a path does not exist or cannot be seen."""
    bucket = os.fspath(path).removeprefix(_SCHEME).partition("/")[0]
    try:
        file_system().bucket(bucket)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no bucket {bucket}; create it first") from None
    except BucketError as error:
        raise UserError(f"{path}: the bucket {bucket} cannot be used ({error})") from None


def check_on_disk(path: epath.PathLike, what: str) -> None:
    """Raise UserError if a path is in a bucket, for what is possible on a disk only.

    Args:
        path: as it was given.
        what: of the path, for the message: "the gallery's file".
    """
    check_scheme(path)
    if is_bucket(path):
        raise UserError(
            f"{path}: {what} cannot be in a bucket; name a file or folder on a disk (gcloud storage"
            " cp -r copies between them)"
        )


def read(path: epath.PathLike, limit: int) -> bytes:
    """Return the content of an object. Raises ValueError if it has more than `limit` bytes."""
    files = file_system()
    info = files.info(os.fspath(path))
    if info["type"] != "file":
        raise ValueError("is not a regular file")
    if info["size"] > limit:
        raise ValueError(f"is longer than {limit:,} bytes")
    content: bytes = files.cat_file(os.fspath(path))
    return content


def upload(file: str | os.PathLike[str], path: epath.PathLike) -> None:
    """Write a file of this machine to a bucket; an existing object is replaced when it is there."""
    file_system().put_file(os.fspath(file), os.fspath(path))


def upload_folder(folder: pathlib.Path, path: epath.PathLike) -> None:
    """Write all files of a folder to one of a bucket, those at its top last."""
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    below, top = ([n for n in sorted(files) if ("/" in n) == deep] for deep in (True, False))
    for names in (below, top):
        if names:
            file_system().put(
                [os.fspath(folder / name) for name in names],
                [f"{os.fspath(path)}/{name}" for name in names],
            )


@contextlib.contextmanager
def downloaded(path: epath.PathLike) -> Iterator[pathlib.Path]:
    """Yield a file of this machine with the content of an object, for as long as the block runs.

    Raises:
        FileNotFoundError: there is no such object.
    """
    with tempfile.TemporaryDirectory(prefix="ddag_jax_") as folder:
        file = pathlib.Path(folder) / epath.Path(path).name
        file_system().get_file(os.fspath(path), os.fspath(file))
        yield file


def objects_below(folder: epath.PathLike) -> dict[str, dict[str, Any]]:
    """Return what Cloud Storage says of every object below a folder, by its path from there."""
    start = os.fspath(folder).removeprefix(_SCHEME).rstrip("/") + "/"
    found = file_system().find(os.fspath(folder), detail=True)
    return {name.removeprefix(start): info for name, info in found.items()}


def generation(path: epath.PathLike) -> int:
    """Return the generation of an object; 0 if there is none."""
    try:
        return int(file_system().info(os.fspath(path))["generation"])
    except FileNotFoundError:
        return 0


def write_if(path: epath.PathLike, content: bytes, of: int) -> int:
    """Write an object if it is of a generation, 0 for absent, and return its new one.

    Raises:
        FileExistsError: it is of another generation.
    """
    return int(file_system().write_if(os.fspath(path), content, of))


def remove_if(path: epath.PathLike, of: int) -> None:
    """Remove an object if it is of a generation.

    Raises:
        FileExistsError: it is of another generation.
        FileNotFoundError: it is not there.
    """
    file_system().remove_if(os.fspath(path), of)


class Mirror:
    """A temporary folder of this machine, for files that grow, and its copy in a bucket.

    Attributes:
        local: the folder, to write to.
    """

    def __init__(self, folder: epath.PathLike) -> None:
        self._folder = epath.Path(folder)
        self._temporary = tempfile.TemporaryDirectory(prefix="ddag_jax_")
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}
        self.local = epath.Path(self._temporary.name)

    def copy(self, pattern: str = "**/*") -> None:
        """Write the files of a pattern, each as a whole, that changed since they were copied."""
        local = pathlib.Path(self.local)
        for file in sorted(path for path in local.glob(pattern) if path.is_file()):
            stamp = file.stat().st_size, file.stat().st_mtime_ns
            if self._copied.get(file) != stamp:
                target = self._folder / file.relative_to(local).as_posix()
                # Its content at one moment: it may grow while it is sent.
                file_system().pipe_file(os.fspath(target), file.read_bytes())
                self._copied[file] = stamp

    def close(self) -> None:
        """Remove the folder of this machine."""
        self._temporary.cleanup()
