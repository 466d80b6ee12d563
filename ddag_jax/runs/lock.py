"""One writer a folder: the lock that a run holds while it lives."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.io.files import read_json, write_text

NAME = "lock.json"
_RENEWED = 60.0
"""Seconds between two signs of life."""
_SILENT = 300.0
"""Seconds without one after which a process of another machine counts as dead."""


class RunLock:
    """Holds `RUN/lock.json`, which names the owner's machine and process, until left.

    A lock is taken over, with a note, from a process of this machine that is no more, and from one
    of another machine that gave no sign of life for five minutes. The folder must exist.

    Raises:
        UserError: another living process holds it.
    """

    def __init__(self, workdir: epath.PathLike) -> None:
        self._path = epath.Path(workdir) / NAME
        self._stop = threading.Event()
        self.note: str | None = None
        """Whose lock was taken over, if anybody's."""

    def __enter__(self) -> "RunLock":
        self._me = {"machine": _machine(), "process": os.getpid(), "started": _started(os.getpid())}
        with self._one_at_a_time():
            owner = self._owner()
            if owner is not None:
                who = f"process {owner['process']} on {owner['host']}"
                if alive(owner):
                    raise UserError(
                        f"{self._path.parent}: {who} is writing this run; wait for it, stop it, or"
                        " name another --workdir"
                    )
                self.note = f"took over the lock of {who}, which is no more"
            self._write()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Nobody else looks at the lock and takes it meanwhile, where the file system knows locks
        of its own; those end with their process."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                guard = stack.enter_context(open(self._path.with_name(f".{NAME}.guard"), "a"))
                fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def _renew(self) -> None:
        while not self._stop.wait(_RENEWED):
            with contextlib.suppress(OSError):  # a full disk, say: the checkpoint will tell
                self._write()

    def _write(self) -> None:
        host = socket.gethostname()
        content = {**self._me, "host": host, "seen": time.time()}
        write_text(self._path, json.dumps(content) + "\n")

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
            f"{self._path}: is no lock of a run; remove it if no process is writing this run"
        )


def alive(owner: dict[str, Any]) -> bool:
    """Whether a lock's owner still is, as far as this machine can tell."""
    if owner["machine"] == _machine():
        return _started(owner["process"]) == owner["started"] is not None
    return bool(time.time() - owner["seen"] < _SILENT)


def _machine() -> str:
    """This machine since it started, and its table of processes: containers have their own."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(process: int) -> str | None:
    """When a process of this machine started, so that a number used anew is not taken for it."""
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
