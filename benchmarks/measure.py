"""Measure time and peak memory, describe the machine, and write results."""

import concurrent.futures
import dataclasses
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

_PACKAGES = (
    "ddag_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "scipy",
    "torch",
    "grain",
    "array-record",
    "tensorflow-datasets",
    "pillow",
)
"""Packages whose versions are written with a result."""

_LOAD_BEFORE = os.getloadavg()[0]
"""Load average before the benchmark starts."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of repeated runs, in the order of the runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def min(self) -> float:
        return min(self.seconds)

    @property
    def max(self) -> float:
        return max(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.3f} s ({self.min:.3f} to {self.max:.3f})"


def interleaved(
    variants: Mapping[str, Callable[[], object]], repeats: int = 5, warmup: int = 1
) -> dict[str, Times]:
    """Time variants in turn (A B A B …), so that other load on the machine affects all of them.

    Args:
        variants: functions by name; each returns when its work is done, on devices too.
        repeats: timed runs of each.
        warmup: runs of each beforehand that are not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmup + repeats):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Times(tuple(taken)) for name, taken in seconds.items()}


class Process:
    """A worker process that runs picklable calls, one after another. It is spawned, so that it
    inherits no memory of this process."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(work, *arguments).result()

    def within(self, seconds: float, work: Callable[..., Any], *arguments: Any) -> Any:
        """Call, but kill the process when the time has passed.

        Raises:
            OutOfTime: it has; the process can take no further calls.
        """
        begun = self._pool.submit(os.getpid)
        call = self._pool.submit(work, *arguments)
        if not concurrent.futures.wait([call], max(seconds, 0)).done:
            # A process that is only just starting ends its call at once, after it has started.
            os.kill(begun.result(), signal.SIGKILL)
            raise OutOfTime
        return call.result()


class OutOfTime(Exception):
    """A call did not end within its time."""


def peak_memory(work: Callable[[], object]) -> float | None:
    """Return the peak memory of a fresh process that does `work`, in MiB; None except on Linux.

    Python and imports are included. `work` must be picklable: a function of a module, or a
    `functools.partial` of one.
    """
    with Process() as process:
        return process(_peak_after, work)


def _peak_after(work: Callable[[], object]) -> float | None:
    work()
    return peak_of("self")


def peak_of(process: int | str) -> float | None:
    """Return the peak memory of a running process, given its id, in MiB; None except on Linux."""
    # Not getrusage: its peak includes that of the parent process.
    found = re.search(r"^VmHWM:\s*(\d+) kB", _read(f"/proc/{process}/status"), re.MULTILINE)
    return int(found[1]) / 1024 if found else None


def compared(
    times: Mapping[str, Times], peaks: Mapping[str, float | None], amount: int, unit: str
) -> dict[str, Any]:
    """Print a comparison of two variants, and return it as a record to write.

    Args:
        times: of ours and of the other, in this order.
        peaks: peak memory in MiB, by the same names.
        amount: number of `unit` processed in a run.
        unit: such as "images".
    """
    ours, other = times
    record = {
        "times": times,
        f"{unit}_per_s": {name: amount / taken.median for name, taken in times.items()},
        "ratio": times[other].median / times[ours].median,
        "peak_mib": peaks,
        "memory_ratio": None,
    }
    mine, theirs = peaks[ours], peaks[other]
    if mine is not None and theirs is not None:
        record["memory_ratio"] = mine / theirs
    rows = [
        [
            name,
            str(taken),
            f"{amount / taken.median:,.2f}",
            "unknown" if peaks[name] is None else f"{peaks[name]:,.0f} MiB",
        ]
        for name, taken in times.items()
    ]
    print(table(["", "median (lowest to highest)", f"{unit}/s", "peak memory"], rows))
    memory = record["memory_ratio"]
    print(
        f"{other} takes {record['ratio']:.3f} times as long; {ours} takes"
        f" {'unknown' if memory is None else f'{memory:.3f}'} times the memory",
        flush=True,
    )
    return record


def machine() -> dict[str, Any]:
    """Return a description of the machine and its installed packages, for JSON.

    Devices are listed only if jax is imported already.
    """
    model = re.search(r"^model name\s*:\s*(.+)", _read("/proc/cpuinfo"), re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    described = {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gib": round(memory / 2**30, 1),
        "load_before": _LOAD_BEFORE,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }
    if "jax" in sys.modules:
        described["devices"] = [device.device_kind for device in sys.modules["jax"].devices()]
    return described


def describe(machine: Mapping[str, Any]) -> str:
    """Return the description in a few lines of text."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
        f" load {machine['load_before']:.2f} before",
        f"{machine['system']}, Python {machine['python']}",
        versions,
    ]
    if "devices" in machine:
        lines.append("devices: " + ", ".join(machine["devices"]))
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text, the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for first, *others in (head, *rows):
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write `folder`/NAME.json atomically: the result with its command, date and machine.

    Args:
        result: what JSON can represent, and `Times`.

    Raises:
        TypeError: the result contains anything else.
    """
    from ddag_jax.io.files import write_text

    record = {
        "benchmark": name,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "machine": machine(),
        "result": result,
    }
    text = json.dumps(record, indent=1, default=_times) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    write_text(path, text)
    return path


def _times(value: object) -> dict[str, Any]:
    if not isinstance(value, Times):
        raise TypeError(f"a result cannot contain {value!r}")
    figures = {"median": value.median, "min": value.min, "max": value.max}
    return {f"{name}_s": seconds for name, seconds in figures.items()} | {
        "seconds": list(value.seconds)
    }


def _read(path: str) -> str:
    """Return the text of a file of /proc, or "" where it does not exist."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
