"""Run the authors' PyTorch code, imported unchanged from the user's own checkout."""

import contextlib
import importlib
import sys
import types
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float, Int

from ddag_jax.config import BaselineConfig, DDAGConfig
from ddag_jax.errors import UserError
from ddag_jax.pytorch.keys import Dimensions, KeyMapping, agw_table, reference_mappings
from ddag_jax.pytorch.reading import read_state_dict

_THEIRS = ("model_main", "model", "loss", "resnet", "attention")
_MODAL = {"visible": 1, "infrared": 2}
_GRAPH_WEIGHT = 0.25  # any but 0, so that the graph branch has gradients
_GAMMA = 0.02  # with the published 1 the squared triplet has no gradient on raw features

Name = Literal["ddag", "base", "agw", "caj"]
Outputs = dict[str, torch.Tensor]
Images = Float[np.ndarray, "b h w 3"]


def load(method: Name, checkout: str | Path, weights: str | None) -> "Reference":
    """Return a network of the authors' code.

    Args:
        method: which one: "ddag"; "base", "agw" or "caj" of AGW's repository.
        checkout: folder with their modules; for "caj" also the folder around `ICCV21_CAJ`.
        weights: file of a state dict; None for random initialisation (seed 0).

    Raises:
        UserError: there is no such checkout or file, or the weights do not fit the network.
    """
    state_dict = None if weights is None else read_state_dict(weights)
    dimensions = Dimensions() if state_dict is None else Dimensions.of(state_dict)
    folder = Path(checkout)
    if method == "caj" and (folder / "ICCV21_CAJ").is_dir():
        folder /= "ICCV21_CAJ"
    torch.manual_seed(0)
    reference = (
        DDAGReference(folder, dimensions)
        if method == "ddag"
        else AGWReference(folder, dimensions.classes, method)
    )
    if state_dict is not None:
        try:
            reference.network.load_state_dict(state_dict)
        except RuntimeError as error:
            raise UserError(f"{weights}: {error}") from None
    return reference


class Reference(ABC):
    """A network of the authors without dropout, its losses and its optimiser, on one device.

    Images are [b, h, w, 3] and normalised; results are NumPy arrays.
    """

    features: tuple[str, ...]
    """Names of what the network returns in evaluation mode."""
    outputs: tuple[str, ...]
    """Names of what it returns in training mode."""

    def __init__(self, network: torch.nn.Module, classes: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device)
        self.classes = classes
        self._dtype = torch.float32

    @property
    @abstractmethod
    def config(self) -> DDAGConfig | BaselineConfig:
        """Our configuration of the same method."""

    @property
    @abstractmethod
    def mappings(self) -> Sequence[KeyMapping]:
        """What our variables are made of."""

    @property
    def views(self) -> tuple[str, ...]:
        """The views of a training batch; "augmented" is a second visible one."""
        return ("visible", "infrared")

    @property
    def width(self) -> int:
        """Channels of the stem."""
        return len(self.state_dict()["visible_module.visible.conv1.weight"])

    @abstractmethod
    def _run(self, visible: torch.Tensor, infrared: torch.Tensor, modal: int) -> Any:
        """Return what the network does."""

    @abstractmethod
    def _losses(self, outputs: Outputs, labels: torch.Tensor) -> Outputs:
        """Return the losses of the outputs in training mode, with "total"."""

    def to(self, dtype: torch.dtype) -> "Reference":
        """Set the dtype of parameters and computation, and return self."""
        self.network.to(dtype)
        self._dtype = dtype
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of all variables."""
        return {key: _numpy(value).copy() for key, value in self.network.state_dict().items()}

    def embed(self, images: Images, modality: str) -> dict[str, Float[np.ndarray, "b c"]]:
        """Return the features of evaluation mode, of unit length."""
        self.network.eval()
        x = self._tensor(images)
        with torch.no_grad():
            both = self._run(x, x, _MODAL[modality])
        return {name: _numpy(feature) for name, feature in zip(self.features, both, strict=True)}

    def training_step(
        self, images: Mapping[str, Images], labels: Int[np.ndarray, " k"]
    ) -> Callable[[], tuple[Outputs, Outputs]]:
        """Return a function that runs one step of the authors' loop up to the optimiser.

        Each call returns outputs and losses, and leaves the gradients of the total loss and new
        running statistics in the network.

        Args:
            images: of each of `views`.
            labels: of the images of all views in their order.
        """
        *visible, infrared = (self._tensor(images[view]) for view in self.views)
        targets = torch.as_tensor(labels, dtype=torch.long, device=self.device)
        batch = torch.cat(visible), infrared

        def step() -> tuple[Outputs, Outputs]:
            self.network.train()
            with warnings.catch_warnings():  # their losses call addmm_ with deprecated arguments
                warnings.simplefilter("ignore")
                outputs = dict(zip(self.outputs, self._run(*batch, 0), strict=True))
                losses = self._losses(outputs, targets)
            self.network.zero_grad()
            losses["total"].backward()
            return outputs, losses

        return step

    def gradients(self) -> dict[str, np.ndarray]:
        """Return the gradients of the last step, of every parameter that has one."""
        return {
            key: _numpy(parameter.grad)
            for key, parameter in self.network.named_parameters()
            if parameter.grad is not None
        }

    def optimiser(self) -> torch.optim.Optimizer:
        """Return the authors' optimiser: the backbone has a tenth of the learning rate."""
        backbone: list[torch.nn.Parameter] = []
        heads: list[torch.nn.Parameter] = []
        parts = ("base_resnet", "visible_module", "thermal_module", "NL_")
        for key, parameter in self.network.named_parameters():
            (backbone if key.startswith(parts) else heads).append(parameter)
        groups = [{"params": backbone, "lr": 0.01}, {"params": heads, "lr": 0.1}]
        return torch.optim.SGD(groups, weight_decay=5e-4, momentum=0.9, nesterov=True)

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _tensor(self, images: np.ndarray) -> torch.Tensor:
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return torch.as_tensor(channels_first, dtype=self._dtype, device=self.device)


class DDAGReference(Reference):
    """DDAG's whole network (B+P+G)."""

    features = ("global", "part")
    outputs = ("pooled", "global_logits", "part_logits", "graph_log_probs")

    def __init__(self, folder: Path, dimensions: Dimensions) -> None:
        model_main, self._loss = _import(folder, "model_main", "loss")
        with _nothing_downloaded():
            network = model_main.embed_net(
                dimensions.head_dim,
                dimensions.classes,
                drop=0.0,
                part=dimensions.parts,
                nheads=dimensions.heads,
                wpa=True,
            )
        super().__init__(network, dimensions.classes)
        self._dimensions = dimensions
        self._adjacency: torch.Tensor | int = 0

    @property
    def config(self) -> DDAGConfig:
        """Without dropout, with a constant coefficient of the graph loss."""
        return DDAGConfig(
            width=self.width,
            parts=self._dimensions.parts,
            graph_heads=self._dimensions.heads,
            graph_head_dim=self._dimensions.head_dim,
            graph_dropout=0.0,
            graph_weight=_GRAPH_WEIGHT,
        )

    @property
    def mappings(self) -> Sequence[KeyMapping]:
        """Those of the reference."""
        return reference_mappings(self._dimensions.heads)

    def training_step(
        self, images: Mapping[str, Images], labels: Int[np.ndarray, " k"]
    ) -> Callable[[], tuple[Outputs, Outputs]]:
        """See the class above; the graph is made here, as in the authors' loop."""
        targets = torch.as_tensor(labels, device=self.device)
        same = (targets[:, None] == targets).to(self._dtype)
        adjacency = same + torch.eye(len(labels), dtype=self._dtype, device=self.device)
        self._adjacency = adjacency / adjacency.norm(dim=1, keepdim=True)
        return super().training_step(images, labels)

    def _run(self, visible: torch.Tensor, infrared: torch.Tensor, modal: int) -> Any:
        return self.network(visible, infrared, self._adjacency, modal)

    def _losses(self, outputs: Outputs, labels: torch.Tensor) -> Outputs:
        identity = torch.nn.CrossEntropyLoss()
        triplet = self._loss.OriTripletLoss(len(labels) // 2, margin=self.config.margin)
        losses = {
            "identity": identity(outputs["global_logits"], labels),
            "triplet": triplet(outputs["pooled"], labels)[0],
            "part": identity(outputs["part_logits"], labels),
            "graph": torch.nn.functional.nll_loss(outputs["graph_log_probs"], labels),
        }
        losses["total"] = (
            losses["identity"]
            + losses["triplet"]
            + losses["part"]
            + _GRAPH_WEIGHT * losses["graph"]
        )
        return losses


class AGWReference(Reference):
    """The network of AGW and CAJ, or their baseline."""

    features = ("pooled", "global")
    outputs = ("pooled", "global_logits")

    def __init__(self, folder: Path, classes: int, method: Name) -> None:
        model, loss = _import(folder, "model", "loss")
        self._method, switch = method, "off" if method == "base" else "on"
        with _nothing_downloaded():
            network = model.embed_net(classes, no_local=switch, gm_pool=switch)
        super().__init__(network, classes)
        self._triplet: Callable[..., tuple[torch.Tensor, Any]]
        if method == "agw":
            self._triplet = loss.TripletLoss_WRT()
        elif method == "caj":
            if not hasattr(loss, "TripletLoss_ADP"):
                raise UserError(f"{folder}/loss.py: has no TripletLoss_ADP; name CAJ's ICCV21_CAJ")
            self._triplet = loss.TripletLoss_ADP(alpha=1, gamma=_GAMMA, square=1)
        else:
            self._triplet = loss.OriTripletLoss(batch_size=0, margin=self.config.margin)

    @property
    def config(self) -> BaselineConfig:
        """The method's; CAJ's with a gamma at which its triplet has gradients."""
        if self._method == "base":
            return BaselineConfig(width=self.width)
        squared = {"triplet": "squared", "triplet_gamma": _GAMMA}
        triplet: dict[str, Any] = squared if self._method == "caj" else {"triplet": "weighted"}
        return BaselineConfig(width=self.width, pooling="gem", non_local="one", **triplet)

    @property
    def mappings(self) -> Sequence[KeyMapping]:
        """Those of AGW's code."""
        return agw_table(self.classes, self.config.non_local).mappings

    @property
    def views(self) -> tuple[str, ...]:
        """Three of CAJ."""
        three = ("visible", "augmented", "infrared")
        return three if self._method == "caj" else super().views

    def _run(self, visible: torch.Tensor, infrared: torch.Tensor, modal: int) -> Any:
        return self.network(visible, infrared, modal)

    def _losses(self, outputs: Outputs, labels: torch.Tensor) -> Outputs:
        identity = torch.nn.functional.cross_entropy(outputs["global_logits"], labels)
        triplet, _ = self._triplet(outputs["pooled"], labels)
        return {"identity": identity, "triplet": triplet, "total": identity + triplet}


def to_numpy(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copy tensors to the host as NumPy arrays, without gradients."""
    return {name: _numpy(tensor) for name, tensor in tensors.items()}


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _import(checkout: Path, *modules: str) -> list[Any]:
    """Import the checkout's modules, and leave `sys.path` and `sys.modules` as they were."""
    for name in modules:
        if not (checkout / f"{name}.py").is_file():
            raise UserError(
                f"{checkout}: is not a checkout of this method's code, which has a {name}.py; name"
                " the method with --method"
            )
    kept = {name: sys.modules.pop(name) for name in _THEIRS if name in sys.modules}
    sys.path.insert(0, str(checkout.resolve()))
    try:
        with _torchvision(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [importlib.import_module(name) for name in modules]
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
