"""Compare embedding on the CPU with PyTorch's: features, time, peak memory.

    python -m benchmarks.embedding            32 images of each modality
    python -m benchmarks.embedding --quick    a small network on small images, to try it

The published network (B+P on ResNet-50, since the graph is used in training only; 288 x 144 pixels)
in float32 and evaluation mode, with the same random weights on the same noise; each modality passes
through its own stem. Ours is evaluate.py's mapped embedding, including normalisation; PyTorch's is
a plain implementation of the authors' network in inference mode, on images that are normalised
already. First the features must agree within FLOAT32_FEATURES of workload.py. Then both run in
turn, in one process, with the same number of threads and the same settings of glibc's allocator.
Peak memory is that of a process with one side alone, including imports, with a program that was
compiled before. Prints a table and writes results/embedding.json.
"""

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, workload
from benchmarks.train_step import threads
from ddag_jax.cli import environment
from ddag_jax.config import Config

IDENTITIES = 8
"""Identities of 4 images in each modality."""
REPEATS = 7
MODALITIES = ("visible", "infrared")

Embed = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""Takes a modality's name; returns global and part features of all its images, [b, c] each."""


def ours(config: Config, variables: dict[str, Any] | None = None) -> Embed:
    """Return our embedding, with `variables` or with some initialised as by train.py."""
    environment.prepare()
    from benchmarks import jax_ddag  # not before: jax reads the environment when it is imported

    embed = jax_ddag.Embedding(config, variables or jax_ddag.random_variables(config))
    noise = workload.noise(config)._asdict()
    pixels = {name: noise[name].reshape(-1, *noise[name].shape[2:]) for name in MODALITIES}

    def run(modality: str) -> tuple[np.ndarray, np.ndarray]:
        features = embed(pixels[modality], modality)
        return np.asarray(features["global"]), np.asarray(features["part"])

    return run


def pytorch(config: Config) -> tuple[Embed, Any]:
    """Return PyTorch's embedding and its network. Does not import jax."""
    environment.keep_freed_memory()
    import torch

    from benchmarks import torch_ddag

    torch.set_num_threads(threads())
    embed = torch_ddag.Embedding(config)
    noise = workload.noise(config)._asdict()
    pixels = {name: torch_ddag.pixels(noise[name]) for name in MODALITIES}

    def run(modality: str) -> tuple[np.ndarray, np.ndarray]:
        whole, part = embed(pixels[modality], modality)
        return whole.numpy(), part.numpy()

    return run, embed.network


def both_modalities(embed: Embed) -> dict[str, np.ndarray]:
    """Return the features of both modalities, by "MODALITY FEATURE"."""
    features = {}
    for modality in MODALITIES:
        for name, rows in zip(("global", "part"), embed(modality), strict=True):
            features[f"{modality} {name}"] = rows
    return features


def ours_alone(config: Config) -> None:
    both_modalities(ours(config))


def pytorch_alone(config: Config) -> None:
    both_modalities(pytorch(config)[0])


def largest_difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """Return the largest relative difference, in norm, of any modality's features.

    Raises:
        SystemExit: it exceeds FLOAT32_FEATURES.
    """
    largest = 0.0
    for name, rows in theirs.items():
        difference = float(np.linalg.norm(ours[name] - rows) / np.linalg.norm(rows))
        if not difference <= workload.FLOAT32_FEATURES:
            raise SystemExit(
                f"the {name} features differ: the relative difference {difference:.2g} exceeds"
                f" {workload.FLOAT32_FEATURES:g}"
            )
        largest = max(largest, difference)
    return largest


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """Run the command; write the results to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedding",
        description="Compare embedding on the CPU with PyTorch's",
    )
    parser.add_argument("--quick", action="store_true", help="a small network on small images")
    given = parser.parse_args(arguments)
    config = (workload.tiny if given.quick else workload.published)(IDENTITIES)

    theirs, network = pytorch(config)
    from benchmarks import torch_ddag

    mine = ours(config, torch_ddag.variables(network))
    difference = largest_difference(both_modalities(mine), both_modalities(theirs))
    print(measure.describe(measure.machine()), end="\n\n")
    images = workload.images(config)
    size = f"{config.data.image_height} x {config.data.image_width}"
    print(f"{images // 2} images of {size} at once, float32, {threads()} threads on each side")
    print(f"features differ by at most {difference:.1g} (relative)\n", flush=True)

    alone = {"ours": ours_alone, "PyTorch": pytorch_alone}
    peaks = {
        name: measure.peak_memory(functools.partial(work, config)) for name, work in alone.items()
    }
    records = {}
    for modality in MODALITIES:
        sides = {
            name: functools.partial(embed, modality)
            for name, embed in {"ours": mine, "PyTorch": theirs}.items()
        }
        print(modality)
        times = measure.interleaved(sides, 1 if given.quick else REPEATS)
        records[modality] = measure.compared(times, peaks, images // 2, "images")
    print("target 1.2, aim 1.6")
    setting = {"images": images // 2, "image_size": size, "threads": threads()}
    result = {**setting, "largest_difference": difference, **records}
    print("written:", measure.write("embedding", result, folder))


if __name__ == "__main__":
    main()
