"""Thresholds on the similarity: given, or stored with a run by an evaluation."""

from typing import Any, cast

from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.evaluation.pairs import FALSE_ACCEPT_RATES, OperatingPoints
from ddag_jax.io.files import read_json
from ddag_jax.runs.evaluate import Trained


def parse_threshold(given: Any) -> str | float:
    """Return the name of an operating point, or a cosine similarity.

    >>> parse_threshold("eer"), parse_threshold("0.42"), parse_threshold("FAR=0.001")
    ('eer', 0.42, 'far=1e-3')

    Raises:
        UserError: it is neither.
    """
    known = ", ".join(["eer", *FALSE_ACCEPT_RATES])
    wanted = given.strip().lower() if isinstance(given, str) else given
    if wanted == "eer":
        return str(wanted)
    is_rate = isinstance(wanted, str) and wanted.startswith("far=")
    try:
        value = float(wanted.removeprefix("far=") if isinstance(wanted, str) else wanted)
    except (TypeError, ValueError):
        value = float("nan")
    if is_rate:
        for name, rate in FALSE_ACCEPT_RATES.items():
            if value == rate:
                return name
    elif -1 <= value <= 1 and not isinstance(wanted, bool):
        return value
    raise UserError(f"--threshold {given}: give {known}, or a cosine similarity from -1 to 1")


def stored_points(trained: Trained, feature: str, *, flip: bool) -> OperatingPoints | None:
    """Return the operating points of a network's feature; None if no evaluation stored them.

    They are in the `evaluation*.json` of the run's or the checkpoint's folder, whatever the
    protocol was, of the same variables, feature and flip.
    """
    checkpoint = trained.checkpoint
    # A run keeps its checkpoints in RUN/checkpoints/STEP.
    folders = dict.fromkeys((epath.Path(trained.name), checkpoint, checkpoint.parent.parent))
    for file in (file for folder in folders for file in sorted(folder.glob("evaluation*.json"))):
        try:
            records = read_json(file, 2**26)
            found = [one.get("operating_points") for one in records if one["feature"] == feature]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not an evaluation
        for points in found:
            if points and (points["checksum"], points["flip"]) == (trained.checksum, flip):
                return cast(OperatingPoints, points)
    return None


def find_threshold(
    trained: Trained, feature: str, wanted: str | float
) -> tuple[float, OperatingPoints | None]:
    """Return a threshold on the cosine similarity, and what it is from.

    Args:
        trained: the network.
        feature: that is compared.
        wanted: the threshold itself, or the name of an operating point: "eer", "far=1e-3".

    Raises:
        UserError: the run has no such operating point.
    """
    if not isinstance(wanted, str):
        return wanted, None
    stored = stored_points(trained, feature, flip=trained.config.evaluation.flip)
    if stored is None:
        evaluated = trained.config.evaluation.feature
        is_evaluated = evaluated == feature or (evaluated == "both" and feature != "concatenation")
        option = "" if is_evaluated else f" --feature {feature}"
        raise UserError(
            f"--threshold {wanted}: no evaluation of {trained.name} stored thresholds of {feature};"
            f" run evaluate.py {trained.name}{option}, or give a number"
        )
    if wanted not in stored["points"]:
        raise UserError(
            f"--threshold {wanted}: the run has {', '.join(stored['points'])}; give one of them, or"
            " a number"
        )
    point = stored["points"][wanted]
    if point is None:
        raise UserError(
            f"--threshold {wanted}: {stored['different']:,} pairs of different people are too few"
            " to measure this rate; give a higher one, or a number"
        )
    return point["threshold"], stored
