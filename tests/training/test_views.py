"""Two views or three: what reaches the method, on any number of devices."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.config import AugmentConfig, BaselineConfig, Config, TrainingConfig
from ddag_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD
from ddag_jax.errors import UserError
from ddag_jax.methods.baseline import Baseline
from ddag_jax.parallel import AXIS, device_mesh, map_train_step, replicate, shard
from ddag_jax.training.build import build_train_step
from ddag_jax.training.state import new_state
from ddag_jax.training.step import image_keys
from tests.models import tiny

pytestmark = pytest.mark.slow  # compiles a step for each number of devices

N, M = 4, 2
ERASING = {"erasing": 0.5, "erasing_fill": (50.0, 60.0, 70.0)}


@dataclasses.dataclass(frozen=True)
class Watch(Baseline):
    """A method that shows its input: as terms, by class, so that the devices' parts add up."""

    third_view: bool = True

    def loss(self, variables: Any, views: Any, memory: Any, keys: Any) -> Any:
        assert [view.modality for view in views[:-1]] == ["visible"] * (len(views) - 1)
        assert views[-1].modality == "infrared"

        def by_class(rows: jax.Array) -> jax.Array:
            """[v * n * m, ...] to [classes, v, m, ...], zeros for classes of other devices."""
            split = rows.reshape(len(views), -1, M, *rows.shape[1:]).swapaxes(0, 1)
            classes = views[0].labels[::M]
            empty = jnp.zeros((tiny.CLASSES, *split.shape[1:]))
            return empty.at[classes].set(split) * jax.lax.axis_size(AXIS)

        terms = {
            "images": by_class(jnp.concatenate([view.images for view in views])),
            "labels": by_class(jnp.concatenate([view.labels for view in views])),
            "draws": by_class(jax.vmap(jax.random.uniform)(keys)),
        }
        return variables["params"]["scale"], terms, {}

    def remember(self, memory: Any, terms: Any, counted: Any, epoch_ends: Any) -> tuple[()]:
        return ()  # without the baseline's check that a term is a scalar


def watch(**fields: bool) -> Watch:
    return Watch(BaselineConfig(), tiny.CLASSES, **fields)


@functools.cache
def seen(devices: int, views: int = 3, **augment: Any) -> dict[str, np.ndarray]:
    """What the method saw in step 5, [slot, view, m, ...]."""
    config = Config(
        augment=AugmentConfig(padding=3, **augment), training=TrainingConfig(views=views)
    )
    mesh, method, optimizer = device_mesh(jax.devices()[:devices]), watch(), tiny.optimizer()
    step = map_train_step(build_train_step(config, method, optimizer, 10, AXIS), mesh)
    state = new_state(
        {"params": {"scale": jnp.ones(())}, "batch_stats": {}}, optimizer, (), jax.random.key(1)
    )
    batch = tiny.batch(N, M)
    state = replicate(state.replace(step=jnp.array(5, jnp.int32)), mesh)
    _, outcome = step(state, shard(batch, mesh))
    terms = {
        name: np.asarray(term)[batch.labels]
        for name, term in outcome.terms.items()
        if name != "total"
    }
    np.testing.assert_array_equal(
        terms["labels"], np.broadcast_to(batch.labels[:, None, None], (N, views, M))
    )
    return terms


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_change_no_pixel(devices: int) -> None:
    """Nor a method's random numbers, with everything on."""
    everything = {
        **ERASING,
        "visible_channels": "exchange",
        "infrared_channels": "adaptive-grey",
    }
    one, many = (seen(count, **everything) for count in (1, devices))
    for name, term in one.items():
        np.testing.assert_array_equal(many[name], term, err_msg=name)


def test_the_third_view_is_the_visible_image_augmented_once_more() -> None:
    """V and I are as with two views, to the last bit."""
    two, three = seen(1, views=2), seen(1)
    for name in ("images", "draws"):
        np.testing.assert_array_equal(three[name][:, [0, 2]], two[name], err_msg=name)
    assert len(np.unique(three["draws"])) == 3 * N * M
    first, second, _ = three["images"].swapaxes(0, 1)
    # One pair of crops and flips in 98 is alike.
    assert (first != second).any((2, 3, 4)).mean() > 0.7
    pixels = [np.rint((v * IMAGENET_STD + IMAGENET_MEAN) * 255) for v in (first, second)]
    batch = tiny.batch(N, M)
    for view in pixels:
        inside = view[:, :, 8:24, 6:10]  # two crops of an image have these rows' colours in common
        for image, source in zip(
            inside.reshape(-1, 64, 3), batch.visible.reshape(-1, 512, 3), strict=True
        ):
            assert {*map(tuple, image)} <= {*map(tuple, source.astype(float))} | {(0.0, 0.0, 0.0)}


def test_a_method_has_a_key_for_each_image_in_the_views_order() -> None:
    """The second half of the image's key; the first is the augmentation's."""
    for views in (2, 3):
        keys = image_keys(jax.random.fold_in(jax.random.key(1), 5), 0, N, M, views)
        _, own = jax.vmap(jax.random.split, out_axes=1)(keys.reshape(-1))
        expected = jax.vmap(jax.random.uniform)(own).reshape(views, N, M).swapaxes(0, 1)
        np.testing.assert_array_equal(seen(1, views)["draws"], expected)


def same_channels(images: np.ndarray) -> np.ndarray:
    return (images == images[..., :1]).all((-3, -2, -1))


@pytest.mark.parametrize(
    ("views", "visible", "infrared", "changed"),
    [
        (2, "exchange", "none", [True, False]),
        (2, "none", "exchange", [False, True]),
        (3, "exchange", "none", [False, True, False]),
        (3, "none", "exchange", [False, False, True]),
        (3, "grey", "none", [False, True, False]),
    ],
)
def test_which_view_the_channels_are_of(
    views: int, visible: Any, infrared: Any, changed: list[bool]
) -> None:
    always = {"grey_probability": 1.0} if visible == "grey" else {}
    fields = {"visible_channels": visible, "infrared_channels": infrared, **always}
    found = seen(1, views, **fields)["images"]
    expected = np.broadcast_to(np.array(changed)[:, None], (N, views, M))
    np.testing.assert_array_equal(same_channels(found), expected)
    plain = seen(1, views)["images"]
    np.testing.assert_array_equal(found[~expected], plain[~expected])


def test_adaptive_grey_reaches_its_view() -> None:
    found = seen(1, infrared_channels="adaptive-grey")["images"]
    assert not same_channels(found[:, :2]).any()
    assert same_channels(found[:, 2]).mean() > 0.5  # 7 of 8


def test_every_view_is_erased_for_itself() -> None:
    """Before its channels are changed, after normalisation: by the fill as it is given."""
    plain, erased = seen(1), seen(1, **ERASING)
    mask = (erased["images"] != plain["images"]).any(-1)
    np.testing.assert_array_equal(
        erased["images"][mask], np.broadcast_to(ERASING["erasing_fill"], (mask.sum(), 3))
    )
    hit = mask.any((-2, -1))
    assert (hit.any((0, 2)) & ~hit.all((0, 2))).all()  # some of every view, not all
    masks = mask[hit].reshape(hit.sum(), -1)
    assert len(np.unique(masks, axis=0)) == len(masks)
    np.testing.assert_array_equal(erased["draws"], plain["draws"])
    exchanged = seen(1, **ERASING, visible_channels="exchange")["images"][:, 1]
    assert set(np.unique(exchanged[mask[:, 1]])) <= {50.0, 60.0, 70.0}


def test_a_key_is_that_of_slot_view_and_image() -> None:
    """V is view 0, I is 1, as in version 0.1.0, and V' is 2."""
    key = jax.random.key(3)
    keys = image_keys(key, 6, N, M, 3)
    for place, view in enumerate((0, 2, 1)):
        for slot, image in np.ndindex(N, M):
            expected = functools.reduce(jax.random.fold_in, (6 + slot, view, image), key)
            assert keys[place, slot, image] == expected
    assert (image_keys(key, 6, N, M) == keys[jnp.array([0, 2])]).all()


def test_three_views_need_a_method_that_takes_them() -> None:
    config = Config(training=TrainingConfig(views=3))
    with pytest.raises(UserError, match=r"training\.views: 3, but Watch takes two"):
        build_train_step(config, watch(third_view=False), tiny.optimizer(), 10, None)
