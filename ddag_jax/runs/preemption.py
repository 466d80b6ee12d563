"""Stop a run after the current step on SIGTERM (preemption) or SIGINT (Ctrl-C)."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ddag_jax.parallel import process_share, stop_agreed


class StopRequest:
    """Context manager: the first signal requests a stop, a second SIGINT exits immediately.

    Several processes stop after the same step: JAX's own handler of SIGTERM synchronises them, so
    it is kept, and SIGINT is forwarded to it as SIGTERM.
    """

    exit_code = 0
    """Exit code of the process: 0, or 130 after SIGINT, as in shells."""

    def __init__(self) -> None:
        self._asked = False
        self._alone = process_share()["process_count"] == 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            handled = (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,)
            self._before = {number: signal.signal(number, self._ask) for number in handled}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.exit_code == 130:
                os._exit(130)  # without waiting for background writes
            self.exit_code = 130
        self._asked = True
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def asked_alone(self) -> bool:
        """Return whether to stop between two steps; always False with several processes, which
        have to agree on a step (see `after`)."""
        return self._asked and self._alone

    def after(self, step: int) -> bool:
        """Return whether to stop after this step; the same in all processes."""
        return self._asked if self._alone else stop_agreed(step)
