"""Runs of `debug` killed at random moments and resumed to their ends, against an undisturbed twin.

    python -m tests.reliability.kill_resume --kills 100

SIGKILL falls while a run starts, in its steps, in evaluations, and while a checkpoint is being
written: each moment is drawn as an event to wait for and a time after it. A run that ends is
followed by another one until there were enough kills; each must end exactly like the twin. Exit
code 1 where one does not.
"""

import argparse
import functools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.reliability.debug_runs import (
    differences,
    load_before_forking,
    log_lines,
    output,
    prepared_people,
    start_training,
)

EPOCHS, STEPS = 8, 25
_WORDS = ("--training.epochs", str(EPOCHS), "--training.steps-per-epoch", str(STEPS))
_WRITING = "of these while a checkpoint was being written"
_HANGS = 600.0
"""Seconds after which a process that should have ended or come to an event counts as hung."""

# Events, how often each is drawn, and how many seconds after it the kill falls at the latest.
_MOMENTS = {"start": (2, 6.0), "step": (5, 0.02), "writing": (3, 0.1), "evaluating": (3, 0.5)}


def kill_and_resume(run: Path, data: Path, kills: int, seed: int) -> Counter[str]:
    """One run, killed so many times unless it ends before, then left to end.

    Returns:
        Where the kills fell.

    Raises:
        RuntimeError: a process failed or hung.
    """
    rng = random.Random(seed)
    fell: Counter[str] = Counter()
    while True:
        before = time.time()
        process = start_training(run, data, "--resume", *_WORDS)
        event, steps, delay = _draw(rng)
        if _total(fell) < kills:
            _wait(functools.partial(_has_come, event, steps, run, before), process)
            time.sleep(delay)
        else:
            _wait(lambda: False, process)
        os.kill(process, signal.SIGKILL)  # perhaps it has ended, and waits to be asked
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code == 0:
            return fell
        if code != -signal.SIGKILL:
            raise RuntimeError(f"{run}: exit code {code}: {output(run)[-2000:]}")
        where, writing = _where(run, before)
        fell[where] += 1
        fell[_WRITING] += writing


def _total(fell: Counter[str]) -> int:
    return fell.total() - fell[_WRITING]


def _draw(rng: random.Random) -> tuple[str, int, float]:
    """The event, the steps that must have been taken, the seconds to wait then."""
    weights = [weight for weight, _ in _MOMENTS.values()]
    (event,) = rng.choices(list(_MOMENTS), weights)
    return event, rng.randint(1, STEPS), rng.uniform(0, _MOMENTS[event][1])


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
    """In what, and whether in the middle of writing a checkpoint, which goes on beside all else."""
    new = [line["kind"] for line in log_lines(run) if line["time"] > since]
    if "train" not in new:
        return "start", False
    return "evaluating" if new[-1] == "epoch" else "step", _is_writing(run)


def _wait(come: Callable[[], bool], process: int) -> None:
    """Until something has come to pass or the process has ended."""
    deadline = time.monotonic() + _HANGS
    while not come():
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise RuntimeError(f"a process hung for {_HANGS:.0f} s")
        time.sleep(0.005)


def _lane(folder: Path, data: Path, kills: int, seed: int) -> None:
    """Runs one after the other until there were so many kills; tells of them in done.json."""
    folder.mkdir()
    fell: Counter[str] = Counter()
    runs = 0
    while _total(fell) < kills:
        fell += kill_and_resume(
            folder / f"run{runs}", data, kills - _total(fell), seed * 1000 + runs
        )
        runs += 1
    (folder / "done.json").write_text(json.dumps({"runs": runs, "fell": fell}))


def main() -> int:
    """Prints where the kills fell and whether all runs ended like the twin."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability.kill_resume", description=__doc__
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--lanes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    start = time.perf_counter()
    load_before_forking()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = prepared_people(folder / "people")
        twin = folder / "twin"
        kill_and_resume(twin, data, 0, 0)
        lanes = [folder / f"lane{lane}" for lane in range(options.lanes)]
        shares = [
            options.kills * (i + 1) // len(lanes) - options.kills * i // len(lanes)
            for i in range(len(lanes))
        ]
        processes = []
        for index, (lane, share) in enumerate(zip(lanes, shares, strict=True)):
            process = os.fork()
            if not process:
                try:
                    _lane(lane, data, share, options.seed * 100 + index)
                except RuntimeError as error:
                    print(error, file=sys.stderr, flush=True)
                    os._exit(1)
                os._exit(0)
            processes.append(process)
        codes = [os.waitpid(process, 0)[1] for process in processes]
        if any(codes):
            return 1
        told = [json.loads((lane / "done.json").read_text()) for lane in lanes]
        fell = sum((Counter(lane["fell"]) for lane in told), Counter[str]())
        faults = []
        if [line["step"] for line in log_lines(twin) if line["kind"] == "train"] != [
            *range(1, EPOCHS * STEPS + 1)
        ]:
            faults.append("the twin's log lacks steps")
        for lane, done in zip(lanes, told, strict=True):
            for number in range(done["runs"]):
                run = lane / f"run{number}"
                faults += [f"{lane.name}/{run.name}: {what}" for what in differences(run, twin)]
    print(
        f"{_total(fell)} kills in {sum(lane['runs'] for lane in told)} runs of {EPOCHS * STEPS}"
        f" steps ({', '.join(f'{where} {times}' for where, times in sorted(fell.items()))}),"
        f" {time.perf_counter() - start:.0f} s: "
        + ("every run ended exactly like its twin" if not faults else "DIFFERENCES")
    )
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
