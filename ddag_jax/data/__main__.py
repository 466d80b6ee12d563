"""`python -m ddag_jax.data`: see prepare.py."""

import sys

from ddag_jax.cli.data import main
from ddag_jax.cli.main import run

if __name__ == "__main__":  # the workers that draw people import this file too
    sys.exit(run(main))
