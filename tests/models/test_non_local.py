"""The non-local block against PyTorch's modules, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from ddag_jax.models.non_local import NonLocal
from ddag_jax.models.resnet import Stages
from tests.models.torch_modules import assert_close, normal, to_ours, to_torch


class TorchNonLocal(nn.Module):
    """With the whole matrix of attention."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, width, 1) for _ in range(3))
        self.w, self.bn = nn.Conv2d(width, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        attention = theta.mT @ phi / theta.shape[2]  # [b, n, n]
        y = (attention @ g.mT).mT.reshape(len(x), -1, *x.shape[2:])
        return self.bn(self.w(y)) + x


def variables_of(module: TorchNonLocal) -> dict:
    def array(tensor: torch.Tensor) -> jax.Array:
        return jnp.asarray(tensor.detach().numpy())

    params = {
        name: {"kernel": array(layer.weight)[:, :, 0, 0].T, "bias": array(layer.bias)}
        for name, layer in module.named_children()
        if isinstance(layer, nn.Conv2d)
    }
    params["bn"] = {"scale": array(module.bn.weight), "bias": array(module.bn.bias)}
    statistics = {"mean": array(module.bn.running_mean), "var": array(module.bn.running_var)}
    return {"params": params, "batch_stats": {"bn": statistics}}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("width", [1, 3])
def test_non_local_as_pytorch(width: int, train: bool) -> None:
    torch.manual_seed(0)
    theirs = TorchNonLocal(6, width).double().train(train)
    nn.init.normal_(theirs.bn.weight)
    nn.init.normal_(theirs.bn.running_mean, std=0.1)
    x, g = normal(0, 3, 5, 4, 6), normal(1, 3, 5, 4, 6)
    with jax.enable_x64(True):
        variables = variables_of(theirs)
        block = NonLocal(width, jnp.float64)

        def apply(params: dict, x: jax.Array) -> tuple[jax.Array, dict]:
            return block.apply(variables | {"params": params}, x, train, mutable=["batch_stats"])

        y, pull, changed = jax.vjp(apply, variables["params"], jnp.asarray(x), has_aux=True)
        gradients, dx = pull(jnp.asarray(g))
        tensor = to_torch(x).requires_grad_()
        out = theirs(tensor)
        out.backward(to_torch(g))
        assert_close(y, to_ours(out))
        assert_close(dx, to_ours(tensor.grad))
        for name in ("theta", "phi", "g", "w"):
            expected = getattr(theirs, name).weight.grad[:, :, 0, 0].T
            assert_close(gradients[name]["kernel"], expected.numpy())
        assert_close(gradients["bn"]["scale"], theirs.bn.weight.grad.numpy())
        after = variables_of(theirs)["batch_stats"]
        for name in ("mean", "var"):
            assert_close(changed["batch_stats"]["bn"][name], after["bn"][name])


def test_it_starts_as_the_identity() -> None:
    x = jnp.asarray(normal(0, 2, 4, 3, 6), jnp.float32)
    y, _ = NonLocal(1).init_with_output(jax.random.key(0), x, True)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [
        ("resnet50", {"stage2": 2, "stage3": 3}),
        ("resnet18", {"stage2": 2, "stage3": 2}),  # no more than the stage has residual blocks
    ],
)
@pytest.mark.parametrize(("kind", "share"), [("one", None), ("half", 2)])
def test_where_the_blocks_are(
    backbone: str, blocks: dict[str, int], kind: str, share: int | None
) -> None:
    stages = Stages(backbone, 8, non_local=kind)
    shapes = jax.eval_shape(lambda: stages.init(jax.random.key(0), jnp.zeros((1, 8, 4, 8)), True))[
        "params"
    ]
    found = {name: tree for name, tree in shapes.items() if "non_local" in name}
    assert set(found) == {f"{s}_non_local{i}" for s, count in blocks.items() for i in range(count)}
    for tree in found.values():
        channels, width = tree["theta"]["kernel"].shape
        assert width == (1 if share is None else channels // share)
        assert tree["w"]["kernel"].shape == (width, channels)
