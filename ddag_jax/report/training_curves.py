"""Extract training curves over epochs from a run's log."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ddag_jax.datasets.dataset import label

Series = dict[str, tuple[list[float], list[float]]]
"""Epochs and values of each curve, by name."""

_NOT_TERMS = {
    "kind", "step", "epoch", "time", "learning_rate", "images_per_second", "skipped_in_row",
}  # fmt: skip
"""Fields of a `train` line that are not loss terms."""


def training_curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Return the training curves of a log.

    Args:
        lines: lines of `log.jsonl`; see runs/logs.py.

    Returns:
        Curves by chart: "losses" (all loss terms except coefficients), "learning_rate", each
        coefficient (a term named NAME_weight), "rank1" and "mAP" (by search and feature). The unit
        of the x-axis is epochs; 1.5 is the middle of the second one. Curves that are missing in the
        log or always 0 are omitted.
    """
    per_epoch = _steps_per_epoch(lines)
    trained = [line for line in lines if line["kind"] == "train"]
    terms = [
        name
        for name in dict.fromkeys(n for line in trained for n in line)
        if name not in _NOT_TERMS
    ]
    coefficients = [name for name in terms if name.endswith("_weight")]

    def series(name: str) -> tuple[list[float], list[float]]:
        points = [(line["step"] / per_epoch, line.get(name)) for line in trained]
        kept = [(epoch, float(value)) for epoch, value in points if value is not None]
        return [epoch for epoch, _ in kept], [value for _, value in kept]

    found: dict[str, Series] = {"losses": {n: series(n) for n in terms if n not in coefficients}}
    for name in ("learning_rate", *coefficients):
        found[name] = {name.replace("_", " "): series(name)}
    found = {
        name: {label: both for label, both in each.items() if any(both[1])}
        for name, each in found.items()
    }
    for name in ("rank1", "mAP"):
        found[name] = {}
        for line in lines:
            for record in line["records"] if line["kind"] == "evaluation" else ():
                curve = f"{label(record['direction'], record['mode'])}, {record['feature']}"
                epochs, values = found[name].setdefault(curve, ([], []))
                epochs.append(line["step"] / per_epoch)
                values.append(float(record[name]))
    return {
        name: present
        for name, each in found.items()
        if (present := {curve: both for curve, both in each.items() if both[0]})
    }


def _steps_per_epoch(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the number of steps per epoch, from the last steps of the logged epochs."""
    ends = [line["step"] / (line["epoch"] + 1) for line in lines if line["kind"] == "epoch"]
    return ends[0] if ends else max([line["step"] for line in lines], default=math.inf)
