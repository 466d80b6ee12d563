"""What each lowering of our own buys in a training step: with it, and with XLA's in its place.

    python -m benchmarks.lowerings                  16 images: 2 identities, 4 of each modality
    python -m benchmarks.lowerings --identities N   8 N images
    python -m benchmarks.lowerings --quick          a few channels and pixels, to see that it works

The published network in float32, train.py's mapped step, on one device. `models/layers.py` lowers
some layers otherwise than jax would by itself; here each of them in turn is put back to what
`jax.lax` and automatic differentiation give, and then all. All give the same first losses. They
take turns, in one process. Of ours and of XLA's, a profile tells in which operations the time
goes. Prints tables and writes results/lowerings.json.
"""

import argparse
import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks import measure, workload
from benchmarks.train_step import REPEATS, TOLERANCE
from ddag_jax.cli import environment
from ddag_jax.config import Config

if TYPE_CHECKING:
    from benchmarks.jax_ddag import Training

OURS, XLA = "ours", "all by XLA"
SHOWN = 8
"""Operations of a profile."""


def replacements() -> dict[str, dict[str, Callable[..., Any]]]:
    """By what they undo: names in `layers`, and what jax has in their places."""
    from ddag_jax.models import layers

    def conv2d(x: Any, kernel: Any, *, stride: int, padding: int) -> Any:
        if kernel.shape[:2] == (1, 1):
            return layers._xla_conv(x, kernel, stride, padding)
        return layers._spatial_conv(x, kernel, stride, padding)

    return {
        "1x1 convolutions by XLA": {"conv2d": conv2d},
        "kernel gradients by XLA": {"_dot_kernel_gradient": layers._xla_kernel_gradient},
        "pooling by XLA": {
            "_sliced_max_pool": layers._xla_max_pool,
            "_sliced_max_pool_gradient": layers._xla_max_pool_gradient,
        },
        "batch norm's gradient by XLA": {
            "normalise_batch": lambda *given: layers._normalise_batch_fwd(*given)[0]
        },
    }


def variants(config: Config) -> tuple[dict[str, "Training"], float]:
    """The step by name, compiled, and the largest relative difference of a first loss from ours."""
    environment.prepare()
    from benchmarks import jax_ddag
    from ddag_jax.models import layers

    undone = replacements()
    named = {OURS: {}, **undone, XLA: {k: v for part in undone.values() for k, v in part.items()}}
    weights, noise = jax_ddag.random_variables(config), workload.noise(config)
    steps: dict[str, Training] = {}
    first: dict[str, dict[str, float]] = {}
    for name, others in named.items():
        print(f"building: {name}", flush=True)
        with contextlib.ExitStack() as stack:
            for attribute, function in others.items():
                stack.enter_context(mock.patch.object(layers, attribute, function))
            steps[name] = jax_ddag.Training(config, weights, noise)
            first[name] = {key: float(loss) for key, loss in steps[name]()._asdict().items()}
    largest = 0.0
    for name, losses in first.items():
        for key, loss in losses.items():
            difference = abs(loss - first[OURS][key]) / abs(first[OURS][key])
            if not difference <= TOLERANCE:
                raise SystemExit(f"the {key} loss with {name} is {loss}, {first[OURS][key]} ours")
            largest = max(largest, difference)
    return steps, largest


def profile(step: Callable[[], object]) -> dict[str, float]:
    """Seconds that the operations of one step keep a thread busy, by kind, the longest first."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step()
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    seconds: Counter[str] = Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                if any(name == "hlo_op" for name, _ in event.stats):
                    kind = re.sub(r"[.\d]+$", "", re.sub(r"\.(clone|remat).*", "", event.name))
                    seconds[kind] += event.duration_ns / 1e9
    return dict(seconds.most_common())


def profiled(found: Mapping[str, Mapping[str, float]]) -> str:
    """A table of the longest kinds of operations."""
    ours, other = found.values()
    longest = sorted({*ours, *other}, key=lambda kind: -max(ours.get(kind, 0), other.get(kind, 0)))
    rows = [
        [kind, *(f"{one.get(kind, 0):.2f}" for one in (ours, other))] for kind in longest[:SHOWN]
    ]
    rest = [
        sum(one.values()) - sum(one.get(kind, 0) for kind in longest[:SHOWN])
        for one in found.values()
    ]
    rows.append(["others", *(f"{seconds:.2f}" for seconds in rest)])
    rows.append(["in all", *(f"{sum(one.values()):.2f}" for one in found.values())])
    return measure.table(["seconds of a thread", *found], rows)


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """The command. Results go to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lowerings",
        description="What each lowering of our own buys in a training step",
    )
    parser.add_argument(
        "--identities", type=int, default=2, metavar="N", help="in a batch (default: 2)"
    )
    parser.add_argument("--quick", action="store_true", help="a few channels and pixels")
    given = parser.parse_args(arguments)
    if given.identities < 2:
        parser.error(f"--identities {given.identities}: the triplet loss needs at least 2")
    config = (workload.tiny if given.quick else workload.published)(given.identities)

    steps, difference = variants(workload.deterministic(config))
    times = measure.interleaved(steps, REPEATS)
    profiles = {name: profile(steps[name]) for name in (OURS, XLA)}
    ratios = {name: taken.median / times[OURS].median for name, taken in times.items()}
    print(measure.describe(measure.machine()), end="\n\n")
    print(f"{workload.images(config)} images a step; first losses agree to {difference:.1g}\n")
    rows = [[name, str(taken), f"{ratios[name]:.2f}"] for name, taken in times.items()]
    print(measure.table(["", "median (lowest to highest)", "times ours"], rows))
    print("\n" + profiled(profiles))
    result = {
        "images": workload.images(config),
        "largest_difference": difference,
        "times": times,
        "ratios": ratios,
        "profiles": profiles,
    }
    print("written:", measure.write("lowerings", result, folder))


if __name__ == "__main__":
    main()
