"""The figures of an evaluation as a table of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from ddag_jax.datasets.dataset import DIRECTIONS, label
from ddag_jax.evaluation.pairs import OperatingPoints
from ddag_jax.evaluation.protocols import FIGURES, Record


def format_table(records: Sequence[Record], title: str, untrained: Sequence[Record] = ()) -> str:
    """Return the records as a table like the paper's: a block a search, a row a feature.

    Args:
        records: of one protocol, which the heading describes.
        title: of the run, for the heading.
        untrained: records of the network before training, for rows below.
    """
    first = records[0]
    several = first["runs"] > 1 or first["trials"] > 1
    over = "runs" if first["runs"] > 1 else "trials"
    lines = [
        f"{title}: " + ", ".join(describe(first)),
        "per cent" + f"; mean ± deviation over the {over}" * several,
    ]
    blocks = dict.fromkeys((r["direction"], r["mode"]) for r in records)
    for direction, mode in blocks:
        rows = [("", r) for r in records if (r["direction"], r["mode"]) == (direction, mode)]
        rows += [
            ("untrained ", r) for r in untrained if (r["direction"], r["mode"]) == (direction, mode)
        ]
        counts = f"{rows[0][1]['queries']:,} queries, {rows[0][1]['gallery']:,} gallery images"
        lines += ["", f"{label(direction, mode)} ({counts})"]
        heads = ("r1", "r5", "r10", "r20", "mAP", "mINP")
        lines.append(f"{'feature':<18}" + "".join(f"{head:>15}" for head in heads))
        for prefix, record in rows:
            values: Mapping[str, Any] = record
            cells = (
                f"{values[name]:.2f}" + f" ± {values[name + '_std']:.2f}" * several
                for name in FIGURES
            )
            lines.append(f"{prefix + record['feature']:<18}" + "".join(f"{c:>15}" for c in cells))
    return "\n".join(lines)


def format_points(found: Mapping[str, OperatingPoints | None]) -> str:
    """Return the operating points of features, by name, as a table of text."""
    lines = []
    for feature, one in found.items():
        if one is None:
            lines.append(f"no thresholds of {feature}: all pairs are of one person, or none is")
            continue
        if not lines:
            lines = [
                f"thresholds on the cosine similarity, from {describe_pairs(one)}",
                f"{'feature':<18}" + "".join(f"{head:>15}" for head in _POINT_HEADS),
            ]
        for name, point in one["points"].items():
            cells = ["", "too few pairs", ""]
            if point is not None:
                cells = [
                    f"{point['threshold']:.4f}",
                    f"{100 * point['false_accept_rate']:.3f}",
                    f"{100 * point['true_accept_rate']:.2f}",
                ]
            lines.append(f"{feature:<18}" + "".join(f"{cell:>15}" for cell in (name, *cells)))
    return "\n".join(lines)


_POINT_HEADS = ("point", "threshold", "false accept %", "true accept %")


def describe_pairs(found: OperatingPoints) -> str:
    """Return what the operating points are from, in words."""
    whose = {
        "held-out": "identities held out of training",
        "test": "the test images themselves, so optimistic",
    }[found["images"]]
    return f"{found['same']:,} pairs of one person and {found['different']:,} of two ({whose})"


def describe(record: Record) -> list[str]:
    """Return the settings of an evaluation in words, for the heading of its table."""
    title = record["dataset_title"]
    possessive = title + ("'" if title.endswith("s") else "'s")
    said = [f"{possessive} layout, rendered people" if record["rendered"] else title]
    if record["mode"]:
        said.append(DIRECTIONS[record["direction"]])
    if record["shots"]:
        said.append("whole gallery" if record["shots"] == "all" else f"{record['shots']}-shot")
    if record["draw"]:
        said += [
            f"{record['draw']} draw",
            f"{record['trials']} trial{'s' * (record['trials'] > 1)}",
        ]
    if record["camera_rule"] == "none":
        said.append("no camera rule")
    if record["halves"]:
        several = len(record["halves"]) > 1
        said.append(f"trial{'s' * several} {', '.join(map(str, record['halves']))}")
    if record["runs"] > 1:
        said.append(f"mean of {record['runs']} runs")
    if record["flip"]:
        said.append("averaged with mirror images")
    if record["rerank"]:
        said.append("k-reciprocal re-ranking (k1 20, k2 6, λ 0.3)")
    return said
