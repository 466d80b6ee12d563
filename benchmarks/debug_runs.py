"""Real runs of `debug` for the benchmarks that disturb them: the data, processes, comparison."""

import json
import os
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def prepared_people(folder: Path) -> Path:
    """Draws a few people below `folder` and prepares them at `debug`'s size: its `--data.dir`."""
    from ddag_jax.datasets.prepare import prepare
    from ddag_jax.synthetic.people import People, write_people

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


def load_before_forking() -> None:
    """Imports what train.py needs, so that processes forked from here start in half the time.

    Nothing may have been computed yet: jax's own threads do not survive a fork.
    """
    # Even small programs, since every life would compile them anew.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    from ddag_jax.cli import environment

    environment.prepare()
    import ddag_jax.runs.train  # noqa: F401


def start_training(run: Path, data: Path, *more: str) -> int:
    """Forks a process that is `train.py debug ...`, its output in RUN.out; returns its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        output = os.open(f"{run}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["train.py", "debug", "--workdir", str(run), "--data.dir", str(data), *more]
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def output(run: Path) -> str:
    """What the last process of this run printed."""
    return Path(f"{run}.out").read_text(errors="replace")


def log_lines(run: Path) -> list[dict[str, Any]]:
    """A run's log so far; a line being written does not count."""
    path = run / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def differences(run: Path, twin: Path) -> list[str]:
    """Where two finished runs are not the same: what was computed and logged, every checkpoint's
    score and arrays, bit for bit. The clock's figures and notes do not count."""
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
    """The log without notes and the clock's figures."""
    for line in log_lines(run):
        if line["kind"] != "note":
            yield {k: v for k, v in line.items() if k not in ("time", "images_per_second")}


def arrays(item: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every array of an item of a checkpoint, by name: dtype, shape, bits."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    tree = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(item)
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in leaves.items()}
