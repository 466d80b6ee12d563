"""Training from the first step to the last: the only place where things happen.

The order never varies. After a step: log it if that is due. At the end of an epoch: log it, save,
evaluate if that is due. Then, if the run was asked to stop, save and stop; else the next batch, the
next step. So the log has everything up to any checkpoint, and a resumed run first makes up for an
evaluation that its last checkpoint's epoch still lacks.
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

from ddag_jax.build import (
    build_model,
    build_optimizer,
    build_schedule,
    build_train_step,
    for_devices,
    nonfinite_limit,
)
from ddag_jax.config import Config, to_dict
from ddag_jax.data.loader import ImageSource, evaluation_split, training_batches, training_split
from ddag_jax.data.sampler import IdentitySampler, steps_per_epoch
from ddag_jax.datasets.dataset import check_settings
from ddag_jax.datasets.find import find_dataset
from ddag_jax.errors import UserError
from ddag_jax.evaluation.embed import GaveUp
from ddag_jax.evaluation.evaluator import Evaluator, reported_feature, while_training
from ddag_jax.evaluation.protocols import selection_figure
from ddag_jax.io.progress import say
from ddag_jax.losses import Losses
from ddag_jax.methods.ddag.model import initialise
from ddag_jax.parallel import (
    AXIS,
    Mesh,
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
from ddag_jax.runs.checkpoint import (
    Meta,
    RunCheckpoints,
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
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.training.step import Step

_RUN_FILES = (
    "checkpoints",
    "damaged_checkpoint_*",
    "evaluation*.json",
    "failed_step.json*",
    "lock.json",
    ".lock.json.*",
    "log.jsonl",
    "log.jsonl.tmp",
    "profile",
    "ranked_lists*.png",
    "report",
    ".report.partial-*",
    "tensorboard",
)
"""What a run's folder may hold, as patterns."""


def train(
    config: Config,
    workdir: epath.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    init: epath.PathLike | None = None,
    profile: int = 0,
) -> int:
    """Trains as `config` says and leaves checkpoints and a log in `workdir`.

    Everything that can be wrong with the input is found before `workdir` is touched. SIGTERM and
    SIGINT end the run after the step under way, with a checkpoint of it.

    Args:
        config: the experiment.
        workdir: the run's folder, which must not exist, unless one of the next two is given.
        resume: go on from the last whole checkpoint there; start where there is none.
        overwrite: remove the run that is there and start anew.
        init: a checkpoint whose backbone to start from (ImageNet weights, say).
        profile: steps to record into `workdir/profile`, after a few to warm up; 0 for none.

    Returns:
        The exit code: 0, or 130 after SIGINT.

    Raises:
        UserError: `workdir` exists, or holds a run of another configuration or of other data, or
            one that is being written; data or weights are missing or do not fit; the batch does not
            divide over the devices; there are fewer steps than `profile` needs; a loss or gradient
            is not finite; something cannot be written.
    """
    check_settings(find_dataset(config.data.dataset), config.data, config.evaluation)
    folder = epath.Path(workdir)
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
    model = build_model(config, images.classes, AXIS)
    optimizer = build_optimizer(config, per_epoch)
    size = (config.data.image_height, config.data.image_width)
    if held_out is None:  # as published: no identity is held out, so nothing is chosen
        split: Split = "test"
        watched = evaluation_split(config.data)
    else:
        split, watched = "held_out", held_out
    step = map_train_step(
        build_train_step(config, model, optimizer, per_epoch), mesh, settings.mapping
    )
    evaluator = Evaluator(while_training(config), model, mesh, watched)

    def start(backbone: dict[str, Any]) -> TrainState:
        variables = initialise(model, jax.random.key(settings.seed), *size)
        for name, given in backbone.items():
            variables[name] |= given
        weight = config.loss.graph_weight
        return new_state(variables, optimizer, graph_weight=weight or 0.0, seed=settings.seed)

    start = on_all_devices(start, mesh)
    like = replicated_shapes(jax.eval_shape(start, {}), mesh)
    meta = Meta(config, images.classes, images.fingerprint)
    state: TrainState | None = None
    damaged: list[int] = []
    if resume:
        state, damaged = _last_whole_state(folder, meta, like)
    restored = None if state is None else int(state.step)
    backbone: dict[str, Any] = {}
    if state is None and init is not None:
        backbone = restore_backbone(find_checkpoint(init), like)
    first, total = restored or 0, settings.epochs * per_epoch
    if profile and first + WARM_UP + profile > total:
        raise UserError(
            f"--profile {profile}: there are {total - first} steps to go, of which the first"
            f" {WARM_UP} are not recorded; ask for fewer, or train longer"
        )
    if state is None:
        state = start(backbone)

    wait_for_all("before the workdir is touched")  # what others found there still stands
    with contextlib.ExitStack() as stack:
        notes = []
        try:
            if is_first_process():
                notes = _take_workdir(folder, overwrite, damaged, stack)
            wait_for_all("the workdir is there")
            log = RunLog(
                folder,
                restored,
                total_steps=total,
                images_per_step=2 * settings.identities_per_batch * settings.images_per_identity,
                silent=not is_first_process(),
            )
            run = _Run(
                config=config,
                per_epoch=per_epoch,
                first=first,
                step=step,
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
            for note in notes:
                run.note(note)
            return run.go_on(state, resume)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error}); mend it or make room, then go on with"
                " --resume, or name another --workdir"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """A run under way."""

    config: Config
    per_epoch: int
    first: int
    """Steps that were taken already."""
    step: Step
    learning_rate: Callable[[int], Array | float]
    """Of the step after so many."""
    mesh: Mesh
    images: ImageSource
    sampler: IdentitySampler
    evaluator: Evaluator
    watched: ImageSource
    """What the evaluator judges."""
    split: Split
    log: RunLog
    checkpoints: RunCheckpoints
    stop: StopRequest
    profile: Profile

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.config.training.epochs * self.per_epoch

    def note(self, text: str) -> None:
        """Logs a sentence before the first step."""
        self.log.note(self.first, self.first // self.per_epoch, text)

    def go_on(self, state: TrainState, resume: bool) -> int:
        """Steps to the end, or until asked to stop. Returns the exit code."""
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
        unread: list[tuple[int, Losses]] = []
        for number in range(self.first + 1, self.total + 1):
            state, losses = self.step(state, shard(next(batches), self.mesh))
            # Only now, with the next step under way, so that the device does not wait.
            if unread and self._logged(unread[-1][0]):
                self._read(unread)
            unread.append((number, losses))
            if self.profile.after(number, losses):
                text = f"the trace of the last steps is in {self.log.folder / 'profile'}"
                self.log.note(number, (number - 1) // self.per_epoch, text)
            ends, stopping = number % self.per_epoch == 0, self.stop.after(number)
            if ends or stopping:
                self._read(unread)
                if ends:
                    self._log_epoch(state, number)
                self.checkpoints.save(number, state)
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

    def _read(self, unread: list[tuple[int, Losses]]) -> None:
        """Looks at what the device gave for these steps: stops where they failed, logs the last one
        if that is due."""
        number, losses = unread[-1]
        limit = nonfinite_limit(self.config)
        if int(losses.skipped_in_row) >= limit:  # which only grows then
            self._fail(*next(step for step in unread if int(step[1].skipped_in_row) >= limit))
        if self._logged(number):
            self.log.train(number, (number - 1) // self.per_epoch, self._figures(number, losses))
        unread.clear()

    def _figures(self, number: int, losses: Losses) -> dict[str, float]:
        figures = {name: float(value) for name, value in losses._asdict().items()}
        if not figures["skipped_in_row"]:
            del figures["skipped_in_row"]
        return {**figures, "learning_rate": float(self.learning_rate(number - 1))}

    def _log_epoch(self, state: TrainState, number: int) -> None:
        self.log.epoch(
            number,
            number // self.per_epoch - 1,
            {"loss_without_graph": state.epoch_loss, "next_graph_weight": state.graph_weight},
        )

    def _evaluate(self, state: TrainState, number: int) -> bool:
        """Evaluates after an epoch if that is due; False where it was asked to stop meanwhile."""
        epoch = number // self.per_epoch - 1
        due = (epoch + 1) % self.config.training.eval_every == 0 or number == self.total
        if not due or self.log.last_evaluation == number:
            return True
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        try:
            features = self.evaluator.embed(
                variables, progress=f"epoch {epoch}: embedding", give_up=self.stop.asked_alone
            )
        except GaveUp:
            return False
        records = self.evaluator.judge(features)
        if self.split == "held_out":
            figure = selection_figure(records, reported_feature(self.config))
            self.checkpoints.scored(number, as_first_process(figure), write=is_first_process())
        self.log.evaluation(number, epoch, self.split, records)
        if is_first_process():
            picture = ranked_lists(
                features[reported_feature(self.config)],
                self.evaluator.images,
                self.evaluator.searches[0],
                self.watched.images,
            )
            self.log.picture(number, f"{self.split}/ranked_lists", np.asarray(picture))
        return True

    def _fail(self, number: int, losses: Losses) -> NoReturn:
        """Says which step was not finite, on which images."""
        sample = self.sampler.sample(*divmod(number - 1, self.per_epoch))
        figures = self._figures(number, losses)
        content = {
            "step": number,
            "epoch": (number - 1) // self.per_epoch,
            **{name: value if math.isfinite(value) else None for name, value in figures.items()},
            "visible": [self.images.names[i] for i in sample.visible.reshape(-1).tolist()],
            "infrared": [self.images.names[i] for i in sample.infrared.reshape(-1).tolist()],
        }
        path = self.log.folder / "failed_step.json"
        if is_first_process():
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text(json.dumps(content, indent=2) + "\n")
            temporary.replace(path)
        broken = [name for name, value in content.items() if value is None]
        raise UserError(
            f"step {number}: {', '.join(broken) or 'a gradient'} is not finite; training has"
            f" diverged. {path} has the step's losses and images. The last checkpoint is whole:"
            " go on from it with a lower --optimizer.learning-rate in another --workdir (--init),"
            " or skip such steps with --training.on-nonfinite skip"
        )


def _last_whole_state(
    folder: epath.Path, meta: Meta, like: TrainState
) -> tuple[TrainState | None, list[int]]:
    """The state of the last checkpoint that is as it was written, if there is any checkpoint, and
    the steps of those after it that are not.

    Raises:
        UserError: it is of another run, or none is whole.
    """
    faults: dict[int, str] = {}
    for found in reversed(saved_steps(folder)):
        try:
            saved = read_meta(step_folder(folder, found))
        except UserError as error:
            faults[found] = str(error)
            continue
        check_same_run(saved, meta, folder)
        try:
            return restore_state(step_folder(folder, found), like), list(faults)
        except UserError as error:  # the run is the same, so that no difference is meant
            faults[found] = str(error)
    if faults:
        raise UserError(
            f"{folder}: none of its checkpoints is whole; start anew with --overwrite, or name"
            " another --workdir. " + " ".join(faults.values())
        )
    return None, []


def _take_workdir(
    folder: epath.Path, overwrite: bool, damaged: Sequence[int], stack: contextlib.ExitStack
) -> list[str]:
    """Makes the folder this run's: its lock, room for the checkpoints to come. Returns what is
    worth a note."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = stack.enter_context(RunLock(folder))
    notes = [lock.note] if lock.note else []
    if overwrite:
        for path in folder.iterdir():
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


def _check_workdir(folder: epath.Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume and --overwrite contradict each other; give one of them")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; name another --workdir")
    if not (resume or overwrite):
        raise UserError(
            f"{folder}: exists already; go on with --resume, start anew with --overwrite (which"
            " removes it), or name another --workdir"
        )
    strangers = sorted(
        path.name
        for path in folder.iterdir()
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in _RUN_FILES)
    )
    if strangers:
        raise UserError(
            f"{folder}: not a run's folder: it holds {strangers[0]}, which no run wrote; name"
            " another --workdir"
        )
