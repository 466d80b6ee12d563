"""The rows of a large gallery that are nearest to each query, found block by block.

Dimensions: q queries, g gallery rows, d channels, b rows of a block on one device.
"""

import functools
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ddag_jax.errors import UserError
from ddag_jax.io.progress import Progress
from ddag_jax.parallel import device_mesh, map_blocks, replicate, shard
from ddag_jax.types import Array

BLOCK_ROWS = 4096
"""Rows that a device is given at once."""

_ROWS = 128
"""Rows that are widened and multiplied at once. On a CPU they stay in the cache: a single query
takes half the time that it takes with whole blocks. All products have the same shape, so that the
bits of a similarity depend neither on the block size nor on the number of devices."""


class _Nearest(NamedTuple):
    """The nearest rows so far, on each device apart."""

    similarity: Float[Array, "devices q k"]
    """-inf where there is no row yet."""
    row: Int[Array, "devices q k"]


def top_k(
    query: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "g d"],
    k: int,
    *,
    block_rows: int = BLOCK_ROWS,
    progress: str | None = None,
) -> tuple[Float[np.ndarray, "q n"], Int[np.ndarray, "q n"]]:
    """Return the similarity and the number of the `k` gallery rows nearest to each query.

    Similarities are inner products in float32, whatever the gallery's precision. The next block is
    read while the devices compute, and the pages of a memory map of mode "r" are given back, so
    that memory does not grow with the gallery.

    Args:
        query: float32 rows of unit length.
        gallery: float16 or float32 rows of unit length, fewer than 2**31.
        k: number of rows wanted.
        block_rows: rows that each device is given at once, rounded up to a multiple of 128; the
            result does not depend on it.
        progress: title of the progress bar; None for no bar.

    Returns:
        Similarities, float32, the largest first, and row numbers, int64; equal similarities are in
        the gallery's order. n is k, or g if the gallery has fewer rows.

    Raises:
        UserError: shapes or types do not fit, k is less than 1, there is no query or no gallery
            row, or a similarity is not finite.

    >>> query = np.eye(2, dtype=np.float32)
    >>> similarity, row = top_k(query, query[[1, 0, 1]], 2)
    >>> row
    array([[1, 0],
           [0, 2]])
    """
    _check(query, gallery, k)
    mesh = device_mesh()
    k = min(k, len(gallery))
    each = min(block_rows, -(-len(gallery) // mesh.size))
    together = -(-each // _ROWS) * _ROWS * mesh.size
    found = shard(
        _Nearest(
            np.full((mesh.size, len(query), k), -np.inf, np.float32),
            np.full((mesh.size, len(query), k), -1, np.int32),
        ),
        mesh,
    )
    queries = replicate(query, mesh)
    merge = _compiled(mesh)

    def read(start: int) -> tuple[Array, Array]:
        block = np.asarray(gallery[start : start + together])
        rows = np.arange(start, start + len(block), dtype=np.int32)
        if missing := together - len(block):
            block = np.pad(block, ((0, missing), (0, 0)))
            rows = np.pad(rows, (0, missing), constant_values=-1)
        placed: tuple[Array, Array] = jax.block_until_ready(shard((block, rows), mesh))
        _give_back(gallery)
        return placed

    with (
        Progress(len(gallery), progress or "", "row", shown=progress is not None) as bar,
        ThreadPoolExecutor(max_workers=1) as reader,
    ):
        ahead = reader.submit(read, 0)
        for start in range(0, len(gallery), together):
            block, rows = ahead.result()
            if start + together < len(gallery):
                ahead = reader.submit(read, start + together)
            # Waiting bounds the number of blocks in memory to two.
            found = jax.block_until_ready(merge(queries, found, block, rows))
            bar.update(min(together, len(gallery) - start))

    # Of each query, the rows of all devices.
    similarity, row = (np.concatenate(np.asarray(one), axis=1) for one in found)
    order = np.lexsort((row, -similarity))[:, :k]
    similarity = np.take_along_axis(similarity, order, axis=1)
    if not np.isfinite(similarity).all():
        raise UserError("features: a row is not finite, or too large for float32; scale each to 1")
    return similarity, np.take_along_axis(row, order, axis=1).astype(np.int64)


def _check(query: np.ndarray, gallery: np.ndarray, k: int) -> None:
    if k < 1:
        raise UserError(f"k: {k} must be at least 1")
    for name, rows, allowed in (
        ("query", query, (np.float32,)),
        ("gallery", gallery, (np.float16, np.float32)),
    ):
        if rows.ndim != 2 or 0 in rows.shape or rows.dtype not in allowed:
            types = " or ".join(np.dtype(one).name for one in allowed)
            raise UserError(
                f"{name}: is {rows.dtype} of shape {rows.shape}; give {types} [rows, channels]"
            )
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query: has {query.shape[1]} channels, the gallery {gallery.shape[1]}; both must come"
            " from one model"
        )


def _merge(
    query: Float[Array, "q d"],
    found: _Nearest,
    block: Float[Array, "b d"],
    rows: Int[Array, " b"],
) -> _Nearest:
    """Add one device's block to what it has found; a row of number -1 is padding."""

    def products(part: Float[Array, "128 d"]) -> Float[Array, "q 128"]:
        return jax.lax.dot_general(
            query,
            part.astype(jnp.float32),
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,  # else TensorFloat-32 on a GPU, bfloat16 on a TPU
        )

    parts = jax.lax.map(products, block.reshape(-1, _ROWS, block.shape[1]))
    similarity = jnp.moveaxis(parts, 0, 1).reshape(len(query), len(rows))
    similarity = jnp.where(rows < 0, -jnp.inf, similarity)
    # Earlier rows come first, and top_k takes the first of equal ones.
    similarity = jnp.concatenate([found.similarity[0], similarity], axis=1)
    row = jnp.concatenate([found.row[0], jnp.broadcast_to(rows, (len(query), len(rows)))], axis=1)
    similarity, place = jax.lax.top_k(similarity, found.row.shape[2])
    return _Nearest(similarity[None], jnp.take_along_axis(row, place, axis=1)[None])


@functools.cache
def _compiled(mesh: Any) -> Callable[..., Any]:
    return map_blocks(_merge, mesh)


def _give_back(gallery: np.ndarray) -> None:
    """Drop the pages of a read-only memory map from this process; they stay in the page cache.

    A map of another mode is left alone: a private one (mode "c") would lose its changes.
    """
    if isinstance(gallery, np.memmap) and gallery.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        base: Any = gallery.base
        while isinstance(base, np.ndarray):
            base = base.base
        base.madvise(mmap.MADV_DONTNEED)
