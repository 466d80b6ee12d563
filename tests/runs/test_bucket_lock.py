"""One writer a folder of a bucket, where the generation of the lock takes the place of flock."""

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from ddag_jax.errors import UserError
from ddag_jax.io.buckets import BucketError
from ddag_jax.io.files import read_bytes, read_json, write_text
from ddag_jax.runs import lock
from ddag_jax.runs.lock import NAME, RunLock
from tests.buckets import Bucket


def stored(folder: str, **fields: Any) -> dict[str, Any]:
    """Write a lock: this process's, but for the fields given."""
    with RunLock(folder):
        content = read_json(f"{folder}/{NAME}") | fields
    write_text(f"{folder}/{NAME}", json.dumps(content))
    return dict(content)


def of_another(folder: str) -> dict[str, Any]:
    return stored(folder, machine="other", host="other", id="other")


def test_it_is_held_while_its_owner_lives(bucket: Bucket) -> None:
    folder = bucket / "held"
    with RunLock(folder) as mine:
        assert mine.note is None
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is writing in this"):
            RunLock(folder).__enter__()
        mine.check()
    assert bucket.names("held") == []
    with RunLock(folder) as again:
        assert again.note is None


def test_a_dead_process_holds_nothing(bucket: Bucket) -> None:
    folder = bucket / "dead"
    stored(folder, started="another time")
    with RunLock(folder) as mine:
        assert "which has ended" in str(mine.note)
    stored(folder, machine="other", host="other", seen=time.time() - 301)
    with RunLock(folder) as mine:
        assert "on other" in str(mine.note)
    of_another(folder)
    with pytest.raises(UserError, match="on other is writing in this folder"):
        RunLock(folder).__enter__()


def test_garbage_is_named_and_left(bucket: Bucket) -> None:
    write_text(bucket / f"garbage/{NAME}", "garbage")
    with pytest.raises(UserError, match=r"lock\.json: is not the lock of a run; remove it if"):
        RunLock(bucket / "garbage").__enter__()
    assert read_bytes(bucket / f"garbage/{NAME}", 9) == b"garbage"


@pytest.mark.parametrize("left_behind", [False, True], ids=["free", "of a dead process"])
def test_of_two_takers_one_wins(
    left_behind: bool, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other takes it between this one's reading and its writing."""
    folder = bucket / f"race{left_behind}"
    if left_behind:
        stored(folder, started="another time")
    other, mine = RunLock(folder), RunLock(folder)
    read = RunLock._owner

    def late(self: RunLock) -> Any:
        owner = read(self)
        if self is mine and not hasattr(other, "_thread"):
            other.__enter__()
        return owner

    monkeypatch.setattr(RunLock, "_owner", late)
    with pytest.raises(UserError, match="is writing in this folder"):
        mine.__enter__()
    other.check()
    assert read_json(f"{folder}/{NAME}")["id"] == other._me["id"]
    other.__exit__(None, None, None)
    assert bucket.names(f"race{left_behind}") == []


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_is_renewed(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RENEWED", 0.01)
    path = bucket / f"renewed/{NAME}"
    with RunLock(bucket / "renewed") as mine:
        first = read_json(path)["seen"]
        wait_until(lambda: read_json(path)["seen"] > first)
        mine.check()


def test_a_lock_that_another_took_over_is_lost(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is left to the other."""
    monkeypatch.setattr(lock, "_RENEWED", 0.2)
    content = of_another(bucket / "other")
    mine = RunLock(bucket / "lost_lock").__enter__()
    write_text(bucket / f"lost_lock/{NAME}", json.dumps(content))
    wait_until(lambda: mine._lost)
    with pytest.raises(UserError, match="another process has taken over this folder"):
        mine.check()
    mine.__exit__(None, None, None)
    assert read_json(bucket / f"lost_lock/{NAME}") == content


def test_a_lock_that_another_took_over_at_the_end_is_left(bucket: Bucket) -> None:
    content = of_another(bucket / "other_end")
    with RunLock(bucket / "end"):
        write_text(bucket / f"end/{NAME}", json.dumps(content))
    assert read_json(bucket / f"end/{NAME}") == content


def test_a_lock_is_not_taken_back_after_an_outage(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken over meanwhile, and the first time that this is asked the answer fails."""
    content = of_another(bucket / "other_back")
    mine = RunLock(bucket / "back").__enter__()
    write_text(bucket / f"back/{NAME}", json.dumps(content))
    with monkeypatch.context() as patch:
        patch.setattr(RunLock, "_owner", lambda self: bucket.refuse(403) or read_json(self._path))
        for _ in range(2):
            with pytest.raises(BucketError):
                mine._is_mine()
            bucket.serve()
    with pytest.raises(FileExistsError):
        mine._write()
    mine.__exit__(None, None, None)
    assert read_json(bucket / f"back/{NAME}") == content


def test_an_answer_that_is_lost_costs_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that is repeated fails, since the first one was done."""
    monkeypatch.setattr(lock, "_RENEWED", 0.01)
    write = lock.buckets.write_if
    path = bucket / f"repeated/{NAME}"

    def twice(*words: Any) -> int:
        write(*words)
        return write(*words)

    monkeypatch.setattr(lock.buckets, "write_if", twice)
    with RunLock(bucket / "repeated") as mine:
        first = read_json(path)["seen"]
        wait_until(lambda: read_json(path)["seen"] > first)
        mine.check()
    assert bucket.names("repeated") == []


def test_a_lock_outlives_a_bucket_out_of_reach(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_RENEWED", 0.01)
    path = bucket / f"outage/{NAME}"
    with RunLock(bucket / "outage") as mine:
        bucket.refuse(403)
        since = len(bucket.requests())
        wait_until(lambda: len(bucket.requests()) > since + 2)
        with pytest.raises(BucketError, match="Forbidden"):
            RunLock(bucket / "outage").__enter__()
        bucket.serve()
        first = read_json(path)["seen"]
        wait_until(lambda: read_json(path)["seen"] > first)
        mine.check()
