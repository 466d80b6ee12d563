"""Show progress: a bar on a terminal, else one line per minute, or nothing.

The one file that imports tqdm. Bars and lines go to standard error.
"""

import sys
import time
from types import TracebackType

from tqdm import tqdm

_quiet = False


def silence() -> None:
    """Show neither bars nor lines for the rest of the process (`--quiet`)."""
    global _quiet
    _quiet = True


def say(text: str) -> None:
    """Print a line to standard output, above any bar, unless silenced."""
    if not _quiet:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def interval(seconds: float) -> str:
    """Format a duration.

    >>> interval(3725)
    '1:02:05'
    """
    text: str = tqdm.format_interval(round(seconds))
    return text


class EveryMinute:
    """A timer that fires once a minute."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def due(self) -> bool:
        """Return True once a minute, first a minute after construction."""
        now = time.perf_counter()
        if now - self._last < 60:
            return False
        self._last = now
        return True


class Progress:
    """Count finished units of work and show how many.

    Args:
        total: number of units.
        what: description of the work, shown first.
        unit: name of one unit.
        initial: number of units that were finished before.
        shown: False to show nothing.
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
        """Add `count` finished units; a bar shows `note` at its end."""
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
        """Remove the bar."""
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
