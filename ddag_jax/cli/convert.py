"""`python convert_weights.py KIND INPUT OUTPUT`, or `ddag-convert KIND INPUT OUTPUT`."""

import argparse
import os
from collections.abc import Sequence

from ddag_jax.cli.main import run
from ddag_jax.config import DataConfig
from ddag_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts; the exit code is 0, or 2 where the input is at fault."""
    return run(lambda: _convert(arguments))


def _convert(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="convert_weights.py",
        description="Convert weights to and from PyTorch. Nothing is written unless all fits.",
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    torchvision = kinds.add_parser(
        "torchvision",
        help="an ImageNet ResNet-50 or -18 (.pth, .pt, .safetensors; torchvision's or timm's"
        " names) to a checkpoint for train.py --init",
    )
    reference = kinds.add_parser(
        "reference",
        help="a checkpoint of the PyTorch reference (.t) to one that evaluate.py takes",
    )
    to_reference = kinds.add_parser(
        "to-reference",
        help="a run (its best checkpoint) or a checkpoint of ours to a .t file for the reference",
    )
    for kind in (torchvision, reference, to_reference):
        kind.add_argument("input", metavar="INPUT")
        kind.add_argument("output", metavar="OUTPUT")
        kind.add_argument("--overwrite", action="store_true", help="replace an earlier OUTPUT")
    default = DataConfig()
    reference.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        default=(default.image_height, default.image_width),
        help="of the images that it was trained on, pixels, which its file does not say"
        " (default: 288 144, the reference's)",
    )
    options = parser.parse_args(arguments)

    # Nothing here computes; a GPU or TPU may be in use by a training.
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        from ddag_jax.pytorch import convert
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        raise UserError(
            f"converting weights needs {error.name}: pip install torch safetensors"
        ) from None

    files = options.input, options.output
    if options.kind == "torchvision":
        summary = convert.from_torchvision(*files, overwrite=options.overwrite)
    elif options.kind == "reference":
        size = tuple(options.image_size)
        summary = convert.from_reference(*files, image_size=size, overwrite=options.overwrite)
    else:
        summary = convert.to_reference(*files, overwrite=options.overwrite)
    print(f"{options.input} -> {options.output}")
    print(summary.table(read=options.kind != "to-reference"))
