"""Compare our training step with PyTorch's on one GPU, in each relevant precision and mode.

    python -m benchmarks.gpu               the published network, 64 and 256 images a step
    python -m benchmarks.gpu --minutes N   stop after about N minutes (default: 8)
    python -m benchmarks.gpu --quick       a small network on small images, on any device
    python -m benchmarks.gpu --train-demo  train configs/demo.py instead, beside the CPU's figures

Needs jax with CUDA and PyTorch with CUDA in one environment, and numpy, flax, optax, jaxtyping and
absl-py; --train-demo needs all of ddag_jax's dependencies, and no PyTorch. Each variant runs in its
own process, so that no memory pool is shared, in turn with ours in bfloat16, a block of steps at a
time. The variants come in the order of what is learned from them; each row is printed and written
as soon as it is known, and what does not fit into the time is "not measured". Compiled programs are
kept in .cache/gpu for the next call.

In between, each variant takes a step without augmentation and dropout from the same random weights,
in another process: in float32 the losses of both sides must agree within FLOAT32_LOSSES of
workload.py, in TF32 and bfloat16 within a wider bound.

Our step is train.py's, including augmentation and normalisation. PyTorch's (torch_ddag.py) takes
images that are normalised already. "as the reference" also computes the triplet loss anchor by
anchor and reads every loss after every step, as the authors' loop does; "eager" does neither. Both
use PyTorch's defaults, TF32 in convolutions and float32 in matrix products, and cuDNN's benchmark
mode, which the authors' code sets. "compiled" is torch.compile with bfloat16 autocast,
channels_last and a fused optimiser.

Prints tables and writes results/gpu.json, or gpu_demo.json. Without a GPU it says so and writes
rows marked as not measured.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import subprocess
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
QUICK_IMAGES = 32


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
Task = tuple[Way, int]
"""A variant, and the images in a step; 0 for its first losses."""
PLAN: tuple[Task, ...] = (
    (OURS, 64),
    (COMPILED, 64),
    (REFERENCE, 64),
    (EAGER, 0),
    (OURS, 0),
    (OURS, 256),
    (COMPILED, 256),
    (EAGER, 64),
    (OURS_FLOAT32, 64),
    (OURS_FLOAT32, 0),
    (COMPILED, 0),
    (REFERENCE, 0),
)
"""In the order of what is learned: the ratios that have targets, that both sides compute the same,
the large batch, the rest."""
ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "gpu"
"""Compiled programs, kept from call to call."""

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


class Session:
    """The tasks of one call, what is known of them, and the time that is left.

    `facts` has an entry for each task that was begun; "failed" says why one has no result.
    """

    def __init__(
        self,
        devices: Mapping[str, str | None],
        quick: bool,
        minutes: float,
        warm: bool = False,
    ) -> None:
        self.devices, self.quick, self.minutes, self.warm = devices, quick, minutes, warm
        self.facts: dict[Task, Facts] = {}
        self._end = time.monotonic() + 60 * minutes
        self._variables: dict[str, Any] | None = None
        self._ours: dict[int, measure.Process] = {}
        """Of each batch size, the process of ours in bfloat16, which the others alternate with."""

    @property
    def plan(self) -> list[Task]:
        """Return the tasks; of the small network, those of one batch size, which is smaller."""
        if not self.quick:
            return list(PLAN)
        return [(way, min(n, QUICK_IMAGES)) for way, n in PLAN if n <= 64]

    def run(self, folder: Path) -> None:
        """Do all tasks whose side has a GPU, and write the results after each."""
        self.write(folder)
        with contextlib.ExitStack() as stack:
            for task in self.plan:
                way, images = task
                if not (self.quick or self.devices["ours" if way.ours else "PyTorch"]):
                    continue
                what = f"{way.name}, {images} images" if images else f"first losses of {way.name}"
                begun = time.monotonic()
                try:
                    facts = self._times(way, images, stack) if images else self._losses(way)
                    found = row(way, images, facts)[2] if images else "known"
                except measure.OutOfTime:
                    facts = {"failed": (found := f"{NOT_MEASURED}: no time left")}
                except Exception as error:
                    reason = f"failed: {type(error).__name__}: {error}"
                    facts = {"failed": (found := reason.splitlines()[0])}
                self.facts[task] = facts
                print(f"{what}: {found} ({time.monotonic() - begun:.0f} s)", flush=True)
                self.write(folder)

    def _ask(self, process: measure.Process, work: Callable[..., Any], *arguments: Any) -> Any:
        left = self._end - time.monotonic()
        if left <= 0:
            raise measure.OutOfTime
        return process.within(left, work, *arguments)

    def _config(self, images: int) -> Config:
        config = workload.tiny if self.quick else workload.published
        return config(images // (2 * workload.IMAGES_PER_IDENTITY))

    def _arguments(self, way: Way, images: int) -> list[Any]:
        """Return what `build_ours`, `build_pytorch` and the checks take."""
        config = self._config(images)
        if not way.ours:
            return [way, config]
        if self._variables is None:
            with measure.Process() as process:
                self._variables = self._ask(process, weights, config)
        return [way, config, self._variables]

    def _losses(self, way: Way) -> Facts:
        arguments = self._arguments(way, QUICK_IMAGES if self.quick else 64)
        with measure.Process() as process:
            found: Facts = self._ask(process, check_ours if way.ours else check_pytorch, *arguments)
        return found

    def _times(self, way: Way, images: int, stack: contextlib.ExitStack) -> Facts:
        """Build a variant and time it, in turn with ours in bfloat16 if that runs."""
        arguments, steps = self._arguments(way, images), 1 if self.quick else STEPS
        with contextlib.ExitStack() as own:
            process = own.enter_context(measure.Process())
            facts: Facts = self._ask(process, build_ours if way.ours else build_pytorch, *arguments)
            turns = {way.name: process}
            if images in self._ours:
                turns = {OURS.name: self._ours[images], **turns}
            blocks = {
                name: functools.partial(self._ask, one, take, steps) for name, one in turns.items()
            }
            times = {
                name: measure.Times(tuple(taken / steps for taken in block.seconds))
                for name, block in measure.interleaved(blocks, REPEATS).items()
            }
            facts |= {"times": times[way.name], "peak_mib": self._ask(process, peak, way)}
            if way == OURS:
                self._ours[images] = process
                stack.enter_context(own.pop_all())
            elif OURS.name in times:
                facts["ours"] = times[OURS.name]
        return facts

    @property
    def checked(self) -> dict[str, tuple[float, float]]:
        """Return the differences of the losses that are known."""
        return differences(self._named(losses=True))

    @property
    def ratios(self) -> dict[str, float]:
        """Return each variant's time over that of ours in bfloat16, of the same turns."""
        return {
            name: facts["times"].median / facts["ours"].median
            for name, facts in self._named(losses=False).items()
            if "ours" in facts
        }

    @property
    def rows(self) -> list[list[str]]:
        """Return the table of times, with a row for each variant and batch size."""
        return [row(way, n, self.facts.get((way, n))) for way, n in self.plan if n]

    def write(self, folder: Path) -> Path:
        """Write what is known."""
        result = {
            "devices": self.devices,
            "quick": self.quick,
            "minutes": self.minutes,
            "warm": self.warm,
            "differences": self.checked,
            "losses": self._named(losses=True),
            "ways": self._named(losses=False),
            "ratios": self.ratios,
            "table": [HEAD, *self.rows],
        }
        return measure.write("gpu", result, folder)

    def _named(self, losses: bool) -> dict[str, Facts]:
        """Return the facts of one kind of task, by the name of the variant (and batch size)."""
        return {
            way.name if losses else f"{way.name}, {n} images": facts
            for (way, n), facts in self.facts.items()
            if losses == (n == 0)
        }


def differences(facts: Mapping[str, Facts]) -> dict[str, tuple[float, float]]:
    """Return, by variant, the largest relative difference of its first losses and its bound.

    The standard is PyTorch's in full float32, or ours where PyTorch did not run. Where both ran,
    "float32" compares ours in full float32 with the standard.
    """
    ways = [way for way in dict.fromkeys(way for way, _ in PLAN) if way.name in facts]
    exact = {
        way.ours: facts[way.name]["exact losses"]
        for way in ways
        if "exact losses" in facts[way.name]
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
        if "losses" in facts[way.name]:
            found[way.name] = largest(facts[way.name]["losses"]), way.tolerance
    return found


def row(way: Way, images: int, facts: Facts | None) -> list[str]:
    """Return a row of the table of times."""
    if facts is None or "failed" in facts:
        said = NOT_MEASURED if facts is None else facts["failed"]
        return [way.name, str(images), said, "", "", "", "", ""]
    times = facts["times"]
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
    bounds, or the demo cannot be trained, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Compare our training step with PyTorch's on one GPU",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small network on small images, on any device"
    )
    parser.add_argument(
        "--minutes", type=float, default=8, metavar="N", help="time to take (default: 8)"
    )
    parser.add_argument(
        "--train-demo", action="store_true", help="train configs/demo.py instead, and evaluate it"
    )
    given = parser.parse_args(arguments)
    if not given.minutes > 0:
        parser.error(f"--minutes {given.minutes:g}: must be more than 0")
    for name, where in (
        ("JAX_COMPILATION_CACHE_DIR", "jax"),
        ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
        ("TRITON_CACHE_DIR", "triton"),
    ):
        os.environ.setdefault(name, str(CACHE / where))
    warm = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).exists()
    print(measure.describe(measure.machine()))
    if given.train_demo:
        return train_demo(given.quick, folder)
    start = time.monotonic()
    devices = {"ours": ask_once(jax_device), "PyTorch": ask_once(torch_device)}
    print("GPU:", ", ".join(f"{side} {gpu or 'none'}" for side, gpu in devices.items()))
    print("compiled programs of an earlier call:", "kept" if warm else "none", flush=True)
    if not given.quick and not any(devices.values()):
        print("neither jax nor PyTorch finds a GPU: nothing is measured")
    minutes = given.minutes - (time.monotonic() - start) / 60
    session = Session(devices, given.quick, minutes, warm)
    session.run(folder)

    checked = session.checked
    print("\nlargest relative difference of a first loss from full float32")
    cells = [[name, f"{is_:.1g}", f"{may_be:g}"] for name, (is_, may_be) in checked.items()]
    print(measure.table(["", "difference", "bound"], cells) if cells else NOT_MEASURED)
    print("\na step: median (lowest to highest), share of the stated and of the least time")
    print(measure.table(HEAD, session.rows))
    for name, ratio in session.ratios.items():
        print(f"{name}: {ratio:.2f} times as long as ours in bfloat16")
    print("targets: 3, aim 5, of PyTorch in float32/TF32; 1.0, aim 1.3, of it compiled;")
    print("50 %, aim 70 %, of the stated time at 64 and 256 images")
    print("written:", session.write(folder))
    wrong = [name for name, (is_, may_be) in checked.items() if not is_ <= may_be]
    if wrong:
        print("losses differ by more than the bound:", ", ".join(wrong))
    return bool(wrong)


# --------------------------------------------------------------------------------------- the demo

ON_CPU = {"rank1": 48.18, "mAP": 49.36, "mINP": 36.24}
"""README.md's figures of `make demo` on two CPU cores: feature `part`, all-search."""
FEW_PEOPLE = "--train-identities", 12, "--val-identities", 4, "--test-identities", 4
FEW_STEPS = "--training.epochs", 1, "--training.steps-per-epoch", 4


def train_demo(quick: bool, folder: Path) -> int:
    """Train and evaluate configs/demo.py, and print time and figures beside the CPU's.

    The people of `make demo` are drawn and prepared where they are not there. Without a GPU nothing
    is done, except with `quick`, which takes few people and steps. Return 1 if a command fails,
    which has printed why.
    """
    base = CACHE / "demo" if quick else ROOT
    people, data, run = base / "data/people", base / "data/demo", base / "runs/demo_gpu"
    device = ask_once(jax_device)
    print(f"GPU: {device or 'none'}", flush=True)
    if device is None and not quick:
        print(f"jax finds no GPU: {NOT_MEASURED}")
        return 0

    def command(*words: object) -> float:
        """Run a command in the repository and return its seconds."""
        start = time.perf_counter()
        subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)
        return time.perf_counter() - start

    try:
        if not people.exists():
            more = FEW_PEOPLE if quick else ()
            command("-m", "ddag_jax.data", "people", "--to", people, *more)
        if not data.exists():
            there = "--from", people, "--to", data, "--image-size", 96, 48
            command("-m", "ddag_jax.data", "prepare", "sysu_mm01", *there)
        where = "--workdir", run, "--data.dir", data
        again = ["--overwrite"] if run.exists() else []
        fewer = FEW_STEPS if quick else ()
        seconds = {
            "training": command("train.py", "configs/demo.py", *where, *again, *fewer),
            "evaluation": command("evaluate.py", run),
        }
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd[1:3])} failed, see above: nothing is measured")
        return 1
    records = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    (found,) = (one for one in records if (one["mode"], one["feature"]) == ("all", "part"))
    figures = {name: found[name] for name in ("rank1", "mAP", "mINP")}
    rows = [["training and its evaluations", f"{seconds['training']:.0f} s", "6 to 8 min"]]
    rows += [[name, f"{one:.2f}", f"{ON_CPU[name]:.2f}"] for name, one in figures.items()]
    print(measure.table(["part, all-search", device or "CPU, here", "README.md's CPU"], rows))
    result = {"device": device, "quick": quick, "seconds": seconds, "figures": figures}
    print("written:", measure.write("gpu_demo", result | {"on_cpu": ON_CPU}, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
