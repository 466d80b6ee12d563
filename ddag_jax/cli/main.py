"""What every command does with a fault of the user's: one line, exit code 2, no traceback."""

import sys
from collections.abc import Callable

from ddag_jax.errors import UserError


def run(main: Callable[[], int | None]) -> int:
    """Calls a command's main and gives its exit code.

    Returns:
      What `main` returned (0 for None); 2 after an `UserError`, which is printed to stderr as
      `error: ...`; 130 after Ctrl-C, as shells have it.
    """
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
