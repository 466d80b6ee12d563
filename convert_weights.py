"""Convert weights to and from PyTorch: `python convert_weights.py --help`."""

from ddag_jax.cli.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
