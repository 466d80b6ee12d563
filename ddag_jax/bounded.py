"""Reads files that strangers may have written: regular ones only, and none without end."""

import json
import os
from typing import Any

from etils import epath


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
