"""Small runs to disturb: their data, their processes, their comparison."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def prepared_people(folder: Path) -> Path:
    """Render a few people, prepare them at the size of `debug`, return the prepared folder."""
    from ddag_jax.datasets.prepare import prepare
    from ddag_jax.synthetic.files import write_people
    from ddag_jax.synthetic.image import People

    people = People(
        train_identities=14,
        val_identities=6,
        test_identities=6,
        images_per_camera=2,
        height=64,
    )
    write_people(people, folder / "people", workers=1, progress=False)
    prepare("sysu_mm01", folder / "people", folder / "data", 32, 16)
    return folder / "data"


def start_training(config: str, run: Path, data: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start `train.py CONFIG ...` with its output in RUN.out.

    A new interpreter each time: a fork of a process that has imported numpy, jax or array_record
    has none of their threads but may have the locks that they held, and can wait for ever.
    """
    words = ["train.py", config, "--workdir", str(run), "--data.dir", str(data), *more]
    # Even small programs are cached, since every start would compile them anew. A process that is
    # sent SIGABRT prints the stack of every thread.
    environment = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONFAULTHANDLER": "1"}
    with open(f"{run}.out", "wb") as output:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def output(run: Path) -> str:
    """Return what the last process of this run printed."""
    return Path(f"{run}.out").read_text(errors="replace")


def log_lines(run: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a run's log."""
    path = run / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def differences(run: Path, twin: Path) -> list[str]:
    """Return where two finished runs differ: logs, and scores and arrays of all checkpoints.

    Arrays are compared bit for bit; notes and times in the log are not compared.
    """
    from ddag_jax.runs.checkpoint import saved_score, saved_steps

    found = []
    ours, theirs = ([*computed(path)] for path in (run, twin))
    if ours != theirs:
        names = [[(line["kind"], line["step"]) for line in lines] for lines in (ours, theirs)]
        unlike = next((a for a, b in zip(ours, theirs, strict=False) if a != b), "its length")
        found.append(f"log: {unlike if names[0] == names[1] else names[0]}")
    if saved_steps(run) != saved_steps(twin):
        return [*found, f"checkpoints: {saved_steps(run)}, not {saved_steps(twin)}"]
    for step in saved_steps(run):
        if saved_score(run, step) != saved_score(twin, step):
            found.append(f"score of step {step}")
        for item in ("variables", "progress"):
            mine, other = (arrays(r / "checkpoints" / str(step) / item) for r in (run, twin))
            if mine.keys() != other.keys():
                found.append(f"names of step {step}'s {item}")
            found += [f"step {step}: {name}" for name in mine if mine[name] != other.get(name)]
    return found


def computed(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the log's lines without notes, times and speeds."""
    for line in log_lines(run):
        if line["kind"] != "note":
            yield {k: v for k, v in line.items() if k not in ("time", "images_per_second")}


def arrays(item: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return every array of a checkpoint's item by name: dtype, shape, bytes."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    tree = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(item)
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in leaves.items()}


def steps(run: Path) -> list[int]:
    """Return the steps in a run's log."""
    return [line["step"] for line in log_lines(run) if line["kind"] == "train"]


def notes(run: Path) -> list[str]:
    """Return the notes in a run's log."""
    return [line["text"] for line in log_lines(run) if line["kind"] == "note"]


def copy(run: Path, to: Path, without: tuple[int, ...] = ()) -> Path:
    """Copy a run as if it had been killed before it wrote the checkpoints `without`."""
    shutil.copytree(run, to)
    for step in without:
        shutil.rmtree(to / "checkpoints" / str(step))
    return to


def wait_for(kind: str, run: Path) -> Callable[[list[subprocess.Popen]], None]:
    """Return a function that waits until the run has logged such a line or a process ended."""

    def wait(processes: list[subprocess.Popen]) -> None:
        while all(process.poll() is None for process in processes):
            if any(line["kind"] == kind for line in log_lines(run)):
                return
            time.sleep(0.002)

    return wait
