"""A bar on a terminal, a line a minute elsewhere, nothing when silenced."""

import pytest

from ddag_jax.io import progress
from ddag_jax.io.progress import EveryMinute, Progress, say


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("ddag_jax.io.progress.time.perf_counter", made)
    return made


def test_a_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1000, "drawing", "image", initial=100) as bar:
        for _ in range(30):  # ten images each ten seconds
            clock.now += 10
            bar.update(10)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "drawing: 160 of 1,000 images, 14:00 left"
    assert lines[1] == "drawing: 220 of 1,000 images, 13:00 left"
    assert len(lines) == 5


def test_what_is_short_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "drawing", "image") as bar:
        clock.now += 59
        bar.update(10)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(10, "drawing", "image") as bar:
        clock.now += 100
        bar.update(4, "a note")
    err = capsys.readouterr().err
    assert "4/10" in err
    assert "a note" in err
    assert " of 10 images" not in err


@pytest.mark.parametrize("terminal", [False, True])
def test_silence(
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr(progress, "_quiet", False)
    say("heard")
    assert capsys.readouterr() == ("heard\n", "")
    progress.silence()
    say("unheard")
    with Progress(10, "drawing", "image") as bar:
        clock.now += 100
        bar.update(4, "a note")
    assert capsys.readouterr() == ("", "")


def test_not_shown(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "embedding", "image", shown=False) as bar:
        clock.now += 100
        bar.update(4)
    assert capsys.readouterr() == ("", "")


def test_every_minute(clock: Clock) -> None:
    minute = EveryMinute()
    said = []
    for _ in range(6):
        clock.now += 25
        said.append(minute.due())
    assert said == [False, False, True, False, False, True]
