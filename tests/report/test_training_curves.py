"""A run's log as series."""

import json
from pathlib import Path

import pytest

from ddag_jax.errors import UserError
from ddag_jax.report.training_curves import training_curves
from ddag_jax.runs.logs import read_log

RECORD = {"direction": "infrared_to_visible", "mode": "all", "feature": "part"}
LINES = [
    {"kind": "train", "step": 1, "epoch": 0, "identity": 5.0, "triplet": 1.0, "part": 0.0,
     "graph": 0.0, "total": 6.0, "graph_weight": 0.0, "learning_rate": 0.1},
    {"kind": "train", "step": 4, "epoch": 0, "identity": 4.0, "triplet": None, "part": 0.0,
     "graph": 0.0, "total": None, "graph_weight": 0.0, "learning_rate": 0.1},
    {"kind": "epoch", "step": 4, "epoch": 0, "loss_without_graph": 5.0, "next_graph_weight": 0.0},
    {"kind": "evaluation", "step": 4, "epoch": 0, "split": "held_out",
     "records": [{**RECORD, "rank1": 12.5, "mAP": 20.0}]},
    {"kind": "train", "step": 8, "epoch": 1, "identity": 3.0, "triplet": 0.5, "part": 0.0,
     "graph": 0.0, "total": 3.5, "graph_weight": 0.0, "learning_rate": 0.01},
    {"kind": "note", "step": 8, "epoch": 1, "text": "stopped"},
]  # fmt: skip


def test_figures_stand_at_their_epochs() -> None:
    found = training_curves(LINES)
    assert found["losses"] == {
        "identity": ([0.25, 1.0, 2.0], [5.0, 4.0, 3.0]),
        "triplet": ([0.25, 2.0], [1.0, 0.5]),  # without the one that was not finite
        "total": ([0.25, 2.0], [6.0, 3.5]),
    }
    assert found["learning_rate"] == {"learning rate": ([0.25, 1.0, 2.0], [0.1, 0.1, 0.01])}
    assert found["rank1"] == {"all-search, part": ([1.0], [12.5])}
    assert found["mAP"] == {"all-search, part": ([1.0], [20.0])}
    assert "graph_weight" not in found  # the graph plays no part


def test_of_no_log_there_is_nothing(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    assert training_curves([]) == {}


def test_a_log_is_read_to_its_torn_line(tmp_path: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "log.jsonl").write_text(text + '{"kind": "tr')
    assert read_log(tmp_path) == LINES
    (tmp_path / "log.jsonl").write_text("torn\n" + text)
    with pytest.raises(UserError, match="line 1: not a line"):
        read_log(tmp_path)
