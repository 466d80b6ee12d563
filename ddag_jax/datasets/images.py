"""Decode image files into uint8 arrays of one size, in parallel."""

import collections
import concurrent.futures
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import PIL.Image
from etils import epath
from jaxtyping import UInt8

from ddag_jax.errors import UserError
from ddag_jax.io.files import read_bytes

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
"""Lower-case suffixes of the files that are read as images."""

ImageFile: TypeAlias = epath.Path | UInt8[np.ndarray, "h w 3"]
"""An image's file, or its pixels."""

_FORMATS = ("JPEG", "PNG", "BMP", "DIB")
"""Pillow's decoders for files of these suffixes."""

_LONGEST = 256 * 2**20
"""Longest accepted file, bytes."""

_MOST_PIXELS = 50_000_000
"""Largest accepted image; decoded, it takes 150 MB."""

_TOO_MANY = "more than any camera's; remove it or scale it down"
# Pillow warns of half the pixels that it refuses; the bound here is lower.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


def read_image(path: ImageFile, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image and resize it with Lanczos, as the reference does, to any aspect ratio.

    Grey becomes three equal channels; transparency is dropped. An array is resized only.

    Raises:
      UserError: the file is not an image or not a regular file, is cut short, has too many pixels,
        or is in a colour space (CMYK, 16 bits, ...) without a defined conversion to RGB.
    """
    if isinstance(path, np.ndarray):
        ready = PIL.Image.fromarray(np.ascontiguousarray(path))
        return np.asarray(ready.resize((width, height), PIL.Image.Resampling.LANCZOS))
    try:
        content = read_bytes(path, _LONGEST)
        if not content:
            raise UserError(f"{path}: is empty (0 bytes); copy it again from the original")
        with PIL.Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:  # by the header, before decoding
                raise UserError(f"{path}: {image.width} x {image.height} pixels are {_TOO_MANY}")
            if image.mode not in _MODES:
                raise UserError(
                    f"{path}: its pixels are of Pillow's mode {image.mode}; convert it to RGB or"
                    " grey, 8 bits a channel"
                )
            small = image.convert("RGB").resize((width, height), PIL.Image.Resampling.LANCZOS)
    except PIL.Image.DecompressionBombError:
        raise UserError(f"{path}: its pixels are {_TOO_MANY}") from None
    except PIL.UnidentifiedImageError as error:
        raise UserError(f"{path}: is not an image; copy it again from the original") from error
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise any exception on broken files
        raise UserError(
            f"{path}: cannot be read as an image ({error}); copy it again from the original"
        ) from error
    return np.asarray(small)


def read_images(
    paths: Iterable[ImageFile], height: int, width: int
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield `read_image` of each path, in order, on all cores.

    Raises:
      UserError: as `read_image`, of the first image that cannot be read.
    """
    for found in try_images(paths, height, width):
        if isinstance(found, UserError):
            raise found
        yield found


def try_images(
    paths: Iterable[ImageFile], height: int, width: int
) -> Iterator[UInt8[np.ndarray, "h w 3"] | UserError]:
    """Yield what `read_image` returns or raises of each path, in order, on all cores.

    In threads: Pillow releases Python's lock while it decodes and resizes.
    """

    def read(path: ImageFile) -> UInt8[np.ndarray, "h w 3"] | UserError:
        try:
            return read_image(path, height, width)
        except UserError as error:
            return error

    workers = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        for path in paths:
            pending.append(pool.submit(read, path))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
