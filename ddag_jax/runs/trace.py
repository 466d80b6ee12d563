"""Record a trace of a few steps for XProf (TensorBoard's profile page) or Perfetto."""

import contextlib
from types import TracebackType
from typing import Any

import jax
from etils import epath

from ddag_jax.io.buckets import Mirror, is_bucket

WARM_UP = 5
"""Steps before the trace, which compile and fill the input pipeline."""


class Profile:
    """Context manager that records the steps from `first + WARM_UP + 1` on.

    Args:
        folder: for the trace.
        first: number of the last step before this process started.
        steps: number of steps to record; 0 for none.
    """

    def __init__(self, folder: epath.Path, first: int, steps: int) -> None:
        self._folder = folder
        self._mirror: Mirror | None = None
        self._begins, self._ends = first + WARM_UP, first + WARM_UP + steps
        self._recording = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._recording:  # the run ended during the trace
            self._stop()

    def _start(self) -> None:
        if is_bucket(self._folder):  # the profiler writes to disks
            self._mirror = Mirror(self._folder)
        jax.profiler.start_trace(self._folder if self._mirror is None else self._mirror.local)
        self._recording = True

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._recording = False
        if self._mirror is not None:
            with contextlib.closing(self._mirror):
                self._mirror.copy()

    def after(self, step: int, computed: Any) -> bool:
        """Call after each step with its outputs. Returns True when the trace has been written."""
        if step == self._begins < self._ends:
            jax.block_until_ready(computed)
            self._start()
        elif step == self._ends and self._recording:
            jax.block_until_ready(computed)
            self._stop()
            return True
        return False
