"""`python -m ddag_jax.data`: see prepare.py."""

import sys

from ddag_jax.cli.main import run
from ddag_jax.data.prepare import main

if __name__ == "__main__":  # the workers that draw people import this file too
    sys.exit(run(main))
