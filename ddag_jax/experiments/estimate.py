"""Estimate what an experiment would take, from a few steps and an evaluation that are run."""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from ddag_jax.data.sampler import steps_per_epoch
from ddag_jax.experiments.runs import Run, in_own_process, read_result, training_images
from ddag_jax.io.files import parse_json
from ddag_jax.io.progress import interval
from ddag_jax.runs.checkpoint import find_checkpoint, read_meta, saved_steps

_STEPS = 16


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds, as measured with one run's network."""

    step: float
    while_training: float
    """Of one evaluation between epochs."""
    start: float
    """Before the first step and after the last: imports, data, compilation."""
    evaluation: float
    """Of the evaluation at the end."""
    steps_per_epoch: int

    def of(self, run: Run, done: int) -> float:
        """Return the seconds that a run takes from `done` steps on."""
        training = run.config.training
        steps = training.epochs * self.steps_per_epoch
        evaluations = len(
            {*range(training.eval_every, training.epochs + 1, training.eval_every), training.epochs}
        )
        share = 1 - done / steps
        return (
            self.start
            + share * (steps * self.step + evaluations * self.while_training)
            + self.evaluation
        )


def measure(run: Run, prepare: Callable[[], None]) -> Cost:
    """Train 16 steps with a run's configuration in a temporary folder, and evaluate.

    `prepare` is called first in the process that computes.
    """
    training = dataclasses.replace(
        run.config.training, epochs=1, steps_per_epoch=_STEPS, log_every=_STEPS // 2, eval_every=1
    )
    config = dataclasses.replace(run.config, training=training)
    with tempfile.TemporaryDirectory() as place:
        folder = epath.Path(place) / "run"
        clock = time.monotonic()
        _, evaluation = in_own_process(prepare, folder, config, run.init, quiet=True)
        trained = time.monotonic() - clock - evaluation
        lines = [parse_json(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        resolved = read_meta(find_checkpoint(folder)).config.training
    times = {(line["kind"], line["step"]): line["time"] for line in lines}
    last = ("train", _STEPS)
    step = (times[last] - times["train", _STEPS // 2]) / (_STEPS - _STEPS // 2)
    watched = times["evaluation", _STEPS] - times["epoch", _STEPS]
    images = training_images(run)
    per_epoch = run.config.training.steps_per_epoch or steps_per_epoch(
        int((~images.infrared).sum()),
        int(images.infrared.sum()),
        resolved.identities_per_batch,
        resolved.images_per_identity,
    )
    return Cost(step, watched, trained - _STEPS * step - watched, evaluation, per_epoch)


def estimate(runs: Sequence[Run], prepare: Callable[[], None]) -> str:
    """Return a line for each run with the time that it would take, and how that was measured.

    Of the runs of one ablation the largest is measured; for the others its time is a bound. Nothing
    is written to the runs' folders. `prepare` is called first in each process that computes.
    """
    open_runs = [run for run in runs if read_result(run) is None]
    largest: dict[str, Run] = {}
    for run in open_runs:
        largest[_branches(run)] = max(largest.get(_branches(run), run), run, key=_size)
    costs = {branches: measure(run, prepare) for branches, run in largest.items()}
    said, total = [], 0.0
    for run in runs:
        if run not in open_runs:
            said.append(f"{run.folder.name:<40} finished")
            continue
        cost, done = costs[_branches(run)], (saved_steps(run.folder) or [0])[-1]
        seconds = cost.of(run, done)
        total += seconds
        state = f"from step {done} on" if done else "from the start"
        said.append(f"{run.folder.name:<40} {state:<20} {_time(seconds)}")
    said.append(f"{len(open_runs)} of {len(runs)} runs to do, one after another: {_time(total)}")
    for branches, run in largest.items():
        cost = costs[branches]
        said.append(
            f"measured with {run.folder.name}: {cost.step:.3f} s a step (steps"
            f" {_STEPS // 2 + 1} to {_STEPS}), {cost.start:.1f} s to start and end,"
            f" {cost.while_training:.1f} s an evaluation while training,"
            f" {cost.evaluation:.1f} s the evaluation at the end"
        )
    return "\n".join(said)


def _branches(run: Run) -> str:
    """Return the ablation: runs that share it have the same branches, and about the same cost."""
    return run.row.ablation


def _size(run: Run) -> tuple[int, int, int]:
    """Return what to compare the cost of runs of one ablation by."""
    model: Any = run.config.model  # the ablations are all DDAG's
    return model.parts, model.graph_heads, int(model.part_aggregation == "concatenation")


def _time(seconds: float) -> str:
    return f"about {interval(seconds)}"
