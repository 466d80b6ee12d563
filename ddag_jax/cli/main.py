"""Run a command and report a `UserError` as one line with exit code 2, without a traceback."""

import sys
from collections.abc import Callable

from ddag_jax.errors import UserError
from ddag_jax.io.buckets import BucketError


def run(main: Callable[[], int | None]) -> int:
    """Call a command's main and return the exit code.

    Returns:
      The value of `main` (0 for None); 2 after a `UserError` or a bucket that cannot be reached,
      which is printed to stderr as `error: ...`; 130 after Ctrl-C, the convention of shells.
    """
    try:
        return main() or 0
    except (UserError, BucketError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
