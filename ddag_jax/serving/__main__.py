"""Embed images, search them, and export a trained model.

python -m ddag_jax.serving embed RUN IMAGES ... --to FILE.npz
python -m ddag_jax.serving prune FILE.npz
python -m ddag_jax.serving search RUN --gallery IMAGES|FILE.npz --query IMAGES ...
python -m ddag_jax.serving export RUN OUT

COMMAND --help lists a command's options.
"""

import sys

from ddag_jax.cli.embed import main as embed
from ddag_jax.cli.embed import prune
from ddag_jax.cli.export import main as export
from ddag_jax.cli.main import run
from ddag_jax.cli.search import main as search
from ddag_jax.errors import UserError

_COMMANDS = {"embed": embed, "prune": prune, "search": search, "export": export}


def main(arguments: list[str]) -> int:
    """Call the command that the first argument names."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(str(__doc__).strip())
        return 0
    if not arguments or arguments[0] not in _COMMANDS:
        raise UserError(f"python -m ddag_jax.serving: give one of {', '.join(_COMMANDS)}")
    return _COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(run(lambda: main(sys.argv[1:])))
