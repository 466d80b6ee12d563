"""The thresholds that an evaluation stored with a run."""

from typing import cast

from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.evaluation.pairs import OperatingPoints
from ddag_jax.io.files import read_json
from ddag_jax.runs.evaluate import Trained


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
        raise UserError(
            f"--threshold {wanted}: no evaluation of {trained.name} stored thresholds of {feature};"
            f" run evaluate.py {trained.name}, or give a number"
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
