"""From the configuration to the optimiser and the batch."""

import numpy as np
import pytest

from ddag_jax.config import Config, OptimizerConfig, TrainingConfig
from ddag_jax.errors import UserError
from ddag_jax.training.build import build_schedule, for_devices


def test_schedule() -> None:
    settings = OptimizerConfig(
        learning_rate=0.4, warmup_epochs=2, drop_epochs=(3,), drop_factor=0.5
    )
    schedule = build_schedule(Config(optimizer=settings), steps_per_epoch=3)
    rates = [float(schedule(step)) for step in (0, 2, 3, 8, 9)]
    np.testing.assert_allclose(rates, [0.2, 0.2, 0.4, 0.4, 0.2], rtol=1e-6)


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
