"""Measure the memory of a training process over a long run.

    python -m tests.reliability.memory --steps 500

The exit code is 1 where the process's own memory (Linux: RssAnon) in the last epoch is not within
5 % of that in the epoch after the first evaluation, or where its pages of files have grown by more.
Pages of files, mostly programs and libraries, may shrink: a system may drop those that are not read
for a while. A short run comes first and compiles: memory that the compiler frees late would hide
growth.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.reliability.debug_runs import (
    log_lines,
    output,
    prepared_people,
    start_training,
)

EPOCH = 20
"""Steps; each ends with a checkpoint and an evaluation."""
_FLAT = 0.05


class Sample(NamedTuple):
    step: int
    own: float
    """MiB."""
    files: float
    """MiB of pages of files, shared memory with them."""


def resident(process: int) -> tuple[float, float] | None:
    """Return MiB of a process's own memory and of pages of files; None when it has ended."""
    status = Path(f"/proc/{process}/status").read_text()
    found = [re.search(rf"^{name}:\s*(\d+) kB", status, re.M) for name in ("RssAnon", "VmRSS")]
    own, whole = (int(one[1]) / 1024 if one else None for one in found)
    return None if own is None or whole is None else (own, whole - own)


def watch(config: str, run: Path, data: Path, steps: int) -> list[Sample]:
    """Train so many steps; sample several times a second, from the first evaluation on."""
    process = start_training(
        config,
        run,
        data,
        "--training.epochs",
        str(steps // EPOCH),
        "--training.steps-per-epoch",
        str(EPOCH),
    )
    samples = []
    while process.poll() is None:
        size, lines = resident(process.pid), log_lines(run)
        if size and any(line["kind"] == "evaluation" for line in lines):
            samples.append(Sample(lines[-1]["step"], *size))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {output(run)[-2000:]}")
    return samples


def main() -> int:
    """Print the sizes and the slope between them."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.memory", description=__doc__)
    parser.add_argument("--config", default="debug", help="configuration of the run")
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    steps = options.steps // EPOCH * EPOCH
    with tempfile.TemporaryDirectory() as temporary:
        data = prepared_people(Path(temporary) / "people")
        watch(options.config, Path(temporary) / "first", data, EPOCH)
        samples = watch(options.config, Path(temporary) / "run", data, steps)
    # Medians over an epoch each: what a checkpoint takes for a moment is no growth.
    early = [sample for sample in samples if sample.step <= 2 * EPOCH]
    late = [sample for sample in samples if sample.step > steps - EPOCH]
    own, files = (
        [statistics.median(getattr(one, kind) for one in part) for part in (early, late)]
        for kind in ("own", "files")
    )
    change = own[1] / own[0] - 1
    slope = np.polyfit([one.step for one in samples], [one.own for one in samples], 1)[0] * 100
    print(
        f"{steps} steps, {steps // EPOCH} evaluations and checkpoints: {own[0]:.0f} MiB after the"
        f" first evaluation, {own[1]:.0f} MiB at the end ({change:+.1%}), slope {slope:+.2f} MiB in"
        f" 100 steps ({len(samples)} samples); of files {files[0]:.0f} MiB, then {files[1]:.0f} MiB"
    )
    return int(abs(change) > _FLAT or files[1] > files[0] * (1 + _FLAT))


if __name__ == "__main__":
    sys.exit(main())
