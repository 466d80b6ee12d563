"""`ddag-search RUN --gallery IMAGES|FILE.npz --query IMAGES ...`."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from ddag_jax.cli import environment
from ddag_jax.cli.embed import tell
from ddag_jax.cli.main import run
from ddag_jax.cli.options import parse
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from ddag_jax.io.progress import silence


@dataclasses.dataclass(frozen=True)
class Options:
    """Find the people on query images in a gallery.

    Prints a table for each query: rank, cosine similarity, identity where it is known, file. Every
    gallery image can be found, whatever its camera. Images of one tracklet, a column of a list,
    count as one, by the mean of their features.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run (its best checkpoint), or of a checkpoint."""
    gallery: Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGES|FILE.npz")]
    """Where to search: files, folders and lists of images, or a file that ddag-embed wrote with
    the same network."""
    query: Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGES")]
    """Whom to search: files, folders and lists."""
    gallery_modality: Literal["visible", "infrared"] | None = None
    """Of the gallery's images, where neither list nor folder says it; of a FILE.npz with both, the
    one to search. None: all that FILE.npz has."""
    query_modality: Literal["visible", "infrared"] | None = None
    """Of the query images, where neither list nor folder says it."""
    top: int = 10
    """Number of hits of a query."""
    threshold: str | None = None
    """Leave out hits below a cosine similarity: a number, or eer, far=1e-2 or far=1e-3 of the run's
    evaluation. A query without any hit left is reported as "nobody known"."""
    feature: str | None = None
    """Which feature (DDAG: global or, where P is on, part), or concatenation of all. None: that of
    the gallery's file, or the one that the run's evaluation reports."""
    sheet: Annotated[str | None, tyro.conf.arg(metavar="FILE.html")] = None
    """Also write a page to look at; must not exist."""
    json: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the results as JSON; must not exist."""
    infrared_range: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="LOW HIGH")] = None
    """Values that become black and white of infrared images with 16 bits, as prepare printed them.
    None: that of FILE.npz, or else such images are not read."""
    config: str | None = None
    """Configuration file with the method of your own that the checkpoint names."""
    quiet: bool = False
    """Print the tables and errors only."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Search. Return 0, 1 if some images cannot be read, or 2 after an error of the user's."""
    return run(lambda: _search(arguments))


def _search(arguments: Sequence[str] | None) -> int:
    options: Options = parse(Options, arguments, "ddag-search")
    for name in ("gallery", "query"):
        if not getattr(options, name):
            raise UserError(
                f"--{name}: no image is given (the first argument, {options.run}, is RUN)"
            )
    if options.quiet:
        silence()
    environment.prepare()
    from ddag_jax.serving.results import format_tables
    from ddag_jax.serving.search import search

    found = search(
        options.run,
        options.gallery,
        options.query,
        top=options.top,
        threshold=options.threshold,
        gallery_modality=options.gallery_modality,
        query_modality=options.query_modality,
        feature=options.feature,
        infrared_range=options.infrared_range,
        config=load_config(options.config) if options.config else None,
        sheet=options.sheet,
        json=options.json,
    )
    if found.threshold is not None:
        print(f"threshold {found.threshold:.4f}, {found.threshold_from}\n")
    print(format_tables(found.results))
    if not options.quiet:
        for target in (options.sheet, options.json):
            if target is not None:
                print(f"\nwrote {target}")
    tell(found.notes, found.unreadable, quiet=options.quiet)
    return 1 if found.unreadable else 0


if __name__ == "__main__":
    raise SystemExit(main())
