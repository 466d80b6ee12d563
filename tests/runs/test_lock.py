"""One writer a folder."""

import json
import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from ddag_jax.errors import UserError
from ddag_jax.runs import lock
from ddag_jax.runs.lock import NAME, RunLock

SPAWN = multiprocessing.get_context("spawn")


def stored(folder: Path, **fields: Any) -> dict[str, Any]:
    """Writes a lock: this process's, but for the fields given."""
    with RunLock(folder):
        content = json.loads((folder / NAME).read_text())
    content |= fields
    (folder / NAME).write_text(json.dumps(content))
    return content


def test_it_is_held_while_its_owner_lives(tmp_path: Path) -> None:
    with RunLock(tmp_path) as mine:
        assert mine.note is None
        with pytest.raises(
            UserError, match=f"process {os.getpid()} on .* is writing in this folder"
        ):
            RunLock(tmp_path).__enter__()
        assert (tmp_path / NAME).exists()
    assert not (tmp_path / NAME).exists()
    with RunLock(tmp_path) as again:
        assert again.note is None


def hold(folder: Path, ready: Any) -> None:
    with RunLock(folder):
        ready.set()
        time.sleep(600)


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    ready = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(120)
    with pytest.raises(UserError, match=f"process {process.pid} "):
        RunLock(tmp_path).__enter__()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with RunLock(tmp_path) as mine:
        assert f"process {process.pid} on " in str(mine.note)
        assert "which has ended" in str(mine.note)


def test_a_number_used_anew_is_not_its_owner(tmp_path: Path) -> None:
    stored(tmp_path, started="another time")
    with RunLock(tmp_path) as mine:
        assert mine.note is not None


@pytest.mark.parametrize(("silent", "dead"), [(250, False), (301, True)])
def test_another_machine_is_dead_after_five_silent_minutes(
    tmp_path: Path, silent: float, dead: bool
) -> None:
    stored(tmp_path, machine="other", host="other", seen=time.time() - silent)
    if dead:
        with RunLock(tmp_path) as mine:
            assert "on other" in str(mine.note)
    else:
        with pytest.raises(UserError, match="on other is writing in this folder"):
            RunLock(tmp_path).__enter__()


def test_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lock._RENEWED == 60
    monkeypatch.setattr(lock, "_RENEWED", 0.01)
    with RunLock(tmp_path):
        first = json.loads((tmp_path / NAME).read_text())["seen"]
        deadline = time.monotonic() + 60
        while json.loads((tmp_path / NAME).read_text())["seen"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "garbage",
        "{}",
        "[" * 100_000,
        '{"machine": 1, "process": "x", "host": null, "seen": true}',
        '{"machine": "m", "process": 1' + 400 * "0" + ', "host": "h", "seen": 1.0}',
        "\xff" * 2**21,
    ],
    ids=["empty", "garbage", "no field", "deep", "kinds", "huge", "long"],
)
def test_garbage_is_named_and_left(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(UserError, match=r"lock\.json: is not the lock of a run; remove it if"):
        RunLock(tmp_path).__enter__()
    assert (tmp_path / NAME).read_text() == content


def race(folder: Path, barrier: Barrier, rounds: int, won: Any) -> None:
    for number in range(rounds):
        mine = RunLock(folder / str(number))
        barrier.wait(120)
        try:
            mine.__enter__()
            won[number] += 1  # only one comes here, so that nothing is lost
            barrier.wait(120)  # the winner holds it while the others try
            mine.__exit__(None, None, None)
        except UserError:
            barrier.wait(120)


@pytest.mark.slow
@pytest.mark.parametrize("left_behind", [False, True], ids=["free", "of a dead process"])
def test_of_several_takers_one_wins(tmp_path: Path, left_behind: bool) -> None:
    takers, rounds = 4, 100
    for number in range(rounds):
        (tmp_path / str(number)).mkdir()
        if left_behind:
            stored(tmp_path / str(number), started="another time")
    barrier, won = SPAWN.Barrier(takers), SPAWN.Array("i", rounds)
    processes = [
        SPAWN.Process(target=race, args=(tmp_path, barrier, rounds, won)) for _ in range(takers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert list(won) == [1] * rounds
