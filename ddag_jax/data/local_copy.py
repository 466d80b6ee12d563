"""The copy on this machine of a prepared dataset in a bucket, which ArrayRecord reads."""

import contextlib
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.io.buckets import file_system, objects_below
from ddag_jax.io.files import new_folder, one_at_a_time
from ddag_jax.io.progress import Progress


def local_copy(folder: epath.PathLike, cache: epath.PathLike | None = None) -> epath.Path:
    """Return the copy of a prepared dataset on this machine; make it if there is none.

    It is in a folder of its own, named after the address and the names, sizes and checksums of what
    is in the bucket: one that was prepared again is copied again. Of several processes of this
    machine one copies, and the others wait for it. A copy that lacks a file, as after the temporary
    folder was tidied up, is replaced.

    Args:
      folder: of the dataset, in a bucket.
      cache: where copies are; None for `ddag_jax_data_UID` in the temporary folder, where UID is
        the user's number.

    Raises:
      UserError: the copy cannot be written.
      BucketError: the bucket cannot be read.
    """
    stored = {name: info for name, info in objects_below(folder).items() if info["size"]}
    sizes = {name: int(info["size"]) for name, info in stored.items()}
    said = [(name, sizes[name], stored[name].get("crc32c")) for name in sorted(stored)]
    digest = hashlib.sha256(repr((os.fspath(folder), said)).encode()).hexdigest()[:16]
    parent = _default() if cache is None else pathlib.Path(cache)
    copy = parent / f"{epath.Path(folder).parent.parent.name}-{digest}"
    if _is_whole(copy, sizes):
        return epath.Path(copy)
    with _only_copier(copy):
        if not _is_whole(copy, sizes):  # what another process has copied by now
            _copy(folder, sizes, copy)
    return epath.Path(copy)


def _default() -> pathlib.Path:
    user = f"_{os.getuid()}" if hasattr(os, "getuid") else ""  # Windows has a folder a user
    return pathlib.Path(tempfile.gettempdir()) / f"ddag_jax_data{user}"


def _is_whole(copy: pathlib.Path, sizes: Mapping[str, int]) -> bool:
    try:
        return all((copy / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


def _copy(folder: epath.PathLike, sizes: Mapping[str, int], copy: pathlib.Path) -> None:
    with (
        new_folder(copy, replace=True) as partial,
        Progress(len(sizes), f"copying {os.fspath(folder)}", "file") as bar,
    ):
        for name in sizes:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            file_system().get_file(f"{os.fspath(folder)}/{name}", os.fspath(partial / name))
            bar.update()
        if not _is_whole(partial, sizes):
            raise UserError(f"{folder}: was changed while it was copied; start again")


@contextlib.contextmanager
def _only_copier(copy: pathlib.Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(one_at_a_time(copy.with_name(f".{copy.name}.guard")))
        except OSError as error:
            raise UserError(
                f"{copy.parent}: cannot be written ({error.strerror}); name another --data.cache"
            ) from None
        yield
