"""A server of buckets on this machine: gcp-storage-emulator, with what it lacks and its tests need.

    python -m tests.bucket_server FOLDER

Run it in a process of its own: in the process of a client, each would wait for the other. It prints
its address, keeps objects in memory, and makes the bucket "bucket". Added to the emulator:

- threads, since it would wait for ever for a connection that a client opens and does not use;
- the generation of an object that is read, in the header `x-goog-generation`;
- `ifGenerationMatch` and `ifGenerationNotMatch`: 412, or 304 of a read, unless it is so;
- `moveTo`, with which gcsfs renames an object;
- FOLDER/requests gets a line a request;
- while FOLDER/refuse exists, which holds a status and a word, requests for URLs with this word are
  answered with this status.
"""

import logging
import sys
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

BUCKET = "bucket"

_ONE_AT_A_TIME = threading.Lock()


class _Response(server.Response):
    def close(self) -> None:
        generation = getattr(self._handler, "generation", None)
        if generation is not None:
            self["x-goog-generation"] = generation
        super().close()


class _Router(server.Router):
    folder: Path

    def handle(self, method: str) -> None:
        with _ONE_AT_A_TIME:
            self._handle(method)

    def _handle(self, method: str) -> None:
        handler = self._request_handler
        status = self._refused(handler.path)
        with (self.folder / "requests").open("a") as file:
            file.write(f"{method} {unquote(handler.path)}{f' {status}' if status else ''}\n")
        if status is not None:
            return self._answer(HTTPStatus(status))
        if not self._has_generation(method):
            read = method == server.GET
            return self._answer(HTTPStatus.NOT_MODIFIED if read else HTTPStatus.PRECONDITION_FAILED)
        if "/moveTo/o/" in handler.path:
            return self._move(handler.path)
        super().handle(method)

    def _refused(self, path: str) -> int | None:
        try:
            status, _, word = (self.folder / "refuse").read_text().partition(" ")
        except FileNotFoundError:
            return None
        return int(status) if status and word in path else None

    def _answer(self, status: HTTPStatus) -> None:
        # What was sent is read, or the client would find its connection reset.
        handler = self._request_handler
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        response = server.Response(handler)
        response.status = status
        response.close()

    def _has_generation(self, method: str) -> bool:
        """Whether the object is of the generation that the request asks for, if it does."""
        handler = self._request_handler
        request = server.Request(handler, method)
        parts = request.path.partition("/b/")[2].split("/")
        name = unquote(parts[2]) if len(parts) > 2 else request.query.get("name", [""])[0]
        try:
            stored = handler.storage.get_file_obj(parts[0], name)["generation"]
        except NotFound:
            stored = "0"
        if "media" in request.query.get("alt", []) and stored != "0":
            handler.generation = stored
        wanted, unwanted = (request.query.get(f"ifGeneration{how}Match") for how in ("", "Not"))
        return wanted in (None, [stored]) and unwanted != [stored]

    def _move(self, path: str) -> None:
        source, _, target = path.partition("?")[0].partition("/moveTo/o/")
        bucket, _, name = source.partition("/b/")[2].partition("/o/")
        storage: Any = self._request_handler.storage
        response = server.Response(self._request_handler)
        try:
            moved = objects._copy("", storage, bucket, unquote(name), bucket, unquote(target))
            storage.delete_file(bucket, unquote(name))
            response.json(moved)
        except NotFound:
            response.status = HTTPStatus.NOT_FOUND
        response.close()


def main() -> None:
    """Serve until standard input is closed, as when the process that started this one ends."""
    logging.disable()
    _Router.folder = Path(sys.argv[1])
    server.Router, server.Response = _Router, _Response
    server.Storage._write_config_to_file = lambda self: None  # of all objects, at every request
    server.server.HTTPServer = server.server.ThreadingHTTPServer
    server.server.ThreadingHTTPServer.request_queue_size = 128
    running = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    running.start()
    while running._api._httpd is None:
        threading.Event().wait(0.01)
    print(f"http://127.0.0.1:{running._api._httpd.server_port}", flush=True)
    sys.stdin.read()
    running.stop()


if __name__ == "__main__":
    main()
