"""The rows of each experiment, the fields in which they differ, the published figures.

A row is a configuration of configs/ablations with some fields changed. What it sets of the model is
applied to the configuration of the dataset. So B, B+P, B+G and B+P+G are defined in one place, and
a row that two experiments share is one run.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, float]
"""Published figures by their name in `protocols.FIGURES`, per cent."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table, one point of a curve."""

    name: str
    """Prefix of its runs' folders."""
    title: str
    ablation: str
    """Name of a configuration in configs/ablations."""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that are changed in it, {"section.field": value}."""
    published: Mapping[tuple[str, str], Figures] = dataclasses.field(default_factory=dict)
    """By dataset and search ("all", "indoor", or the direction)."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Rows of an experiment as a line of a figure."""

    panel: str
    """Label of the horizontal axis; curves of the same label share a panel."""
    label: str
    points: Mapping[float, str]
    """Names of the rows by their position on the axis."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table, or a figure and its table."""

    title: str
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...] = ()


def _figures(
    r1: float, r10: float, r20: float, mean: float, r5: float | None = None, **more: float
) -> Figures:
    five = {} if r5 is None else {"rank5": r5}
    return {"rank1": r1, **five, "rank10": r10, "rank20": r20, "mAP": mean, **more}


def _all_search(*figures: float) -> Mapping[tuple[str, str], Figures]:
    return {("sysu_mm01", "all"): _figures(*figures)}


_B = Row(
    "b",
    "B",
    "b",
    published={
        ("sysu_mm01", "all"): _figures(48.18, 85.73, 93.52, 47.64, 75.81),
        ("sysu_mm01", "indoor"): _figures(49.52, 88.70, 95.27, 58.12, 78.86),
    },
)
_B_P = Row(
    "b_p",
    "B+P",
    "b_p",
    published={
        ("sysu_mm01", "all"): _figures(53.69, 88.38, 94.56, 51.37, 81.16),
        ("sysu_mm01", "indoor"): _figures(58.08, 92.37, 97.26, 65.07, 84.91),
    },
)
_B_G = Row(
    "b_g",
    "B+G",
    "b_g",
    published={
        ("sysu_mm01", "all"): _figures(50.75, 86.71, 93.62, 49.73, 78.43),
        ("sysu_mm01", "indoor"): _figures(52.90, 92.65, 97.75, 62.26, 83.50),
    },
)
# mINP is from the page of the authors' code.
_B_P_G = Row(
    "b_p_g",
    "B+P+G",
    "b_p_g",
    published={
        ("sysu_mm01", "all"): _figures(54.75, 90.39, 95.81, 53.02, 82.31, mINP=39.62),
        ("sysu_mm01", "indoor"): _figures(61.02, 94.06, 98.41, 67.98, 87.13, mINP=62.61),
        ("regdb", "visible_to_infrared"): _figures(69.34, 86.19, 91.49, 63.46),
        ("regdb", "infrared_to_visible"): _figures(68.06, 85.15, 90.31, 61.80),
    },
)


def _parts(aggregation: str, figures: tuple[float, ...]) -> Row:
    return Row(
        f"b_p_{aggregation}_plain",
        f"{aggregation}, plain residual",
        "b_p",
        {"model.part_aggregation": aggregation, "model.part_residual": "plain"},
        _all_search(*figures),
    )


def _neighbours(count: int, rank1: float, mean: float) -> Row:
    return Row(
        f"b_g_neighbours_{count}",
        f"N_g = {count}",
        "b_g",
        {"model.graph_neighbours": count},
        {("sysu_mm01", "all"): {"rank1": rank1, "mAP": mean}},
    )


def _renamed(row: Row, title: str, searches: tuple[str, ...]) -> Row:
    """A row of Table 1 as another table names it, with the searches that this one reports."""
    published = {key: figures for key, figures in row.published.items() if key[1] in searches}
    return dataclasses.replace(row, title=title, published=published)


_PARTS = (1, 2, 3, 4, 6)
_HEADS = (1, 2, 4, 8)
_NOISE = (0.0, 0.1, 0.2, 0.3)


def _noisy(row: Row, share: float) -> Row:
    if not share:
        return _renamed(row, f"{row.title}, 0 % noise", ())
    return Row(
        f"{row.name}_noise_{share:g}",
        f"{row.title}, {100 * share:g} % noise",
        row.ablation,
        {"data.label_noise": share},
    )


_ERASING = {"augment.erasing": 0.5}
# Of V itself where there is no V': some of its images must keep their colours.
_CHANNELS = {
    "augment.visible_channels": "adaptive-grey",
    "augment.infrared_channels": "adaptive-grey",
}
_BOTH = {**_ERASING, **_CHANNELS}
_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "erasing": _ERASING,
    "channels": _CHANNELS,
    "both": _BOTH,
    "third_view": {**_BOTH, "augment.visible_channels": "exchange", "training.views": 3},
}
"""Erasing and channel augmentation on two views, alone and together; CAJ's recipe."""


def _recipes(row: Row) -> tuple[Row, ...]:
    return (
        _renamed(row, f"{row.title}, plain", ()),
        *(
            Row(
                f"{row.name}_{name}",
                f"{row.title}, {name.replace('_', ' ')}",
                row.ablation,
                changes,
            )
            for name, changes in _RECIPES.items()
        ),
    )


def _triplet(kind: str) -> Row:
    if kind == "hard":
        return _renamed(_B, "B, hard", ())
    return Row(f"b_{kind.replace('-', '_')}", f"B, {kind}", "b", {"model.triplet": kind})


EXPERIMENTS: Mapping[str, Experiment] = {
    "table1": Experiment(
        "Table 1: part attention (P) and graph attention (G)", (_B, _B_P, _B_G, _B_P_G)
    ),
    "table2": Experiment(
        "Table 2: aggregation of the parts and residual, B+P",
        (
            _parts("average", (48.34, 86.03, 93.72, 48.43)),
            _parts("concatenation", (50.34, 86.43, 94.19, 49.77)),
            _parts("weighted", (51.06, 86.78, 94.39, 49.92)),
            _renamed(_B_P, "weighted, BN residual", ("all",)),
        ),
    ),
    "table3": Experiment(
        "Table 3: neighbours in the graph, B+G",
        (
            _renamed(_B, "N_g = 0", ("all",)),
            _neighbours(1, 49.26, 48.42),
            _neighbours(2, 49.85, 49.12),
            _neighbours(4, 50.45, 49.46),
            _neighbours(8, 50.75, 49.73),
        ),
    ),
    "table5": Experiment("Tables 4 and 5: the whole method", (_B_P_G,)),
    "figure5": Experiment(
        "Figure 5: parts p on B+P, graph heads L on B+G",
        (
            *(Row(f"b_p_parts_{p}", f"B+P, p = {p}", "b_p", {"model.parts": p}) for p in _PARTS),
            *(
                Row(f"b_g_heads_{n}", f"B+G, L = {n}", "b_g", {"model.graph_heads": n})
                for n in _HEADS
            ),
        ),
        (
            Curve("parts p", "B+P", {p: f"b_p_parts_{p}" for p in _PARTS}),
            Curve("graph heads L", "B+G", {n: f"b_g_heads_{n}" for n in _HEADS}),
        ),
    ),
    "noise": Experiment(
        "Annotation noise: share of training images with another identity's label",
        tuple(_noisy(row, share) for row in (_B, _B_P_G) for share in _NOISE),
        tuple(
            Curve(
                "training images with a wrong label, per cent",
                row.title,
                {100 * share: _noisy(row, share).name for share in _NOISE},
            )
            for row in (_B, _B_P_G)
        ),
    ),
    "recipe": Experiment(
        "Erasing, channel augmentation and a second visible view, on B and on B+P+G",
        (*_recipes(_B), *_recipes(_B_P_G)),
    ),
    "triplets": Experiment(
        "Triplet losses, on B",
        tuple(_triplet(kind) for kind in ("hard", "weighted", "squared", "hetero-centre")),
    ),
}
