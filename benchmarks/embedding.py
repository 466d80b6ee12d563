"""Embedding on the CPU, ours and PyTorch's: features, time, peak memory.

    python -m benchmarks.embedding            32 images of each modality
    python -m benchmarks.embedding --quick    a few channels and pixels, to see that it works

The published network (B+P on ResNet-50, since the graph is for training only; 288 x 144 pixels) in
float32 and evaluation mode, with the same random weights on the same noise; each modality goes
through its own stem. Ours is evaluate.py's mapped embedding, normalisation included; PyTorch's is a
plain re-expression of the reference's network in inference mode, whose images are normalised
beforehand. First the features of both must agree. Then they take turns, in one process, with the
same number of threads and the same settings of glibc's allocator. Peak memory is that of a process
with one side alone, imports included, whose program was compiled before. Prints a table and writes
results/embedding.json.
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
"""Of 4 images in each modality."""
TOLERANCE = 1e-4
"""Largest difference of a row of unit length."""
REPEATS = 7
MODALITIES = ("visible", "infrared")

Embed = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""Global and part features of all images of a modality, by its name."""


def ours(config: Config, variables: dict[str, Any] | None = None) -> Embed:
    """With these variables, or with some drawn as train.py draws them."""
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
    """Also its network. Without jax in the process."""
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
    """Features by name."""
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
    """Of any row. Ends the command where it is more than rounding explains."""
    largest = 0.0
    for name, rows in theirs.items():
        difference = float(np.linalg.norm(ours[name] - rows, axis=1).max())
        if not difference <= TOLERANCE:
            raise SystemExit(f"the {name} features of the two sides differ by {difference:.3g}")
        largest = max(largest, difference)
    return largest


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """The command. Results go to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedding",
        description="Embedding on the CPU, ours and PyTorch's",
    )
    parser.add_argument("--quick", action="store_true", help="a few channels and pixels")
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
    print(f"features agree to {difference:.1g}\n", flush=True)

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
        times = measure.interleaved(sides, REPEATS)
        records[modality] = measure.compared(times, peaks, images // 2, "images")
    print("target 1.2, aim 1.6")
    setting = {"images": images // 2, "image_size": size, "threads": threads()}
    result = {**setting, "largest_difference": difference, **records}
    print("written:", measure.write("embedding", result, folder))


if __name__ == "__main__":
    main()
