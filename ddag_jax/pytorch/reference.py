"""Run the authors' PyTorch code, imported unchanged from the user's own checkout."""

import contextlib
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float, Int

from ddag_jax.errors import UserError
from ddag_jax.pytorch.keys import Dimensions
from ddag_jax.pytorch.reading import read_state_dict

_MODULES = ("model_main", "loss")
_THEIRS = (*_MODULES, "resnet", "attention")
_MODAL = {"visible": 1, "infrared": 2}


class Reference:
    """The reference's network without dropout, its losses and its optimiser, on one device.

    Images are [b, h, w, 3] and normalised; results are NumPy arrays.
    """

    def __init__(self, checkout: str | Path, weights: str | None) -> None:
        """
        Args:
            checkout: folder with `model_main.py` and `loss.py`.
            weights: file of a state dict; None for random initialisation (seed 0).

        Raises:
            UserError: there is no such checkout or file, or the weights do not fit the network.
        """
        state_dict = None if weights is None else read_state_dict(weights)
        self.dimensions = dimensions = (
            Dimensions() if state_dict is None else Dimensions.of(state_dict)
        )
        model_main, loss = _import(Path(checkout))
        torch.manual_seed(0)
        with _nothing_downloaded():
            net = model_main.embed_net(
                dimensions.head_dim,
                dimensions.classes,
                drop=0.0,
                part=dimensions.parts,
                nheads=dimensions.heads,
                wpa=True,
            )
        if state_dict is not None:
            try:
                net.load_state_dict(state_dict)
            except RuntimeError as error:
                raise UserError(f"{weights}: {error}") from None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._net = net.to(self.device)
        self._triplet = loss.OriTripletLoss
        self._dtype = torch.float32

    def to(self, dtype: torch.dtype) -> "Reference":
        """Set the dtype of parameters and computation, and return self."""
        self._net.to(dtype)
        self._dtype = dtype
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of all variables."""
        return {key: _numpy(value).copy() for key, value in self._net.state_dict().items()}

    def embed(
        self, images: Float[np.ndarray, "b h w 3"], modality: str
    ) -> dict[str, Float[np.ndarray, "b c"]]:
        """Return the "global" and "part" features of evaluation mode, of unit length."""
        self._net.eval()
        x = self._tensor(images)
        with torch.no_grad():
            both = self._net(x, x, 0, _MODAL[modality])
        return {
            name: _numpy(feature) for name, feature in zip(("global", "part"), both, strict=True)
        }

    def training_step(
        self,
        visible: Float[np.ndarray, "b h w 3"],
        infrared: Float[np.ndarray, "b h w 3"],
        labels: Int[np.ndarray, " k"],
        graph_weight: float,
        margin: float,
    ) -> Callable[[], tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        """Return a function that runs one step of the reference's loop up to the optimiser.

        `labels` lists the visible images first. Each call returns outputs and losses, and leaves
        the gradients of the total loss and new running statistics in the network.
        """
        batch = self._tensor(visible), self._tensor(infrared)
        targets = torch.as_tensor(labels, dtype=torch.long, device=self.device)
        same = (targets[:, None] == targets).to(self._dtype)
        adjacency = same + torch.eye(len(labels), dtype=self._dtype, device=self.device)
        adjacency /= adjacency.norm(dim=1, keepdim=True)
        identity_loss = torch.nn.CrossEntropyLoss()
        triplet_loss = self._triplet(batch_size=len(labels) // 2, margin=margin)

        def step() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
            self._net.train()
            pooled, logits, part_logits, graph = self._net(*batch, adjacency)
            with warnings.catch_warnings():  # the reference calls addmm_ with deprecated arguments
                warnings.simplefilter("ignore")
                triplet, _ = triplet_loss(pooled, targets)
            losses = {
                "identity": identity_loss(logits, targets),
                "triplet": triplet,
                "part": identity_loss(part_logits, targets),
                "graph": torch.nn.functional.nll_loss(graph, targets),
            }
            losses["total"] = (
                losses["identity"] + triplet + losses["part"] + graph_weight * losses["graph"]
            )
            self._net.zero_grad()
            losses["total"].backward()
            outputs = {
                "pooled": pooled,
                "global_logits": logits,
                "part_logits": part_logits,
                "graph_log_probs": graph,
            }
            return outputs, losses

        return step

    def gradients(self) -> dict[str, np.ndarray]:
        """Return the gradients of the last step, of every parameter that has one."""
        return {
            key: _numpy(parameter.grad)
            for key, parameter in self._net.named_parameters()
            if parameter.grad is not None
        }

    def optimiser(self) -> torch.optim.Optimizer:
        """Return the reference's optimiser: the backbone has a tenth of the learning rate."""
        backbone: list[torch.nn.Parameter] = []
        heads: list[torch.nn.Parameter] = []
        for key, parameter in self._net.named_parameters():
            own = key.startswith(("base_resnet", "visible_module", "thermal_module"))
            (backbone if own else heads).append(parameter)
        groups = [{"params": backbone, "lr": 0.01}, {"params": heads, "lr": 0.1}]
        return torch.optim.SGD(groups, weight_decay=5e-4, momentum=0.9, nesterov=True)

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _tensor(self, images: np.ndarray) -> torch.Tensor:
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return torch.as_tensor(channels_first, dtype=self._dtype, device=self.device)


def to_numpy(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copy tensors to the host as NumPy arrays, without gradients."""
    return {name: _numpy(tensor) for name, tensor in tensors.items()}


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _import(checkout: Path) -> list[types.ModuleType]:
    """Import the checkout's modules, and leave `sys.path` and `sys.modules` as they were."""
    for name in _MODULES:
        if not (checkout / f"{name}.py").is_file():
            raise UserError(
                f"{checkout}: is not a checkout of the PyTorch reference, which has a {name}.py"
            )
    kept = {name: sys.modules.pop(name) for name in _THEIRS if name in sys.modules}
    sys.path.insert(0, str(checkout.resolve()))
    try:
        with _torchvision(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [importlib.import_module(name) for name in _MODULES]
    finally:
        sys.path.pop(0)
        for name in _THEIRS:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


@contextlib.contextmanager
def _torchvision() -> Iterator[None]:
    """Substitute empty modules for an absent or broken torchvision: the reference imports it, but
    its network does not use it."""
    try:
        importlib.import_module("torchvision")
    except Exception:  # one that does not fit the installed torch raises RuntimeError and others
        stand_in = types.ModuleType("torchvision")
        models = types.ModuleType("torchvision.models")
        stand_in.__dict__["models"] = models
        sys.modules.update({"torchvision": stand_in, "torchvision.models": models})
        try:
            yield
        finally:
            del sys.modules["torchvision"], sys.modules["torchvision.models"]
    else:
        yield


@contextlib.contextmanager
def _nothing_downloaded() -> Iterator[None]:
    """Make `pretrained=True` keep the random weights: nothing is downloaded or loaded."""

    def load_nothing(module: torch.nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def fetch_nothing(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {}

    with (
        mock.patch("torch.hub.load_state_dict_from_url", fetch_nothing),
        mock.patch("torch.utils.model_zoo.load_url", fetch_nothing),
        mock.patch.object(torch.nn.Module, "load_state_dict", load_nothing),
    ):
        yield
