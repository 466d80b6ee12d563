"""Write the built-in people as files in the layout of SYSU-MM01, or as a contact sheet."""

import multiprocessing
import os
import pathlib
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from PIL import Image

from ddag_jax.datasets.checks import RENDERED
from ddag_jax.errors import UserError
from ddag_jax.io.files import new_folder
from ddag_jax.io.progress import Progress
from ddag_jax.synthetic.camera import CAMERAS, make_camera
from ddag_jax.synthetic.image import People, render


def _write_identity(job: tuple[People, pathlib.Path, int]) -> int:
    """Write all images of one identity and return their number."""
    options, folder, identity = job
    for camera in CAMERAS:
        place = folder / f"cam{camera}" / f"{identity:04d}"
        place.mkdir(parents=True)
        for index in range(1, options.images_per_camera + 1):
            image = Image.fromarray(render(options, identity, camera, index))
            image.save(
                place / f"{index:04d}.jpg", quality=make_camera(options.seed, camera).quality
            )
    return len(CAMERAS) * options.images_per_camera


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_people(
    options: People,
    folder: str | os.PathLike[str],
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Write built-in people in the layout of SYSU-MM01.

    Images are FOLDER/cam1 to cam6/{identity:04d}/{index:04d}.jpg. The splits are
    FOLDER/exp/train_id.txt, val_id.txt and test_id.txt, each a line of identities separated by
    commas. FOLDER/rendered.txt marks the images as rendered and holds the options. The files do not
    depend on the number of workers, and the folder appears when it is complete. Workers are spawned
    processes: a script that uses more than one must call this under `if __name__ == "__main__":`.

    Args:
        options: the set of people.
        folder: must not exist.
        workers: number of processes; by default one per core.
        progress: show a progress bar on standard error.

    Raises:
        UserError: the folder exists or cannot be created or written, or `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers must be 1 or more, not {workers}")
    workers = min(workers or os.cpu_count() or 1, options.identities)
    total = options.identities * len(CAMERAS) * options.images_per_camera
    with (
        new_folder(folder) as partial,
        Progress(total, "drawing people", "image", shown=progress) as bar,
    ):
        jobs = [(options, partial, identity) for identity in range(1, options.identities + 1)]
        if workers == 1:
            for job in jobs:
                bar.update(_write_identity(job))
        else:
            # Forking a process with threads, such as those of JAX, may hang.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, _ignore_interrupt) as pool:
                written = [pool.submit(_write_identity, job) for job in jobs]
                try:
                    for one in as_completed(written):
                        bar.update(one.result())
                except BrokenProcessPool:
                    raise UserError(
                        f"{folder}: a process that draws people has ended: killed, perhaps for"
                        " memory (give fewer --workers), or started by a script without if __name__"
                        ' == "__main__":'
                    ) from None
                finally:
                    pool.shutdown(cancel_futures=True)
        (partial / "exp").mkdir()
        for name in ("train", "val", "test"):
            line = ",".join(str(identity) for identity in options.split(name))
            (partial / "exp" / f"{name}_id.txt").write_text(line + "\n", encoding="ascii")
        (partial / RENDERED).write_text(f"Rendered by ddag_jax, not SYSU-MM01: {options}\n")


def contact_sheet(
    options: People,
    identities: Sequence[int],
    images: int = 1,
    size: tuple[int, int] = (64, 144),
) -> Image.Image:
    """Render a table of images: one row per identity, one column per camera and image.

    Args:
        options: the set of people.
        identities: one per row.
        images: number of images per camera.
        size: width and height of each image in pixels.

    Returns:
        An RGB picture.

    Raises:
        UserError: there is no such identity.
    """
    gap = 2
    columns = [(camera, index) for camera in CAMERAS for index in range(1, images + 1)]
    width, height = size
    across, down = len(columns) * (width + gap) + gap, len(identities) * (height + gap) + gap
    sheet = Image.new("RGB", (across, down), "white")
    for row, identity in enumerate(identities):
        for column, (camera, index) in enumerate(columns):
            image = Image.fromarray(render(options, identity, camera, index))
            image = image.resize(size, Image.Resampling.BICUBIC)
            sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
