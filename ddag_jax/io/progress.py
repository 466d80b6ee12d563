"""How far something is that takes its time: a bar on a terminal, else a line a minute, or nothing.

The one file that imports tqdm. Bars and their lines go to standard error.
"""

import sys
import time
from types import TracebackType

from tqdm import tqdm

_quiet = False


def silence() -> None:
    """For the rest of the process there are neither bars nor lines (`--quiet`)."""
    global _quiet
    _quiet = True


def say(text: str) -> None:
    """Prints a line to standard output, above a bar, unless silenced."""
    if not _quiet:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def interval(seconds: float) -> str:
    """A time to read.

    >>> interval(3725)
    '1:02:05'
    """
    text: str = tqdm.format_interval(round(seconds))
    return text


class EveryMinute:
    """Says when another minute is over."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def due(self) -> bool:
        """True once a minute, for the first time a minute after it was made."""
        now = time.perf_counter()
        if now - self._last < 60:
            return False
        self._last = now
        return True


class Progress:
    """Counts what is done of something.

    Args:
        total: how many there are.
        what: that is being done, as a heading.
        unit: one of them.
        initial: how many were done before.
        shown: False for none, whatever the terminal.
    """

    def __init__(
        self, total: int, what: str, unit: str, *, initial: int = 0, shown: bool = True
    ) -> None:
        shown = shown and not _quiet
        self.on_terminal = shown and sys.stderr.isatty()
        """Whether there is a bar."""
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=what,
            unit=unit,
            leave=False,
            dynamic_ncols=True,
            disable=not self.on_terminal,
        )
        self._lines = shown and not self.on_terminal
        self._what, self._unit = what, unit
        self._total, self._first, self._done = total, initial, initial
        self._started, self._minute = time.perf_counter(), EveryMinute()

    def update(self, count: int = 1, note: str = "") -> None:
        """So many more are done; a bar shows the note behind it."""
        self._done += count
        self._bar.update(count)
        if note:
            self._bar.set_postfix_str(note)
        if self._lines and self._done > self._first and self._minute.due():
            seconds = time.perf_counter() - self._started
            left = seconds / (self._done - self._first) * (self._total - self._done)
            print(
                f"{self._what}: {self._done:,} of {self._total:,} {self._unit}s,"
                f" {interval(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
