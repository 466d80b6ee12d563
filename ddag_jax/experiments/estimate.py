"""What an experiment would cost, from a few steps and an evaluation that are really run."""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from ddag_jax.data.sampler import steps_per_epoch
from ddag_jax.experiments.runs import Run, evaluate, read_result, train, training_images
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
    """Of train.py before its first step and after its last: imports, data, compilation."""
    evaluation: float
    """Of evaluate.py."""
    steps_per_epoch: int

    def of(self, run: Run, done: int) -> float:
        """Seconds of a run that has taken `done` steps."""
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


def measure(run: Run) -> Cost:
    """Trains 16 steps with a run's configuration in a folder that is removed, and evaluates."""
    short = {"epochs": 1, "steps-per-epoch": _STEPS, "log-every": _STEPS // 2, "eval-every": 1}
    named = {f"--training.{name}" for name in short}
    words = list(run.words)
    for name in named.intersection(words):
        at = words.index(name)
        del words[at : at + 2]
    words += [word for name, value in short.items() for word in (f"--training.{name}", str(value))]
    with tempfile.TemporaryDirectory() as place:
        folder = epath.Path(place) / "run"
        clock = time.monotonic()
        train(run, folder, words, epochs=1, quiet=True)
        trained = time.monotonic() - clock
        clock = time.monotonic()
        evaluate(run, folder, quiet=True)
        evaluation = time.monotonic() - clock
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


def estimate(runs: Sequence[Run]) -> str:
    """A line for each run, with the time that it would take, and what that was measured on.

    One run is measured of those with the same branches, the largest: for the others its time is a
    bound. Nothing is written to the runs' folders.
    """
    open_runs = [run for run in runs if read_result(run) is None]
    largest: dict[str, Run] = {}
    for run in open_runs:
        largest[_branches(run)] = max(largest.get(_branches(run), run), run, key=_size)
    costs = {branches: measure(run) for branches, run in largest.items()}
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
            f" {cost.evaluation:.1f} s evaluate.py"
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
