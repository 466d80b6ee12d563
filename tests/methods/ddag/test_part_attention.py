"""IWPA: the default form against PyTorch, every form of Table 2 against its formula in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.methods.ddag.part_attention import PartAttention, part_weights
from tests.models import torch_modules
from tests.models.torch_modules import as_jax, assert_close, randomise, to_ours, to_torch

BATCH, HEIGHT, WIDTH, CHANNELS, PARTS = 4, 7, 2, 6, 3  # 3 parts do not divide 7 rows


def inputs() -> tuple[np.ndarray, ...]:
    """Feature map, pooled feature, its normalised form: unrelated, so that none is mistaken."""
    rng = np.random.default_rng(0)
    shapes = (BATCH, HEIGHT, WIDTH, CHANNELS), (BATCH, CHANNELS), (BATCH, CHANNELS)
    return tuple(rng.normal(size=shape) for shape in shapes)


def test_default_form_as_pytorch() -> None:
    """Output, running statistics, and the gradients of every parameter and input."""
    feature_map, pooled, normalised = inputs()
    theirs = randomise(torch_modules.PartAttention(CHANNELS, PARTS), 0)
    theirs.neck.bias.data.zero_()

    def arrays(gradients: bool) -> dict:
        get = lambda p: (p.grad if gradients else p.detach()).numpy().copy()  # noqa: E731
        linear = {
            name: {
                "kernel": get(getattr(theirs, name).weight)[:, :, 0, 0].T,
                "bias": get(getattr(theirs, name).bias),
            }
            for name in "uvz"
        }
        return {**linear, "gate": get(theirs.gate), "neck": {"scale": get(theirs.neck.weight)}}

    def stats() -> dict:
        mean, var = theirs.neck.running_mean, theirs.neck.running_var
        return {"neck": {"mean": mean.numpy().copy(), "var": var.numpy().copy()}}

    before = stats()
    torch_map = to_torch(feature_map).requires_grad_()
    torch_residual = to_torch(normalised).requires_grad_()
    y = theirs(torch_map, torch_residual)
    g = np.random.default_rng(1).normal(size=y.shape)
    y.backward(to_torch(g))

    @jax.jit
    def ours(params: dict, feature_map: jax.Array, normalised: jax.Array) -> tuple:
        iwpa = PartAttention(PARTS, dtype=jnp.float64)
        y, pull, changed = jax.vjp(
            lambda params, feature_map, normalised: iwpa.apply(
                {"params": params, "batch_stats": before},
                feature_map,
                jnp.asarray(pooled),
                normalised,
                True,
                mutable=["batch_stats"],
            ),
            params,
            feature_map,
            normalised,
            has_aux=True,
        )
        return y, changed["batch_stats"], *pull(jnp.asarray(g))

    with jax.enable_x64(True):
        got = ours(as_jax(arrays(False)), feature_map, normalised)
    expected = (
        to_ours(y),
        stats(),
        arrays(True),
        to_ours(torch_map.grad),
        to_ours(torch_residual.grad),
    )
    jax.tree.map(assert_close, got, expected)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_formula(
    params: dict,
    feature_map: np.ndarray,
    pooled: np.ndarray,
    normalised: np.ndarray,
    aggregation: str,
    residual: str,
    neck: bool,
) -> np.ndarray:
    """Eq. 2-5 an image at a time, with Table 2's changes."""
    features = []
    for image, own, own_normalised in zip(feature_map, pooled, normalised, strict=True):
        bins = [(i * HEIGHT // PARTS, -(-(i + 1) * HEIGHT // PARTS)) for i in range(PARTS)]
        stripes = np.stack([image[start:stop].mean((0, 1)) for start, stop in bins])
        u, v, z = (stripes @ params[k]["kernel"] + params[k]["bias"] for k in "uvz")
        refined = softmax(u @ v.T) @ z
        added = {"bn": own_normalised, "plain": own, "none": 0 * own}[residual]
        if aggregation == "concatenation":
            feature = np.concatenate([part + added for part in refined])
        elif aggregation == "average":
            feature = refined.mean(0) + added
        else:
            feature = softmax(params["gate"]) @ refined + added
        features.append(feature)
    x = np.stack(features)
    if neck:
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * params["neck"]["scale"]
    return x


@pytest.mark.parametrize(
    ("aggregation", "residual", "neck"),
    list(
        itertools.product(
            ["weighted", "average", "concatenation"], ["bn", "plain", "none"], [True, False]
        )
    ),
    ids=str,
)
def test_every_form_by_its_formula(aggregation: str, residual: str, neck: bool) -> None:
    module = PartAttention(PARTS, aggregation, residual, neck, jnp.float64)
    apply = jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))
    with jax.enable_x64(True):
        shapes = jax.eval_shape(
            lambda *arrays: module.init(jax.random.key(0), *arrays, True), *inputs()
        )
        rng = np.random.default_rng(1)
        variables = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)
        params = variables["params"]
        ours, _ = apply(variables, *inputs())
    assert ours.shape == (BATCH, CHANNELS * (PARTS if aggregation == "concatenation" else 1))
    assert ("gate" in params) == (aggregation == "weighted")
    assert ("neck" in params) == neck
    assert_close(ours, by_formula(params, *inputs(), aggregation, residual, neck))


def test_attention_is_unscaled_and_over_the_other_part() -> None:
    """u picks the row, v the column; in bfloat16 the softmax is float32 still."""
    u, v = (np.random.default_rng(i).normal(size=(2, 3, 64)) for i in range(2))
    expected = softmax(u @ v.transpose(0, 2, 1))
    with jax.enable_x64(True):
        assert_close(part_weights(jnp.asarray(u), jnp.asarray(v)), expected)
    half = part_weights(jnp.asarray(u, jnp.bfloat16), jnp.asarray(v, jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half.sum(-1), 1, rtol=1e-6)
