"""A run's log: a progress bar or a line a minute, JSON lines, TensorBoard events.

``log.jsonl`` holds one JSON object a line, in the order of events. Every object has

``kind``   ``train``, ``epoch``, ``evaluation`` or ``note``
``step``   training steps completed when it was written (the first step is 1)
``epoch``  epoch of that step, counted from 0
``time``   seconds since 1970, UTC

and, by kind,

``train``
    the figures of that step by name: losses, the graph loss's coefficient, the learning rate;
    ``images_per_second`` since the line before (for a run's first line since its start,
    compilation included)
``epoch``
    figures of the whole epoch by name
``evaluation``
    ``split``: ``held_out`` or ``test``; ``records``: list of `protocols.Record`
``note``
    ``text``

Numbers are at full precision; one that is not finite is null. The same figures are TensorBoard
scalars under ``train/NAME``, ``epoch/NAME`` and ``SPLIT/MODE/FEATURE/NAME``; the configuration is
there as hyper-parameters, and each evaluation's ranked lists as ``SPLIT/ranked_lists``. A line is
in the file when the call returns; TensorBoard's follow within seconds, so a killed run may have
lost its last ones there.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, SupportsFloat

import numpy as np
from etils import epath
from jaxtyping import UInt8

from ddag_jax.datasets.dataset import label
from ddag_jax.errors import UserError
from ddag_jax.io.files import parse_json, read_bytes
from ddag_jax.io.progress import EveryMinute, Progress, interval, say


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """As if PyTorch were not installed, unless it is imported already."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]  # which import takes for missing
    try:
        yield
    finally:
        if hide:
            del sys.modules["torch"]


# It would import PyTorch only to know its tensors: more than a second of each start.
with _torch_hidden():
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

Split = Literal["held_out", "test"]

_LONGEST = 2**30
"""Bytes; a line has a few hundred."""


class RunLog:
    """Writes what happens in one run to its folder and to the terminal.

    Only one process of a run may write; the logs of others are silent. A resumed log ends where the
    restored checkpoint does: later lines are dropped before anything is written, so that no step
    appears twice. So a line must be written before the checkpoint of its step is, or a resumed log
    will lack it.

    On a terminal there is a progress bar with the latest losses, images a second and the time
    left; elsewhere a line a minute, of the first step at once. After `progress.silence` nothing
    is printed.

    Args:
        workdir: the run's folder; made where it is missing.
        resume_step: step of the restored checkpoint; None starts a new log.
        total_steps: steps of the whole run.
        images_per_step: images of a batch, both modalities.
        silent: write and print nothing.

    Raises:
        UserError: a line of the log to be resumed is not JSON (the last line may be torn, as a
            killed process leaves it).
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        resume_step: int | None,
        *,
        total_steps: int,
        images_per_step: int,
        silent: bool = False,
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
        if silent:
            self._file = epath.Path(os.devnull).open("w")
        else:
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text("".join(kept))
            temporary.replace(path)
            self._file = path.open("a")
        self._events = SummaryWriter(
            str(folder / "tensorboard"),
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
            shown=not silent and sys.stderr.isatty(),  # elsewhere the lines are our own
        )
        self._minute = EveryMinute()
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
        self.close()

    def close(self) -> None:
        """Ends the bar and closes the files."""
        self._bar.close()
        self._events.close()
        self._file.close()

    def train(self, step: int, epoch: int, figures: Mapping[str, SupportsFloat]) -> None:
        """Logs a training step; a figure that is not finite is null."""
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
            if not self._first_line:  # the first holds the compilation and foretells nothing
                shown.append(f"{interval((self._total_steps - step) * seconds / steps)} left")
            self._say("  ".join([f"epoch {epoch}  step {step}/{self._total_steps}", *shown]))
        self._first_line, self._last_step = False, step
        self._restart_clock(step)

    def epoch(self, step: int, epoch: int, figures: Mapping[str, SupportsFloat]) -> None:
        """Logs an epoch's figures after its last step."""
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
        """Logs the records of an evaluation that ended just now, before the next step.

        The time it took does not count in the next line's images a second.
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
        """Tells TensorBoard the configuration, {section: {field: value}}."""
        plain = {
            f"{section}.{name}": value if isinstance(value, (bool, int, float, str)) else str(value)
            for section, fields in config.items()
            for name, value in fields.items()
        }
        if not self._silent:
            for summary in hparams(plain, {}):
                self._events.file_writer.add_summary(summary)

    def picture(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows TensorBoard a picture."""
        self._events.add_image(name, pixels, step, dataformats="HWC")

    def note(self, step: int, epoch: int, text: str) -> None:
        """Logs a sentence."""
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


def read_log(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's log, in their order; none where the folder has no log.

    Raises:
        UserError: a line is not JSON (the last one may be torn).
    """
    lines, _ = _lines_until(epath.Path(workdir) / "log.jsonl", None)
    return [parse_json(line) for line in lines]


def _finite_or_null(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, Mapping):
        return {name: _finite_or_null(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines_until(path: epath.Path, step: int | None) -> tuple[list[str], int | None]:
    """A log's lines but those of steps after this one, and the step of the last evaluation."""
    last = math.inf if step is None else step
    try:
        lines = read_bytes(path, _LONGEST).decode().splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend or remove the file") from None
    kept = []
    last_evaluation = None
    for number, line in enumerate(lines, start=1):
        try:
            read = parse_json(line)
            later, evaluated = read["step"] > last, read["kind"] == "evaluation"
        except (ValueError, KeyError, TypeError):
            if number == len(lines):  # torn by the kill
                break
            raise UserError(
                f"{path}, line {number}: not a line of a run's log; mend or remove the file"
            ) from None
        if not later:
            kept.append(line + "\n")
            if evaluated:
                last_evaluation = read["step"]
    return kept, last_evaluation
