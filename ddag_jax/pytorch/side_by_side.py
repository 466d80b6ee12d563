"""Run one batch through the reference and through our network; compare results and speed."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Int, UInt8

from ddag_jax.config import Config, DDAGConfig, TrainingConfig
from ddag_jax.data.augment import normalise
from ddag_jax.evaluation.embed import make_embed
from ddag_jax.methods.base import Modality, View, by_modality
from ddag_jax.methods.baseline import Baseline
from ddag_jax.methods.ddag.method import DDAG
from ddag_jax.numerics import own_settings
from ddag_jax.parallel import (
    AXIS,
    compiler_options,
    device_mesh,
    map_embed,
    map_train_step,
    replicate,
    shard,
)
from ddag_jax.pytorch.keys import to_state_dict, to_variables
from ddag_jax.pytorch.reference import Reference, to_numpy
from ddag_jax.training.build import build_optimizer, build_train_step
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.training.step import make_update
from ddag_jax.types import Array as AnyArray
from ddag_jax.types import Batch

BOUNDS = {
    "embedding": 1e-11,
    "training output": 1e-11,
    "loss": 1e-11,
    "running statistic": 1e-10,
    "gradient": 1e-7,
}
"""Bounds on relative differences in float64. Another order of summation alone gives 1e-13, and 1e-9
in gradients."""
GRADIENT_FLOOR = 1e-6  # relative to the largest norm: some gradients are zero up to rounding
_SECONDS, _RUNS = 5.0, 3  # minimum time and number of runs of each side


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference of one array between the reference and ours."""

    kind: str
    """A key of BOUNDS."""
    name: str
    relative: float
    """Norm of the difference over the reference's norm; inf if only one of them has the array."""

    @property
    def same(self) -> bool:
        """Whether the difference is within its bound; nan is not."""
        return self.relative <= BOUNDS[self.kind]


@dataclasses.dataclass(frozen=True)
class Speed:
    """Images per second in float32."""

    what: str
    theirs: float
    ours: float


def our_network(reference: Reference) -> tuple[DDAG | Baseline, dict[str, Any]]:
    """Return the same method of ours, and the reference's variables (on the host, in its dtype)."""
    config, classes = reference.config, reference.classes
    method = DDAG(config, classes) if isinstance(config, DDAGConfig) else Baseline(config, classes)
    return method, to_variables(reference.state_dict(), reference.mappings)


def _views(reference: Reference, batch: Batch) -> dict[str, Array]:
    """Return the normalised images of each view; "augmented" ones are the visible ones mirrored."""

    def rows(images: UInt8[AnyArray, "n m h w 3"]) -> Array:
        return normalise(jnp.asarray(images).reshape(-1, *images.shape[2:]))

    visible = rows(batch.visible)
    images = {
        "visible": visible,
        "augmented": visible[:, :, ::-1],
        "infrared": rows(batch.infrared),
    }
    return {view: images[view] for view in reference.views}


@own_settings()
def differences(reference: Reference, batch: Batch) -> list[Difference]:
    """Compare embeddings, training outputs, losses, statistics and gradients in float64."""
    reference.to(torch.float64)
    with jax.enable_x64():
        return _differences(reference, _views(reference, batch), _labels(batch))


def _differences(
    reference: Reference, images: Mapping[str, Array], labels: Int[np.ndarray, " b"]
) -> list[Difference]:
    method, variables = our_network(reference)
    found = []

    def compare(
        kind: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], floor: float = 0.0
    ) -> None:
        for name in dict.fromkeys((*theirs, *ours)):
            relative = np.inf
            if name in theirs and name in ours:
                relative = _relative(np.asarray(theirs[name]), np.asarray(ours[name]), floor)
            found.append(Difference(kind, name, relative))

    embed = jax.jit(method.embed, static_argnums=2)
    modalities: tuple[Modality, ...] = ("visible", "infrared")
    for modality in modalities:
        theirs = reference.embed(np.asarray(images[modality]), modality)
        features = embed(variables, images[modality], modality)
        compare(
            "embedding",
            {f"{modality}/{name}": feature for name, feature in theirs.items()},
            {f"{modality}/{name}": feature for name, feature in features.items()},
        )

    views = tuple(
        View("infrared" if name == "infrared" else "visible", one, jnp.asarray(labels))
        for name, one in images.items()
    )
    step = reference.training_step(
        {name: np.asarray(one) for name, one in images.items()}, np.tile(labels, len(views))
    )
    outputs, losses = map(to_numpy, step())
    config = Config(model=reference.config)
    optimizer = build_optimizer(config, steps_per_epoch=1)
    update = make_update(method, optimizer, axis_name=None, steps_per_epoch=1, nonfinite_limit=1)

    @functools.partial(jax.jit, compiler_options=compiler_options(device_mesh()))
    def our_step(state: TrainState, views: tuple[View, ...]) -> tuple[Any, ...]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        output = training_output(method, variables, views)
        return output, *update(state, views, None)

    state = new_state(variables, optimizer, method.memory(), jax.random.key(0))
    output, state, outcome, gradients = our_step(state, views)
    compare("training output", outputs, dict(zip(reference.outputs, output, strict=True)))
    compare("loss", losses, {name: outcome.terms[name] for name in losses})
    mappings = reference.mappings
    ours_statistics = to_state_dict({"batch_stats": state.batch_stats}, mappings)
    after = reference.state_dict()
    compare("running statistic", {key: after[key] for key in ours_statistics}, ours_statistics)
    theirs_gradients = reference.gradients()
    largest = max(float(np.linalg.norm(gradient)) for gradient in theirs_gradients.values())
    ours_gradients = to_state_dict({"params": gradients}, mappings)
    compare("gradient", theirs_gradients, ours_gradients, GRADIENT_FLOOR * largest)
    return found


def training_output(
    method: DDAG | Baseline, variables: dict[str, Any], views: tuple[View, ...]
) -> tuple[Array, ...]:
    """Return what the network gives in training mode, without dropout."""
    images = by_modality(views)
    rows: tuple[Any, ...] = (images.visible, images.infrared)
    if isinstance(method, DDAG):
        rows = (*rows, images.labels, None)
    output: tuple[Array, ...] = method.network.apply(variables, *rows, mutable=["batch_stats"])[0]
    return output


def _relative(theirs: np.ndarray, ours: np.ndarray, floor: float) -> float:
    if theirs.shape != ours.shape:
        return np.inf
    difference, size = np.linalg.norm(ours - theirs), max(float(np.linalg.norm(theirs)), floor)
    if difference == 0:
        return 0.0
    return float(difference / size) if size else np.inf


@own_settings()
def speeds(reference: Reference, batch: Batch) -> list[Speed]:
    """Measure training steps and embeddings of both in float32, each on one device.

    A step is forward, losses, backward and optimiser; ours also augments and normalises, which the
    reference does in its loader.
    """
    reference.to(torch.float32)
    method, variables = our_network(reference)
    images = {name: np.asarray(one) for name, one in _views(reference, batch).items()}
    labels = np.tile(_labels(batch), len(images))
    mesh = device_mesh(list(device_mesh().devices.flat)[:1])

    step = reference.training_step(images, labels)
    optimiser = reference.optimiser()

    def their_training() -> None:
        step()
        optimiser.step()
        reference.wait()

    def their_embedding() -> None:
        reference.embed(images["visible"], "visible")

    embed, on_device = map_embed(make_embed(method, flip=False), mesh), replicate(variables, mesh)
    pixels = np.asarray(batch.visible).reshape(-1, *batch.visible.shape[2:])

    def our_embedding() -> None:
        jax.device_get(embed(on_device, shard(pixels, mesh), "visible"))

    # Embeddings first: training changes the weights, by much if the batch is small.
    count = len(images["visible"])
    embedding = _speed("embedding", count, their_embedding, our_embedding)
    views: Any = len(images)
    whole = Config(model=reference.config, training=TrainingConfig(views=views))
    optimizer = build_optimizer(whole, steps_per_epoch=1)
    over_mesh = dataclasses.replace(method, axis_name=AXIS)
    our_step = map_train_step(build_train_step(whole, over_mesh, optimizer, 1, AXIS), mesh)
    state = replicate(new_state(variables, optimizer, method.memory(), jax.random.key(0)), mesh)

    def our_training() -> None:
        nonlocal state
        state, outcome = our_step(state, shard(batch, mesh))
        jax.block_until_ready((state, outcome))

    training = _speed("training", len(labels), their_training, our_training)
    return [training, embedding]


def devices(reference: Reference) -> str:
    """Return a line that names versions and devices of both."""
    ours = device_mesh().devices.flat[0]
    return f"PyTorch {torch.__version__} on {reference.device}, JAX {jax.__version__} on {ours}"


def _speed(what: str, images: int, theirs: Callable[[], None], ours: Callable[[], None]) -> Speed:
    """Take the best of several runs of each side in turns, so that other load slows both alike."""
    times: dict[Callable[[], None], list[float]] = {theirs: [], ours: []}
    for run in times:
        run()  # warms up and compiles
    while any(len(t) < _RUNS or sum(t) < _SECONDS for t in times.values()):
        for run, seconds in times.items():
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return Speed(what, images / min(times[theirs]), images / min(times[ours]))


def _labels(batch: Batch) -> Int[np.ndarray, " b"]:
    """Return the labels of the images of a view."""
    return np.repeat(np.asarray(batch.labels), batch.visible.shape[1])


def random_batch(n: int, m: int, height: int, width: int) -> Batch:
    """Return uniform noise, the same on each call."""
    draw = np.random.default_rng(0)
    shape = (n, m, height, width, 3)

    def noise() -> UInt8[np.ndarray, "n m h w 3"]:
        return draw.integers(0, 256, shape, np.uint8)

    return Batch(noise(), noise(), np.arange(n, dtype=np.int32))
