"""Compare our training step with PyTorch's on one GPU, in each relevant precision and mode.

    python -m benchmarks.gpu            the published network, 64 and 256 images a step
    python -m benchmarks.gpu --quick    a small network on small images, on any device

Needs jax with CUDA and PyTorch with CUDA in one environment, and numpy, flax, optax, jaxtyping and
absl-py. Each variant runs in its own process, so that no memory pool is shared. First each takes a
step without augmentation and dropout from the same random weights, in another process: in float32
the losses of both sides must agree within FLOAT32_LOSSES of workload.py, in TF32 and bfloat16
within a wider bound. Then all variants of one batch size run in turn, a block of steps at a time.

Our step is train.py's, including augmentation and normalisation. PyTorch's (torch_ddag.py) takes
images that are normalised already. "as the reference" also computes the triplet loss anchor by
anchor and reads every loss after every step, as the authors' loop does; "eager" does neither. Both
use PyTorch's defaults, TF32 in convolutions and float32 in matrix products, and cuDNN's benchmark
mode, which the authors' code sets. "compiled" is torch.compile with bfloat16 autocast,
channels_last and a fused optimiser.

Prints tables and writes results/gpu.json. Without a GPU it says so and writes rows marked as not
measured. Takes ten minutes or more, mostly to compile.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, workload
from ddag_jax.config import Config

REPEATS = 5
LOSSES = ("identity", "triplet", "part", "graph", "total")
NOT_MEASURED = "not measured"
STEPS = 50
"""Steps in a block."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A variant of the training step."""

    name: str
    ours: bool
    bfloat16: bool = False
    compiled: bool = False
    reference: bool = False
    """As the authors' loop, see `torch_ddag.Style`."""

    @property
    def tolerance(self) -> float:
        """Largest relative difference of a first loss from float32. bfloat16 has 8 significant bits
        and TF32 11; after fifty layers, and in differences of nearly equal distances, one correct
        digit remains of bfloat16 and two of TF32."""
        return 0.1 if self.bfloat16 else 0.02

    @property
    def exact(self) -> bool:
        """Whether it also takes a step in full float32, to compare the others with."""
        return not (self.bfloat16 or self.reference)


OURS = Way("ours, bfloat16", True, bfloat16=True)
OURS_FLOAT32 = Way("ours, float32/TF32", True)
REFERENCE = Way("PyTorch float32/TF32, as the reference", False, reference=True)
EAGER = Way("PyTorch float32/TF32, eager", False)
COMPILED = Way("PyTorch bfloat16, compiled", False, bfloat16=True, compiled=True)
WAYS = {64: (OURS, OURS_FLOAT32, REFERENCE, EAGER, COMPILED), 256: (OURS, COMPILED)}
"""Variants by images in a step. The losses of the first batch size are checked."""

Facts = dict[str, Any]

# ------------------------------------------------------------------- in a process with one variant

_step: Callable[[int], Any] | None = None
"""Takes a number of steps and waits for them."""


def jax_device() -> str | None:
    """Return the name of the GPU that jax finds, or None."""
    _take_memory_as_needed()
    import jax

    device = jax.devices()[0]
    return str(device.device_kind) if device.platform == "gpu" else None


def torch_device() -> str | None:
    """Return the name of the GPU that PyTorch finds, or None."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _take_memory_as_needed() -> None:
    """Allocate as needed: by default jax reserves three quarters of the GPU's memory."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def weights(config: Config) -> dict[str, Any]:
    """Return PyTorch's random weights as our variables."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process imports both, and leaves the GPU alone
    from benchmarks import torch_ddag

    return torch_ddag.variables(torch_ddag.network(config))


def _of(way: Way, config: Config) -> Config:
    """Return the configuration of a variant of ours."""
    if not way.bfloat16:
        return config
    model = dataclasses.replace(config.model, compute_dtype="bfloat16")
    return dataclasses.replace(config, model=model)


def check_ours(way: Way, config: Config, variables: dict[str, Any]) -> Facts:
    """Return the losses of a variant of ours, without augmentation and dropout."""
    _take_memory_as_needed()
    from ddag_jax.cli import environment

    environment.prepare()
    import jax

    from benchmarks import jax_ddag

    config = workload.deterministic(_of(way, config))

    def first_losses() -> dict[str, float]:
        losses = jax_ddag.Training(config, variables, workload.noise(config))()
        return {name: float(losses[name]) for name in LOSSES}

    facts: Facts = {"losses": first_losses()}
    if way.exact:
        with jax.default_matmul_precision("highest"):
            facts["exact losses"] = first_losses()
    return facts


def build_ours(way: Way, config: Config, variables: dict[str, Any]) -> Facts:
    """Build a variant of ours in this process, take a step, and return its facts."""
    _take_memory_as_needed()
    from ddag_jax.cli import environment

    environment.prepare()
    import jax

    from benchmarks import jax_ddag, roofline

    config, facts = _of(way, config), Facts()
    start = time.perf_counter()
    side = jax_ddag.Training(config, variables, workload.noise(config))
    side()
    facts["first_step_s"] = time.perf_counter() - start
    costs = side.step.lower(side.state, side.batch).compile().cost_analysis() or {}
    facts["compiler"] = {name: costs.get(name) for name in ("flops", "bytes accessed")}
    work = roofline.training_step(config)
    facts |= {"flops": sum(one.flops for one in work), "bytes": sum(one.bytes for one in work)}
    chip = roofline.CHIPS.get(jax.devices()[0].device_kind)
    if way.bfloat16 and chip is not None:
        facts["least_s"] = sum(one.seconds(chip) for one in work)
        facts["stated_s"] = roofline.stated_seconds(workload.images(config), chip)
    _become(side)
    return facts


def _pytorch(way: Way, config: Config) -> Callable[..., Any]:
    """Return a variant of PyTorch's, on the GPU where there is one."""
    import torch

    from benchmarks import torch_ddag

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    if device == "cpu":  # oneDNN in bfloat16 sometimes returned NaN
        torch.backends.mkldnn.enabled = False
    style = torch_ddag.Style(reference=way.reference, bfloat16=way.bfloat16, compiled=way.compiled)
    return torch_ddag.Training(config, workload.noise(config), style, device)


def check_pytorch(way: Way, config: Config) -> Facts:
    """Return the losses of a variant of PyTorch's, without augmentation and dropout."""
    import torch

    def first_losses() -> dict[str, float]:
        losses = _pytorch(way, workload.deterministic(config))()
        return {name: loss.item() for name, loss in losses.items()}

    facts: Facts = {"losses": first_losses()}
    if way.exact:
        torch.backends.cudnn.allow_tf32 = False
        facts["exact losses"] = first_losses()
    return facts


def build_pytorch(way: Way, config: Config) -> Facts:
    """Build a variant of PyTorch's in this process, take a step, and return its facts."""
    start = time.perf_counter()
    side = _pytorch(way, config)
    side()
    _become(side)
    return {"first_step_s": time.perf_counter() - start}


def _become(side: Callable[[int], Any]) -> None:
    global _step
    _step = side


def take(steps: int) -> None:
    assert _step is not None
    _step(steps)


def peak(way: Way) -> float | None:
    """Return the peak of this process's GPU memory in MiB, or None without a GPU."""
    if way.ours:
        import jax

        statistics = jax.devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] / 2**20 if statistics else None
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


# ------------------------------------------------------------------------ in the main process


def ask_once(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a call in a fresh process."""
    with measure.Process() as process:
        return process(work, *arguments)


def run_ways(
    ways: Sequence[Way], config: Config, steps: int, check: bool
) -> tuple[dict[str, Facts], dict[str, measure.Times]]:
    """Return, by variant, its facts ("failed": why it did not run) and its seconds a step."""
    if not ways:
        return {}, {}
    variables = ask_once(weights, config)
    facts: dict[str, Facts] = {way.name: {} for way in ways}

    def attempt(way: Way, call: Callable[..., Any], work: Callable[..., Any], *given: Any) -> Any:
        """Call in a process; note a failure, such as of memory, and go on."""
        if "failed" in facts[way.name]:
            return None
        try:
            return call(work, *given)
        except Exception as error:
            facts[way.name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}

    def learn(way: Way, call: Callable[..., Any], ours: Any, pytorch: Any) -> None:
        """Add the facts that a variant's `ours` or `pytorch` returns."""
        if way.ours:
            known = attempt(way, call, ours, way, config, variables)
        else:
            known = attempt(way, call, pytorch, way, config)
        facts[way.name] |= known or {}

    for way in ways if check else ():
        print(f"first losses: {way.name}", flush=True)
        learn(way, ask_once, check_ours, check_pytorch)
    with contextlib.ExitStack() as stack:
        processes = {way.name: stack.enter_context(measure.Process()) for way in ways}
        for way in ways:
            print(f"building: {way.name}, {workload.images(config)} images", flush=True)
            learn(way, processes[way.name], build_ours, build_pytorch)
        blocks = {
            way.name: functools.partial(attempt, way, processes[way.name], take, steps)
            for way in ways
        }
        times = measure.interleaved(blocks, REPEATS)
        for way in ways:
            facts[way.name]["peak_mib"] = attempt(way, processes[way.name], peak, way)
    return facts, {
        name: measure.Times(tuple(taken / steps for taken in block.seconds))
        for name, block in times.items()
        if "failed" not in facts[name]
    }


def differences(ways: Sequence[Way], facts: Mapping[str, Facts]) -> dict[str, tuple[float, float]]:
    """Return, by variant, the largest relative difference of its first losses and its bound.

    The standard is PyTorch's in full float32, or ours where PyTorch did not run. Where both ran,
    "float32" compares ours in full float32 with the standard.
    """
    exact = {
        way.ours: facts[way.name]["exact losses"]
        for way in ways
        if "exact losses" in facts.get(way.name, {})
    }
    found: dict[str, tuple[float, float]] = {}
    if not exact:
        return found
    standard = exact[min(exact)]

    def largest(losses: Mapping[str, float]) -> float:
        each = [abs(losses[name] - standard[name]) / abs(standard[name]) for name in LOSSES]
        return float("nan") if any(one != one for one in each) else max(each)

    if len(exact) == 2:
        found["float32"] = largest(exact[True]), workload.FLOAT32_LOSSES
    for way in ways:
        if "losses" in facts.get(way.name, {}):
            found[way.name] = largest(facts[way.name]["losses"]), way.tolerance
    return found


def ratios(times: Mapping[int, Mapping[str, measure.Times]]) -> dict[str, float]:
    """Return each variant's time over that of ours in bfloat16."""
    return {
        f"{name}, {images} images": taken.median / of_batch[OURS.name].median
        for images, of_batch in times.items()
        if OURS.name in of_batch
        for name, taken in of_batch.items()
        if name != OURS.name
    }


def row(way: Way, images: int, facts: Facts | None, times: measure.Times | None) -> list[str]:
    """Return a row of the table of times."""
    if facts is None or times is None:
        said = NOT_MEASURED if facts is None else f"failed: {facts['failed']}"
        return [way.name, str(images), said, "", "", "", "", ""]
    shares = [f"{facts[bound] / times.median:.0%}" if bound in facts else "" for bound in BOUNDS]
    held = facts["peak_mib"]
    return [
        way.name,
        str(images),
        f"{1e3 * times.median:.2f} ms ({1e3 * times.min:.2f} to {1e3 * times.max:.2f})",
        f"{images / times.median:,.0f}",
        *shares,
        "unknown" if held is None else f"{held / 1024:.1f} GiB",
        f"{facts['first_step_s']:.0f} s",
    ]


BOUNDS = ("stated_s", "least_s")
HEAD = ["", "images", "a step", "images/s", "of stated", "of least", "memory", "first step"]


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> int:
    """Run the command; write the results to `folder`. Return 1 if losses differ by more than the
    bounds, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Compare our training step with PyTorch's on one GPU",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small network on small images, on any device"
    )
    quick = parser.parse_args(arguments).quick
    devices = {"ours": ask_once(jax_device), "PyTorch": ask_once(torch_device)}
    print(measure.describe(measure.machine()))
    print("GPU:", ", ".join(f"{side} {gpu or 'none'}" for side, gpu in devices.items()), flush=True)
    if not quick and not any(devices.values()):
        print("neither jax nor PyTorch finds a GPU: nothing is measured")

    checked: dict[str, tuple[float, float]] = {}
    results: dict[int, dict[str, Facts]] = {}
    times: dict[int, dict[str, measure.Times]] = {}
    rows = []
    for images, ways in WAYS.items():
        config, steps = workload.published(images // (2 * workload.IMAGES_PER_IDENTITY)), STEPS
        if quick:
            config, steps = workload.tiny(2), 1
            images = workload.images(config)
        present = [way for way in ways if quick or devices["ours" if way.ours else "PyTorch"]]
        check = not results
        results[images], times[images] = run_ways(present, config, steps, check)
        if check:
            checked = differences(present, results[images])
        rows += [
            row(way, images, results[images].get(way.name), times[images].get(way.name))
            for way in ways
        ]
        if quick:
            break

    print("\nlargest relative difference of a first loss from full float32")
    cells = [[name, f"{is_:.1g}", f"{may_be:g}"] for name, (is_, may_be) in checked.items()]
    print(measure.table(["", "difference", "bound"], cells) if cells else NOT_MEASURED)
    print("\na step: median (lowest to highest), share of the stated and of the least time")
    print(measure.table(HEAD, rows))
    found = ratios(times)
    for name, ratio in found.items():
        print(f"{name}: {ratio:.2f} times as long as ours in bfloat16")
    print("targets: 3, aim 5, of PyTorch in float32/TF32; 1.0, aim 1.3, of it compiled;")
    print("50 %, aim 70 %, of the stated time at 64 and 256 images")
    result = {
        "devices": devices,
        "quick": quick,
        "differences": checked,
        "ways": results,
        "times": times,
        "ratios": found,
        "table": [HEAD, *rows],
    }
    print("written:", measure.write("gpu", result, folder))
    wrong = [name for name, (is_, may_be) in checked.items() if not is_ <= may_be]
    if wrong:
        print("losses differ by more than the bound:", ", ".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
