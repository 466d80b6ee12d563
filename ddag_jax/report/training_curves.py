"""A run's log as series over the epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ddag_jax.datasets.dataset import label

Series = dict[str, tuple[list[float], list[float]]]
"""By name: epochs and values."""

_LOSSES = ("identity", "part", "triplet", "graph", "total")


def training_curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """What a log says of the training.

    Args:
        lines: of `log.jsonl`; ddag_jax/runs/logs.py describes them.

    Returns:
        "losses" (the terms that play a part), "learning_rate", "graph_weight", "rank1" and "mAP"
        (by search and feature), each over epochs: 1.5 is the middle of the second. Those of which
        the log says nothing are left out.
    """
    per_epoch = _steps_per_epoch(lines)
    trained = [line for line in lines if line["kind"] == "train"]

    def series(name: str) -> tuple[list[float], list[float]]:
        points = [(line["step"] / per_epoch, line.get(name)) for line in trained]
        kept = [(epoch, float(value)) for epoch, value in points if value is not None]
        return [epoch for epoch, _ in kept], [value for _, value in kept]

    found: dict[str, Series] = {}
    found["losses"] = {name: series(name) for name in _LOSSES}
    found["losses"] = {name: both for name, both in found["losses"].items() if any(both[1])}
    for name in ("learning_rate", "graph_weight"):
        found[name] = {name.replace("_", " "): series(name)}
    if not any(found["graph_weight"]["graph weight"][1]):  # no graph
        del found["graph_weight"]
    for name in ("rank1", "mAP"):
        found[name] = {}
        for line in lines:
            for record in line["records"] if line["kind"] == "evaluation" else ():
                who = f"{label(record['direction'], record['mode'])}, {record['feature']}"
                epochs, values = found[name].setdefault(who, ([], []))
                epochs.append(line["step"] / per_epoch)
                values.append(float(record[name]))
    return {
        name: present
        for name, each in found.items()
        if (present := {who: both for who, both in each.items() if both[0]})
    }


def _steps_per_epoch(lines: Sequence[Mapping[str, Any]]) -> float:
    """Read off the log, which says after which step an epoch ended."""
    ends = [line["step"] / (line["epoch"] + 1) for line in lines if line["kind"] == "epoch"]
    return ends[0] if ends else max([line["step"] for line in lines], default=math.inf)
