"""From a configuration to the model, the optimiser and the step: the one place that knows both
sides, since those take plain arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, UInt8

from ddag_jax.config import Config
from ddag_jax.data.augment import normalise
from ddag_jax.errors import UserError
from ddag_jax.methods.ddag.model import DDAG, unit
from ddag_jax.training.optimizer import learning_rate_schedule, sgd
from ddag_jax.training.step import Step, make_train_step
from ddag_jax.types import Embeddings

_PUBLISHED_BATCH = 8 * 4  # n * m: images of a modality, which the published learning rate is for


def for_devices(config: Config, devices: int) -> Config:
    """The configuration with the batch's size that this many devices give it.

    Raises:
        UserError: no batch of the configuration divides over them.
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


def build_model(config: Config, classes: int, axis_name: str | None = None) -> DDAG:
    """The network that the configuration describes, for `classes` training identities."""
    model = config.model
    return DDAG(
        classes=classes,
        backbone=model.backbone,
        width=model.width,
        part_attention=model.part_attention,
        parts=model.parts,
        part_aggregation=model.part_aggregation,
        part_residual=model.part_residual,
        part_neck=model.part_neck,
        graph_attention=model.graph_attention,
        graph_heads=model.graph_heads,
        graph_head_dim=model.graph_head_dim,
        graph_dropout=model.graph_dropout,
        graph_neighbours=model.graph_neighbours,
        dtype=jnp.dtype(model.compute_dtype),
        axis_name=axis_name,
    )


def build_schedule(config: Config, steps_per_epoch: int) -> Callable[[Array | int], Array | float]:
    """Learning rate of the heads at a step: an array for one, a float for an int."""
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
    """SGD with the configuration's schedule."""
    settings = config.optimizer
    return sgd(
        build_schedule(config, steps_per_epoch),
        backbone_scale=settings.backbone_scale,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def build_train_step(
    config: Config, model: DDAG, optimizer: optax.GradientTransformation, steps_per_epoch: int
) -> Step:
    """The step for one device of the model's axis."""
    return make_train_step(
        model,
        optimizer,
        margin=config.loss.margin,
        graph_reduction=config.loss.graph_reduction,
        dynamic_weight=config.loss.graph_weight is None,
        steps_per_epoch=steps_per_epoch,
        nonfinite_limit=nonfinite_limit(config),
        padding=config.augment.padding,
        flip=config.augment.flip,
    )


def nonfinite_limit(config: Config) -> int:
    """How many steps in a row, not finite, end a run."""
    training = config.training
    return 1 if training.on_nonfinite == "stop" else training.nonfinite_limit


def build_embed(
    model: DDAG, *, flip: bool
) -> Callable[[Any, UInt8[jax.Array, "b h w 3"], str], Embeddings]:
    """`embed(variables, uint8 images, modality)` for one device: normalised, in evaluation mode.

    With `flip`, the mean of each image's embedding and its mirror image's, of unit length again.
    """

    def embed(variables: Any, images: UInt8[jax.Array, "b h w 3"], modality: str) -> Embeddings:
        normalised = normalise(images, jnp.dtype(model.dtype))

        def one_way(images: jax.Array) -> Embeddings:
            return cast(Embeddings, model.apply(variables, images, modality, method="embed"))

        if not flip:
            return one_way(normalised)
        both = one_way(normalised), one_way(normalised[:, :, ::-1])
        return jax.tree.map(lambda plain, mirrored: unit(plain + mirrored), *both)

    return embed
