"""Ranking figures of person re-identification: CMC, mAP and mINP. NumPy only.

Dimensions: q queries, g gallery images, d channels of an embedding.

A query ranks the gallery by distance, nearest first; equal distances keep the gallery's order, as
in a stable sort. A `CameraRule` says which gallery images a query skips, and whether the CMC counts
identities (only the first hit of each identity takes a place) or images. mAP and mINP count images.
Queries without a gallery image of their identity to find enter no figure.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from ddag_jax.datasets.dataset import CameraRule
from ddag_jax.errors import UserError

MAX_RANK = 20
"""Length of the CMC curve."""

_CHUNK = 2**18
"""Distances sorted at once: small enough for the processor's cache."""


class Metrics(NamedTuple):
    """Figures of one ranking, in [0, 1]."""

    cmc: Float[np.ndarray, " 20"]
    """cmc[k - 1]: share of queries with a hit among the first k places."""
    mAP: float
    """Mean over queries of the mean precision at each hit."""
    mINP: float
    """Mean over queries of (images to find) / (place of the last one found)."""
    queries: int
    """Number of queries with a match."""
    average_precision: Float[np.ndarray, " q"]
    """Of each query; NaN if it has no match. mAP is the mean of the others."""


def skipped(
    camera_rule: CameraRule,
    query_ids: Int[np.ndarray, " q"],
    query_cameras: Int[np.ndarray, " q"],
    gallery_ids: Int[np.ndarray, " g"],
    gallery_cameras: Int[np.ndarray, " g"],
) -> Bool[np.ndarray, "q g"]:
    """Return which gallery images each query skips.

    >>> who = np.array([7]), np.array([3]), np.array([7, 7, 5]), np.array([3, 2, 3])
    >>> skipped(CameraRule(skips_cameras=((3, 2),)), *who)
    array([[False,  True, False]])
    >>> skipped(CameraRule(skips_own_camera=True), *who)
    array([[ True, False, False]])
    """
    result = np.zeros((len(query_ids), len(gallery_ids)), bool)
    for query_camera, gallery_camera in camera_rule.skips_cameras:
        result |= (query_cameras[:, None] == query_camera) & (gallery_cameras == gallery_camera)
    if camera_rule.skips_own_camera:
        result |= (query_ids[:, None] == gallery_ids) & (query_cameras[:, None] == gallery_cameras)
    return result


def distances(
    query_features: Float[np.ndarray, "q d"], gallery_features: Float[np.ndarray, "g d"]
) -> Float[np.ndarray, "q g"]:
    """Return negated inner products: the order of cosine distance, for rows of unit length.

    Equal gallery rows, as of an image and its duplicate, are at exactly equal distances, so that
    they keep the gallery's order. A plain matrix product does not give that: BLAS rounds
    differently in different columns. Here each distinct row enters the product once.

    >>> gallery = np.eye(2)[[0, 0, 1]]
    >>> (distances(np.eye(2)[[1]], gallery) == [[0, 0, -1]]).all()
    np.True_
    """
    distinct, columns = distinct_rows(gallery_features)
    products = -query_features @ distinct.T
    return products if len(distinct) == len(columns) else np.take(products, columns, axis=1)


def distinct_rows(
    rows: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "u d"], Int[np.ndarray, " n"]]:
    """Return the distinct rows in order of appearance, and the place of each row among them.

    Rows are compared by their bytes.
    """
    keys = [row.tobytes() for row in rows[:, :16]]  # enough where no row appears twice
    if len(set(keys)) == len(keys):
        return rows, np.arange(len(rows))
    places: dict[bytes, int] = {}
    inverse = np.array([places.setdefault(row.tobytes(), len(places)) for row in rows], np.int64)
    _, first = np.unique(inverse, return_index=True)
    return rows[first], inverse


def rank_features(
    query: ArrayLike,
    gallery: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cameras: ArrayLike | None = None,
    gallery_cameras: ArrayLike | None = None,
    *,
    camera_rule: CameraRule | None = None,
) -> Metrics:
    """Rank the gallery for each query by cosine similarity, and return CMC, mAP and mINP.

    Args:
        query: features [q, d], rows of unit length.
        gallery: features [g, d], rows of unit length.
        query_ids: identities, integers [q].
        gallery_ids: identities, integers [g].
        query_cameras: integers [q]; only camera rules need them.
        gallery_cameras: integers [g].
        camera_rule: which gallery images a query skips, and what the CMC counts; a published
            dataset's is `find_dataset(name).camera_rule`. None: nothing is skipped.

    Raises:
        UserError: shapes do not fit, cameras are missing, a row is not of unit length, or no query
            has a match.

    >>> gallery = np.eye(2)[[0, 0, 1]]
    >>> metrics = rank_features(np.eye(2)[[1]], gallery, [7], [5, 5, 7])
    >>> float(metrics.cmc[0]), metrics.mAP, metrics.queries
    (1.0, 1.0, 1)
    """
    camera_rule = camera_rule or CameraRule()
    query, gallery = np.asarray(query), np.asarray(gallery)
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"features to rank: query is {query.shape} and gallery {gallery.shape}; give rows of"
            " the same length, [q, d] and [g, d]"
        )
    if camera_rule.needs_cameras and (query_cameras is None or gallery_cameras is None):
        raise UserError("cameras: missing; the camera rule needs those of both sides")
    columns = []
    for side, features, ids, cameras in (
        ("query", query, query_ids, query_cameras),
        ("gallery", gallery, gallery_ids, gallery_cameras),
    ):
        lengths = np.linalg.norm(features, axis=1)
        if len(lengths) and not np.abs(lengths - 1).max() < 1e-2:
            raise UserError(f"{side}: a row is not of unit length; divide each by its norm")
        cameras = np.zeros(len(features), int) if cameras is None else cameras
        columns.append((np.asarray(ids), np.asarray(cameras)))
        for name, values in zip(("ids", "cameras"), columns[-1], strict=True):
            if values.shape != (len(features),):
                raise UserError(
                    f"{side}_{name}: is of shape {values.shape}; give one for each of"
                    f" {len(features)} rows"
                )
    (query_ids, query_cameras), (gallery_ids, gallery_cameras) = columns
    return rank_distances(
        distances(query, gallery),
        query_ids,
        gallery_ids,
        query_cameras,
        gallery_cameras,
        camera_rule=camera_rule,
    )


def rank_distances(
    distances: Float[np.ndarray, "q g"],
    query_ids: Int[np.ndarray, " q"],
    gallery_ids: Int[np.ndarray, " g"],
    query_cameras: Int[np.ndarray, " q"],
    gallery_cameras: Int[np.ndarray, " g"],
    *,
    camera_rule: CameraRule,
) -> Metrics:
    """Return the figures of a matrix of distances, in any unit.

    Raises:
        UserError: a distance is not finite, or no query has a match.

    The one query finds its images at places 1 and 4: precision 1/1 and 2/4, so AP is 0.75, and
    two images found at place 4 make an INP of 0.5.

    >>> distances = np.array([[0.1, 0.2, 0.3, 0.4]])
    >>> query, camera = np.array([7]), np.array([6])
    >>> gallery, cameras = np.array([7, 5, 5, 7]), np.array([1, 1, 2, 2])
    >>> metrics = rank_distances(
    ...     distances, query, gallery, camera, cameras, camera_rule=CameraRule())
    >>> metrics.mAP, metrics.mINP
    (0.75, 0.5)

    A query of camera 3 that skips camera 2 finds them at places 1 and 2:

    >>> rule = CameraRule(skips_cameras=((3, 2),))
    >>> metrics = rank_distances(
    ...     distances, query, gallery, np.array([3]), cameras, camera_rule=rule)
    >>> metrics.mAP, metrics.mINP
    (1.0, 1.0)

    Counted by identity, two images of identity 5 take one place:

    >>> distances = np.array([[0.3, 0.1, 0.2, 0.4]])
    >>> for counts in ("images", "identities"):
    ...     rule = CameraRule(counts=counts)
    ...     metrics = rank_distances(distances, query, gallery, camera, cameras, camera_rule=rule)
    ...     print(metrics.cmc[:3])
    [0. 0. 1.]
    [0. 1. 1.]
    """
    if not np.isfinite(distances).all():
        raise UserError("features to rank: some values are NaN or infinite")
    skips = bool(camera_rule.skips_cameras or camera_rule.skips_own_camera)
    # Sorted by identity, each identity's columns are consecutive.
    by_identity = np.argsort(gallery_ids, kind="stable")
    _, starts = np.unique(gallery_ids[by_identity], return_index=True)

    first_place, inverse_penalty = [], []
    precision = np.full(len(query_ids), np.nan)
    rows = max(1, _CHUNK // max(1, len(gallery_ids)))
    for start in range(0, len(query_ids), rows):
        chunk = slice(start, start + rows)
        found = gallery_ids == query_ids[chunk, None]
        distance = distances[chunk]
        if skips:
            unseen = skipped(
                camera_rule, query_ids[chunk], query_cameras[chunk], gallery_ids, gallery_cameras
            )
            found &= ~unseen
            # Last of all, so that the others have the same places as without them.
            distance = np.where(unseen, np.inf, distance)
        matched = found.any(axis=1)
        found, distance = found[matched], distance[matched]

        # place[i, j]: number of gallery images before image j in query i's ranking.
        order = _order(distance)
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(order.shape[1])[None], axis=1)

        # The places of all hits, ascending within each query, queries one after another.
        query, image = np.nonzero(found)
        hits = place[query, image]
        hits = hits[np.lexsort((hits, query))] + 1
        count = found.sum(axis=1)
        ends = np.cumsum(count)
        nth = np.arange(1, len(hits) + 1) - np.repeat(ends - count, count)
        precision[chunk][matched] = np.bincount(query, nth / hits, len(count)) / count
        inverse_penalty.append(count / hits[ends - 1])

        first = hits[ends - count] - 1
        if camera_rule.counts == "identities":
            # Identities whose nearest image is before the first hit. Skipped images are behind
            # every hit.
            nearest = np.minimum.reduceat(place[:, by_identity], starts, axis=1)
            first = (nearest < first[:, None]).sum(axis=1)
        first_place.append(first)

    if not sum(map(len, first_place)):
        raise UserError("no query has an image of its identity in the gallery it may search")
    first = np.concatenate(first_place)
    return Metrics(
        cmc=(first[:, None] <= np.arange(MAX_RANK)).mean(axis=0),
        mAP=float(precision[~np.isnan(precision)].mean()),
        mINP=float(np.concatenate(inverse_penalty).mean()),
        queries=len(first),
        average_precision=precision,
    )


def _order(distances: Float[np.ndarray, "q g"]) -> Int[np.ndarray, "q g"]:
    """Return each row's columns by distance, equal ones by column; infinite ones last, unordered.

    NumPy's stable sort can take several times as long as its default one, so only rows with ties
    are sorted by it.
    """
    order = np.argsort(distances, axis=1)
    ranked = np.take_along_axis(distances, order, axis=1)
    tied = ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] < np.inf)).any(axis=1)
    order[tied] = np.argsort(distances[tied], axis=1, kind="stable")
    return order
