"""Measure the time from the start of train.py to its first logged step, by compilation cache.

    python -m benchmarks.first_step               the published network, 16 images a step
    python -m benchmarks.first_step debug         another configuration
    python -m benchmarks.first_step sysu_mm01 --training.identities-per-batch 8
    python -m benchmarks.first_step --quick       configuration debug, once

The command `python train.py CONFIG …` is started repeatedly on a prepared dataset of rendered
people, alternately with a warm and with an empty compilation cache, and killed after it prints its
first step. One more start of each kind measures the parts: imports; tracing, lowering and compiling
(or loading from the cache) of each program; and the rest: reading, computing the step, logging.
Prints tables and writes results/first_step.json.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.epoch import write_people
from ddag_jax.cli.main import run
from ddag_jax.cli.options import override
from ddag_jax.io.config_file import load_config

ROOT = Path(__file__).parents[1]
REPEATS = 5
LIMIT = 1800
"""Timeout of a start in seconds."""

PHASES = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}
"""JAX's monitoring events; the last includes loading from the cache."""


class Start:
    """Starts train.py each time that it is called."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        """
        Args:
            arguments: arguments of train.py, without --workdir.
            folder: scratch folder for caches and runs.
        """
        self.arguments, self.folder, self.count = arguments, folder, 0
        self.peaks: dict[str, float | None] = {}

    def __call__(self, name: str) -> None:
        """Start train.py with a "warm cache" or a "cold cache"; kill it after its first step."""
        process = self._start([sys.executable, "train.py"], name)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "step 1/" in line:
                    break
            else:
                raise SystemExit(f"train.py ended before its first step:\n{self._errors()}")
            self.peaks[name] = measure.peak_of(process.pid)
        finally:
            process.kill()
            process.communicate()

    def watched(self, name: str) -> dict[str, Any]:
        """Return what `watch` writes for one start."""
        out = self.folder / "watched.json"
        code = f"from benchmarks import first_step; first_step.watch({time.time()}, {str(out)!r})"
        process = self._start([sys.executable, "-c", code], name)
        process.communicate(timeout=LIMIT)
        if not out.exists():
            raise SystemExit(f"train.py ended before its first step:\n{self._errors()}")
        watched: dict[str, Any] = json.loads(out.read_text())
        out.unlink()
        return watched

    def _start(self, command: Sequence[str], name: str) -> subprocess.Popen[str]:
        self.count += 1
        # A cold cache is a new folder each time; the first start fills the warm one.
        cache = "warm" if name == "warm cache" else f"cold{self.count}"
        workdir = self.folder / f"run{self.count}"
        with (self.folder / "errors").open("w") as errors:
            return subprocess.Popen(
                [*command, *self.arguments, "--workdir", str(workdir)],
                cwd=ROOT,
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(self.folder / cache)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def _errors(self) -> str:
        return (self.folder / "errors").read_text()


def watch(started: float, out: str) -> None:
    """Run train.py with the arguments of sys.argv until its first step.

    Writes to the JSON file `out` the seconds since `started` and those of each program that JAX
    compiles.
    """
    from ddag_jax.cli import environment, train

    prepare = environment.prepare
    programs: dict[str, dict[str, float]] = {}
    marks: dict[str, float] = {}

    def note(event: str, seconds: float, /, **about: Any) -> None:
        if event in PHASES:
            name = str(about.get("fun_name", "")).removeprefix("jit(").removesuffix(")")
            times = programs.setdefault(name, dict.fromkeys((*PHASES.values(), "programs"), 0.0))
            times[PHASES[event]] += seconds
            times["programs"] += PHASES[event] == "compiling"

    def prepare_and_watch(processes: environment.Processes | None = None) -> None:
        prepare(processes)
        import jax

        from ddag_jax.runs import train as loop

        marks["imports"] = time.time() - started
        listen: Any = jax.monitoring.register_event_duration_secs_listener
        listen(note)

        log = loop.RunLog.train

        def logged(*args: Any) -> None:
            log(*args)
            marks["first step"] = time.time() - started
            Path(out).write_text(json.dumps({**marks, "programs": programs}))
            os._exit(0)

        loop.RunLog.train = logged  # type: ignore[assignment,method-assign]

    environment.prepare = prepare_and_watch
    sys.exit(train.main())


def breakdown(watched: dict[str, Any]) -> str:
    """Return a table of the seconds of each part, with the three slowest programs by name."""
    programs = dict(watched["programs"])
    total = {
        name: sum(times[phase] for phase in PHASES.values()) for name, times in programs.items()
    }
    named = sorted(total, key=lambda name: total[name], reverse=True)[:3]
    others = [times for name, times in programs.items() if name not in named]
    shown = {name: programs[name] for name in named}
    if others:
        count = sum(times["programs"] for times in others)
        key = f"{count:.0f} other programs"
        shown[key] = {phase: sum(times[phase] for times in others) for phase in PHASES.values()}
    rows = [["Python and imports", "", "", "", f"{watched['imports']:.2f}"]]
    for name, times in shown.items():
        cells = [times[phase] for phase in PHASES.values()]
        rows.append([name, *(f"{seconds:.2f}" for seconds in (*cells, sum(cells)))])
    rest = watched["first step"] - watched["imports"] - sum(total.values())
    rows.append(["reading, computing, logging", "", "", "", f"{rest:.2f}"])
    rows.append(["in all", "", "", "", f"{watched['first step']:.2f}"])
    return measure.table(["seconds", *PHASES.values(), "together"], rows)


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> int:
    """Run the command; write the results to `folder`. Return 0, or 2 after a UserError."""
    return run(lambda: _main(arguments, folder))


def _main(arguments: Sequence[str] | None, folder: Path) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_step",
        description="Measure the time from the start of train.py to its first logged step",
        epilog="Any field of the configuration follows as --section.field value.",
    )
    parser.add_argument("config", nargs="?", help="a file or a shipped name (default: sysu_mm01)")
    parser.add_argument("--quick", action="store_true", help="configuration debug, once")
    given, fields = parser.parse_known_args(arguments)
    name, repeats = given.config, REPEATS
    if given.quick:
        name, repeats = "debug", 1
    elif name is None:
        name, fields = "sysu_mm01", ["--training.identities-per-batch", "2", *fields]
    config = override(load_config(name), fields, parser.prog)

    with tempfile.TemporaryDirectory() as scratch:
        data = write_people(config, Path(scratch))
        start = Start([name, "--data.dir", str(data), *fields], Path(scratch))
        caches = ("warm cache", "cold cache")
        times = measure.interleaved(
            {cache: functools.partial(start, cache) for cache in caches}, repeats
        )
        watched = {cache: start.watched(cache) for cache in caches}
    print(measure.describe(measure.machine()), end="\n\n")
    print("python train.py", name, *fields, end="\n\n")
    record = measure.compared(times, start.peaks, 1, "starts")
    print("target 10 s, aim 3 s with a warm cache")
    for cache in caches:
        print(f"\none start with a {cache}:\n{breakdown(watched[cache])}")
    result = {"config": name, "fields": fields, **record, "watched": watched}
    print("written:", measure.write("first_step", result, folder))


if __name__ == "__main__":
    sys.exit(main())
