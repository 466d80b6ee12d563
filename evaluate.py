"""Evaluate a run: `python evaluate.py RUN`."""

from ddag_jax.cli.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
