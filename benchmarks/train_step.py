"""Compare a training step on the CPU with PyTorch's: losses, time, peak memory.

    python -m benchmarks.train_step                  16 images: 2 identities, 4 of each modality
    python -m benchmarks.train_step --identities N   8 N images
    python -m benchmarks.train_step --config caj     another recipe beside DDAG, both ours
    python -m benchmarks.train_step --quick          a small network on small images, to try it

The published network (B+P+G on ResNet-50, 288 x 144 pixels, 395 identities) in float32, on a batch
of noise. Ours is train.py's mapped step, including augmentation and normalisation; PyTorch's is a
plain implementation of the authors' step (torch_ddag.py) on images that are normalised already.
First both take a step without augmentation and dropout from the same random weights, and the losses
must agree within FLOAT32_LOSSES of workload.py. Then they run in turn, each in its own process, so
that they share no heap, with the same number of threads and the same settings of glibc's allocator.
Peak memory is the median of five processes that take two steps, including imports, with a program
that was compiled before. Prints a table and writes results/train_step.json.

With --config, a shipped configuration's step is timed beside DDAG's, both ours, for as many
identities, and beside its own augmentation alone: a step of a method without a network. Writes
results/train_step_NAME.json.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, workload
from ddag_jax.cli import environment
from ddag_jax.config import Config
from ddag_jax.io.config_file import load_config

REPEATS = 7
PROCESSES = 5
"""Processes of each side whose peak memory is taken: glibc places the second step's memory
differently from process to process."""

Step = Callable[[], Any]


def threads() -> int:
    """Return the number of threads that JAX uses: one for each core available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ours(config: Config) -> Step:
    """Return our step, with weights initialised as by train.py."""
    environment.prepare()
    from benchmarks import jax_ddag  # not before: jax reads the environment when it is imported

    return jax_ddag.Training(config, jax_ddag.random_variables(config), workload.noise(config))


def pytorch(config: Config) -> Step:
    """Return PyTorch's step. Does not import jax."""
    environment.keep_freed_memory()
    import torch

    from benchmarks import torch_ddag

    torch.set_num_threads(threads())
    return torch_ddag.Training(config, workload.noise(config), torch_ddag.Style(reference=True))


def both(config: Config) -> tuple[Step, Step]:
    """Return our step and PyTorch's, both with PyTorch's weights."""
    theirs: Any = pytorch(config)
    from benchmarks import jax_ddag, torch_ddag

    variables = torch_ddag.variables(theirs.network)
    return jax_ddag.Training(config, variables, workload.noise(config)), theirs


def augmentation(config: Config) -> Step:
    """Return our step of a method without a network."""
    environment.prepare()
    from benchmarks import jax_ddag

    config = dataclasses.replace(config, model=jax_ddag.NoNetworkConfig())
    variables = jax_ddag.random_variables(config)
    return jax_ddag.Training(config, variables, workload.noise(config))


_step: Step | None = None
"""The step of a process that runs one side."""


def start(side: Callable[[Config], Step], config: Config) -> None:
    """Build one side in this process and take its first step."""
    global _step
    _step = side(config)
    _step()


def take() -> None:
    assert _step is not None
    _step()


def two_steps(side: Callable[[Config], Step], config: Config) -> None:
    """Take two steps of one side: the second may not fit into memory that the first freed."""
    step = side(config)
    step()
    step()


def first_losses(config: Config) -> dict[str, dict[str, float]]:
    """Return the losses of both sides for the same weights, without augmentation and dropout."""
    our_step, their_step = both(workload.deterministic(config))
    theirs = {name: loss.item() for name, loss in their_step().items()}
    losses = our_step()
    return {"ours": {name: float(losses[name]) for name in theirs}, "PyTorch": theirs}


def largest_difference(losses: Mapping[str, Mapping[str, float]]) -> float:
    """Return the largest relative difference of a loss.

    Raises:
        SystemExit: it exceeds FLOAT32_LOSSES.
    """
    largest = 0.0
    for name, theirs in losses["PyTorch"].items():
        mine = losses["ours"][name]
        difference = abs(mine - theirs) / abs(theirs)
        if not difference <= workload.FLOAT32_LOSSES:
            raise SystemExit(
                f"the {name} loss is {mine} in ours, {theirs} in PyTorch: the relative difference"
                f" {difference:.2g} exceeds {workload.FLOAT32_LOSSES:g}"
            )
        largest = max(largest, difference)
    return largest


def recipe(name: str, ddag: Config, quick: bool, folder: Path) -> None:
    """Time the step of a configuration beside DDAG's and beside its own augmentation."""
    given = load_config(name)
    views = given.training.views
    model = given.model
    if quick:
        ddag = workload.tiny(ddag.training.identities_per_batch)
        small = {"backbone": "resnet18", "width": ddag.model.width}
        model = dataclasses.replace(model, **small)
        ddag = dataclasses.replace(ddag, model=dataclasses.replace(ddag.model, **small))
    config = dataclasses.replace(
        ddag,
        augment=dataclasses.replace(given.augment, padding=ddag.augment.padding),
        model=model,
        training=dataclasses.replace(ddag.training, views=views),
    )
    print(measure.describe(measure.machine()), end="\n\n")
    sides = {name: (ours, config), "augmentation": (augmentation, config), "ddag": (ours, ddag)}
    with contextlib.ExitStack() as stack:
        turns = {}
        for side, (build, settings) in sides.items():
            process = stack.enter_context(measure.Process())
            process(start, build, settings)
            turns[side] = functools.partial(process, take)
        times = measure.interleaved(turns, 1 if quick else REPEATS)
    step, alone, other = (times[side].median for side in sides)
    images = {side: workload.images(settings) for side, (_, settings) in sides.items()}
    for side, taken in times.items():
        print(f"{side:<14}{images[side]:>4} images  {taken}")
    print(f"augmentation: {100 * alone / step:.1f} % of the step; target 5")
    print(f"{name} / ddag: {step / other:.2f}; target 1.6 with three views")
    record = {"times": times, "images": images, "augmentation_share": alone / step}
    name = f"train_step_{name}"
    print("written:", measure.write(name, {**record, "ratio": step / other}, folder))


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """Run the command; write the results to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description="Compare a training step on the CPU with PyTorch's",
    )
    parser.add_argument(
        "--identities",
        type=int,
        default=2,
        metavar="N",
        help="identities in a batch, at least 2, with 4 images in each modality (default: 2)",
    )
    parser.add_argument(
        "--config", metavar="NAME", help="a shipped configuration, beside DDAG's step"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small network on small images, without augmentation and dropout",
    )
    given = parser.parse_args(arguments)
    if given.identities < 2:
        parser.error(f"--identities {given.identities}: must be 2 or more, for the triplet loss")
    config = workload.published(given.identities)
    if given.config is not None:
        return recipe(given.config, config, given.quick, folder)
    if given.quick:  # deterministic throughout, so that one program is compiled
        config = workload.deterministic(workload.tiny(given.identities))

    losses = first_losses(config)
    difference = largest_difference(losses)
    print(measure.describe(measure.machine()), end="\n\n")
    images = workload.images(config)
    size = f"{config.data.image_height} x {config.data.image_width}"
    print(f"{images} images of {size} a step, float32, {threads()} threads on each side")
    print(f"losses of the first step differ by at most {difference:.1g} (relative)\n", flush=True)

    sides = {"ours": ours, "PyTorch": pytorch}
    with contextlib.ExitStack() as stack:
        turns = {}
        for name, side in sides.items():
            process = stack.enter_context(measure.Process())
            process(start, side, config)
            turns[name] = functools.partial(process, take)
        times = measure.interleaved(turns, 1 if given.quick else REPEATS)
    held: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 if given.quick else PROCESSES):
        for name, side in sides.items():
            peak = measure.peak_memory(functools.partial(two_steps, side, config))
            held[name] += [] if peak is None else [peak]
    peaks = {name: statistics.median(each) if each else None for name, each in held.items()}
    record = measure.compared(times, peaks, images, "images")
    for name, each in held.items():
        print(f"{name}, peak of each process in MiB:", *(f"{peak:,.0f}" for peak in sorted(each)))
    print("target 1.0, aim 1.2; of memory, target 1.2, aim 1.0")
    setting = {"images": images, "image_size": size, "threads": threads()}
    checked = {"first_losses": losses, "largest_difference": difference, "peaks_mib": held}
    print("written:", measure.write("train_step", {**setting, **checked, **record}, folder))


if __name__ == "__main__":
    main()
