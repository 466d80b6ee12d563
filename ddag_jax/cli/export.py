"""`ddag-export RUN OUT`."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import parse
from ddag_jax.io.config_file import load_config
from ddag_jax.io.progress import silence


@dataclasses.dataclass(frozen=True)
class Options:
    """Export a trained model, a file for each modality, which runs without this package.

    Writes OUT/visible.FORMAT and OUT/infrared.FORMAT: uint8 RGB images [batch, height, width, 3] to
    float32 features in rows of unit length. Before anything is written, the exported model is run
    beside ours on 64 images of each modality, and must give the same features and ranking.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run (its best checkpoint), or of a checkpoint."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to make; it must not exist."""
    format: Literal["onnx", "stablehlo"] = "onnx"
    """onnx: for onnxruntime and others. stablehlo: for jax, on CPUs, GPUs and TPUs."""
    feature: str | None = None
    """Which feature (DDAG: global or, where P is on, part), or concatenation of all. None: the one
    that the run's evaluation reports."""
    flip: bool | None = None
    """Average a feature with the mirror image's. None: as the run's evaluation does."""
    config: str | None = None
    """Configuration file with the dataset of your own that the checkpoint names."""
    quiet: bool = False
    """Print errors only."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Export. Return 0, or 2 after an error of the user's."""
    return run(lambda: _export(arguments))


def _export(arguments: Sequence[str] | None) -> None:
    options: Options = parse(Options, arguments, "ddag-export")
    if options.quiet:
        silence()
    # Only the comparison computes, and is exact on a CPU; a GPU or TPU may be in use by a training.
    os.environ["JAX_PLATFORMS"] = "cpu"
    environment.prepare()
    from ddag_jax.serving.export import export

    export(
        options.run,
        options.out,
        format=options.format,
        feature=options.feature,
        flip=options.flip,
        config=load_config(options.config) if options.config else None,
    )


if __name__ == "__main__":
    raise SystemExit(main())
