"""`python convert_weights.py KIND INPUT OUTPUT`, or `ddag-convert KIND INPUT OUTPUT`."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated, Any

import tyro

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import parse
from ddag_jax.config import DataConfig
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config


@dataclasses.dataclass(frozen=True)
class _Conversion:
    input: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    overwrite: bool = False
    """Replace an existing OUTPUT."""


@dataclasses.dataclass(frozen=True)
class Torchvision(_Conversion):
    """Convert an ImageNet ResNet-50 or -18 (.pth, .pt, .safetensors; torchvision's or timm's names)
    to a checkpoint for train.py --init."""

    def convert(self, module: ModuleType) -> Any:
        """Return the summary of what was converted."""
        return module.from_torchvision(self.input, self.output, overwrite=self.overwrite)


@dataclasses.dataclass(frozen=True)
class _OfTheAuthors(_Conversion):
    image_size: tuple[int, int] = (DataConfig.image_height, DataConfig.image_width)
    """Height and width of the images that it was trained on, pixels. Of this and the next two its
    file says nothing."""
    dataset: str | None = None
    """sysu_mm01, regdb, llcm or folder, or a configuration file (.py) whose data.dataset is your
    own. None: the one with as many training identities as it has classes."""
    trial: int | None = None
    """RegDB: which of its ten trials. None: 1."""

    def settings(self) -> dict[str, Any]:
        """Return the arguments of a conversion."""
        dataset: Any = self.dataset
        if dataset is not None and dataset.endswith(".py"):
            dataset = load_config(dataset).data.dataset
        return {
            "image_size": self.image_size,
            "dataset": dataset,
            "trial": self.trial,
            "overwrite": self.overwrite,
        }


@dataclasses.dataclass(frozen=True)
class Reference(_OfTheAuthors):
    """Convert a checkpoint of the PyTorch reference (.t) to one that evaluate.py takes."""

    def convert(self, module: ModuleType) -> Any:
        """Return the summary of what was converted."""
        return module.from_reference(self.input, self.output, **self.settings())


@dataclasses.dataclass(frozen=True)
class AGW(_OfTheAuthors):
    """Convert a checkpoint of AGW's or CAJ's code (.t) to one that evaluate.py takes."""

    def convert(self, module: ModuleType) -> Any:
        """Return the summary of what was converted."""
        return module.from_agw(self.input, self.output, **self.settings())


@dataclasses.dataclass(frozen=True)
class ToReference(_Conversion):
    """Convert a run (its best checkpoint) or a checkpoint of ours to a .t file for the
    reference."""

    def convert(self, module: ModuleType) -> Any:
        """Return the summary of what was converted."""
        return module.to_reference(self.input, self.output, overwrite=self.overwrite)


@dataclasses.dataclass(frozen=True)
class ToAGW(_Conversion):
    """Convert a run (its best checkpoint) or a checkpoint of ours to a .t file for AGW's or CAJ's
    code."""

    def convert(self, module: ModuleType) -> Any:
        """Return the summary of what was converted."""
        return module.to_agw(self.input, self.output, overwrite=self.overwrite)


CONVERSIONS: Any = (
    Annotated[Torchvision, tyro.conf.subcommand("torchvision")]
    | Annotated[Reference, tyro.conf.subcommand("reference")]
    | Annotated[ToReference, tyro.conf.subcommand("to-reference")]
    | Annotated[AGW, tyro.conf.subcommand("agw")]
    | Annotated[ToAGW, tyro.conf.subcommand("to-agw")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert. Return 0, or 2 after an error of the user's."""
    return run(lambda: _convert(arguments))


def _convert(arguments: Sequence[str] | None) -> None:
    options = parse(
        CONVERSIONS,
        arguments,
        "convert_weights.py",
        description="Convert weights to and from PyTorch. Nothing is written unless all fits.",
    )
    # Nothing here computes; a GPU or TPU may be in use by a training.
    os.environ["JAX_PLATFORMS"] = "cpu"
    environment.import_jax()
    try:
        from ddag_jax.pytorch import convert
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        raise UserError(
            f"converting weights needs {error.name}: pip install torch safetensors"
        ) from None
    summary = options.convert(convert)
    for note in summary.notes:
        print(f"note: {options.input}: {note}", file=sys.stderr)
    print(f"{options.input} -> {options.output}")
    print(summary.table(read=not isinstance(options, ToReference | ToAGW)))
