"""Write and read checkpoints. The only file that imports orbax.

A checkpoint is a folder with two or three items, written atomically:

``variables``  parameters and running statistics, sufficient for evaluation
``progress``   the rest of the train state; in a run's checkpoints only
``meta``       JSON metadata: version, resolved configuration, number of classes, fingerprint of the
               dataset (for a converted ImageNet backbone only its name), and checksums of the
               contents of the other items

A run stores its checkpoints in ``RUN/checkpoints/STEP``; a converted checkpoint is a single such
folder. The checkpoint of an evaluated step also contains its score, in ``score.json``.

A folder in a bucket cannot be renamed at once. There a checkpoint is complete when orbax has
written ``commit_success.txt`` into it, the last of its objects.
"""

import contextlib
import dataclasses
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

import ddag_jax
from ddag_jax.config import METHODS, Config, differences, from_dict, method_name, to_dict
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import BucketError, absolute, check_scheme, is_bucket
from ddag_jax.io.files import read_json, write_text
from ddag_jax.io.storable import check_storable
from ddag_jax.models.two_stream import BACKBONE
from ddag_jax.training.state import TrainState

FORMAT = 2
"""Version of the format of a checkpoint and its metadata; see docs/design.md.

1: version 0.1.0. DDAG alone; `progress` holds the fields of its memory beside the others.
2: names its method; `progress` holds the method's memory as one tree.
"""

_KEPT_LATEST = 2
# What tensorstore calls the faults of a bucket that say nothing about what is in it.
_OUT_OF_REACH = (
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
)
_MARK = "commit_success.txt"  # orbax's name
_VARIABLES = ("params", "batch_stats")
_RBG = (4,)
"""Shape of a key of JAX's other random generators."""
# Orbax writes a replicated array in slices, one per device, and compiles a program for each shape
# of a slice: on 8 devices this took 10 s of the first checkpoint of a small network and 30 s of
# ResNet-50's. Slicing pays for large arrays only.
_LEAST_SLICE = 1 << 20  # bytes
# Fields that do not affect the result of a run; a resumed run may change them.
_FREE_ON_RESUME = (
    "data.dir",
    "data.cache",
    "training.mapping",
    "training.log_every",
    "evaluation.batch_size",
)


def _register_array_handler() -> None:
    """Make orbax write arrays smaller than `_LEAST_SLICE` from one device."""
    # Orbax warns that a registered handler is overridden, which is the intention here.
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        ocp.type_handlers.register_type_handler(
            jax.Array,
            ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE),
            override=True,
        )
    finally:
        absl.logging.set_verbosity(verbosity)


_register_array_handler()


class Damaged(UserError):
    """A checkpoint is damaged: unreadable, incomplete or altered."""


class StartedOtherwise(UserError):
    """A run was started under settings of JAX that decide the numbers and are not ours."""


@dataclasses.dataclass(frozen=True)
class Meta:
    """Metadata of a checkpoint."""

    config: Config
    classes: int
    """Number of training identities: the width of the classifier."""
    data: str = ""
    """Fingerprint of the prepared dataset; empty for converted weights."""
    version: str = ddag_jax.__version__
    """Version of ddag_jax that wrote the checkpoint."""
    missing: tuple[str, ...] = ()
    """Configuration fields that affect the result and were not stored; they take their
    defaults."""

    def to_json(self) -> dict[str, Any]:
        """Return the metadata as a JSON object."""
        return {
            "format": FORMAT,
            "version": self.version,
            "method": method_name(self.config.model),
            "config": to_dict(self.config),
            "classes": self.classes,
            "data": self.data,
        }

    @property
    def notes(self) -> list[str]:
        """Return a sentence about the missing fields; an empty list if none is missing."""
        if not self.missing:
            return []
        names = ", ".join(self.missing)
        return [f"stored by version {self.version} without {names}: the defaults are taken"]


def meta_from_json(where: epath.PathLike, stored: Any, own: Config | None = None) -> Meta:
    """Return the metadata stored by `Meta.to_json` of this version or an earlier one.

    Args:
        where: file or folder it was read from, for messages.
        stored: the JSON object.
        own: a configuration that provides a user-defined method or dataset which the stored
            configuration names. Code is never loaded because a checkpoint names it.

    Raises:
        Damaged: the object is not valid metadata.
        UserError: it was written by a later version, or names a method that `own` does not
            provide.
    """
    try:
        version, number = str(stored["version"]), int(stored.get("format", 1))
        written = f"{where}: was written by ddag_jax {version[:20]}"
        if number > FORMAT:  # before the rest, which may be anything
            raise UserError(
                f"{written} in format {number}; this version ({ddag_jax.__version__}) reads formats"
                f" up to {FORMAT}: update it"
            )
        classes, data = int(stored["classes"]), str(stored["data"])
        values = {name: dict(section) for name, section in stored["config"].items()}
        if number == 1:  # of 0.1.0: DDAG alone, its losses in a section of their own
            values["model"] |= values.pop("loss")
        method = "ddag" if number == 1 else str(stored["method"])
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Damaged(
            f"{where}: not a description of a checkpoint that this version"
            f" ({ddag_jax.__version__}) can read: {error!r}"
        ) from None
    model = METHODS.get(method)
    if model is None and own is not None and method_name(own.model) == method:
        model = type(own.model)
    if model is None:
        raise UserError(
            f"{where}: was trained with {method[:80]}, a user-defined method; name the"
            " configuration file that defines it with --config FILE"
        )
    try:
        config, missing = from_dict(values, model, own)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{written}; this version ({ddag_jax.__version__}) cannot take its configuration"
            f" ({error}): use the version that wrote it"
        ) from None
    missing = [name for name in missing if name not in _FREE_ON_RESUME]
    return Meta(config, classes, data, version, tuple(missing))


def read_meta(folder: epath.PathLike, own: Config | None = None) -> Meta:
    """Return the metadata of the checkpoint in `folder`.

    Raises:
        Damaged: the metadata cannot be read.
        UserError: see `meta_from_json`; or the checkpoint holds a backbone only.
    """
    stored = _stored_meta(folder)
    if "backbone" in stored:
        raise UserError(
            f"{folder}: holds a {str(stored['backbone'])[:40]} backbone without heads, which is"
            " only to start a training from (train.py --init)"
        )
    return meta_from_json(folder, stored, own)


def _stored_meta(folder: epath.PathLike) -> dict[str, Any]:
    try:
        stored = read_json(epath.Path(folder) / "meta" / "metadata")
        if not isinstance(stored, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise Damaged(
            f"{folder}: not a checkpoint that this version ({ddag_jax.__version__}) can read:"
            f" {error}"
        ) from None
    return stored


def restore_variables(folder: epath.PathLike, like: Any) -> Any:
    """Restore parameters and running statistics of a checkpoint onto devices.

    Args:
        folder: the checkpoint.
        like: tree of `jax.ShapeDtypeStruct` with shardings.

    Raises:
        Damaged: the checkpoint is damaged.
        UserError: its variables differ from `like` in name or shape; the message lists them.
    """
    path = _absolute(folder) / "variables"
    try:
        return _restore(_absolute(folder), "variables", like)
    except Damaged:  # float64 that was read as float32 has another checksum
        if not _is_float64(path, like):
            raise
    print(f"note: {folder}: is in float64 (JAX_ENABLE_X64), rounded to float32", file=sys.stderr)
    found = read_variables(folder)
    _compare(path, found, like)
    return jax.tree.map(
        lambda want, one: jax.device_put(one.astype(want.dtype), want.sharding), like, found
    )


def _is_float64(folder: epath.Path, like: Any) -> bool:
    """Return whether an item is in float64 and `like` is not: of a run under JAX_ENABLE_X64, which
    versions up to 0.1.0 obeyed."""

    def floating(tree: Any) -> set[str]:
        return {str(x.dtype) for _, x in _named(tree) if str(x.dtype).startswith("float")}

    try:
        stored = floating(ocp.StandardCheckpointHandler().metadata(folder).tree)
    except Exception:  # it is damaged, which is noticed when it is read
        return False
    return stored == {"float64"} and "float64" not in floating(like)


def read_variables(folder: epath.PathLike) -> dict[str, Any]:
    """Read parameters and running statistics of a checkpoint into host memory.

    Returns:
        Nested dictionaries of NumPy arrays, independent of the devices that wrote them.

    Raises:
        Damaged: the checkpoint is damaged.
    """
    path = _absolute(folder) / "variables"
    handler = ocp.PyTreeCheckpointHandler()
    try:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree
        )
        found = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # orbax and tensorstore raise whatever they meet
        raise _unreadable(path, error) from None
    _check_content(_absolute(folder), "variables", found)
    return found


def restore_backbone(folder: epath.PathLike, like: TrainState) -> dict[str, Any]:
    """Read the backbone of a checkpoint as NumPy arrays.

    Args:
        folder: the checkpoint.
        like: a train state, possibly abstract, whose backbone has the required shapes.

    Returns:
        {"params": {BACKBONE: tree}, "batch_stats": {BACKBONE: tree}}.

    Raises:
        UserError: the shapes of the checkpoint's backbone differ; the message lists them.
    """
    path = _absolute(folder) / "variables"
    stored = read_variables(folder)
    wanted = {name: {BACKBONE: getattr(like, name).get(BACKBONE)} for name in _VARIABLES}
    if wanted["params"][BACKBONE] is None:
        raise UserError(
            f"{folder}: has a backbone to start from, but this method's network has no parameters"
            f" called {BACKBONE}; leave out --init"
        )
    found = {name: {BACKBONE: stored[name].get(BACKBONE, {})} for name in _VARIABLES}
    _compare(path, found, wanted)
    return found


def check_same_run(saved: Meta, now: Meta, workdir: epath.PathLike) -> None:
    """Check that a run may be resumed with the metadata `now`.

    Raises:
        UserError: configuration or data differ; the message shows the old and new values.
    """
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
            f"{workdir}: a run of another configuration, which cannot be resumed with this one: "
            + "; ".join(f"{name} was {old}, now {new}" for name, (old, new) in fields.items())
            + ". Give the same configuration, or another --workdir"
        )


def restore_state(folder: epath.PathLike, like: TrainState) -> TrainState:
    """Restore the complete train state from a run's checkpoint.

    Args:
        folder: the checkpoint.
        like: the abstract state, with shardings.

    Raises:
        Damaged: the checkpoint is damaged.
        StartedOtherwise: it is in float64, or has random numbers of another generator.
        UserError: the checkpoint belongs to another network.
    """
    variables, progress = _split(like)
    flat = int(_stored_meta(folder).get("format", 1)) == 1
    if flat:
        progress |= progress.pop("memory")
    try:
        variables = _restore(_absolute(folder), "variables", variables)
        progress = _restore(_absolute(folder), "progress", progress)
    except UserError:
        _check_settings(_absolute(folder), variables, like.key)
        raise
    if flat:
        progress["memory"] = {name: progress.pop(name) for name in like.memory}
    return like.replace(**variables, **progress)


def _check_settings(checkpoint: epath.Path, variables: Any, key: Any) -> None:
    """Raise StartedOtherwise if a run began under other settings, as far as its arrays show it."""
    name = "JAX_ENABLE_X64" if _is_float64(checkpoint / "variables", variables) else ""
    with contextlib.suppress(Exception):  # it is damaged, which is noticed when it is read
        stored = ocp.StandardCheckpointHandler().metadata(checkpoint / "progress").tree["key"]
        if tuple(stored.shape) == _RBG != tuple(key.shape):
            name = name or "JAX_DEFAULT_PRNG_IMPL"
    if name:
        raise StartedOtherwise(
            f"{checkpoint}: its run was started with another {name}, which this version"
            f" ({ddag_jax.__version__}) does not obey: it would go on with other numbers. It can be"
            " evaluated, and another run can start from its weights (--init)"
        )


def _restore(checkpoint: epath.Path, item: str, like: Any) -> Any:
    folder = checkpoint / item
    # Not a Checkpointer, which would look, and warn, for metadata of a whole checkpoint.
    handler = ocp.StandardCheckpointHandler()
    try:
        stored = handler.metadata(folder).tree
    except Exception as error:  # orbax and tensorstore raise whatever they meet
        raise _unreadable(folder, error) from None
    _compare(folder, stored, like)
    try:
        found = handler.restore(folder, args=ocp.args.StandardRestore(like))
    except Exception as error:
        raise _unreadable(folder, error) from None
    _check_content(checkpoint, item, found)
    return found


def variables_checksum(folder: epath.PathLike) -> int:
    """Return the stored checksum of a checkpoint's variables: equal for equal networks.

    Raises:
        UserError: it cannot be read.
    """
    return _stored_checksum(epath.Path(folder), "variables")


def _stored_checksum(checkpoint: epath.Path, item: str) -> int:
    try:
        return int(read_json(checkpoint / "meta" / "metadata")["checksums"][item])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(_damaged(checkpoint / "meta", f"no checksums: {error!r}")) from None


def _check_content(checkpoint: epath.Path, item: str, found: Any) -> None:
    """Raise Damaged if the checksum of an item differs from the stored one.

    Orbax and tensorstore do not detect every altered file.
    """
    if checksum(found) != _stored_checksum(checkpoint, item):
        raise Damaged(_damaged(checkpoint / item, "its content is not what was saved"))


def checksum(tree: Any) -> int:
    """Return the CRC-32 of the names, dtypes, shapes and values of a tree."""
    value = 0
    for name, array in sorted(_named(tree)):
        array = np.ascontiguousarray(array)
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return value


def _unreadable(folder: epath.Path, error: Exception) -> UserError | BucketError:
    """Return the error of an item that cannot be read: damaged, or in a bucket out of reach."""
    why = str(error).partition("\n")[0]
    if isinstance(error, BucketError):
        return error
    if is_bucket(folder) and any(word in str(error) for word in _OUT_OF_REACH):
        return BucketError(f"{folder}: cannot be read ({why})")
    return Damaged(_damaged(folder, why))


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
    """Return name and shape of every array; orbax stores attributes and indices as keys."""
    return {name: tuple(array.shape) for name, array in _named(tree)}


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    named, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    for path, array in named:
        if hasattr(array, "shape"):
            keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
            yield "/".join(map(str, keys)), array


def save_weights(folder: epath.PathLike, variables: Any, meta: dict[str, Any]) -> None:
    """Write a single checkpoint atomically to a folder that does not exist yet."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            _absolute(folder),
            ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                meta=ocp.args.JsonSave(meta | {"checksums": {"variables": checksum(variables)}}),
            ),
        )


class RunCheckpoints:
    """The checkpoints of one run: the last two, and the best one if evaluations select it.

    Checkpoints are written atomically in the background; the best one is never deleted. Leaving
    the context waits for pending writes.

    Every method raises `UserError` if a checkpoint cannot be written, for example because the disk
    is full. Earlier checkpoints are kept.
    """

    def __init__(self, workdir: epath.PathLike, meta: Meta) -> None:
        self._workdir = epath.Path(workdir)
        self._meta = meta
        self._scores = {
            step: score
            for step in saved_steps(workdir)
            if (score := saved_score(workdir, step)) is not None
        }
        with self._write_errors():
            self._manager = ocp.CheckpointManager(
                _absolute(workdir) / "checkpoints",
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_LatestAndBest(self._scores),
                    cleanup_tmp_directories=True,  # incomplete files of a killed process
                ),
            )

    def save(self, step: int, state: TrainState) -> None:
        """Save the state after `step` completed steps."""
        items = dict(zip(("variables", "progress"), _split(state), strict=True))
        checksums = {name: checksum(item) for name, item in items.items()}
        meta = self._meta.to_json() | {"checksums": checksums}
        with self._write_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def wait(self) -> None:
        """Wait until all pending checkpoints are written."""
        with self._write_errors():
            self._manager.wait_until_finished()

    def scored(self, step: int, score: float, *, write: bool) -> None:
        """Record the selection score of a saved step; one process must set `write`."""
        self.wait()
        self._scores[step] = score
        if write:
            path = _score_file(self._workdir, step)
            write_text(path, json.dumps({"score": score}) + "\n")

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turn an exception of orbax into a `UserError` that names the last intact checkpoint."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise whatever they meet
            whole = saved_steps(self._workdir)
            last = f"that of step {whole[-1]} is whole" if whole else "there is none before it"
            why = str(error).partition("\n")[0]
            remedy = "when that is fixed" if is_bucket(self._workdir) else "make room, then"
            raise UserError(
                f"{self._workdir}: a checkpoint cannot be written ({why}); {last}: {remedy} go on"
                " with --resume"
            ) from error

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        self._manager.close()


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Orbax preservation policy: keep the latest checkpoints and the best one."""

    def __init__(self, scores: Mapping[int, float]) -> None:
        self._scores = scores

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """Return for each checkpoint whether to keep it."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        latest = sorted(steps)[-_KEPT_LATEST:]
        best = best_step({step: self._scores[step] for step in steps if step in self._scores})
        return [step in latest or step == best for step in steps]


def best_step(scores: Mapping[int, float]) -> int | None:
    """Return the step with the highest score, the latest of equal ones; None if there is none."""
    return max(scores, key=lambda step: (scores[step], step), default=None)


def _split(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    variables = {name: fields.pop(name) for name in _VARIABLES}
    return variables, fields


def _absolute(path: epath.PathLike) -> epath.Path:
    """Return an absolute path, as orbax requires."""
    return epath.Path(absolute(path))


def saved_steps(workdir: epath.PathLike) -> list[int]:
    """Return the steps of a run's complete checkpoints in ascending order."""
    folder = epath.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name) for path in folder.iterdir() if path.name.isdigit() and _is_complete(path)
    )


def _is_complete(checkpoint: epath.Path) -> bool:
    """Return whether a checkpoint is complete; on a disk it has its name only then."""
    return not is_bucket(checkpoint) or (checkpoint / _MARK).exists()


def step_folder(workdir: epath.PathLike, step: int) -> epath.Path:
    """Return the folder of the checkpoint of a step."""
    return epath.Path(workdir) / "checkpoints" / str(step)


def find_checkpoint(folder: epath.PathLike) -> epath.Path:
    """Return the checkpoint to use for `folder`, which is a run or a checkpoint.

    Returns:
        `folder` itself if it is a checkpoint; otherwise the best checkpoint of the run, or its last
        one if no evaluation selected one.

    Raises:
        UserError: `folder` has no complete checkpoint, is an incomplete one, or none can be read
            there.
    """
    check_scheme(folder)
    folder = epath.Path(folder)
    if folder.exists():
        check_storable(folder)
    if (folder / "meta").exists():
        if not _is_complete(folder):
            raise UserError(
                f"{folder}: an incomplete checkpoint, which is being written or was left by a"
                " process that was ended; name another one"
            )
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
    """Return the score of a checkpoint, None if it has none.

    Raises:
        UserError: the score cannot be read.
    """
    path = _score_file(workdir, step)
    if not path.exists():
        return None
    try:
        return float(read_json(path)["score"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        raise UserError(f"{path}: not a valid score; remove this file") from None


def _score_file(workdir: epath.PathLike, step: int) -> epath.Path:
    return step_folder(workdir, step) / "score.json"
