"""Mutated inputs for every reader of files and words that strangers may have written.

    python -m tests.reliability.fuzz --inputs 10000

Each must be read, or refused with an `UserError`: another exception, more than ten seconds, or a
file touched outside its own folder is a finding. Findings are printed with what reproduces them
(the reader, the seed and the input's number) and make the exit code 1.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import PIL.Image
import scipy.io
from etils import epath

from ddag_jax.cli.options import override
from ddag_jax.config import Config
from ddag_jax.datasets.checks import read_identities, read_image_lists
from ddag_jax.datasets.images import read_image
from ddag_jax.datasets.rand_perm_cam import read_permutations
from ddag_jax.datasets.sysu_mm01 import SYSU_MM01
from ddag_jax.datasets.training_arrays import read_training_arrays
from ddag_jax.errors import UserError
from ddag_jax.evaluation.stored_features import load_features
from ddag_jax.runs.checkpoint import Meta, read_meta, saved_score
from ddag_jax.runs.lock import RunLock
from ddag_jax.runs.logs import RunLog

SECONDS = 10
"""That reading any input may take."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclasses.dataclass(frozen=True)
class Reader:
    """What is fed, and what with."""

    samples: list[bytes]
    """Valid inputs."""
    read: Callable[[Path, bytes], object]
    """Reads an input, given a folder of its own to put it in."""


def _image_samples(kind: str) -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    samples = []
    for mode in ("RGB", "L", "P" if kind != "JPEG" else "L"):
        file = io.BytesIO()
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        more = {} if kind == "BMP" else {"exif": exif}
        PIL.Image.fromarray(noise).convert(mode).save(file, kind, **more)
        samples.append(file.getvalue())
    return samples


def _read_image(name: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, content: bytes) -> object:
        (folder / name).write_bytes(content)
        return read_image(epath.Path(folder / name), 32, 16)

    return read


def _refuse(faults: list[str]) -> None:
    if faults:
        raise UserError(faults[0])


def _read_identities(folder: Path, content: bytes) -> None:
    (folder / "train_id.txt").write_bytes(content)
    faults: list[str] = []
    read_identities(epath.Path(folder / "train_id.txt"), faults)
    _refuse(faults)


def _read_lists(folder: Path, content: bytes) -> None:
    (folder / "list.txt").write_bytes(content)
    faults: list[str] = []
    images = [f"Visible/{i}/a{j}.bmp" for i in range(1, 5) for j in range(3)]
    for line in read_image_lists(epath.Path(folder), {"list.txt": "Visible"}, images, faults)[
        "list.txt"
    ]:
        if not os.path.normpath(folder / line.name).startswith(f"{folder}{os.sep}"):
            raise RuntimeError(f"{line.name} leads out of the folder")
    _refuse(faults)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


_PIXELS, _LABELS = np.zeros((6, 8, 4, 3), np.uint8), np.array([0, 0, 1, 1, 2, 2])


def _read_arrays(what: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, content: bytes) -> None:
        for kind in ("rgb", "ir"):
            (folder / f"train_{kind}_resized_img.npy").write_bytes(_npy(_PIXELS))
            (folder / f"train_{kind}_resized_label.npy").write_bytes(_npy(_LABELS))
        (folder / f"train_ir_resized_{what}.npy").write_bytes(content)
        faults: list[str] = []
        _, images, _ = read_training_arrays(epath.Path(folder), [3, 5, 9], faults)
        for image in images.values():
            read_image(image, 4, 4)
        _refuse(faults)

    return read


def _permutation_samples() -> list[bytes]:
    rng = np.random.default_rng(0)
    cameras = np.empty((6, 1), object)
    for camera in range(6):
        people = np.empty((3, 1), object)
        for identity in range(3):
            people[identity, 0] = rng.permuted(
                np.tile(np.arange(1, 5, dtype="u1"), (10, 1)), axis=1
            )
        cameras[camera, 0] = people
    samples = []
    for packed in (True, False):
        file = io.BytesIO()
        scipy.io.savemat(file, {"rand_perm_cam": cameras}, do_compression=packed)
        samples.append(file.getvalue())
    return samples


def _read_permutations(folder: Path, content: bytes) -> object:
    (folder / "rand_perm_cam.mat").write_bytes(content)
    return read_permutations(folder / "rand_perm_cam.mat").draws()


def _feature_samples() -> list[bytes]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for side, camera in (("query", 3), ("gallery", 1)):
        arrays[f"{side}_features"] = rng.normal(size=(4, 5)).astype(np.float32)
        arrays[f"{side}_ids"] = np.arange(4)
        arrays[f"{side}_cameras"] = np.full(4, camera)
        arrays[f"{side}_names"] = np.array([f"cam{camera}/{i:04d}/0001.jpg" for i in range(4)])
    as_bytes = {k: np.char.encode(v) if k.endswith("names") else v for k, v in arrays.items()}
    samples = []
    for save, content in ((np.savez, arrays), (np.savez_compressed, as_bytes)):
        file = io.BytesIO()
        save(file, **content)
        samples.append(file.getvalue())
    return samples


def _read_features(folder: Path, content: bytes) -> object:
    (folder / "features.npz").write_bytes(content)
    return load_features(folder / "features.npz", SYSU_MM01)


def _weight_readers() -> dict[str, Reader]:
    """Of PyTorch's files, where PyTorch is installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import safetensors.torch
    import torch

    from ddag_jax.pytorch.reading import read_state_dict
    from tests.pytorch.tar_writer import write_tar

    state = {"conv.weight": torch.ones(2, 3), "bn.running_mean": torch.arange(4.0)}
    saved = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(
            {"net": state, "mAP": np.float64(0.5)}, file, _use_new_zipfile_serialization=zipped
        )
        saved.append(file.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        write_tar(Path(folder, "x.pth"), {"net": state})
        saved.append(Path(folder, "x.pth").read_bytes())

    def read(name: str) -> Callable[[Path, bytes], object]:
        def one(folder: Path, content: bytes) -> object:
            (folder / name).write_bytes(content)
            return read_state_dict(folder / name)

        return one

    return {
        "safetensors": Reader([safetensors.torch.save(state)], read("x.safetensors")),
        "pth": Reader(saved, read("x.pth")),
    }


_OVERRIDES = (
    "--optimizer.learning-rate 0.05 --training.epochs 3",
    "--model.parts 2 --model.backbone resnet18 --model.part-attention False",
    "--optimizer.drop-epochs 20 50 --model.graph-weight None --data.dir data",
    "--evaluation.mode all --evaluation.shots multi --training.seed 7",
)


def _read_override(_: Path, content: bytes) -> object:
    words = content.decode("utf-8", "replace").split()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # --help
        return override(Config(), words, "train.py")
    return None


def _read_lock(folder: Path, content: bytes) -> None:
    (folder / "lock.json").write_bytes(content)
    with RunLock(folder):
        pass


def _lock_sample() -> bytes:
    with tempfile.TemporaryDirectory() as folder, RunLock(folder):
        content = json.loads((Path(folder) / "lock.json").read_text())
    return json.dumps(content | {"started": "another time"}).encode()  # its owner is no more


def _log_sample() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            RunLog(folder, None, total_steps=9, images_per_step=4) as log,
        ):
            for step in range(1, 10):
                log.train(step, 0, {"total": 1 / step})
            log.note(9, 0, "note")
        return (Path(folder) / "log.jsonl").read_bytes()


def _read_log(folder: Path, content: bytes) -> None:
    (folder / "log.jsonl").write_bytes(content)
    with RunLog(folder, 8, total_steps=9, images_per_step=4, silent=True):
        pass


def _read_checkpoint_meta(folder: Path, content: bytes) -> object:
    (folder / "meta").mkdir()
    (folder / "meta" / "metadata").write_bytes(content)
    return read_meta(folder)


def _read_score(folder: Path, content: bytes) -> object:
    (folder / "checkpoints" / "4").mkdir(parents=True)
    (folder / "checkpoints" / "4" / "score.json").write_bytes(content)
    return saved_score(folder, 4)


def readers() -> dict[str, Reader]:
    """All there are, by name."""
    meta = json.dumps(Meta(Config(), 5, "ab" * 32).to_json() | {"checksums": {"variables": 1}})
    lists = "".join(f"Visible/{i}/a{j}.bmp {i - 1}\n" for i in range(1, 5) for j in range(3))
    return {
        "jpg": Reader(_image_samples("JPEG"), _read_image("x.jpg")),
        "png": Reader(_image_samples("PNG"), _read_image("x.png")),
        "bmp": Reader(_image_samples("BMP"), _read_image("x.bmp")),
        "tif": Reader(_image_samples("TIFF"), _read_image("x.tif")),
        "webp": Reader(_image_samples("WEBP"), _read_image("x.webp")),
        "image list": Reader([lists.encode()], _read_lists),
        "identity list": Reader([b"1,2,3,4,5,10,20,300\n"], _read_identities),
        "npy images": Reader([_npy(_PIXELS)], _read_arrays("img")),
        "npy labels": Reader([_npy(_LABELS)], _read_arrays("label")),
        "mat": Reader(_permutation_samples(), _read_permutations),
        "npz": Reader(_feature_samples(), _read_features),
        **_weight_readers(),
        "override": Reader([words.encode() for words in _OVERRIDES], _read_override),
        "lock.json": Reader([_lock_sample()], _read_lock),
        "log.jsonl": Reader([_log_sample()], _read_log),
        "checkpoint meta": Reader([meta.encode()], _read_checkpoint_meta),
        "score.json": Reader([b'{"score": 81.25}\n'], _read_score),
    }


_NUMBERS = (b"0", b"-1", b"1e999", b"nan", b"null", b"9" * 30, b"9" * 5000, b"4294967295", b"[]")
_WORDS = (
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\x7f\xff\xff\xff",
    b"\0" * 4,
    b"\xff" * 8,
    b"\0\0\0\x80",
)
_PIECES = (
    b"../../etc/passwd ",
    b"/etc/passwd ",
    b"\0",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\n",
    b" " * 99,
)


def mutate(samples: list[bytes], rng: random.Random) -> bytes:
    """One of the samples with one to four faults."""
    content = bytearray(rng.choice(samples))
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(content) + 1)
        length = min(int(rng.paretovariate(0.7)), 2000)
        kind = rng.randrange(8)
        if kind == 0 and content:
            content[at - 1] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = rng.randbytes(length)
        elif kind == 4:  # splice: a part of it, or of another sample, in another place
            other = rng.choice([bytes(content), *samples])
            start = rng.randrange(len(other) + 1)
            content[at : at + rng.choice((0, length))] = other[start : start + length]
        elif kind == 5:
            word = rng.choice(_WORDS)
            content[at : at + len(word)] = word
        elif kind == 6:
            content[at:at] = rng.choice(_PIECES)
        elif numbers := list(re.finditer(rb"\d+(\.\d+)?", content)):
            number = rng.choice(numbers)
            content[number.start() : number.end()] = rng.choice(_NUMBERS)
    return bytes(content)


class _Watch:
    """Notes files written outside the folder of the input being read, and programs started."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING:
                self._written(path)
        elif event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink"):
            for path in arguments[:2]:
                self._written(path)
        elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork"):
            self.seen.append(f"{event} {arguments[:1]}")

    def _written(self, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike) and self.folder is not None:
            where = Path(os.path.realpath(os.fsdecode(path)))
            if not where.is_relative_to(self.folder) and where != Path(os.devnull):
                self.seen.append(f"wrote {where}")


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"not read after {SECONDS} s")


def fuzz(
    inputs: int, seed: int, only: str | None = None
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Feeds so many inputs, shared among the readers, one after the other in their main thread.

    Returns:
        By reader, how many were read and how many refused; findings.
    """
    watch = _WATCH
    counts: dict[str, Counter[str]] = {}
    findings: list[str] = []
    chosen = {name: reader for name, reader in readers().items() if only in (None, name)}
    before = signal.signal(signal.SIGALRM, _out_of_time)
    try:
        for place, (name, reader) in enumerate(chosen.items()):
            counts[name] = Counter()
            for sample in reader.samples:  # else its parser would not be met
                if [*_feed(reader, sample, watch)] != ["read"]:
                    raise RuntimeError(f"{name}: a valid sample is not read")
            share = inputs * (place + 1) // len(chosen) - inputs * place // len(chosen)
            for number in range(share):
                content = mutate(reader.samples, random.Random(f"{seed} {name} {number}"))
                for how in _feed(reader, content, watch):
                    if how.startswith("finding"):
                        findings.append(f"{name}, seed {seed}, input {number}: {how}")
                    counts[name][how.split(":")[0]] += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    return counts, findings


def _feed(reader: Reader, content: bytes, watch: _Watch) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watch.folder, watch.seen = Path(os.path.realpath(temporary)), []
        start = time.monotonic()
        signal.alarm(SECONDS)
        try:
            reader.read(Path(temporary), content)
            yield "read"
        except UserError as error:
            yield "refused" if str(error) else "finding: an error without a message"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            yield f"finding: {''.join(traceback.format_exception(error)[-3:])}"
        finally:
            signal.alarm(0)
            watch.folder = None
        if time.monotonic() - start > SECONDS:
            yield "finding: too slow"
        if watch.seen:
            yield f"finding: {watch.seen}"


_WATCH = _Watch()


def main() -> int:
    """Prints what became of the inputs, by reader."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="shared among the readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="READER", help="one of them")
    options = parser.parse_args()
    start = time.perf_counter()
    counts, findings = fuzz(options.inputs, options.seed, options.only)
    for name, count in counts.items():
        print(
            f"{name:<16}{count.total():>7,} inputs{count['read']:>7,} read"
            f"{count['refused']:>7,} refused{count['finding']:>5,} findings"
        )
    total = sum(count.total() for count in counts.values())
    print(f"{total:,} inputs, {len(findings)} findings, {time.perf_counter() - start:.0f} s")
    for finding in findings[:20]:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
