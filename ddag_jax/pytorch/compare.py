"""`python -m ddag_jax.pytorch.compare --reference CHECKOUT`: compare with the PyTorch reference."""

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import parse
from ddag_jax.errors import UserError

if TYPE_CHECKING:
    from ddag_jax.pytorch.side_by_side import Difference
    from ddag_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Options:
    """Run one batch through the authors' PyTorch code and through ours: outputs, losses and
    gradients in float64, then images a second in float32."""

    reference: str
    """A checkout of the authors' code."""
    method: Literal["ddag", "base", "agw", "caj"] = "ddag"
    """Which of their methods: that of DDAG's repository, or one of AGW's (`caj` is in its folder
    ICCV21_CAJ, which need not be named)."""
    weights: str | None = None
    """A checkpoint of their code (see convert_weights.py to-reference and to-agw); without it the
    network keeps its random initialisation."""
    images: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "random"
    """Images in the layout of SYSU-MM01 (camC/IDENTITY/*.jpg), or random."""
    image_size: Annotated[tuple[int, int], tyro.conf.arg(metavar="HEIGHT WIDTH")] = (288, 144)
    """Of the images, pixels."""
    batch: Annotated[tuple[int, int], tyro.conf.arg(metavar="N M")] = (4, 2)
    """Identities, and images of each in each modality; published: 8 4."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; the exit code is 0, 1 if a bound is exceeded, or 2 on a user error."""
    return run(lambda: _compare(arguments))


def _compare(arguments: Sequence[str] | None) -> int:
    options = parse(Options, arguments, "python -m ddag_jax.pytorch.compare")
    (n, m), (height, width) = options.batch, options.image_size
    if n < 2 or m < 1 or height < 32 or width < 16:
        raise UserError("--batch needs at least 2 1, --image-size at least 32 16")

    environment.prepare()
    from ddag_jax.pytorch import side_by_side
    from ddag_jax.pytorch.reference import load

    reference = load(options.method, options.reference, options.weights)
    if options.images == "random":
        batch = side_by_side.random_batch(n, m, height, width)
    else:
        batch = _read_batch(Path(options.images), n, m, height, width)
    if n > reference.classes:
        raise UserError(f"--batch: the weights know {reference.classes} identities")
    devices = side_by_side.devices(reference)  # raises an error if there are none
    differences = side_by_side.differences(reference, batch)
    print(_table(differences, side_by_side.BOUNDS))
    print()
    print(devices)
    print(f"{'images/s, float32':<24}{'PyTorch':>12}{'JAX':>12}{'ratio':>9}")
    for speed in side_by_side.speeds(reference, batch):
        ratio = speed.ours / speed.theirs
        print(f"{speed.what:<24}{speed.theirs:>12.1f}{speed.ours:>12.1f}{ratio:>9.2f}")
    exceeded = sum(not difference.same for difference in differences)
    if exceeded:
        print(f"{exceeded} of {len(differences)} exceed their bound", file=sys.stderr)
    return min(exceeded, 1)


def _table(differences: "Sequence[Difference]", bounds: dict[str, float]) -> str:
    """Format every array with its difference and verdict, then the largest of each kind."""
    width = max(len(difference.name) for difference in differences)
    header = f"{'float64':<20}{'':<{width}}{'difference':>12}{'bound':>8}"
    lines = [header]
    kinds = defaultdict(list)
    for d in differences:
        kinds[d.kind].append(d)
        verdict = "same" if d.same else "DIFFERS"
        lines.append(
            f"{d.kind:<20}{d.name:<{width}}{d.relative:>12.1e}{bounds[d.kind]:>8.0e}  {verdict}"
        )
    lines += ["", header]
    for kind, members in kinds.items():
        largest = max(d.relative if d.relative == d.relative else np.inf for d in members)
        same = sum(d.same for d in members)
        verdict = f"{same} of {len(members)} same"
        lines.append(
            f"{kind:<20}{'largest':<{width}}{largest:>12.1e}{bounds[kind]:>8.0e}  {verdict}"
        )
    return "\n".join(lines)


def _read_batch(folder: Path, n: int, m: int, height: int, width: int) -> "Batch":
    """Read the first `n` identities that have `m` images in each modality."""
    from ddag_jax.datasets.images import SUFFIXES, read_image
    from ddag_jax.datasets.sysu_mm01 import INFRARED_CAMERAS
    from ddag_jax.types import Batch

    images: dict[str, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
    for path in sorted(folder.glob("cam[1-6]/*/*")):
        if path.suffix.lower() in SUFFIXES:
            infrared = int(path.parts[-3][3:]) in INFRARED_CAMERAS
            images[path.parent.name][infrared].append(path)
    enough = [pair for _, pair in sorted(images.items()) if min(map(len, pair)) >= m][:n]
    if len(enough) < n:
        raise UserError(
            f"{folder}: {len(enough)} identities have {m} images in each modality, --batch asks"
            f" for {n}; the folder must be laid out as SYSU-MM01 (camC/IDENTITY/*.jpg)"
        )

    def read(modality: int) -> np.ndarray:
        return np.stack(
            [
                np.stack([read_image(path, height, width) for path in pair[modality][:m]])
                for pair in enough
            ]
        )

    return Batch(read(0), read(1), np.arange(n, dtype=np.int32))


if __name__ == "__main__":
    sys.exit(main())
