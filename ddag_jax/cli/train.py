"""`python train.py configs/NAME.py --workdir RUN`, or `ddag-train NAME --workdir RUN`."""

import argparse
from collections.abc import Sequence

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import load_config, override
from ddag_jax.errors import UserError
from ddag_jax.io.progress import silence


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains; the exit code is 0, 2 where the input is at fault, 130 after Ctrl-C."""
    return run(lambda: _train(arguments))


def _train(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train DDAG on a prepared dataset.",
        epilog="Any field of the configuration follows as --section.field value, for example"
        " --optimizer.learning-rate 0.05. The fields, with their meaning, are in"
        " ddag_jax/config.py.",
        allow_abbrev=False,
    )
    parser.add_argument("config", help="a Python file with get_config(), or a shipped one's name")
    parser.add_argument("--workdir", required=True, help="folder of the run: checkpoints and log")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, if there is one"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the run in --workdir and start anew"
    )
    parser.add_argument(
        "--init", metavar="CHECKPOINT", help="start from its backbone (see convert_weights.py)"
    )
    parser.add_argument(
        "--on-nonfinite",
        choices=("stop", "skip"),
        help="what to do about a step whose loss or gradient is not finite; short for"
        " --training.on-nonfinite",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU: the same bits each time, slower (XLA's deterministic operations); on a CPU"
        " they are the same anyway",
    )
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="N",
        help="record N steps, after a few to warm up, into WORKDIR/profile, for XProf (the profile"
        " page of TensorBoard) or Perfetto",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print errors only; log.jsonl has everything"
    )
    environment.add_process_options(parser)
    options, fields = parser.parse_known_args(arguments)
    if options.on_nonfinite:
        fields += ["--training.on-nonfinite", options.on_nonfinite]
    if options.profile < 0:
        raise UserError(f"--profile {options.profile}: must be 0 (none) or a number of steps")
    if options.quiet:
        silence()
    config = override(load_config(options.config), fields, parser.prog)

    if options.deterministic:
        environment.make_deterministic()
    environment.prepare(options)
    from ddag_jax.runs.train import train

    return train(
        config,
        options.workdir,
        resume=options.resume,
        overwrite=options.overwrite,
        init=options.init,
        profile=options.profile,
    )


if __name__ == "__main__":
    raise SystemExit(main())
