"""Resident memory of a training process over a long run of `debug`.

    python -m benchmarks.memory --steps 500

Exit code 1 where the last epoch's is more than 5 % above that of the epoch after the first
evaluation.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.debug_runs import (
    load_before_forking,
    log_lines,
    output,
    prepared_people,
    start_training,
)

EPOCH = 20
"""Steps; each ends with a checkpoint and an evaluation."""
_GROWTH = 0.05


def resident(process: int) -> float | None:
    """MiB that a process holds; None when it has ended."""
    found = re.search(r"^VmRSS:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.M)
    return int(found[1]) / 1024 if found else None


def watch(run: Path, data: Path, steps: int) -> list[tuple[int, float]]:
    """Trains so many steps; (step, MiB) several times a second, from the first evaluation on."""
    process = start_training(
        run,
        data,
        "--training.epochs",
        str(steps // EPOCH),
        "--training.steps-per-epoch",
        str(EPOCH),
    )
    samples = []
    while not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        size, lines = resident(process), log_lines(run)
        if size and any(line["kind"] == "evaluation" for line in lines):
            samples.append((lines[-1]["step"], size))
        time.sleep(0.05)
    if code := os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise RuntimeError(f"exit code {code}: {output(run)[-2000:]}")
    return samples


def main() -> int:
    """Prints the sizes and the slope between them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    steps = parser.parse_args().steps // EPOCH * EPOCH
    load_before_forking()
    with tempfile.TemporaryDirectory() as temporary:
        data = prepared_people(Path(temporary) / "people")
        samples = watch(Path(temporary) / "run", data, steps)
    # Medians over an epoch each: what a checkpoint takes for a moment is no growth.
    first = statistics.median(size for step, size in samples if step <= 2 * EPOCH)
    last = statistics.median(size for step, size in samples if step > steps - EPOCH)
    slope = np.polyfit([step for step, _ in samples], [size for _, size in samples], 1)[0] * 100
    print(
        f"{steps} steps, {steps // EPOCH} evaluations and checkpoints: {first:.0f} MiB after the"
        f" first evaluation, {last:.0f} MiB at the end ({last / first - 1:+.1%}), slope"
        f" {slope:+.2f} MiB in 100 steps ({len(samples)} samples)"
    )
    return int(last > first * (1 + _GROWTH))


if __name__ == "__main__":
    sys.exit(main())
