"""Decode image files into uint8 arrays of one size, in parallel."""

import collections
import concurrent.futures
import contextlib
import io
import operator
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
import PIL.ImageOps
from etils import epath
from jaxtyping import Int64, Integer, UInt8

from ddag_jax.errors import UserError
from ddag_jax.io.files import read_bytes

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Lower-case suffixes of the files that are read as images."""

SUFFIX_LIST = ", ".join(SUFFIXES)
"""They as text, for messages."""


class DeepImage(NamedTuple):
    """A grey image of 16 bits, of a thermal camera, and what becomes black and white of it."""

    path: epath.Path
    low: int
    """Value that becomes 0; lower ones do, too."""
    high: int
    """Value that becomes 255; higher ones do, too."""


ImageFile: TypeAlias = epath.Path | DeepImage | UInt8[np.ndarray, "h w 3"]
"""An image's file, or its pixels."""

_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP")
"""Pillow's decoders for files of these suffixes."""

_SIGNATURES = {
    b"GIF8": "a GIF image",
    b"\0\0\0\x0cjP": "a JPEG 2000 image",
    b"%PDF": "a PDF document",
}
"""First bytes of files that are not read, under whatever name."""

_LONGEST = 256 * 2**20
"""Longest accepted file, bytes."""

_MOST_PIXELS = 50_000_000
"""Largest accepted image; decoded, it takes 150 MB."""

_TOO_MANY = "more than any camera's; remove it or scale it down"
# Pillow warns of half the pixels that it refuses; the bound here is lower.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I")
"""Of grey images with 16 bits, read from PNG or TIFF."""

_ORIENTATION = 0x0112
"""EXIF's tag; 1 is upright."""


def with_range(
    file: epath.Path, infrared: bool, infrared_range: tuple[int, int] | None
) -> ImageFile:
    """Return how to read an image's file: by the range of those with 16 bits, if it is infrared."""
    return DeepImage(file, *infrared_range) if infrared and infrared_range is not None else file


def read_image(path: ImageFile, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image and resize it with Lanczos, as the reference does, to any aspect ratio.

    Grey becomes three equal channels; transparency is dropped. An image that EXIF says is stored
    lying on its side, or upside down, is turned upright. An array is resized only.

    Raises:
      UserError: the file is not an image or not a regular file, is cut short, has too many pixels,
        or is in a colour space (CMYK, 16 bits without a range, ...) without a defined conversion to
        RGB.
    """
    return _read(path, height, width)[0]


def _read(path: ImageFile, height: int, width: int) -> tuple[UInt8[np.ndarray, "h w 3"], bool]:
    """Return the image, and whether it was turned upright."""
    if isinstance(path, np.ndarray):
        ready = PIL.Image.fromarray(np.ascontiguousarray(path))
        return np.asarray(ready.resize((width, height), PIL.Image.Resampling.LANCZOS)), False
    file = path.path if isinstance(path, DeepImage) else path
    with _opened(file) as image:
        if image.mode in _DEEP_MODES and isinstance(path, DeepImage):
            ready = PIL.Image.fromarray(_to_8_bits(np.asarray(image), path.low, path.high))
        elif image.mode in _DEEP_MODES:
            raise UserError(
                f"{file}: has 16 bits a pixel; for infrared images give --infrared-range LOW HIGH,"
                " the values that become black and white, or convert it to 8 bits"
            )
        elif image.mode not in _MODES:
            raise UserError(
                f"{file}: its pixels are of Pillow's mode {image.mode}; convert it to RGB or grey,"
                " 8 bits a channel"
            )
        else:
            ready = image.convert("RGB")
        turned = _is_turned(image)
        if turned:
            ready.getexif()[_ORIENTATION] = image.getexif()[_ORIENTATION]
            ready = PIL.ImageOps.exif_transpose(ready)
        small = ready.convert("RGB").resize((width, height), PIL.Image.Resampling.LANCZOS)
        return np.asarray(small), turned


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[PIL.Image.Image]:
    """Open an image's file; whatever fails to read it in the block is a UserError."""
    content = b""
    try:
        content = read_bytes(path, _LONGEST)
        if not content:
            raise UserError(f"{path}: is empty (0 bytes); copy it again from the original")
        with PIL.Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:  # by the header, before decoding
                raise UserError(f"{path}: {image.width} x {image.height} pixels are {_TOO_MANY}")
            yield image
    except PIL.Image.DecompressionBombError:
        raise UserError(f"{path}: its pixels are {_TOO_MANY}") from None
    except PIL.UnidentifiedImageError as error:
        what = next((w for start, w in _SIGNATURES.items() if content.startswith(start)), None)
        if content[4:8] == b"ftyp":
            what = "a HEIF or AVIF image, or a video"
        if what:
            raise UserError(f"{path}: is {what}; convert it to PNG or JPEG") from None
        raise UserError(f"{path}: is not an image; copy it again from the original") from error
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise any exception on broken files
        raise UserError(
            f"{path}: cannot be read as an image ({error}); copy it again from the original"
        ) from error


def _is_turned(image: PIL.Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # Pillow raises any exception on broken EXIF; pixels are fine
        return False


def check_range(given: Any) -> tuple[int, int]:
    """Return the two values of `--infrared-range`.

    Raises:
      UserError: they are not whole numbers of 16 bits, the lower one first.
    """
    try:
        low, high = (operator.index(value) for value in given)
    except (TypeError, ValueError):
        low, high = 0, 0
    if not 0 <= low < high <= 65535:
        raise UserError(
            f"--infrared-range {given}: give the value that becomes black and a higher one that"
            " becomes white, whole numbers from 0 to 65535"
        )
    return low, high


def _to_8_bits(values: Integer[np.ndarray, "h w"], low: int, high: int) -> UInt8[np.ndarray, "h w"]:
    """Map `low` to 0 and `high` to 255, linearly; what is beyond becomes these."""
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def deep_values(path: epath.Path) -> Int64[np.ndarray, "65536"] | None:
    """Return how many pixels of a 16-bit grey image have each value; None of another image.

    Raises:
      UserError: as `read_image`.
    """
    with _opened(path) as image:
        if image.mode not in _DEEP_MODES:
            return None
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{path}: has values beyond 16 bits; convert it to 8 bits")
        return np.bincount(values.reshape(-1), minlength=65536)


def read_images(
    paths: Iterable[ImageFile], height: int, width: int, turned: list[int] | None = None
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield `read_image` of each path, in order, on all cores.

    Args:
      paths: of the images.
      height: of the result, pixels.
      width: of the result, pixels.
      turned: to add the places of images to that were turned upright.

    Raises:
      UserError: as `read_image`, of the first image that cannot be read.
    """
    for found in try_images(paths, height, width, turned):
        if isinstance(found, UserError):
            raise found
        yield found


def try_images(
    paths: Iterable[ImageFile], height: int, width: int, turned: list[int] | None = None
) -> Iterator[UInt8[np.ndarray, "h w 3"] | UserError]:
    """Yield what `read_image` returns or raises of each path, in order, on all cores.

    In threads: Pillow releases Python's lock while it decodes and resizes. Arguments are those of
    `read_images`.
    """

    def read(place: int, path: ImageFile) -> UInt8[np.ndarray, "h w 3"] | UserError:
        try:
            pixels, was_turned = _read(path, height, width)
        except UserError as error:
            return error
        if was_turned and turned is not None:
            turned.append(place)
        return pixels

    workers = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        for place, path in enumerate(paths):
            pending.append(pool.submit(read, place, path))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
