"""A training step on the CPU, ours and PyTorch's: losses, time, peak memory.

    python -m benchmarks.train_step                  16 images: 2 identities, 4 of each modality
    python -m benchmarks.train_step --identities N   8 N images
    python -m benchmarks.train_step --quick          a few channels and pixels, to see that it works

The published network (B+P+G on ResNet-50, 288 x 144 pixels, 395 identities) in float32, on a batch
of noise. Ours is train.py's mapped step, augmentation and normalisation included; PyTorch's is a
plain re-expression of the reference's (torch_ddag.py), whose images are normalised beforehand.
First both take a step without augmentation and dropout, from the same random weights, and must give
the same losses. Then they take turns, each in a process of its own, so that neither's heap is in
the other's way, with the same number of threads and the same settings of glibc's allocator. Peak
memory is the median of five processes that take two steps, imports included, whose program was
compiled before. Prints a table and writes results/train_step.json.
"""

import argparse
import contextlib
import functools
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, workload
from ddag_jax.cli import environment
from ddag_jax.config import Config

TOLERANCE = 1e-4
"""Relative, of a loss. A distance between features is a small difference of large numbers: where
the other losses agree to 1e-6, the triplet loss does to 2e-5."""
REPEATS = 7
PROCESSES = 5
"""Of each side, for its memory: where glibc puts the second step's differs between them."""

Step = Callable[[], Any]


def threads() -> int:
    """As many as JAX takes: one for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ours(config: Config) -> Step:
    """Our step, from weights drawn as train.py draws them."""
    environment.prepare()
    from benchmarks import jax_ddag  # not before: jax reads the environment when it is imported

    return jax_ddag.Training(config, jax_ddag.random_variables(config), workload.noise(config))


def pytorch(config: Config) -> Step:
    """PyTorch's, without jax in the process."""
    environment.keep_freed_memory()
    import torch

    from benchmarks import torch_ddag

    torch.set_num_threads(threads())
    return torch_ddag.Training(config, workload.noise(config), torch_ddag.Style(reference=True))


def both(config: Config) -> tuple[Step, Step]:
    """Ours and PyTorch's, from PyTorch's weights."""
    theirs: Any = pytorch(config)
    from benchmarks import jax_ddag, torch_ddag

    variables = torch_ddag.variables(theirs.network)
    return jax_ddag.Training(config, variables, workload.noise(config)), theirs


_step: Step | None = None
"""In a process with one side: its step."""


def start(side: Callable[[Config], Step], config: Config) -> None:
    """Makes a side this process's, and takes a step."""
    global _step
    _step = side(config)
    _step()


def take() -> None:
    assert _step is not None
    _step()


def two_steps(side: Callable[[Config], Step], config: Config) -> None:
    """Of one side alone. Two, since what the first allocated may not serve the second."""
    step = side(config)
    step()
    step()


def first_losses(config: Config) -> dict[str, dict[str, float]]:
    """Of both sides, from the same weights, without augmentation and dropout."""
    our_step, their_step = both(workload.deterministic(config))
    theirs = {name: loss.item() for name, loss in their_step().items()}
    losses = our_step()
    return {"ours": {name: float(losses[name]) for name in theirs}, "PyTorch": theirs}


def largest_difference(losses: Mapping[str, Mapping[str, float]]) -> float:
    """Of any loss, relative. Ends the command where it is more than rounding explains."""
    largest = 0.0
    for name, theirs in losses["PyTorch"].items():
        mine = losses["ours"][name]
        difference = abs(mine - theirs) / abs(theirs)
        if not difference <= TOLERANCE:
            raise SystemExit(f"the {name} loss is {mine} on our side, {theirs} in PyTorch")
        largest = max(largest, difference)
    return largest


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """The command. Results go to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description="A training step on the CPU, ours and PyTorch's",
    )
    parser.add_argument(
        "--identities",
        type=int,
        default=2,
        metavar="N",
        help="in a batch, at least 2, of 4 images in each modality (default: 2)",
    )
    parser.add_argument("--quick", action="store_true", help="a few channels and pixels")
    given = parser.parse_args(arguments)
    if given.identities < 2:
        parser.error(f"--identities {given.identities}: the triplet loss needs at least 2")
    config = (workload.tiny if given.quick else workload.published)(given.identities)

    losses = first_losses(config)
    difference = largest_difference(losses)
    print(measure.describe(measure.machine()), end="\n\n")
    images = workload.images(config)
    size = f"{config.data.image_height} x {config.data.image_width}"
    print(f"{images} images of {size} a step, float32, {threads()} threads on each side")
    print(f"losses of the first step agree to {difference:.1g} (relative)\n", flush=True)

    sides = {"ours": ours, "PyTorch": pytorch}
    with contextlib.ExitStack() as stack:
        turns = {}
        for name, side in sides.items():
            process = stack.enter_context(measure.Process())
            process(start, side, config)
            turns[name] = functools.partial(process, take)
        times = measure.interleaved(turns, REPEATS)
    held: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 if given.quick else PROCESSES):
        for name, side in sides.items():
            peak = measure.peak_memory(functools.partial(two_steps, side, config))
            held[name] += [] if peak is None else [peak]
    peaks = {name: statistics.median(each) if each else None for name, each in held.items()}
    record = measure.compared(times, peaks, images, "images")
    for name, each in held.items():
        print(f"{name}, MiB of each process:", *(f"{peak:,.0f}" for peak in sorted(each)))
    print("target 1.0, aim 1.2; of memory, target 1.2, aim 1.0")
    setting = {"images": images, "image_size": size, "threads": threads()}
    checked = {"first_losses": losses, "largest_difference": difference, "peaks_mib": held}
    print("written:", measure.write("train_step", {**setting, **checked, **record}, folder))


if __name__ == "__main__":
    main()
