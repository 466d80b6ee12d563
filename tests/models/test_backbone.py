"""Stem, residual blocks and stages against PyTorch modules with the same weights, in float64."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ddag_jax.models.resnet import BasicBlock, Bottleneck, Stages
from ddag_jax.models.two_stream import Stem, TwoStream
from ddag_jax.pytorch.keys import stage_mappings, to_variables
from tests.models import torch_modules
from tests.models.torch_modules import (
    as_jax,
    assert_close,
    block_variables,
    gradient_variables,
    normal,
    randomise,
    to_ours,
    to_torch,
)


@functools.partial(jax.jit, static_argnums=0)
def train_and_evaluate(module: nn.Module, variables: dict, x: jax.Array, g: jax.Array) -> tuple:
    """Return output and running statistics of a training batch, gradients of parameters and input,
    and the output in evaluation mode with the new statistics."""
    stats = variables["batch_stats"]
    y, pull, changed = jax.vjp(
        lambda params, x: module.apply(
            {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
        ),
        variables["params"],
        x,
        has_aux=True,
    )
    dparams, dx = pull(g)
    evaluated = module.apply({"params": variables["params"], **changed}, x, False)
    return y, changed["batch_stats"], dparams, dx, evaluated


def compare(module: nn.Module, theirs: torch.nn.Module, inputs: int) -> None:
    """Compare both modules on maps of odd height and even width."""
    x = normal(0, 2, 9, 6, inputs)
    x_torch = to_torch(x).requires_grad_()
    variables = as_jax(block_variables(theirs))
    y = theirs(x_torch)
    g = normal(1, *to_ours(y).shape)
    y.backward(to_torch(g))
    stats = block_variables(theirs)["batch_stats"]
    with torch.no_grad():
        evaluated = theirs.eval()(x_torch)
    ours = train_and_evaluate(module, variables, x, g)
    expected = (
        to_ours(y),
        stats,
        gradient_variables(theirs),
        to_ours(x_torch.grad),
        to_ours(evaluated),
    )
    chex.assert_trees_all_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("inputs", "stride"), [(8, 1), (8, 2), (3, 1)], ids=["plain", "stride", "projection"]
)
@pytest.mark.parametrize("kind", ["BasicBlock", "Bottleneck"])
def test_block_as_pytorch(kind: str, inputs: int, stride: int) -> None:
    ours = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[kind]
    width = {"BasicBlock": 8, "Bottleneck": 2}[kind]
    theirs = randomise(getattr(torch_modules, kind)(inputs, width, stride), 0)
    with jax.enable_x64(True):
        compare(ours(width, stride, dtype=jnp.float64), theirs, inputs)


def test_stem_as_pytorch() -> None:
    with jax.enable_x64(True):
        compare(Stem(4, jnp.float64), randomise(torch_modules.Stem(4), 0), 3)


def test_stages_as_pytorch() -> None:
    """ResNet-18's four stages, weights mapped by the key table; the last keeps its resolution."""
    theirs = randomise(torch_modules.Stages(8), 0)
    state_dict = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    x = normal(0, 2, 12, 9, 8)
    with jax.enable_x64(True):
        variables = to_variables(state_dict, stage_mappings("resnet18", ""))
        variables = {kind: as_jax(tree["two_stream"]["shared"]) for kind, tree in variables.items()}
        ours, changed = jax.jit(
            lambda variables, x: Stages("resnet18", 8, jnp.float64).apply(
                variables, x, True, mutable=["batch_stats"]
            )
        )(variables, x)
    chex.assert_shape(ours, (2, 3, 3, 64))
    assert_close(ours, to_ours(theirs(to_torch(x))))
    state_dict = {key: value.numpy() for key, value in theirs.state_dict().items()}
    updated = to_variables(state_dict, stage_mappings("resnet18", ""))["batch_stats"]
    jax.tree.map(assert_close, changed["batch_stats"], updated["two_stream"]["shared"])


@pytest.mark.parametrize(("backbone", "channels"), [("resnet18", 512), ("resnet50", 2048)])
def test_last_map_is_a_sixteenth(backbone: str, channels: int) -> None:
    """288 x 144 pixels become 18 x 9 cells: the last stage has stride 1."""
    model = TwoStream(backbone)
    x = jax.ShapeDtypeStruct((1, 288, 144, 3), jnp.float32)
    output, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, x, True), x)
    chex.assert_shape(output, (2, 18, 9, channels))


def test_each_modality_has_its_own_stem() -> None:
    """Visible images come first; images of one modality pass through its stem only."""
    model = TwoStream("resnet18", 8)
    x = normal(0, 1, 32, 16, 3).astype(np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, x, False), x)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: rng.uniform(size=s.shape).astype(s.dtype), shapes)
    both, *alone = jax.jit(
        lambda variables, x: (
            model.apply(variables, x, x, False),
            model.apply(variables, x, "visible", method="one_stream"),
            model.apply(variables, x, "infrared", method="one_stream"),
        )
    )(variables, x)
    np.testing.assert_allclose(both, np.concatenate(alone), rtol=1e-4)
    assert not np.allclose(*alone, rtol=0.01)
