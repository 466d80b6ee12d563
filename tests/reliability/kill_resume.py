"""Kill small runs at random moments, resume them, compare their ends with an undisturbed run.

    python -m tests.reliability.kill_resume --kills 100

SIGKILL is sent while a run starts, trains, evaluates, or writes a checkpoint: each moment is drawn
as an event to wait for and a delay after it. When a run ends, another one is started until there
were enough kills. The exit code is 1 where a run does not end exactly like the undisturbed one.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.reliability.debug_runs import (
    differences,
    log_lines,
    output,
    prepared_people,
    start_training,
)

STEPS = 20  # of an epoch, which is as long as that of memory.py: the same program
_WRITING = "of these while a checkpoint was being written"
_HANGS = 1800.0
"""Seconds after which a process counts as hung; on an idle machine it takes twenty."""

# Events, the weight with which each is drawn, and the longest delay of the kill in seconds.
_MOMENTS = {"start": (2, 6.0), "step": (5, 0.02), "writing": (3, 0.1), "evaluating": (3, 0.5)}


def kill_and_resume(
    config: str,
    run: Path,
    data: Path,
    epochs: int,
    kills: int,
    moments: Iterator[tuple[str, int, float]],
) -> Counter[str]:
    """Start a run, kill and resume it up to `kills` times, then let it end.

    Returns:
        How often it was killed where.

    Raises:
        RuntimeError: a process failed or hung.
    """
    length = ("--training.epochs", str(epochs), "--training.steps-per-epoch", str(STEPS))
    fell: Counter[str] = Counter()
    while True:
        before = time.time()
        process = start_training(config, run, data, "--resume", *length)
        if _total(fell) < kills:
            event, steps, delay = next(moments)
            _wait(lambda: _has_come(event, steps, run, before), process, run)  # noqa: B023
            time.sleep(delay)
        else:
            _wait(lambda: False, process, run)
        process.kill()  # no effect on a process that has ended
        code = process.wait()
        if code == 0:
            return fell
        if code != -signal.SIGKILL:
            raise RuntimeError(f"{run}: exit code {code}: {output(run)[-2000:]}")
        where, writing = _where(run, before)
        fell[where] += 1
        fell[_WRITING] += writing


def _total(fell: Counter[str]) -> int:
    return fell.total() - fell[_WRITING]


def _moments(seed: int) -> Iterator[tuple[str, int, float]]:
    """Draw events, the number of steps that each needs, and delays in seconds.

    Each event is among the first four.
    """
    rng = random.Random(seed)
    weights = [weight for weight, _ in _MOMENTS.values()]
    first = rng.sample(list(_MOMENTS), len(_MOMENTS))
    while True:
        event = first.pop() if first else rng.choices(list(_MOMENTS), weights)[0]
        yield event, rng.randint(1, STEPS), rng.uniform(0, _MOMENTS[event][1])


def _has_come(event: str, steps: int, run: Path, since: float) -> bool:
    if event == "start":
        return True
    new = [line["kind"] for line in log_lines(run) if line["time"] > since]
    if event == "writing":
        return "train" in new and _is_writing(run)
    return "epoch" in new if event == "evaluating" else new.count("train") >= steps


def _is_writing(run: Path) -> bool:
    return any((run / "checkpoints").glob("*tmp*"))


def _where(run: Path, since: float) -> tuple[str, bool]:
    """Return what the kill interrupted, and whether a checkpoint was being written meanwhile."""
    new = [line["kind"] for line in log_lines(run) if line["time"] > since]
    if "train" not in new:
        return "start", False
    return "evaluating" if new[-1] == "epoch" else "step", _is_writing(run)


def _wait(come: Callable[[], bool], process: subprocess.Popen[bytes], run: Path) -> None:
    """Wait until an event has come or the process has ended."""
    deadline = time.monotonic() + _HANGS
    while not come() and process.poll() is None:
        if time.monotonic() > deadline:
            process.send_signal(signal.SIGABRT)
            process.wait()
            raise RuntimeError(f"{run}: hung for {_HANGS:.0f} s: {output(run)[-8000:]}")
        time.sleep(0.005)


def _lane(
    config: str, folder: Path, data: Path, epochs: int, kills: int, seed: int
) -> tuple[list[Path], Counter[str]]:
    """Run one after the other until there were so many kills; return the runs, and what fell."""
    folder.mkdir()
    fell: Counter[str] = Counter()
    runs: list[Path] = []
    moments = _moments(seed)
    while _total(fell) < kills:
        runs.append(folder / f"run{len(runs)}")
        fell += kill_and_resume(config, runs[-1], data, epochs, kills - _total(fell), moments)
    return runs, fell


def main() -> int:
    """Print where the kills fell and whether all runs ended like the twin."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability.kill_resume", description=__doc__
    )
    parser.add_argument("--config", default="debug", help="configuration of the runs")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10, help=f"of {STEPS} steps, of each run")
    parser.add_argument("--lanes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = prepared_people(folder / "people")
        twin = folder / "twin"
        kill_and_resume(options.config, twin, data, options.epochs, 0, _moments(0))
        with ThreadPoolExecutor(options.lanes) as pool:
            lanes = [
                pool.submit(
                    _lane,
                    options.config,
                    folder / f"lane{lane}",
                    data,
                    options.epochs,
                    options.kills * (lane + 1) // options.lanes
                    - options.kills * lane // options.lanes,
                    options.seed * 100 + lane,
                )
                for lane in range(options.lanes)
            ]
            done = [lane.result() for lane in lanes]
        runs = [run for found, _ in done for run in found]
        fell = sum((counts for _, counts in done), Counter[str]())
        faults = []
        if [line["step"] for line in log_lines(twin) if line["kind"] == "train"] != [
            *range(1, options.epochs * STEPS + 1)
        ]:
            faults.append("the twin's log lacks steps")
        for run in runs:
            faults += [f"{run.relative_to(folder)}: {what}" for what in differences(run, twin)]
    print(
        f"{_total(fell)} kills in {len(runs)} runs of {options.epochs * STEPS}"
        f" steps ({', '.join(f'{where} {times}' for where, times in sorted(fell.items()))}),"
        f" {time.perf_counter() - start:.0f} s: "
        + ("every run ended exactly like its twin" if not faults else "DIFFERENCES")
    )
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
