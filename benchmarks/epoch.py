"""Compare an epoch of train.py with bare steps: the cost of data, logging and waiting.

    python -m benchmarks.epoch                       configuration demo, 40 steps an epoch
    python -m benchmarks.epoch sysu_mm01 --steps N   the published one, on a GPU
    python -m benchmarks.epoch sysu_mm01 --model.compute-dtype bfloat16
    python -m benchmarks.epoch --quick               configuration debug, to try it

The training of train.py runs on a prepared dataset of rendered people: it samples and reads
batches, transfers them to the device, runs the mapped step with its augmentation, and logs. Before
each epoch the same number of bare steps run, of the same step, on a batch that is on the device
already. The first turn, which compiles, is not counted; nor are evaluation and checkpoints, which
run between epochs. Peak memory is that of a process with one of the two alone, including imports,
with a program that was compiled before. Prints a table and writes results/epoch.json.
"""

import argparse
import contextlib
import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks import measure, workload
from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import override
from ddag_jax.config import Config
from ddag_jax.io.config_file import load_config

if TYPE_CHECKING:
    from ddag_jax.parallel import Step
    from ddag_jax.training.state import TrainState
    from ddag_jax.training.step import Outcome
    from ddag_jax.types import Batch

REPEATS = 5
LOOP, BARE = "train.py", "bare steps"
BOTH = (LOOP, BARE)


def write_people(config: Config, folder: Path) -> Path:
    """Prepare rendered people; return the folder of the prepared dataset."""
    from ddag_jax.datasets.prepare import prepare
    from ddag_jax.synthetic.files import write_people
    from ddag_jax.synthetic.image import People

    height, width = config.data.image_height, config.data.image_width
    people = People(
        train_identities=2 * config.training.identities_per_batch,
        val_identities=2,
        test_identities=2,
        height=height,
    )
    write_people(people, folder / "people", progress=False)
    prepare("sysu_mm01", folder / "people", folder / "data", height, width)
    return folder / "data"


class Turns:
    """A training step that measures time, in place of a run's step.

    At the first batch of an epoch it takes an epoch of bare steps first. The loop's epoch is timed
    from then until it is logged.
    """

    def __init__(self, step: "Step", batch: "Batch", per_epoch: int, which: Sequence[str]) -> None:
        """
        Args:
            step: the mapped step of the run.
            batch: batch on the device, for bare steps.
            per_epoch: steps in an epoch.
            which: those of BOTH to run; with bare steps alone, the first turn ends the run.
        """
        self.step, self.batch, self.per_epoch, self.which = step, batch, per_epoch, which
        self.taken = 0
        self.seconds: dict[str, list[float]] = {name: [] for name in BOTH}

    def __call__(self, state: "TrainState", batch: "Batch") -> "tuple[TrainState, Outcome]":
        import jax

        if self.taken % self.per_epoch == 0:
            if BARE in self.which:
                jax.block_until_ready(state)
                start = time.perf_counter()
                for _ in range(self.per_epoch):
                    state, _ = self.step(state, self.batch)
                jax.block_until_ready(state)
                self.seconds[BARE].append(time.perf_counter() - start)
            if LOOP not in self.which:
                raise Done
            self.start = time.perf_counter()
        self.taken += 1
        return self.step(state, batch)

    def epoch_logged(self) -> None:
        """Take the time of the loop's epoch."""
        self.seconds[LOOP].append(time.perf_counter() - self.start)


class Done(Exception):
    """Ends the run after bare steps."""


def trained(config: Config, workdir: Path, which: Sequence[str]) -> dict[str, measure.Times]:
    """Train as train.py does; return the seconds of each epoch but the first.

    Args:
        which: those of BOTH to run.
    """
    environment.prepare()
    from ddag_jax.parallel import Mesh, map_train_step, shard
    from ddag_jax.runs import train as loop
    from ddag_jax.runs.logs import RunLog
    from ddag_jax.types import Batch as HostBatch

    turns: list[Turns] = []
    log_epoch = RunLog.epoch

    def map_and_watch(step: "Step", mesh: Mesh, mapping: str) -> "Step":
        batch = shard(HostBatch(*workload.noise(config)), mesh)
        per_epoch = config.training.steps_per_epoch
        assert per_epoch is not None
        turns.append(Turns(map_train_step(step, mesh, mapping), batch, per_epoch, which))
        return turns[0]

    def log_and_note(log: RunLog, *given: Any) -> None:
        log_epoch(log, *given)
        turns[0].epoch_logged()

    with (
        mock.patch.object(loop, "map_train_step", map_and_watch),
        mock.patch.object(RunLog, "epoch", log_and_note),
        contextlib.suppress(Done),
    ):
        loop.train(config, workdir)
    return {name: measure.Times(tuple(turns[0].seconds[name][1:])) for name in which}


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> int:
    """Run the command; write the results to `folder`. Return 0, or 2 after a UserError."""
    return run(lambda: _main(arguments, folder))


def _main(arguments: Sequence[str] | None, folder: Path) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.epoch",
        description="Compare an epoch of train.py with bare steps",
        epilog="Any field of the configuration follows as --section.field value.",
    )
    parser.add_argument(
        "config", nargs="?", default="demo", help="a file or a shipped name (default: demo)"
    )
    parser.add_argument(
        "--steps", type=int, default=40, metavar="N", help="steps in an epoch (default: 40)"
    )
    parser.add_argument("--quick", action="store_true", help="configuration debug, 4 steps")
    given, fields = parser.parse_known_args(arguments)
    name, steps = ("debug", 4) if given.quick else (given.config, given.steps)
    config = override(load_config(name), fields, parser.prog)

    with tempfile.TemporaryDirectory() as scratch:
        data = dataclasses.replace(config.data, dir=str(write_people(config, Path(scratch))))
        training = dataclasses.replace(
            config.training,
            epochs=1 + REPEATS,
            steps_per_epoch=steps,
            eval_every=1 + REPEATS,
        )
        evaluation = dataclasses.replace(config.evaluation, trials=1)
        config = dataclasses.replace(config, data=data, training=training, evaluation=evaluation)
        times = trained(config, Path(scratch) / "both", BOTH)
        short = dataclasses.replace(config, training=dataclasses.replace(training, epochs=1))
        peaks = {
            which: measure.peak_memory(
                functools.partial(trained, short, Path(scratch) / which, (which,))
            )
            for which in BOTH
        }
    print(measure.describe(measure.machine()), end="\n\n")
    images, data = workload.images(config), config.data
    print(
        f"{name}: {steps} steps an epoch, {images} images of {data.image_height} x"
        f" {data.image_width} a step, {config.model.compute_dtype}"
    )
    record = measure.compared(times, peaks, steps * images, "images")
    print("target 0.95, aim 0.99")
    setting = {
        "config": name,
        "fields": fields,
        "steps": steps,
        "images": images,
        "compute_dtype": config.model.compute_dtype,
    }
    print("written:", measure.write("epoch", {**setting, **record}, folder))


if __name__ == "__main__":
    sys.exit(main())
