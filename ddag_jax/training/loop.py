"""Training from the first step to the last: the only place where things happen.

The order never varies. At the end of an epoch: log it, evaluate if that is due, save. Then the
next batch, the next step. So a checkpoint holds the state after a whole number of epochs, and the
log has everything up to it.
"""

import fnmatch
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from ddag_jax.build import (
    build_model,
    build_optimizer,
    build_schedule,
    build_train_step,
    for_devices,
)
from ddag_jax.checkpoint import (
    Meta,
    RunCheckpoints,
    check_same_run,
    find_checkpoint,
    read_meta,
    restore_backbone,
    saved_steps,
    step_folder,
)
from ddag_jax.config import Config
from ddag_jax.data.loader import evaluation_split, training_batches, training_split
from ddag_jax.data.sampler import IdentitySampler, steps_per_epoch
from ddag_jax.errors import InputError
from ddag_jax.evaluation.evaluator import Evaluator, reported_feature, while_training
from ddag_jax.evaluation.protocols import selection_figure
from ddag_jax.logs import RunLog, Split
from ddag_jax.losses import Losses
from ddag_jax.models.ddag import initialise
from ddag_jax.parallel import (
    AXIS,
    Mesh,
    as_first_process,
    device_mesh,
    is_first_process,
    map_train_step,
    process_share,
    replicate,
    replicated_shapes,
    shard,
    wait_for_all,
)
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.training.step import Step
from ddag_jax.typing import Batch

_RUN_FILES = ("checkpoints", "log.jsonl", "tensorboard", "evaluation*.json", "ranked_lists*.png")
"""What a run's folder may hold, as patterns."""


def train(
    config: Config,
    workdir: epath.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    init: epath.PathLike | None = None,
) -> None:
    """Trains as `config` says and leaves checkpoints and a log in `workdir`.

    Everything that can be wrong with the input is found before `workdir` is touched.

    Args:
        config: the experiment.
        workdir: the run's folder, which must not exist, unless one of the next two is given.
        resume: go on from the last checkpoint there; start where there is none.
        overwrite: remove the run that is there and start anew.
        init: a checkpoint whose backbone to start from (ImageNet weights, say).

    Raises:
        InputError: `workdir` exists, or holds a run of another configuration; data or weights are
            missing or do not fit; the batch does not divide over the devices; a loss is not finite.
    """
    folder = epath.Path(workdir)
    restored = _check_workdir(folder, resume, overwrite)
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
    meta = Meta(config, images.classes)
    if restored is not None:
        check_same_run(read_meta(step_folder(folder, restored)), meta, folder)

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

    def start() -> TrainState:
        variables = initialise(model, jax.random.key(settings.seed), *size)
        weight = config.loss.graph_weight
        return new_state(variables, optimizer, graph_weight=weight or 0.0, seed=settings.seed)

    state = None
    if restored is None:
        state = start()
        if init is not None:
            state = state.replace(**restore_backbone(find_checkpoint(init), state))
        state = replicate(state, mesh)

    total = settings.epochs * per_epoch
    wait_for_all("before the workdir is touched")  # what others found there still stands
    if is_first_process():
        _make_workdir(folder, overwrite)
    wait_for_all("the workdir is there")
    log = RunLog(
        folder,
        restored,
        total_steps=total,
        images_per_step=2 * settings.identities_per_batch * settings.images_per_identity,
        silent=not is_first_process(),
    )
    with log, RunCheckpoints(folder, meta) as checkpoints:
        if state is None:
            assert restored is not None
            state = checkpoints.restore(restored, replicated_shapes(jax.eval_shape(start), mesh))
        first = int(state.step)
        if resume and first == total:
            if is_first_process():
                print(f"{folder}: finished already, after step {total}")
        elif resume:
            log.note(first, first // per_epoch, f"going on after step {first} of {total}")
        batches = training_batches(
            images,
            sampler,
            steps_per_epoch=per_epoch,
            first_step=first,
            last_step=total,
            **process_share(),
        )
        for epoch in range(first // per_epoch, settings.epochs):
            state = _epoch(config, epoch, per_epoch, state, step, batches, mesh, log)
            done = (epoch + 1) * per_epoch
            score = None
            if (epoch + 1) % settings.eval_every == 0 or done == total:
                variables = {"params": state.params, "batch_stats": state.batch_stats}
                features = evaluator.embed(variables, progress=f"epoch {epoch}: embedding")
                records = evaluator.judge(features)
                log.evaluation(done, epoch, split, records)
                if split == "held_out":
                    figure = selection_figure(records, reported_feature(config))
                    score = as_first_process(figure)
            checkpoints.save(done, state, score)


def _epoch(
    config: Config,
    epoch: int,
    per_epoch: int,
    state: TrainState,
    step: Step,
    batches: Iterator[Batch],
    mesh: Mesh,
    log: RunLog,
) -> TrainState:
    """One epoch's steps and its log."""
    schedule = build_schedule(config, per_epoch)
    pending: tuple[int, Losses] | None = None

    def flush() -> None:
        nonlocal pending
        if pending is not None:
            number, losses = pending
            figures: dict[str, Any] = losses._asdict()
            figures["learning_rate"] = schedule(number - 1)
            log.train(number, epoch, figures)
            pending = None

    for number in range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1):
        state, losses = step(state, shard(next(batches), mesh))
        flush()  # only now, with the next step under way, so that the device does not wait
        if number == 1 or number % config.training.log_every == 0:
            pending = number, losses
    flush()
    log.epoch(
        number,
        epoch,
        {"loss_without_graph": state.epoch_loss, "next_graph_weight": state.graph_weight},
    )
    return state


def _make_workdir(folder: epath.Path, overwrite: bool) -> None:
    try:
        if overwrite and folder.exists():
            folder.rmtree()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error}); name another --workdir") from None


def _check_workdir(folder: epath.Path, resume: bool, overwrite: bool) -> int | None:
    """The step to resume after, if any."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other; give one of them")
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; name another --workdir")
    if not (resume or overwrite):
        raise InputError(
            f"{folder}: exists already; go on with --resume, start anew with --overwrite (which"
            " removes it), or name another --workdir"
        )
    strangers = sorted(
        path.name
        for path in folder.iterdir()
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in _RUN_FILES)
    )
    if strangers:
        raise InputError(
            f"{folder}: not a run's folder: it holds {strangers[0]}, which no run wrote; name"
            " another --workdir"
        )
    return max(saved_steps(folder), default=None) if resume else None
