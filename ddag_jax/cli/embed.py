"""`ddag-embed RUN IMAGES ... --to FILE.npz`, and `python -m ddag_jax.serving prune FILE.npz`."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from ddag_jax.cli import environment
from ddag_jax.cli.main import run
from ddag_jax.cli.options import parse
from ddag_jax.datasets.checks import count
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from ddag_jax.io.progress import silence


@dataclasses.dataclass(frozen=True)
class Options:
    """Embed image files into a file of features, to evaluate or to search.

    A list (.csv, .tsv, .parquet) has a line an image: path and perhaps modality, identity, camera
    and tracklet. Of a folder all images below it are taken. The features are those of the
    evaluation. If it is stopped, the same command goes on where it was. Images that cannot be read
    are left out and named at the end; the exit code is 1 then.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run (its best checkpoint), or of a checkpoint."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES ...")]
    """Files, folders and lists; at least one."""
    to: Annotated[str, tyro.conf.arg(metavar="FILE.npz")]
    """File to write; must not exist, and with --add must exist."""
    modality: Literal["visible", "infrared"] | None = None
    """Of all images. None: the list says it, or the deepest folder named visible or infrared."""
    feature: str | None = None
    """Which feature (DDAG: global or, where P is on, part), or concatenation of all. None: the one
    that the run's evaluation reports."""
    dtype: Literal["float32", "float16"] | None = None
    """Of the stored features; float16 takes half the space. None: float32, or with --add that of
    FILE.npz."""
    batch_size: int | None = None
    """Images embedded at once. None: as in the run's evaluation."""
    add: bool = False
    """Add the images to FILE.npz; those that it has are embedded again only if they changed. An
    identity, camera or tracklet that is given now replaces the former."""
    infrared_range: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="LOW HIGH")] = None
    """Values that become black and white of infrared images with 16 bits, as prepare printed them.
    None: that of FILE.npz, or else such images are not read."""
    config: str | None = None
    """Configuration file with the method of your own that the checkpoint names."""
    quiet: bool = False
    """Print errors only."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed. Return 0, 1 if some images cannot be read, or 2 after an error of the user's."""
    return run(lambda: _embed(arguments))


def _embed(arguments: Sequence[str] | None) -> int:
    options: Options = parse(Options, arguments, "ddag-embed")
    if not options.images:
        raise UserError(f"IMAGES: none is given (the first argument, {options.run}, is RUN)")
    if options.quiet:
        silence()
    environment.prepare()
    from ddag_jax.serving.embed import embed

    done = embed(
        options.run,
        options.images,
        options.to,
        modality=options.modality,
        feature=options.feature,
        infrared_range=options.infrared_range,
        dtype=options.dtype,
        batch_size=options.batch_size,
        add=options.add,
        config=load_config(options.config) if options.config else None,
    )
    if not options.quiet:
        images = count(range(done.images), "image", "images")
        print(f"{done.path}: {images}, {done.embedded:,} embedded now")
    tell(done.notes, done.unreadable, quiet=options.quiet)
    return 1 if done.unreadable else 0


def tell(notes: Sequence[str], unreadable: Sequence[str], *, quiet: bool) -> None:
    """Print remarks, and why images cannot be read, to standard error."""
    for note in () if quiet else notes:
        print(f"note: {note}", file=sys.stderr)
    if unreadable:
        heading = count(
            unreadable,
            "image cannot be read and is left out",
            "images cannot be read and are left out",
        )
        print(f"{heading}:", file=sys.stderr)
        print("\n".join(f"  {why}" for why in unreadable), file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class PruneOptions:
    """Remove images from a file of features: those whose files are gone, and those of identities.

    Nothing is embedded again.
    """

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.npz")]
    """The file, which is replaced."""
    identity: tuple[str, ...] = ()
    """Identities to remove, as the list or the folders named them."""


def prune(arguments: Sequence[str] | None = None) -> int:
    """Remove images. Return 0, or 2 after an error of the user's."""
    return run(lambda: _prune(arguments))


def _prune(arguments: Sequence[str] | None) -> None:
    options: PruneOptions = parse(PruneOptions, arguments, "python -m ddag_jax.serving prune")
    environment.prepare()
    from ddag_jax.serving.embed import prune as prune_file

    gone = prune_file(options.file, identities=options.identity)
    for image in gone:
        print(f"removed {image.file}")
    print(f"{options.file}: {count(gone, 'image', 'images')} removed")


if __name__ == "__main__":
    raise SystemExit(main())
