"""Checkpoints: the one file that imports orbax.

A checkpoint is a folder of two or three items, whole or absent:

``variables``  parameters and running statistics: all that evaluation needs
``progress``   the rest of the train state; only in a run's checkpoints
``meta``       JSON: what wrote it, the resolved configuration, the number of classes; or, of a
               backbone converted from ImageNet, its name alone

A run keeps its own under ``RUN/checkpoints/STEP``; a converted one is such a folder by itself.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

import ddag_jax
from ddag_jax.config import Config, differences, from_dict
from ddag_jax.errors import InputError
from ddag_jax.optimizer import BACKBONE
from ddag_jax.training.state import TrainState

_KEPT_LATEST = 2
_VARIABLES = ("params", "batch_stats")
# Fields that do not change what a run computes, so a resumed run may have others.
_FREE_ON_RESUME = ("data.dir", "training.mapping", "training.log_every", "evaluation.batch_size")


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself."""

    config: Config
    classes: int
    """Training identities, the width of the classifier."""
    version: str = ddag_jax.__version__
    """Of ddag_jax, when it was written."""

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return dataclasses.asdict(self)


def read_meta(folder: epath.PathLike) -> Meta:
    """What the checkpoint in `folder` says of itself. Raises InputError where it cannot be read."""
    path = epath.Path(folder) / "meta" / "metadata"
    try:
        stored = json.loads(path.read_text())
        if "backbone" not in stored:
            return Meta(from_dict(stored["config"]), int(stored["classes"]), stored["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no checkpoint that this version ({ddag_jax.__version__}) can read: {error}"
        ) from None
    raise InputError(
        f"{folder}: holds a {stored['backbone']} backbone without heads, which is only to start a"
        " training from (train.py --init)"
    )


def restore_variables(folder: epath.PathLike, like: Any) -> Any:
    """Parameters and running statistics of a checkpoint.

    Args:
        folder: of one checkpoint.
        like: tree of `jax.ShapeDtypeStruct` with shardings.

    Raises:
        InputError: its variables are not those of `like`; names all that differ.
    """
    return _restore(_absolute(folder) / "variables", like)


def read_variables(folder: epath.PathLike) -> dict[str, Any]:
    """Parameters and running statistics of a checkpoint as they lie there, on the host.

    Returns:
        Nested dictionaries of NumPy arrays, whatever devices wrote them.
    """
    path = _absolute(folder) / "variables"
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree
    )
    return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def restore_backbone(folder: epath.PathLike, state: TrainState) -> dict[str, Any]:
    """`params` and `batch_stats` of `state` with the backbone of a checkpoint in their places.

    Raises:
        InputError: the checkpoint's backbone is not of this shape; names all that differs.
    """
    path = _absolute(folder) / "variables"
    both = {name: getattr(state, name) for name in _VARIABLES}
    stored = read_variables(folder)
    found = {name: {BACKBONE: stored[name].get(BACKBONE, {})} for name in _VARIABLES}
    _compare(path, found, {name: {BACKBONE: both[name][BACKBONE]} for name in _VARIABLES})
    return {
        name: {**both[name], BACKBONE: jax.tree.map(jax.numpy.asarray, found[name][BACKBONE])}
        for name in _VARIABLES
    }


def check_same_run(saved: Meta, now: Meta, workdir: epath.PathLike) -> None:
    """Raises InputError, with the fields side by side, where a run is to go on as another one."""
    fields = {
        name: values
        for name, values in differences(saved.config, now.config).items()
        if name not in _FREE_ON_RESUME
    }
    if saved.classes != now.classes:
        fields["training identities"] = (saved.classes, now.classes)
    if fields:
        raise InputError(
            f"{workdir}: a run of another configuration, which cannot go on as this one: "
            + "; ".join(f"{name} was {old}, now {new}" for name, (old, new) in fields.items())
            + ". Give the same configuration, or another --workdir"
        )


def _restore(folder: epath.Path, like: Any) -> Any:
    handler = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    stored = handler.metadata(folder).item_metadata
    if stored is None:
        raise InputError(_damaged(folder, "no description of its arrays can be read"))
    _compare(folder, stored.tree, like)
    try:
        return handler.restore(folder, args=ocp.args.StandardRestore(like))
    except Exception as error:  # orbax and tensorstore raise whatever they meet
        raise InputError(_damaged(folder, str(error).partition("\n")[0])) from None


def _damaged(folder: epath.Path, why: str) -> str:
    return f"{folder}: damaged ({why}); name another checkpoint, or convert or copy it anew"


def _compare(folder: epath.Path, checkpoint: Any, network: Any) -> None:
    stored, wanted = _shapes(checkpoint), _shapes(network)
    faults = [
        f"{name}: {stored.get(name, 'absent')} in the checkpoint, {wanted.get(name, 'absent')} here"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
    if faults:
        raise InputError(
            f"{folder}: a checkpoint of another network; {len(faults)} variables differ: "
            + "; ".join(faults[:8])
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a tree; orbax spells attributes and indices as keys."""
    named, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): (
            tuple(array.shape)
        )
        for path, array in named
        if hasattr(array, "shape")
    }


def save_weights(folder: epath.PathLike, variables: Any, meta: dict[str, Any]) -> None:
    """Writes a checkpoint by itself, to a folder that is not there yet, whole or not at all."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            _absolute(folder),
            ocp.args.Composite(
                variables=ocp.args.StandardSave(variables), meta=ocp.args.JsonSave(meta)
            ),
        )


class RunCheckpoints:
    """The checkpoints of one run: the last two, and the best where evaluations chose one.

    Written in the background, each whole or absent; the best is never pruned.
    """

    def __init__(self, workdir: epath.PathLike, meta: Meta) -> None:
        self._meta = meta
        policies = checkpoint_managers
        self._manager = ocp.CheckpointManager(
            _absolute(workdir) / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                best_fn=_score,  # the policy below decides; this makes orbax store the score
                best_mode="max",
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(_KEPT_LATEST),
                        policies.BestN(
                            get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
            ),
        )

    def save(self, step: int, state: TrainState, score: float | None) -> None:
        """Saves the state after `step` steps; `score` is what the best is chosen by, if any."""
        variables, progress = _split(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                progress=ocp.args.StandardSave(progress),
                meta=ocp.args.JsonSave(self._meta.to_json()),
            ),
            metrics=None if score is None else {"score": score},
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state after `step` steps, `like` being abstract, with shardings."""
        folder = epath.Path(self._manager.directory) / str(step)
        variables, progress = (
            _restore(folder / name, part)
            for name, part in zip(("variables", "progress"), _split(like), strict=True)
        )
        return like.replace(**variables, **progress)

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for what is still being written."""
        self._manager.close()


def _split(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    variables = {name: fields.pop(name) for name in _VARIABLES}
    return variables, fields


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _absolute(path: epath.PathLike) -> epath.Path:
    """As orbax wants it."""
    return epath.Path(path).resolve()


def saved_steps(workdir: epath.PathLike) -> list[int]:
    """Steps of a run's checkpoints, rising; what is still being written does not count."""
    folder = epath.Path(workdir) / "checkpoints"
    if not folder.exists():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def step_folder(workdir: epath.PathLike, step: int) -> epath.Path:
    """Where a run keeps the checkpoint of a step."""
    return epath.Path(workdir) / "checkpoints" / str(step)


def find_checkpoint(folder: epath.PathLike) -> epath.Path:
    """The checkpoint that stands for `folder`: of a run its best, its last where none was chosen;
    or the folder itself, if it is a checkpoint.

    Raises:
        InputError: there is none.
    """
    folder = epath.Path(folder)
    if (folder / "meta").exists():
        return folder
    steps = saved_steps(folder)
    if not steps:
        raise InputError(
            f"{folder}: neither a run with a finished checkpoint nor a checkpoint; give the"
            " --workdir of a train.py that saved one, or what convert_weights.py wrote"
        )
    scores = {step: saved_score(folder, step) for step in steps}
    best = max(steps, key=lambda step: (scores[step] is not None, scores[step] or 0.0, step))
    return step_folder(folder, best)


def saved_score(workdir: epath.PathLike, step: int) -> float | None:
    """The score that a checkpoint was saved with, None for none."""
    path = step_folder(workdir, step) / "metrics" / "metrics"
    return float(json.loads(path.read_text())["score"]) if path.exists() else None
