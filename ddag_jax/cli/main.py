"""Run a command and report a `UserError` as one line with exit code 2, without a traceback."""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from ddag_jax.errors import UserError
from ddag_jax.io.buckets import BucketError

_REFUSED = {
    errno.EACCES: "correct its permissions, or name another place",
    errno.EPERM: "correct its permissions, or name another place",
    errno.EROFS: "name another place",
    errno.ENOSPC: "free disk space, or name another place",
    errno.EFBIG: "free disk space, or name another place",
    errno.EDQUOT: "free disk space, or name another place",
}
"""What a system refuses, whatever the command, and what to do."""


def run(main: Callable[[], int | None]) -> int:
    """Call a command's main and return the exit code.

    SIGTERM ends the command as an exception does, so that unfinished files are removed and what can
    be resumed is recorded; a command may handle it in its own way. Characters that the terminal
    cannot show are printed as escapes.

    Returns:
      The value of `main` (0 for None); 2 after a `UserError`, for a bucket that cannot be reached,
      and where the system refuses a file, printed to stderr as `error: ...`; the conventions of
      shells otherwise: 130 after Ctrl-C, 141 if the reader of the output has ended (`| head`).

    Raises:
      SystemExit: with 143, the convention of shells, after SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _ended_by_sigterm():
            code = main() or 0
            sys.stdout.flush()
            return code
    except (UserError, BucketError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes at its end again, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; {_REFUSED[error.errno]}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    if (
        threading.current_thread() is not threading.main_thread()  # others cannot set handlers
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def end(*_: object) -> None:
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
