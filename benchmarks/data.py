"""Measure preparing and loading of as many images as SYSU-MM01 has: images a second, and memory.

    python -m benchmarks.data               8,192 images, then half as many
    python -m benchmarks.data --full        SYSU-MM01's 34,167 training images, then half as many
    python -m benchmarks.data --images N    another number of training images
    python -m benchmarks.data --quick       a few small ones, to try it

Rendered people replace the 395 training identities: JPEGs of five heights from 230 to 900 pixels in
equal shares, 0.44 times as wide as high, are prepared at 288 x 144. Then batches of 64 are loaded
as in training and, for comparison, from records compressed as by TFDS's default and from one
memory-mapped array; with the files in the page cache (warm), and evicted from it before (cold).
Memory is measured in a process of its own each time. Prints tables and writes results/data.json.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource

from benchmarks import measure
from ddag_jax.config import DataConfig
from ddag_jax.data.loader import ImageSource, training_batches, training_split
from ddag_jax.data.sampler import IdentitySampler
from ddag_jax.datasets.prepare import prepare, read_folder
from ddag_jax.synthetic.camera import CAMERAS
from ddag_jax.synthetic.rehearsal import Tree, write_tree

BATCH = 64
"""Images in a batch: 8 identities, 4 images of each in each modality."""

TESTED = len(CAMERAS)
"""Images of the one test identity."""

LEAST = 2_400
"""Fewest images: half of them show all 395 identities in both modalities."""


class Size(NamedTuple):
    images: int
    """Training images, of both modalities."""
    identities: int
    heights: tuple[int, ...]
    """Heights of the JPEGs in pixels."""
    stored: tuple[int, int]
    """Height and width of prepared images in pixels."""
    batches: int
    """Batches loaded in each measurement."""
    repeats: int


FULL = Size(34_167, 395, (230, 320, 450, 640, 900), (288, 144), batches=100, repeats=5)
QUICK = Size(256, 12, (64, 96), (32, 16), batches=5, repeats=1)


def tree(size: Size) -> Tree:
    """Return training images in SYSU-MM01's share of modalities, spread evenly over identities and
    cameras, and one test identity, which a dataset needs."""
    infrared = round(size.images * 11_909 / 34_167)
    images = []
    for count, cameras in ((size.images - infrared, (1, 2, 4, 5)), (infrared, (3, 6))):
        for number in range(count):
            turn, identity = divmod(number, size.identities)
            nth, camera = divmod(turn, len(cameras))
            images.append((identity + 1, cameras[camera], nth + 1))
    tested = size.identities + 1
    images += [(tested, camera, 1) for camera in CAMERAS]
    validation = size.identities // 4
    lists = {
        "train": range(1, size.identities + 1 - validation),
        "val": range(size.identities + 1 - validation, tested),
        "test": [tested],
    }
    return Tree(
        [(f"cam{c}/{i:04d}/{n:04d}.jpg", i, c) for i, c, n in images],
        {f"exp/{name}_id.txt": ",".join(map(str, who)).encode() for name, who in lists.items()},
        note="",
    )


def prepare_timed(source: Path, to: Path, stored: tuple[int, int], out: Path) -> None:
    """Prepare, and write the seconds to the JSON file `out`, to be read by another process."""
    start = time.perf_counter(), time.process_time()
    read_folder("sysu_mm01", source)
    listed = time.perf_counter(), time.process_time()
    prepare("sysu_mm01", source, to, *stored)
    end = time.perf_counter(), time.process_time()
    listing_s, listing_processor_s = (b - a for a, b in zip(start, listed, strict=True))
    seconds = {
        "listing_s": listing_s,
        # prepare lists the folder, too.
        "preparing_s": end[0] - listed[0] - listing_s,
        "preparing_processor_s": end[1] - listed[1] - listing_processor_s,
    }
    out.write_text(json.dumps(seconds))


def open_training(data_dir: Path, stored: tuple[int, int]) -> tuple[ImageSource, IdentitySampler]:
    """Return source and sampler of the prepared training images."""
    config = DataConfig(dir=str(data_dir), image_height=stored[0], image_width=stored[1])
    source, _ = training_split(config, seed=0)
    sampler = IdentitySampler(
        source.labels, source.infrared, identities_per_batch=8, images_per_identity=4, seed=0
    )
    return source, sampler


def load(source: ImageSource, sampler: IdentitySampler, batches: int, threads: int) -> None:
    """Load batches as the training loop does."""
    for _ in training_batches(
        source, sampler, steps_per_epoch=batches, first_step=0, last_step=batches, threads=threads
    ):
        pass


def open_and_load(data_dir: Path, stored: tuple[int, int], batches: int) -> None:
    """Open the prepared dataset and load batches, to measure memory."""
    load(*open_training(data_dir, stored), batches, threads=1)


def write_array(source: ImageSource, path: Path) -> None:
    """Write all images as one array in a .npy file."""
    array = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=(len(source), *source.image_size, 3)
    )
    for first in range(0, len(source), 1024):
        numbers = np.arange(first, min(first + 1024, len(source)))
        array[numbers] = source.images(numbers)


def write_compressed(source: ImageSource, path: Path) -> None:
    """Write all records compressed, as TFDS does by default."""
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for key in range(len(source)):
        writer.write(source._records[key])
    writer.close()


def compressed(source: ImageSource, path: Path) -> ImageSource:
    """Return a source of the same images that reads the file of `write_compressed`."""
    return dataclasses.replace(source, _records=ArrayRecordDataSource([str(path)]))


def cold(files: Sequence[Path], work: Callable[[], object], needed: float) -> float | None:
    """Return the seconds of `work` with `files` evicted from the page cache.

    Returns None if fewer than `needed` bytes were read from disk, so that memory served the rest.
    A cache of the host of a virtual machine cannot be detected.
    """
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # unwritten pages cannot be evicted
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, start = _bytes_read(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return seconds if _bytes_read() - before >= needed else None


def _bytes_read() -> int:
    """Return the bytes that this process has read from disk."""
    found = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def measure_preparing(size: Size, scratch: Path) -> dict[str, Any]:
    """Render JPEGs, prepare them in `scratch`/data and load them; return speed and peak memory."""
    source, data = scratch / "source", scratch / "data"
    jpegs = tree(size)
    # No links: a real dataset has separate files.
    write_tree(jpegs, source, distinct=2, heights=size.heights, seed=0, linked=False)
    total = size.images + TESTED
    jpeg_bytes = sum(path.stat().st_size for path in source.rglob("*.jpg"))
    seconds = scratch / "seconds.json"
    preparing = measure.peak_memory(
        functools.partial(prepare_timed, source, data, size.stored, seconds)
    )
    loading = measure.peak_memory(functools.partial(open_and_load, data, size.stored, size.batches))
    taken = json.loads(seconds.read_text())
    return {
        "images": total,
        "jpeg_bytes": jpeg_bytes / total,
        "stored_bytes": sum(p.stat().st_size for p in data.rglob("*.array_record*")) / total,
        **taken,
        "images_per_s": total / taken["preparing_s"],
        "preparing_peak_mib": preparing,
        "loading_peak_mib": loading,
    }


def measure_loading(size: Size, scratch: Path) -> dict[str, Any]:
    """Return images a second for each way of reading the dataset of `measure_preparing`."""
    source, sampler = open_training(scratch / "data", size.stored)
    steps = [sampler.sample(0, step) for step in range(size.batches)]
    numbers = [np.concatenate([s.visible, s.infrared]).reshape(-1) for s in steps]
    assert all(len(batch) == BATCH for batch in numbers)
    distinct = len(np.unique(np.concatenate(numbers)))
    prepared = list((scratch / "data").rglob("*.array_record*"))
    small, array = scratch / "compressed.array_record", scratch / "images.npy"
    write_compressed(source, small)
    from_small = compressed(source, small)
    write_array(source, array)

    def images(source: ImageSource) -> None:
        for batch in numbers:
            source.images(batch)

    def mapped() -> None:
        opened = np.load(array, mmap_mode="r")
        for batch in numbers:
            opened[batch]

    batches = size.batches
    ways: dict[str, tuple[Callable[[], None], list[Path]]] = {
        "training_batches, 1 thread": (lambda: load(source, sampler, batches, 1), prepared),
        "training_batches, 2 threads": (lambda: load(source, sampler, batches, 2), prepared),
        "ImageSource.images": (lambda: images(source), prepared),
        "ImageSource.images, compressed records": (lambda: images(from_small), [small]),
        "memory-mapped array": (mapped, [array]),
    }
    warm = measure.interleaved({name: work for name, (work, _) in ways.items()}, size.repeats)
    found = {}
    for name, (work, files) in ways.items():
        # A tenth less, since two images may share a page.
        needed = 0.9 * distinct / len(source) * sum(path.stat().st_size for path in files)
        seconds = [cold(files, work, needed) for _ in range(size.repeats)]
        read = measure.Times(tuple(second for second in seconds if second is not None))
        found[name] = {
            "warm": warm[name],
            "warm_images_per_s": batches * BATCH / warm[name].median,
            "cold": read if read.seconds else None,
            "cold_images_per_s": batches * BATCH / read.median if read.seconds else None,
        }
    return found


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """Run the command; write the results to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data",
        description="Measure preparing and loading of as many images as SYSU-MM01 has",
    )
    many = parser.add_mutually_exclusive_group()
    many.add_argument(
        "--images", type=int, default=8_192, metavar="N", help="training images (default: 8192)"
    )
    many.add_argument("--full", action="store_true", help="SYSU-MM01's 34,167 training images")
    many.add_argument("--quick", action="store_true", help="a few small images")
    parser.add_argument(
        "--scratch", metavar="DIR", help="folder for temporary files, about 300 KB an image"
    )
    given = parser.parse_args(arguments)
    size = QUICK if given.quick else FULL
    if not given.quick and not given.full:
        if given.images < LEAST:
            parser.error(f"--images {given.images}: must be {LEAST} or more")
        size = size._replace(images=given.images)

    print(measure.describe(measure.machine()), end="\n\n")
    preparing = {}
    for part in (size._replace(images=size.images // 2), size):
        with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
            found = measure_preparing(part, Path(scratch))
            preparing[f"{found['images']} images"] = found
            if part is size:
                loading = measure_loading(part, Path(scratch))
    rows = [
        [
            name,
            f"{found['jpeg_bytes'] / 1000:.1f} KB",
            f"{found['stored_bytes'] / 1000:.1f} KB",
            f"{found['listing_s']:.1f} s",
            f"{found['preparing_s']:.1f} s",
            f"{found['preparing_processor_s']:.1f} s",
            f"{found['images_per_s']:,.0f}",
            _mib(found["preparing_peak_mib"]),
            _mib(found["loading_peak_mib"]),
        ]
        for name, found in preparing.items()
    ]
    height, width = size.stored
    print(f"prepared at {height} x {width}; JPEGs in the page cache; peaks include Python")
    head = [
        "",
        "JPEG",
        "stored",
        "listing",
        "preparing",
        "processor",
        "images/s",
        "peak",
        "peak loading",
    ]
    print(measure.table(head, rows), end="\n\n")
    rows = [
        [name, _rate(found["warm_images_per_s"]), _rate(found["cold_images_per_s"])]
        for name, found in loading.items()
    ]
    print(f"loading batches of {BATCH}, images/s, median of {size.repeats}")
    print(measure.table(["", "warm", "cold"], rows), end="\n\n")
    result = {**size._asdict(), "batch": BATCH, "preparing": preparing, "loading": loading}
    print("written:", measure.write("data", result, folder))


def _mib(peak: float | None) -> str:
    return "unknown" if peak is None else f"{peak:.0f} MiB"


def _rate(images: float | None) -> str:
    return "unknown" if images is None else f"{images:,.0f}"


if __name__ == "__main__":
    main()
