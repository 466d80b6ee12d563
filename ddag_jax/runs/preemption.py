"""Asked to stop: SIGTERM (a machine is taken away) and SIGINT (Ctrl-C) end a run after its step."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ddag_jax.parallel import process_share, stop_agreed


class StopRequest:
    """While entered, the first signal asks the run to stop; a second SIGINT ends it at once.

    Of several processes all stop after the same step: jax's own handler hears SIGTERM in any of
    them and agrees with the others, so that one is left alone; Ctrl-C is passed on to it.
    """

    exit_code = 0
    """Of the process: 0, or 130 after SIGINT, as shells have it."""

    def __init__(self) -> None:
        self._asked = False
        self._alone = process_share()["process_count"] == 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # else signals are not ours
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
                os._exit(130)  # not even what is being written in the background is waited for
            self.exit_code = 130
        self._asked = True
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def asked_alone(self) -> bool:
        """Whether to stop at once, between two steps; never of several processes, which could not
        agree on it."""
        return self._asked and self._alone

    def after(self, step: int) -> bool:
        """Whether the run is to stop after this step: the same in all processes."""
        return self._asked if self._alone else stop_agreed(step)
