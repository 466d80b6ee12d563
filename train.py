"""Train: `python train.py configs/NAME.py --workdir RUN`."""

from ddag_jax.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
