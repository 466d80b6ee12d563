"""The tests' side of tests/bucket_server.py."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ddag_jax.io.buckets import file_system, generation, write_if
from tests.bucket_server import BUCKET
from tests.processes import ROOT


class Bucket:
    """A bucket on a server of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __truediv__(self, name: str) -> str:
        """The address of what has this name in the bucket."""
        return f"gs://{BUCKET}/{name}"

    def requests(self) -> list[str]:
        """Every request so far: method, path, query, and the status if it was refused."""
        path = self._folder / "requests"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, pattern: str) -> None:
        """Wait until there was a request that matches; fail after five minutes."""
        deadline = time.monotonic() + 300
        while not re.search(f"^.*{pattern}", "\n".join(self.requests()), re.MULTILINE):
            assert time.monotonic() < deadline, pattern
            time.sleep(0.005)

    def refuse(self, status: int, word: str = "") -> None:
        """Answer requests with this word in their URL so, until `serve`."""
        new = self._folder / "new"
        new.write_text(f"{status} {word}")
        new.rename(self._folder / "refuse")  # whole, as the server reads it meanwhile

    def serve(self) -> None:
        """Answer all requests again."""
        (self._folder / "refuse").unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """The objects below a folder."""
        found = file_system().find(self / folder)
        return [name.removeprefix(f"{BUCKET}/{folder}/") for name in found]

    def read(self, name: str) -> bytes:
        """The content of an object."""
        return bytes(file_system().cat_file(self / name))

    def write(self, name: str, content: bytes) -> None:
        """Write an object, also over another."""
        # Not in parts, as gcsfs writes: the emulator drops a "\r" at the end of one.
        write_if(self / name, content, of=generation(self / name))

    def fetch(self, folder: str, to: Path) -> Path:
        """Copy a folder of the bucket to this disk."""
        for name in self.names(folder):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes(self.read(f"{folder}/{name}"))
        return to

    def put(self, source: Path, folder: str) -> str:
        """Copy a folder of this disk to the bucket; return its address there."""
        for file in source.rglob("*"):
            if file.is_file() and file.stat().st_size:  # the emulator cannot take an empty one
                self.write(f"{folder}/{file.relative_to(source).as_posix()}", file.read_bytes())
        return self / folder


@contextlib.contextmanager
def serving(folder: Path, setenv: Callable[[str, str], None]) -> Iterator[Bucket]:
    """Start a server, and lead this process and those that it starts there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bucket_server", str(folder)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a traceback for each connection that a client breaks off
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            setenv(name, address)
        yield Bucket(folder)
    finally:
        process.kill()
        process.wait()
