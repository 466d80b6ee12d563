"""The lock that allows one writer per run folder.

On a file system, checking and taking it exclude other processes by `flock`. A bucket has no such
lock; there every write of the lock names the generation of the object that it replaces, so that of
several writes one succeeds.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.io import buckets
from ddag_jax.io.buckets import BucketError
from ddag_jax.io.files import one_at_a_time, read_json, write_text

NAME = "lock.json"
_RENEWED = 60.0
"""Seconds between two renewals of a lock."""
_SILENT = 300.0
"""Seconds without a renewal after which a process on another machine counts as dead."""


class RunLock:
    """Context manager that holds `RUN/lock.json`, which names the owner's machine and process.

    A lock is taken over, with a note, from a process of this machine that has ended, and from one
    of another machine that has not renewed it for five minutes. The folder must exist.

    Raises:
        UserError: another live process holds the lock.
    """

    def __init__(self, workdir: epath.PathLike) -> None:
        self._path = epath.Path(workdir) / NAME
        self._in_bucket = buckets.is_bucket(self._path)
        self._generation = 0
        self._lost = False
        self._stop = threading.Event()
        self.note: str | None = None
        """Whose lock was taken over, if any."""

    def __enter__(self) -> "RunLock":
        self._me = {
            "machine": _machine(),
            "process": os.getpid(),
            "started": _started(os.getpid()),
            "id": secrets.token_hex(8),
        }
        while not self._take():
            pass  # another process was faster: it is the owner now
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()
        return self

    def _take(self) -> bool:
        """Take the lock; return False if another process wrote it meanwhile, in a bucket."""
        with self._one_at_a_time():
            if self._in_bucket:  # before it is read: who wrote it since then makes ours fail
                self._generation = buckets.generation(self._path)
            owner = self._owner()
            if owner is not None:
                who = f"process {owner['process']} on {owner['host']}"
                if alive(owner):
                    raise UserError(
                        f"{self._path.parent}: {who} is writing in this folder; wait for it, stop"
                        " it, or name another folder"
                    )
                self.note = f"took over the lock of {who}, which has ended"
            try:
                self._write()
            except FileExistsError:
                return self._is_mine()
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if not self._in_bucket:
            self._path.unlink(missing_ok=True)
        elif not self._lost:
            # If it is another's by now, or out of reach, it expires in five minutes.
            with contextlib.suppress(OSError, BucketError):
                buckets.remove_if(self._path, self._generation)

    def check(self) -> None:
        """Raise UserError if another process took the lock over, as far as it is known.

        That can happen in a bucket, to a process that could not renew it for five minutes.
        """
        if self._lost:
            raise UserError(
                f"{self._path.parent}: another process has taken over this folder, since this one"
                " had not renewed its lock for five minutes; this one ends, so that one process"
                " writes"
            )

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Exclude other processes from checking and taking the lock, where the file system supports
        file locks; these end with their process."""
        with contextlib.ExitStack() as stack:
            if not self._in_bucket:
                with contextlib.suppress(OSError):  # writing the lock reports it
                    stack.enter_context(one_at_a_time(self._path.with_name(f".{NAME}.guard")))
            yield

    def _renew(self) -> None:
        while not self._stop.wait(_RENEWED):
            # A full disk, a bucket out of reach: the next checkpoint reports it.
            with contextlib.suppress(OSError, BucketError):
                try:
                    self._write()
                except FileExistsError:
                    self._lost = not self._is_mine()
                    if self._lost:
                        return

    def _is_mine(self) -> bool:
        """Return whether a write that failed had been done before, and its answer lost."""
        generation = buckets.generation(self._path)
        try:
            owner = self._owner()
        except UserError:
            return False
        if owner is None or owner.get("id") != self._me["id"]:
            return False
        self._generation = generation
        return True

    def _write(self) -> None:
        host = socket.gethostname()
        content = json.dumps({**self._me, "host": host, "seen": time.time()}) + "\n"
        if self._in_bucket:
            self._generation = buckets.write_if(self._path, content.encode(), self._generation)
        else:
            write_text(self._path, content)

    def _owner(self) -> dict[str, Any] | None:
        try:
            owner = read_json(self._path)
            kinds = {"machine": str, "process": int, "host": str, "seen": float}
            if all(isinstance(owner[key], kind) for key, kind in kinds.items()):
                known = -1 < owner["process"] < 2**63 and len(owner["host"]) < 256
                if known and owner["host"].isprintable():
                    return {"started": None, **owner}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise UserError(
            f"{self._path}: is not the lock of a run; remove it if no process is writing this run"
        )


def alive(owner: dict[str, Any]) -> bool:
    """Return whether a lock's owner is alive, as far as this machine can know."""
    if owner["machine"] == _machine():
        return _started(owner["process"]) == owner["started"] is not None
    return bool(time.time() - owner["seen"] < _SILENT)


def _machine() -> str:
    """Identify this machine, its boot and its process namespace (each container has its own)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(process: int) -> str | None:
    """Return the start time of a process of this machine, which a reused number does not share."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    try:  # not Linux
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
