"""A network, a batch and an optimiser small enough to compile in seconds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from ddag_jax.methods.ddag.model import DDAG
from ddag_jax.training.optimizer import sgd
from ddag_jax.types import Batch

CLASSES, HEIGHT, WIDTH = 10, 32, 16


def network(dtype: DTypeLike = jnp.float32, **options: Any) -> DDAG:
    """ResNet-18 at an eighth of its width, two parts, two heads."""
    settings = {
        "classes": CLASSES,
        "backbone": "resnet18",
        "width": 8,
        "parts": 2,
        "graph_heads": 2,
        "graph_head_dim": 8,
    }
    return DDAG(**(settings | options), dtype=dtype)


def shapes(model: DDAG) -> dict:
    """Shapes and dtypes of the variables, without computing them."""
    single = model.clone(axis_name=None)
    image = jax.ShapeDtypeStruct((1, HEIGHT, WIDTH, 3), model.dtype)
    return jax.eval_shape(
        lambda image: single.init(jax.random.key(0), image, image, jnp.zeros(2, jnp.int32), None),
        image,
    )


def random_variables(model: DDAG, seed: int = 0) -> dict:
    """Variables of the model's shapes and dtypes that let every layer show; NumPy draws them,
    since compiling JAX's draws takes longer than a test should."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        elif name in ("bias", "mean"):
            values = rng.normal(0, 0.1, leaf.shape)
        else:
            values = rng.normal(0, np.prod(leaf.shape[:-1], initial=1) ** -0.5, leaf.shape)
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes(model))


def optimizer() -> optax.GradientTransformation:
    """The paper's, at a constant rate."""
    return sgd(lambda _: 0.005, backbone_scale=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


def batch(n: int = 8, m: int = 2, seed: int = 0) -> Batch:
    """`n` identities of `m` images in each modality: an identity's coarse pattern and noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 192, (n, 1, 4, 2, 3))
    pattern = coarse.repeat(HEIGHT // 4, axis=2).repeat(WIDTH // 2, axis=3)
    noise = rng.integers(0, 64, (2, n, m, HEIGHT, WIDTH, 3))
    visible, infrared = (pattern + noise).astype(np.uint8)
    return Batch(visible, infrared, rng.permutation(CLASSES)[:n].astype(np.int32))
