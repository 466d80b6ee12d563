"""Run a training from its first step to its last: steps, log, checkpoints, evaluations.

The order is fixed. After a step, log it if due. At the end of an epoch, log the epoch, save a
checkpoint and evaluate if due. Then, if a stop was requested, save and stop; otherwise take the
next batch. The log is therefore complete up to every checkpoint, and a resumed run first performs
the evaluation that is missing for the epoch of its last checkpoint.
"""

import contextlib
import dataclasses
import fnmatch
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from etils import epath
from jaxtyping import Array

from ddag_jax.config import Config, to_dict
from ddag_jax.data.loader import ImageSource, evaluation_split, training_batches, training_split
from ddag_jax.data.sampler import IdentitySampler, steps_per_epoch
from ddag_jax.datasets.dataset import check_settings
from ddag_jax.datasets.find import find_dataset
from ddag_jax.errors import UserError
from ddag_jax.evaluation.embed import Interrupted
from ddag_jax.evaluation.evaluator import Evaluator, while_training
from ddag_jax.evaluation.protocols import selection_figure
from ddag_jax.io.buckets import BucketError, check_bucket, is_bucket
from ddag_jax.io.files import write_text
from ddag_jax.io.progress import say
from ddag_jax.io.storable import check_storable
from ddag_jax.methods.base import HasWarnings, Method
from ddag_jax.methods.build import build_method
from ddag_jax.numerics import own_settings
from ddag_jax.parallel import (
    AXIS,
    Mesh,
    Step,
    as_first_process,
    device_mesh,
    is_first_process,
    map_train_step,
    on_all_devices,
    process_share,
    replicated_shapes,
    shard,
    wait_for_all,
)
from ddag_jax.report.ranked_lists import ranked_lists
from ddag_jax.report.target import is_report
from ddag_jax.runs.checkpoint import (
    Damaged,
    Meta,
    RunCheckpoints,
    StartedOtherwise,
    check_same_run,
    find_checkpoint,
    read_meta,
    restore_backbone,
    restore_state,
    saved_steps,
    step_folder,
)
from ddag_jax.runs.lock import NAME as LOCK
from ddag_jax.runs.lock import RunLock
from ddag_jax.runs.logs import RunLog, Split
from ddag_jax.runs.preemption import StopRequest
from ddag_jax.runs.trace import WARM_UP, Profile
from ddag_jax.training.build import (
    build_optimizer,
    build_schedule,
    build_train_step,
    for_devices,
    initial_state,
    nonfinite_limit,
)
from ddag_jax.training.flat import Form, state_forms
from ddag_jax.training.state import TrainState
from ddag_jax.training.step import Outcome

_RUN_FILES = (
    "checkpoints",
    "damaged_checkpoint_*",
    "evaluation*.json",
    "failed_step.json",
    "lock.json",
    ".lock.json.guard",
    "log.jsonl",
    "profile",
    "ranked_lists*.png",
    "report",
    "tensorboard",
    ".*.partial-*",
)
"""Glob patterns of all files that a run, or an evaluation of it, writes to its folder."""

_SHOWS_A_RUN = {"checkpoints", "lock.json", ".lock.json.guard", "log.jsonl"}
"""Of these, what no folder has by chance."""


@own_settings()
def train(
    config: Config,
    workdir: epath.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    init: epath.PathLike | None = None,
    profile: int = 0,
) -> int:
    """Train a configuration and write checkpoints and a log to `workdir`.

    All input is validated before `workdir` is changed. On SIGTERM or SIGINT the current step is
    finished and saved as a checkpoint, and the run ends.

    Args:
        config: the experiment.
        workdir: the run's folder. It must not exist unless `resume` or `overwrite` is set.
        resume: continue from the last intact checkpoint in `workdir`; start from step 0 if there
            is no checkpoint. Other files there are ignored.
        overwrite: remove the existing run, and nothing else in its folder, and start again.
        init: a checkpoint to initialise the backbone from, for example ImageNet weights.
        profile: number of steps to trace into `workdir/profile`, after a few warm-up steps; 0
            disables the trace.

    Returns:
        The exit code: 0, or 130 after SIGINT.

    Raises:
        UserError: `workdir` exists, holds a run of another configuration or other data, or is
            being written by another process; data or weights are missing or do not fit; the batch
            cannot be divided among the devices; visible images whose channels are to be changed are
            grey; the method does not take as many views; fewer steps remain than `profile` needs; a
            loss or gradient is not finite; a file cannot be written.
    """
    check_settings(find_dataset(config.data.dataset), config.data, config.evaluation)
    folder = epath.Path(workdir)
    check_storable(folder)
    _check_workdir(folder, resume, overwrite)
    mesh = device_mesh()
    config = for_devices(config, mesh.size)
    settings = config.training
    images, held_out = training_split(config.data, settings.seed)
    sampler = IdentitySampler(
        images.labels,
        images.infrared,
        identities_per_batch=settings.identities_per_batch,
        images_per_identity=settings.images_per_identity,
        seed=settings.seed,
    )
    per_epoch = settings.steps_per_epoch or steps_per_epoch(
        int((~images.infrared).sum()),
        int(images.infrared.sum()),
        settings.identities_per_batch,
        settings.images_per_identity,
    )
    if config.augment.visible_channels != "none":
        _check_colour(images, sampler)
    method = build_method(config.model, images.classes, AXIS)
    optimizer = build_optimizer(config, per_epoch)
    if held_out is None:  # as published: no held-out identities, so no checkpoint selection
        split: Split = "test"
        watched = evaluation_split(config.data)
    else:
        split, watched = "held_out", held_out
    step = map_train_step(
        build_train_step(config, method, optimizer, per_epoch, AXIS), mesh, settings.mapping
    )
    evaluator = Evaluator(while_training(config), method, mesh, watched)

    def start(key_data: Any, backbone: dict[str, Any]) -> TrainState:
        key = jax.random.wrap_key_data(key_data)
        return initial_state(config, method, optimizer, key, backbone)

    start = on_all_devices(start, mesh)
    # An argument: every seed uses the same program.
    key_data = np.asarray(jax.random.key_data(jax.random.key(settings.seed)))
    like = replicated_shapes(jax.eval_shape(start, key_data, {}), mesh)
    meta = Meta(config, images.classes, images.fingerprint)
    state: TrainState | None = None
    found = _Found()
    if resume:
        state, found = _last_whole_state(folder, meta, like)
    restored = None if state is None else int(state.step)
    backbone: dict[str, Any] = {}
    if state is None and init is not None:
        backbone = restore_backbone(find_checkpoint(init), like)
    first, total = restored or 0, settings.epochs * per_epoch
    if profile and first + WARM_UP + profile > total:
        raise UserError(
            f"--profile {profile}: {total - first} steps remain, of which the first"
            f" {WARM_UP} are not recorded; reduce the number, or train for more epochs"
        )
    for_step, for_reading = state_forms(mesh)
    state = for_step(start(key_data, backbone) if state is None else state)

    wait_for_all("before the workdir is touched")  # all processes have validated it
    with contextlib.ExitStack() as stack:
        notes, lock = found.notes, RunLock(folder)
        try:
            if is_first_process():
                notes = [*_take_workdir(folder, overwrite, found.damaged, lock, stack), *notes]
            wait_for_all("the workdir is there")
            log = RunLog(
                folder,
                restored,
                total_steps=total,
                images_per_step=settings.views
                * settings.identities_per_batch
                * settings.images_per_identity,
                silent=not is_first_process(),
                check=lock.check,
            )
            run = _Run(
                config=config,
                method=method,
                per_epoch=per_epoch,
                first=first,
                step=step,
                as_tree=for_reading,
                learning_rate=build_schedule(config, per_epoch),
                mesh=mesh,
                images=images,
                sampler=sampler,
                evaluator=evaluator,
                watched=watched,
                split=split,
                log=stack.enter_context(log),
                checkpoints=stack.enter_context(RunCheckpoints(folder, meta)),
                stop=stack.enter_context(StopRequest()),
                profile=stack.enter_context(Profile(folder / "profile", first, profile)),
            )
            if restored is None:
                log.hyper_parameters(to_dict(config))
                notes = [*notes, *(f"data: {note}" for note in images.notes)]
            for note in notes:
                run.note(note)
            return run.train(state, resume)
        except (OSError, BucketError) as error:
            raise UserError(
                f"{folder}: cannot be written ({error}); fix its permissions or free disk space,"
                " then resume with --resume, or name another --workdir"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """A run in progress: everything that its loop needs."""

    config: Config
    method: Method
    per_epoch: int
    first: int
    """Number of steps completed before this process started."""
    step: Step
    as_tree: Form
    """From the state that the step takes to the tree."""
    learning_rate: Callable[[int], Array | float]
    """Learning rate of the next step, given the number of completed steps."""
    mesh: Mesh
    images: ImageSource
    sampler: IdentitySampler
    evaluator: Evaluator
    watched: ImageSource
    """The images that the evaluator embeds."""
    split: Split
    log: RunLog
    checkpoints: RunCheckpoints
    stop: StopRequest
    profile: Profile
    warned: set[str] = dataclasses.field(default_factory=set)
    """Kinds of the method's warnings that are in the log."""

    @property
    def total(self) -> int:
        """Return the number of steps of the whole run."""
        return self.config.training.epochs * self.per_epoch

    def note(self, text: str) -> None:
        """Log a sentence before the first step."""
        self.log.note(self.first, self.first // self.per_epoch, text)

    def train(self, state: TrainState, resume: bool) -> int:
        """Train to the last step, or until a stop is requested, and return the exit code."""
        if 0 < self.first < self.total:
            self.note(f"going on after step {self.first} of {self.total}")
        if self.first and self.first % self.per_epoch == 0:
            self._evaluate(state, self.first)
        batches = training_batches(
            self.images,
            self.sampler,
            steps_per_epoch=self.per_epoch,
            first_step=self.first,
            last_step=self.total,
            **process_share(),
        )
        unread: list[tuple[int, Outcome]] = []
        for number in range(self.first + 1, self.total + 1):
            state, outcome = self.step(state, shard(next(batches), self.mesh))
            # Read the previous outcome while the device runs this step, so that it never idles.
            if unread and self._logged(unread[-1][0]):
                self._read(unread)
            unread.append((number, outcome))
            if self.profile.after(number, outcome):
                text = f"the trace of the last steps is in {self.log.folder / 'profile'}"
                self.log.note(number, (number - 1) // self.per_epoch, text)
            ends, stopping = number % self.per_epoch == 0, self.stop.after(number)
            if ends or stopping:
                self._read(unread)
                if ends:
                    self._log_epoch(state, number)
                self.log.sync()
                self.checkpoints.save(number, self.as_tree(state))
            if ends and not stopping:
                stopping = not self._evaluate(state, number)
            if stopping and number < self.total:
                self.checkpoints.wait()
                text = f"stopped after step {number} of {self.total}; go on with --resume"
                self.log.note(number, (number - 1) // self.per_epoch, text)
                return self.stop.exit_code
        if resume and self.first == self.total and is_first_process():
            say(f"finished already, after step {self.total}")
        return self.stop.exit_code

    def _logged(self, number: int) -> bool:
        return number == 1 or number % self.config.training.log_every == 0

    def _read(self, unread: list[tuple[int, Outcome]]) -> None:
        """Read the outcomes of these steps from the device.

        Log the last one if due.

        Raises:
            UserError: too many steps in a row were not finite.
        """
        number, outcome = unread[-1]
        limit = nonfinite_limit(self.config)
        if int(outcome.skipped_in_row) >= limit:  # never decreases once the limit is reached
            self._fail(*next(step for step in unread if int(step[1].skipped_in_row) >= limit))
        if self._logged(number):
            figures, epoch = self._figures(number, outcome), (number - 1) // self.per_epoch
            self.log.train(number, epoch, figures)
            if isinstance(self.method, HasWarnings):
                for kind, text in self.method.warnings(figures).items():
                    if kind not in self.warned:
                        self.warned.add(kind)
                        self.log.note(number, epoch, f"warning: {text}")
        unread.clear()

    def _figures(self, number: int, outcome: Outcome) -> dict[str, float]:
        figures = {name: float(value) for name, value in outcome.terms.items()}
        if skipped := int(outcome.skipped_in_row):
            figures["skipped_in_row"] = float(skipped)
        return {**figures, "learning_rate": float(self.learning_rate(number - 1))}

    def _log_epoch(self, state: TrainState, number: int) -> None:
        figures = self.method.epoch_figures(state.memory)
        self.log.epoch(number, number // self.per_epoch - 1, figures)

    def _evaluate(self, state: TrainState, number: int) -> bool:
        """Evaluate after an epoch if due; return False if a stop was requested meanwhile."""
        epoch = number // self.per_epoch - 1
        due = (epoch + 1) % self.config.training.eval_every == 0 or number == self.total
        if not due or self.log.last_evaluation == number:
            return True
        tree = self.as_tree(state)
        variables = {"params": tree.params, "batch_stats": tree.batch_stats}
        try:
            features = self.evaluator.embed(
                variables, progress=f"epoch {epoch}: embedding", interrupted=self.stop.asked_alone
            )
        except Interrupted:
            return False
        records = self.evaluator.score(features)
        if self.split == "held_out":
            figure = selection_figure(records, self.method.features[-1])
            self.checkpoints.scored(number, as_first_process(figure), write=is_first_process())
        self.log.evaluation(number, epoch, self.split, records)
        if is_first_process():
            picture = ranked_lists(
                features[self.method.features[-1]],
                self.evaluator.images,
                self.evaluator.searches[0],
                self.watched.images,
            )
            self.log.picture(number, f"{self.split}/ranked_lists", np.asarray(picture))
        self.log.sync()
        return True

    def _fail(self, number: int, outcome: Outcome) -> NoReturn:
        """Write `failed_step.json` and raise the error of a step that is not finite."""
        sample = self.sampler.sample(*divmod(number - 1, self.per_epoch))
        figures = self._figures(number, outcome)
        content = {
            "step": number,
            "epoch": (number - 1) // self.per_epoch,
            **{name: value if math.isfinite(value) else None for name, value in figures.items()},
            "visible": [self.images.names[i] for i in sample.visible.reshape(-1).tolist()],
            "infrared": [self.images.names[i] for i in sample.infrared.reshape(-1).tolist()],
        }
        path = self.log.folder / "failed_step.json"
        if is_first_process():
            write_text(path, json.dumps(content, indent=2) + "\n")
        broken = [name for name, value in content.items() if value is None]
        raise UserError(
            f"step {number}: {', '.join(broken) or 'a gradient'} is not finite; training has"
            f" diverged. {path} has the step's losses and images. The last checkpoint is intact:"
            " continue from it with a lower --optimizer.learning-rate in another --workdir"
            " (--init), or skip such steps with --training.on-nonfinite skip"
        )


@dataclasses.dataclass(frozen=True)
class _Found:
    """What else the search for a checkpoint to resume from found."""

    damaged: Sequence[int] = ()
    """Steps of the later, damaged checkpoints."""
    notes: list[str] = dataclasses.field(default_factory=list)


def _last_whole_state(
    folder: epath.Path, meta: Meta, like: TrainState
) -> tuple[TrainState | None, _Found]:
    """Restore the last checkpoint that is not damaged; None if the folder has no checkpoint.

    Raises:
        UserError: the checkpoint belongs to another run, or was started under other settings of
            JAX, or all checkpoints are damaged.
    """
    faults: dict[int, str] = {}
    for step in reversed(saved_steps(folder)):
        try:
            saved = read_meta(step_folder(folder, step), meta.config)
        except Damaged as error:
            faults[step] = str(error)
            continue
        check_same_run(saved, meta, folder)
        try:
            state = restore_state(step_folder(folder, step), like)
        except StartedOtherwise:
            raise
        except UserError as error:  # the run is the same, so its arrays should fit
            faults[step] = str(error)
            continue
        return state, _Found(list(faults), saved.notes)
    if faults:
        raise UserError(
            f"{folder}: all of its checkpoints are damaged; start again with --overwrite, or name"
            " another --workdir. " + " ".join(faults.values())
        )
    return None, _Found()


def _take_workdir(
    folder: epath.Path,
    overwrite: bool,
    damaged: Sequence[int],
    lock: RunLock,
    stack: contextlib.ExitStack,
) -> list[str]:
    """Create and lock the folder, remove an overwritten run, set damaged checkpoints aside.

    Returns:
        Notes for the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(lock)
    notes = [lock.note] if lock.note else []
    if overwrite:
        for path in _run_files(folder):
            if path.is_dir():
                path.rmtree()
            elif path.name != LOCK:
                path.unlink()
    for step in damaged:
        aside = folder / f"damaged_checkpoint_{step}"
        if aside.exists():
            aside.rmtree()
        step_folder(folder, step).rename(aside)
        notes.append(f"warning: the checkpoint of step {step} is damaged; it is now {aside}")
    return notes


def _check_colour(images: ImageSource, sampler: IdentitySampler) -> None:
    """Check that a visible image of the first batch has colours.

    Raises:
        UserError: none has.
    """
    visible = images.images(sampler.sample(0, 0).visible.reshape(-1))
    if (visible == visible[..., :1]).all():
        raise UserError(
            f"augment.visible_channels: all {len(visible)} visible images of the first batch are"
            f" grey ({images.folder}), so that there are no colours to change; set it to none"
        )


def _check_workdir(folder: epath.Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one of them")
    if is_bucket(folder):
        check_bucket(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; name another --workdir")
    if not (resume or overwrite):
        raise UserError(
            f"{folder}: exists already; resume with --resume, start again with --overwrite (which"
            " removes it), or name another --workdir"
        )
    present = {path.name for path in _run_files(folder)}
    if overwrite and present and not present & _SHOWS_A_RUN:
        raise UserError(
            f"{folder}: not a run's folder: it holds {min(present)}, which --overwrite would"
            " remove, and none of what every run writes; name another --workdir"
        )
    for name in ("checkpoints", "tensorboard"):
        if (folder / name).exists() and not (folder / name).is_dir():
            raise UserError(f"{folder / name}: is a file; move it, or name another --workdir")


def _run_files(folder: epath.Path) -> list[epath.Path]:
    """Return what a run may have written to its folder; others' files there are left alone."""
    return sorted(
        path
        for path in folder.iterdir()
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in _RUN_FILES)
        and not (path.name == "report" and not is_report(path))
    )
