"""Checkpoints: the one file that imports orbax.

A checkpoint is a folder of two or three items, whole or absent:

``variables``  parameters and running statistics: all that evaluation needs
``progress``   the rest of the train state; only in a run's checkpoints
``meta``       JSON: what wrote it, the resolved configuration, the number of classes, which data;
               or, of a backbone converted from ImageNet, its name alone; and the checksums of the
               other items' content

A run keeps its own under ``RUN/checkpoints/STEP``; a converted one is such a folder by itself. The
checkpoint of an evaluated step has its score beside the items, in ``score.json``.
"""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

import ddag_jax
from ddag_jax.config import Config, differences, from_dict, to_dict
from ddag_jax.errors import UserError
from ddag_jax.io.files import read_json
from ddag_jax.training.optimizer import BACKBONE
from ddag_jax.training.state import TrainState

_KEPT_LATEST = 2
_VARIABLES = ("params", "batch_stats")
# Copies of an array on several devices are written in slices, one by each of them, and every shape
# of a slice is a program to compile: on 8 devices that took 10 s of a small network's first
# checkpoint and 30 s of ResNet-50's. Only large arrays are worth it.
_LEAST_SLICE = 1 << 20  # bytes
# Fields that do not change what a run computes, so a resumed run may have others.
_FREE_ON_RESUME = ("data.dir", "training.mapping", "training.log_every", "evaluation.batch_size")

ocp.type_handlers.register_type_handler(
    jax.Array,
    ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE),
    override=True,
)


class Damaged(UserError):
    """A checkpoint that is not as it was written."""


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself."""

    config: Config
    classes: int
    """Training identities, the width of the classifier."""
    data: str = ""
    """Fingerprint of the prepared dataset; empty for converted weights."""
    version: str = ddag_jax.__version__
    """Of ddag_jax, when it was written."""

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {**vars(self), "config": to_dict(self.config)}


def read_meta(folder: epath.PathLike) -> Meta:
    """What the checkpoint in `folder` says of itself. Raises UserError where it cannot be read."""
    path = epath.Path(folder) / "meta" / "metadata"
    try:
        stored = read_json(path)
        if "backbone" not in stored:
            return Meta(
                from_dict(stored["config"]),
                int(stored["classes"]),
                str(stored["data"]),
                str(stored["version"]),
            )
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise Damaged(
            f"{folder}: no checkpoint that this version ({ddag_jax.__version__}) can read: {error}"
        ) from None
    raise UserError(
        f"{folder}: holds a {str(stored['backbone'])[:40]} backbone without heads, which is only"
        " to start a training from (train.py --init)"
    )


def restore_variables(folder: epath.PathLike, like: Any) -> Any:
    """Parameters and running statistics of a checkpoint.

    Args:
        folder: of one checkpoint.
        like: tree of `jax.ShapeDtypeStruct` with shardings.

    Raises:
        UserError: its variables are not those of `like`; names all that differ.
    """
    return _restore(_absolute(folder), "variables", like)


def read_variables(folder: epath.PathLike) -> dict[str, Any]:
    """Parameters and running statistics of a checkpoint as they lie there, on the host.

    Returns:
        Nested dictionaries of NumPy arrays, whatever devices wrote them.
    """
    path = _absolute(folder) / "variables"
    handler = ocp.PyTreeCheckpointHandler()
    try:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree
        )
        found = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # orbax and tensorstore raise whatever they meet
        raise Damaged(_damaged(path, str(error).partition("\n")[0])) from None
    _check_content(_absolute(folder), "variables", found)
    return found


def restore_backbone(folder: epath.PathLike, like: TrainState) -> dict[str, Any]:
    """The backbone of a checkpoint, as NumPy arrays: what goes into `params` and `batch_stats`.

    Args:
        folder: the checkpoint.
        like: a state of the shapes that the backbone must have; may be abstract.

    Raises:
        UserError: the checkpoint's backbone is not of this shape; names all that differs.
    """
    path = _absolute(folder) / "variables"
    stored = read_variables(folder)
    found = {name: {BACKBONE: stored[name].get(BACKBONE, {})} for name in _VARIABLES}
    _compare(path, found, {name: {BACKBONE: getattr(like, name)[BACKBONE]} for name in _VARIABLES})
    return found


def check_same_run(saved: Meta, now: Meta, workdir: epath.PathLike) -> None:
    """Raises UserError, with the fields side by side, where a run is to go on as another one."""
    fields = {
        name: values
        for name, values in differences(saved.config, now.config).items()
        if name not in _FREE_ON_RESUME
    }
    if saved.classes != now.classes:
        fields["training identities"] = (saved.classes, now.classes)
    if saved.data != now.data:
        fields["the prepared dataset's fingerprint"] = (saved.data[:12], now.data[:12])
    if fields:
        raise UserError(
            f"{workdir}: a run of another configuration, which cannot go on as this one: "
            + "; ".join(f"{name} was {old}, now {new}" for name, (old, new) in fields.items())
            + ". Give the same configuration, or another --workdir"
        )


def restore_state(folder: epath.PathLike, like: TrainState) -> TrainState:
    """A run's whole state from one of its checkpoints.

    Args:
        folder: of the checkpoint.
        like: abstract, with shardings.

    Raises:
        Damaged: it is not as it was written.
        UserError: it is of another network.
    """
    variables, progress = (
        _restore(_absolute(folder), name, part)
        for name, part in zip(("variables", "progress"), _split(like), strict=True)
    )
    return like.replace(**variables, **progress)


def _restore(checkpoint: epath.Path, item: str, like: Any) -> Any:
    folder = checkpoint / item
    handler = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    try:
        stored = handler.metadata(folder).item_metadata
    except Exception as error:  # orbax and tensorstore raise whatever they meet
        raise Damaged(_damaged(folder, str(error).partition("\n")[0])) from None
    if stored is None:
        raise Damaged(_damaged(folder, "no description of its arrays can be read"))
    _compare(folder, stored.tree, like)
    try:
        found = handler.restore(folder, args=ocp.args.StandardRestore(like))
    except Exception as error:
        raise Damaged(_damaged(folder, str(error).partition("\n")[0])) from None
    _check_content(checkpoint, item, found)
    return found


def _check_content(checkpoint: epath.Path, item: str, found: Any) -> None:
    """Raises Damaged where an item is not what was saved: neither files nor arrays tell it all."""
    try:
        stored = read_json(checkpoint / "meta" / "metadata")
        expected = stored["checksums"][item]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(_damaged(checkpoint / "meta", f"no checksums: {error!r}")) from None
    if checksum(found) != expected:
        raise Damaged(_damaged(checkpoint / item, "its content is not what was saved"))


def checksum(tree: Any) -> int:
    """CRC-32 of a tree's names, types, shapes and values."""
    value = 0
    for name, array in sorted(_named(tree)):
        array = np.ascontiguousarray(array)
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return value


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
        raise UserError(
            f"{folder}: a checkpoint of another network; {len(faults)} variables differ: "
            + "; ".join(faults[:8])
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a tree; orbax spells attributes and indices as keys."""
    return {name: tuple(array.shape) for name, array in _named(tree)}


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    named, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    for path, array in named:
        if hasattr(array, "shape"):
            keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
            yield "/".join(map(str, keys)), array


def save_weights(folder: epath.PathLike, variables: Any, meta: dict[str, Any]) -> None:
    """Writes a checkpoint by itself, to a folder that is not there yet, whole or not at all."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            _absolute(folder),
            ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                meta=ocp.args.JsonSave(meta | {"checksums": {"variables": checksum(variables)}}),
            ),
        )


class RunCheckpoints:
    """The checkpoints of one run: the last two, and the best where evaluations chose one.

    Written in the background, each whole or absent; the best is never pruned. Leaving waits for
    what is still being written.

    Raises, from every method, `UserError` where a checkpoint cannot be written: the disk is full,
    say. Those before it stay.
    """

    def __init__(self, workdir: epath.PathLike, meta: Meta) -> None:
        self._workdir = epath.Path(workdir)
        self._meta = meta
        self._scores = {
            step: score
            for step in saved_steps(workdir)
            if (score := saved_score(workdir, step)) is not None
        }
        self._manager = ocp.CheckpointManager(
            _absolute(workdir) / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self._scores),
                cleanup_tmp_directories=True,  # what a killed process left half-written
            ),
        )

    def save(self, step: int, state: TrainState) -> None:
        """Saves the state after `step` steps."""
        items = dict(zip(("variables", "progress"), _split(state), strict=True))
        checksums = {name: checksum(item) for name, item in items.items()}
        meta = self._meta.to_json() | {"checksums": checksums}
        with self._told():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def wait(self) -> None:
        """Returns when everything is written."""
        with self._told():
            self._manager.wait_until_finished()

    def scored(self, step: int, score: float, *, write: bool) -> None:
        """What the best is chosen by, of a step that was saved; one process is to `write` it."""
        self.wait()
        self._scores[step] = score
        if write:
            path = _score_file(self._workdir, step)
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text(json.dumps({"score": score}) + "\n")
            temporary.replace(path)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise whatever they meet
            whole = saved_steps(self._workdir)
            last = f"that of step {whole[-1]} is whole" if whole else "there is none before it"
            why = str(error).partition("\n")[0]
            raise UserError(
                f"{self._workdir}: a checkpoint cannot be written ({why}); {last}: make room, then"
                " go on with --resume"
            ) from error

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        self._manager.close()


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Orbax asks it which checkpoints to keep when another one has been written."""

    def __init__(self, scores: Mapping[int, float]) -> None:
        self._scores = scores

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """True for each that stays."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        latest = sorted(steps)[-_KEPT_LATEST:]
        best = best_step({step: self._scores[step] for step in steps if step in self._scores})
        return [step in latest or step == best for step in steps]


def best_step(scores: Mapping[int, float]) -> int | None:
    """The step with the highest score, the later of equals."""
    return max(scores, key=lambda step: (scores[step], step), default=None)


def _split(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    variables = {name: fields.pop(name) for name in _VARIABLES}
    return variables, fields


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
        UserError: there is none.
    """
    folder = epath.Path(folder)
    if (folder / "meta").exists():
        return folder
    steps = saved_steps(folder)
    if not steps:
        raise UserError(
            f"{folder}: neither a run with a finished checkpoint nor a checkpoint; give the"
            " --workdir of a train.py that saved one, or what convert_weights.py wrote"
        )
    scores = {step: saved_score(folder, step) for step in steps}
    best = best_step({step: score for step, score in scores.items() if score is not None})
    return step_folder(folder, steps[-1] if best is None else best)


def saved_score(workdir: epath.PathLike, step: int) -> float | None:
    """The score of a checkpoint, None for none. Raises UserError where it cannot be read."""
    path = _score_file(workdir, step)
    if not path.exists():
        return None
    try:
        return float(read_json(path)["score"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        raise UserError(f"{path}: is no score; remove this file") from None


def _score_file(workdir: epath.PathLike, step: int) -> epath.Path:
    return step_folder(workdir, step) / "score.json"
