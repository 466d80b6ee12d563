"""Write the log of a run: terminal output, JSON lines and TensorBoard events.

``log.jsonl`` holds one JSON object per line, in the order of events. Every object has

``kind``   ``train``, ``epoch``, ``evaluation`` or ``note``
``step``   number of training steps completed when it was written (the first step is 1)
``epoch``  epoch of that step, counted from 0
``time``   seconds since 1970, UTC

and, depending on its kind,

``train``
    the figures of that step by name: loss terms, the coefficient of the graph loss, the learning
    rate; ``images_per_second`` since the previous line (for the first line of a run since its
    start, including compilation)
``epoch``
    the figures of the whole epoch by name
``evaluation``
    ``split``: ``held_out`` or ``test``; ``records``: list of `protocols.Record`
``note``
    ``text``

Numbers have full precision; a number that is not finite is stored as null. TensorBoard receives the
same figures as scalars ``train/NAME``, ``epoch/NAME`` and ``SPLIT/MODE/FEATURE/NAME``, the
configuration as hyper-parameters, and the ranked lists of each evaluation as
``SPLIT/ranked_lists``. A call returns after its line is written to the file; TensorBoard events are
flushed within seconds, so a killed run may lose its last events there.

An object in a bucket cannot be appended to. For a run in a bucket both are written on this
machine, and copied as a whole by `RunLog.sync`, before each checkpoint, after each evaluation and
at the end; the log once a minute as well. A killed run loses what followed the last copy, which is
no more than a resumed run does again.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, SupportsFloat

import numpy as np
from etils import epath
from jaxtyping import UInt8

from ddag_jax.datasets.dataset import label
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import BucketError, Mirror, is_bucket
from ddag_jax.io.files import parse_json, read_bytes, write_text
from ddag_jax.io.progress import EveryMinute, Progress, interval, say


@contextlib.contextmanager
def _hidden(*modules: str) -> Iterator[None]:
    """Make imports behave as if modules were not installed, unless they are imported already."""
    hidden = [name for name in modules if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # makes its import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


# TensorBoardX imports PyTorch only to recognise its tensors, and Google's library for its own way
# of writing to buckets, which is not used: each delays every start by a second or more.
with _hidden("torch", "google.cloud.storage"):
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

Split = Literal["held_out", "test"]

_LONGEST = 2**30
"""Maximum size of a log in bytes; a line has a few hundred."""


class RunLog:
    """Writes the events of one run to its folder and to the terminal.

    Only one process of a run writes; the logs of the others are silent. On resume, lines of steps
    after the restored checkpoint are removed first, so that no step appears twice. A line must
    therefore be written before the checkpoint of its step; otherwise a resumed log lacks it.

    On a terminal, a progress bar shows the latest losses, images per second and the remaining time.
    Elsewhere one line per minute is printed, the first step immediately. After `progress.silence`
    nothing is printed.

    Args:
        workdir: the run's folder; created if missing.
        resume_step: step of the restored checkpoint; None starts a new log.
        total_steps: number of steps of the whole run.
        images_per_step: images that a step processes, of all views.
        silent: write and print nothing.
        check: called before files are copied to a bucket; raises an error if this process may not
            write there.

    Raises:
        UserError: a line of the existing log is not valid JSON. An incomplete last line, as a
            killed process leaves it, is dropped.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        resume_step: int | None,
        *,
        total_steps: int,
        images_per_step: int,
        silent: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        folder = self.folder = epath.Path(workdir)
        path = folder / "log.jsonl"
        if not silent:
            folder.mkdir(parents=True, exist_ok=True)
        self._silent = silent
        self.last_evaluation: int | None = None
        """Step of the last evaluation in the log."""
        kept: list[str] = []
        if resume_step is not None:
            kept, self.last_evaluation = _lines_until(path, resume_step)
        self._mirror = Mirror(folder) if is_bucket(folder) and not silent else None
        self._check = check
        place = folder if self._mirror is None else self._mirror.local
        if silent:
            self._file = epath.Path(os.devnull).open("w")
        else:
            write_text(place / "log.jsonl", "".join(kept))
            self._file = (place / "log.jsonl").open("a")
        self._events = SummaryWriter(
            str(place / "tensorboard"),
            flush_secs=2,
            purge_step=None if resume_step is None else resume_step + 1,
            write_to_disk=not silent,
        )
        self._total_steps = total_steps
        self._images_per_step = images_per_step
        self._bar = Progress(
            total_steps,
            "training",
            "step",
            initial=resume_step or 0,
            shown=not silent and sys.stderr.isatty(),  # elsewhere `train` prints lines
        )
        self._minute, self._copied = EveryMinute(), EveryMinute()
        self._first_line = True
        self._last_step = resume_step or 0
        self._restart_clock(resume_step or 0)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:  # which is what matters
            with contextlib.suppress(BucketError, OSError, UserError):
                self.close()

    def close(self) -> None:
        """Close the progress bar and the files, and copy them to the bucket, if the run has one."""
        self._bar.close()
        self._events.close()
        self._file.close()
        if self._mirror is not None:
            with contextlib.closing(self._mirror):
                self._check()
                self._mirror.copy()

    def sync(self) -> None:
        """Copy all that was logged to the bucket. Of a run on a disk it is there already.

        Raises:
            BucketError: the bucket cannot be written.
            UserError: this process may not write there.
        """
        if self._mirror is not None:
            self._check()
            self._events.flush()
            self._mirror.copy()

    def train(self, step: int, epoch: int, figures: Mapping[str, SupportsFloat]) -> None:
        """Log a training step; figures that are not finite are stored as null."""
        values = {name: float(value) for name, value in figures.items()}
        seconds = time.perf_counter() - self._clock
        steps = step - self._clock_step
        speed = steps * self._images_per_step / seconds
        self._write("train", step, epoch, {**values, "images_per_second": speed})
        self._scalars("train", step, {**values, "images_per_second": speed})

        shown = [f"{name} {value:.4g}" for name, value in values.items()]
        shown.append(f"{speed:.1f} images/s")
        if self._bar.on_terminal:
            self._bar.update(step - self._last_step, ", ".join(shown))
        elif self._first_line or self._minute.due():
            if not self._first_line:  # the first one includes compilation
                shown.append(f"{interval((self._total_steps - step) * seconds / steps)} left")
            self._say("  ".join([f"epoch {epoch}  step {step}/{self._total_steps}", *shown]))
        self._first_line, self._last_step = False, step
        self._restart_clock(step)

    def epoch(self, step: int, epoch: int, figures: Mapping[str, SupportsFloat]) -> None:
        """Log the figures of an epoch after its last step."""
        values = {name: float(value) for name, value in figures.items()}
        self._write("epoch", step, epoch, values)
        self._scalars("epoch", step, values)

    def evaluation(
        self,
        step: int,
        epoch: int,
        split: Split,
        records: Sequence[Mapping[str, Any]],
    ) -> None:
        """Log the records of an evaluation; call this before the next step.

        The duration of the evaluation does not count in the next line's images per second.
        """
        self._write("evaluation", step, epoch, {"split": split, "records": list(records)})
        for record in records:
            search = record["mode"] or record["direction"]
            figures = {name: v for name, v in record.items() if isinstance(v, float)}
            self._scalars(f"{split}/{search}/{record['feature']}", step, figures)
            self._say(
                f"epoch {epoch} step {step}  {split} {label(record['direction'], record['mode'])}"
                f" {record['feature']}:"
                f"  rank-1 {record['rank1']:.2f}  mAP {record['mAP']:.2f}"
            )
        self.last_evaluation = step
        self._restart_clock(step)

    def hyper_parameters(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the configuration, {section: {field: value}}, to TensorBoard."""
        plain = {
            f"{section}.{name}": value if isinstance(value, (bool, int, float, str)) else str(value)
            for section, fields in config.items()
            for name, value in fields.items()
        }
        if not self._silent:
            for summary in hparams(plain, {}):
                self._events.file_writer.add_summary(summary)

    def picture(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Write an image to TensorBoard."""
        self._events.add_image(name, pixels, step, dataformats="HWC")

    def note(self, step: int, epoch: int, text: str) -> None:
        """Log a sentence."""
        self._write("note", step, epoch, {"text": text})
        self._say(text)

    def _say(self, text: str) -> None:
        if not self._silent:
            say(text)

    def _restart_clock(self, step: int) -> None:
        self._clock, self._clock_step = time.perf_counter(), step

    def _scalars(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if math.isfinite(value):
                self._events.add_scalar(f"{group}/{name}", value, step)

    def _write(self, kind: str, step: int, epoch: int, fields: Mapping[str, Any]) -> None:
        about = {"kind": kind, "step": step, "epoch": epoch, "time": time.time()}
        line = {**about, **_finite_or_null(fields)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._mirror is not None and self._copied.due():
            self._check()
            with contextlib.suppress(BucketError):  # `sync` reports it
                self._mirror.copy("log.jsonl")


def read_log(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Return the lines of a run's log in order; an empty list if the folder has no log.

    Raises:
        UserError: a line is not valid JSON. An incomplete last line is dropped.
    """
    lines, _ = _lines_until(epath.Path(workdir) / "log.jsonl", None)
    return [parse_json(line) for line in lines]


def _finite_or_null(value: Any) -> Any:
    """Return `value` with null for numbers that JSON cannot represent."""
    if isinstance(value, Mapping):
        return {name: _finite_or_null(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines_until(path: epath.Path, step: int | None) -> tuple[list[str], int | None]:
    """Return the lines up to and including `step` (None: all), and the last evaluation's step."""
    last = math.inf if step is None else step
    try:
        lines = read_bytes(path, _LONGEST).decode().splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); repair or remove the file") from None
    kept = []
    last_evaluation = None
    for number, line in enumerate(lines, start=1):
        try:
            read = parse_json(line)
            later, evaluated = read["step"] > last, read["kind"] == "evaluation"
        except (ValueError, KeyError, TypeError):
            if number == len(lines):  # incomplete: the process was killed
                break
            raise UserError(
                f"{path}, line {number}: not a line of a run's log; repair or remove the file"
            ) from None
        if not later:
            kept.append(line + "\n")
            if evaluated:
                last_evaluation = read["step"]
    return kept, last_evaluation
