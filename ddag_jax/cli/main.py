"""Run a command: an error of the user's is one line and exit code 2, without a traceback."""

import sys
from collections.abc import Callable

from ddag_jax.errors import UserError


def run(main: Callable[[], int | None]) -> int:
    """Call a command's main and return its exit code.

    Returns:
      What `main` returned (0 for None); 2 after a `UserError`, which is printed to stderr as
      `error: ...`; 130 after Ctrl-C, as in shells.
    """
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
