"""From a configuration to the optimiser, the train state and the step."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import optax
from jaxtyping import PRNGKeyArray

from ddag_jax.config import AugmentConfig, Channels, Config
from ddag_jax.data.augment import Change, adaptive_grey, erasing_of, exchange_channels, grey
from ddag_jax.errors import UserError
from ddag_jax.methods.base import Method
from ddag_jax.training.optimizer import Schedule, learning_rate_schedule, sgd
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.training.step import TrainStep, make_train_step

_PUBLISHED_BATCH = 8 * 4  # n * m: images of a modality, which the published learning rate is for


def for_devices(config: Config, devices: int) -> Config:
    """Return the configuration with the batch size that it has on this many devices.

    Raises:
        UserError: the batch does not divide over them.
    """
    training = config.training
    if training.identities_per_device is not None:
        identities = training.identities_per_device * devices
        if identities < 2:
            raise UserError(
                "training.identities_per_device: 1 on one device; the triplet loss needs at least 2"
                " identities in a batch"
            )
        training = dataclasses.replace(training, identities_per_batch=identities)
        return dataclasses.replace(config, training=training)
    if training.identities_per_batch % devices:
        fitting = max(training.identities_per_batch // devices, 1) * devices
        raise UserError(
            f"training.identities_per_batch: {training.identities_per_batch} does not divide over"
            f" {devices} devices; take {fitting}, or another multiple of {devices}"
        )
    return config


def build_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Return the learning rate at a step, of all parameters but the backbone's."""
    settings, training = config.optimizer, config.training
    rate = settings.learning_rate
    if settings.linear_scaling:
        batch = training.identities_per_batch * training.images_per_identity
        rate *= batch / _PUBLISHED_BATCH
    return learning_rate_schedule(
        rate,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=settings.warmup_epochs,
        drop_epochs=settings.drop_epochs,
        drop_factor=settings.drop_factor,
    )


def build_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return SGD with the configuration's schedule."""
    settings = config.optimizer
    return sgd(
        build_schedule(config, steps_per_epoch),
        backbone_scale=settings.backbone_scale,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def initial_state(
    config: Config,
    method: Method,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    backbone: Mapping[str, Any] | None = None,
) -> TrainState:
    """Return the state before the first step.

    Args:
        config: its image size decides the shapes.
        method: of the network.
        optimizer: of its parameters.
        key: of the parameters, and of the steps' random numbers.
        backbone: parameters and statistics to start from in place of drawn ones, {"params":
            {"two_stream": ...}, "batch_stats": {"two_stream": ...}}.
    """
    size = (config.data.image_height, config.data.image_width)
    variables = method.init(key, size)
    for name, given in (backbone or {}).items():
        variables[name] |= given
    return new_state(variables, optimizer, method.memory(), key)


def build_train_step(
    config: Config,
    method: Method,
    optimizer: optax.GradientTransformation,
    steps_per_epoch: int,
    axis_name: str | None,
) -> TrainStep:
    """Return the step for one device of the axis; the method is for the same axis.

    Raises:
        UserError: three views for a method without the attribute `third_view` = True.
    """
    settings = config.augment
    visible, infrared = (
        _change(kind, settings) for kind in (settings.visible_channels, settings.infrared_channels)
    )
    channels: tuple[Change | None, ...] = (visible, infrared)
    if config.training.views == 3:
        if not getattr(method, "third_view", False):
            raise UserError(
                f"training.views: 3, but {type(method).__name__} takes two, visible and infrared;"
                " set it to 2"
            )
        channels = (None, visible, infrared)
    return make_train_step(
        method,
        optimizer,
        axis_name=axis_name,
        steps_per_epoch=steps_per_epoch,
        nonfinite_limit=nonfinite_limit(config),
        padding=settings.padding,
        flip=settings.flip,
        erasing=erasing_of(settings),
        channels=channels,
    )


def _change(kind: Channels, settings: AugmentConfig) -> Change | None:
    """Return what a field of `augment` asks to do with the channels."""
    match kind:
        case "none":
            return None
        case "exchange":
            return exchange_channels
        case "adaptive-grey":
            return adaptive_grey
        case "grey":
            return functools.partial(grey, probability=settings.grey_probability)


def nonfinite_limit(config: Config) -> int:
    """Return how many consecutive steps that are not finite end a run."""
    training = config.training
    return 1 if training.on_nonfinite == "stop" else training.nonfinite_limit
