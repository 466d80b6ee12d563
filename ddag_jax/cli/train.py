"""`python train.py configs/NAME.py --workdir RUN`, or `ddag-train NAME --workdir RUN`."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import parse_with_config
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from ddag_jax.io.progress import silence


@dataclasses.dataclass(frozen=True)
class Options:
    """Train on a prepared dataset.

    Any field of the configuration follows as --section.field value, for example
    --optimizer.learning-rate 0.05. CONFIG --help shows its values.
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """A Python file with get_config(), or the name of a shipped one."""
    workdir: str
    """Folder of the run: checkpoints and log."""
    resume: bool = False
    """Go on from the last checkpoint, if there is one."""
    overwrite: bool = False
    """Remove the run in --workdir and start anew."""
    init: str | None = None
    """Checkpoint to take the backbone from (see convert_weights.py)."""
    on_nonfinite: Literal["stop", "skip"] | None = None
    """What to do about a step whose loss or gradient is not finite; short for
    --training.on-nonfinite."""
    deterministic: bool = False
    """On a GPU: the same bits each time, slower (XLA's deterministic operations). On a CPU they are
    the same anyway."""
    profile: int = 0
    """Record this many steps, after a few to warm up, into WORKDIR/profile, for XProf (the profile
    page of TensorBoard) or Perfetto."""
    quiet: bool = False
    """Print errors only; log.jsonl has everything."""
    processes: tyro.conf.OmitArgPrefixes[environment.Processes] = dataclasses.field(
        default_factory=environment.Processes
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train. Return 0, 2 after an error of the user's, 130 after Ctrl-C."""
    return run(lambda: _train(arguments))


def _train(arguments: Sequence[str] | None) -> int:
    options, config = parse_with_config(
        Options, lambda known: load_config(known.config), arguments, "train.py"
    )
    if options.on_nonfinite:
        training = dataclasses.replace(config.training, on_nonfinite=options.on_nonfinite)
        config = dataclasses.replace(config, training=training)
    if options.profile < 0:
        raise UserError(f"--profile {options.profile}: must be 0 (none) or a number of steps")
    if options.quiet:
        silence()
    if options.deterministic:
        environment.make_deterministic()
    environment.prepare(options.processes)
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
