"""Every field of the configuration that a part takes arrives there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.build import (
    build_embed,
    build_model,
    build_schedule,
    build_train_step,
    for_devices,
)
from ddag_jax.config import (
    AugmentConfig,
    Config,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from ddag_jax.data.augment import normalise
from ddag_jax.errors import UserError
from ddag_jax.methods.ddag.model import DDAG
from ddag_jax.types import Embeddings

CHANGED = ModelConfig(
    backbone="resnet18",
    width=16,
    part_attention=False,
    parts=5,
    part_aggregation="average",
    part_residual="plain",
    part_neck=False,
    graph_attention=False,
    graph_heads=7,
    graph_head_dim=24,
    graph_dropout=0.5,
    graph_neighbours=4,
    compute_dtype="bfloat16",
)


@pytest.mark.parametrize("settings", [ModelConfig(), CHANGED], ids=["default", "changed"])
def test_model(settings: ModelConfig) -> None:
    model = build_model(Config(model=settings), classes=17, axis_name="data")
    assert (model.classes, model.axis_name) == (17, "data")
    assert model.dtype == jnp.dtype(settings.compute_dtype)
    for field in dataclasses.fields(ModelConfig):
        if field.name != "compute_dtype":
            assert getattr(model, field.name) == getattr(settings, field.name), field.name
        if settings is CHANGED:
            assert getattr(CHANGED, field.name) != field.default, field.name


def test_the_models_own_defaults_are_the_configurations() -> None:
    """So that nobody who builds it by hand gets another network."""
    assert build_model(Config(), classes=17) == DDAG(17, dtype=jnp.dtype(jnp.float32))


def test_schedule() -> None:
    settings = OptimizerConfig(
        learning_rate=0.4, warmup_epochs=2, drop_epochs=(3,), drop_factor=0.5
    )
    schedule = build_schedule(Config(optimizer=settings), steps_per_epoch=3)
    rates = [float(schedule(step)) for step in (0, 2, 3, 8, 9)]
    np.testing.assert_allclose(rates, [0.2, 0.2, 0.4, 0.4, 0.2], rtol=1e-6)


@pytest.mark.parametrize("weight", [None, 0.5], ids=["dynamic", "constant"])
def test_train_step(weight: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(
        augment=AugmentConfig(padding=3, flip=False),
        loss=LossConfig(margin=0.7, graph_reduction="sum", graph_weight=weight),
    )
    monkeypatch.setattr("ddag_jax.build.make_train_step", lambda *_, **settings: settings)
    model = build_model(config, classes=17)
    assert build_train_step(config, model, None, steps_per_epoch=11) == {
        "margin": 0.7,
        "graph_reduction": "sum",
        "dynamic_weight": weight is None,
        "steps_per_epoch": 11,
        "nonfinite_limit": 1,
        "padding": 3,
        "flip": False,
    }


def test_optimizer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddag_jax import build

    monkeypatch.setattr(build, "sgd", lambda _, **settings: settings)
    settings = OptimizerConfig(backbone_scale=0.3, momentum=0.5, nesterov=False, weight_decay=0.01)
    assert build.build_optimizer(Config(optimizer=settings), steps_per_epoch=1) == {
        "backbone_scale": 0.3,
        "momentum": 0.5,
        "nesterov": False,
        "weight_decay": 0.01,
    }


def test_embed_normalises_bytes_to_the_models_dtype() -> None:
    class Seen(DDAG):
        """Gives back what it is fed."""

        def setup(self) -> None: ...

        def embed(self, images: jax.Array, modality: str) -> Embeddings:
            assert modality == "infrared"
            return Embeddings(images, None)

    images = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 3), dtype=np.uint8)
    seen = build_embed(Seen(3, dtype=jnp.bfloat16), flip=False)({}, jnp.array(images), "infrared")
    assert seen.global_feature.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        seen.global_feature, normalise(jnp.array(images), jnp.dtype(jnp.bfloat16))
    )


def test_the_batch_grows_with_the_devices() -> None:
    training = TrainingConfig(identities_per_device=2)
    for devices, identities in ((1, 2), (4, 8), (64, 128)):
        config = for_devices(Config(training=training), devices)
        assert config.training.identities_per_batch == identities
    with pytest.raises(UserError, match=r"training\.identities_per_device: 1 on one device"):
        for_devices(Config(training=TrainingConfig(identities_per_device=1)), 1)
    assert for_devices(Config(), 4) == Config()


@pytest.mark.parametrize(
    ("identities", "devices", "fitting"), [(6, 4, 4), (9, 8, 8), (3, 4, 4), (15, 2, 14)]
)
def test_identities_that_do_not_divide(identities: int, devices: int, fitting: int) -> None:
    config = Config(training=TrainingConfig(identities_per_batch=identities))
    with pytest.raises(UserError, match=r"training\.identities_per_batch") as error:
        for_devices(config, devices)
    message = str(error.value)
    assert f"{identities} does not divide over {devices} devices; take {fitting}," in message
    training = TrainingConfig(identities_per_batch=fitting)
    assert for_devices(Config(training=training), devices).training == training


@pytest.mark.parametrize(("identities", "images", "factor"), [(8, 4, 1), (64, 4, 8), (4, 2, 0.25)])
def test_linear_scaling(identities: int, images: int, factor: float) -> None:
    training = TrainingConfig(identities_per_batch=identities, images_per_identity=images)
    plain, scaled = (
        build_schedule(Config(training=training, optimizer=OptimizerConfig(linear_scaling=on)), 3)
        for on in (False, True)
    )
    for step in (0, 29, 40, 70):
        assert float(scaled(step)) == pytest.approx(factor * float(plain(step)), rel=1e-6)


def test_embed_averages_with_the_mirror_image() -> None:
    class Corner(DDAG):
        """Feature: the upper left pixel, of unit length."""

        def setup(self) -> None: ...

        def embed(self, images: jax.Array, modality: str) -> Embeddings:
            pixel = images[:, 0, 0]
            return Embeddings(pixel / jnp.linalg.norm(pixel, axis=1, keepdims=True), None)

    images = jnp.array(np.random.default_rng(0).integers(0, 256, (2, 4, 3, 3), dtype=np.uint8))
    plain, flipped = (build_embed(Corner(3), flip=flip) for flip in (False, True))
    one, other = plain({}, images, "visible"), plain({}, images[:, :, ::-1], "visible")
    mean = np.asarray(one.global_feature + other.global_feature)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    found = flipped({}, images, "visible")
    np.testing.assert_allclose(found.global_feature, expected, rtol=1e-5)
    assert found.part_feature is None
