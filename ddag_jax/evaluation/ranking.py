"""Ranking figures of person re-identification: CMC, mAP and mINP. NumPy only.

Dimensions: q queries, g gallery images, d channels of an embedding.

A query ranks the gallery by distance, nearest first; equal distances keep the gallery's order, as
a stable sort would. Three camera rules:

``sysu``
    SYSU-MM01. A query of camera 3 skips every gallery image of camera 2 (the two look at the same
    place), whatever its identity. CMC counts identities: only the first hit of each identity takes
    a place. mAP and mINP count images.
``llcm``
    LLCM. A query skips the gallery images of its own identity that its own camera took; those of
    other identities stay. Places are counted as under ``sysu``.
``none``
    RegDB. Nothing is skipped, cameras play no part, and CMC counts images.

Under each, a query that is left without a gallery image of its own identity is no query: it enters
no figure.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from ddag_jax.errors import UserError

CameraRule = Literal["sysu", "llcm", "none"]

MAX_RANK = 20
"""Ranks that the CMC curve is kept for."""

_CHUNK = 2**18
"""Distances sorted at once: small enough for the processor's cache."""


class Metrics(NamedTuple):
    """Figures of one ranking, shares in [0, 1]."""

    cmc: Float[np.ndarray, " 20"]
    """cmc[k - 1]: share of queries with a hit among the first k places."""
    mAP: float
    """Mean over queries of the mean precision at each hit."""
    mINP: float
    """Mean over queries of (images to find) / (place of the last one found)."""
    queries: int
    """Queries that have something to find."""
    average_precision: Float[np.ndarray, " q"]
    """Of each query, whose mean mAP is; NaN where there is nothing to find."""


def skipped(
    camera_rule: CameraRule,
    query_ids: Int[np.ndarray, " q"],
    query_cameras: Int[np.ndarray, " q"],
    gallery_ids: Int[np.ndarray, " g"],
    gallery_cameras: Int[np.ndarray, " g"],
) -> Bool[np.ndarray, "q g"]:
    """Gallery images that a query does not see.

    >>> who = np.array([7]), np.array([3]), np.array([7, 7, 5]), np.array([3, 2, 3])
    >>> for rule in ("sysu", "llcm", "none"):
    ...     print(skipped(rule, *who))
    [[False  True False]]
    [[ True False False]]
    [[False False False]]
    """
    if camera_rule == "sysu":
        return (query_cameras[:, None] == 3) & (gallery_cameras == 2)
    if camera_rule == "llcm":
        return (query_ids[:, None] == gallery_ids) & (query_cameras[:, None] == gallery_cameras)
    return np.zeros((len(query_ids), len(gallery_ids)), bool)


def rank(
    query_features: Float[np.ndarray, "q d"],
    gallery_features: Float[np.ndarray, "g d"],
    query_ids: Int[np.ndarray, " q"],
    gallery_ids: Int[np.ndarray, " g"],
    query_cameras: Int[np.ndarray, " q"],
    gallery_cameras: Int[np.ndarray, " g"],
    *,
    camera_rule: CameraRule,
) -> Metrics:
    """Ranks the gallery by inner product (cosine similarity, for rows of unit length).

    Raises `UserError` as `rank_distances` does.

    >>> gallery = np.eye(2)[[0, 0, 1]]
    >>> metrics = rank(
    ...     np.eye(2)[[1]], gallery, np.array([7]), np.array([5, 5, 7]), np.array([6]),
    ...     np.array([1, 2, 1]), camera_rule="none")
    >>> float(metrics.cmc[0]), metrics.mAP, metrics.queries
    (1.0, 1.0, 1)
    """
    return rank_distances(
        -query_features @ gallery_features.T,
        query_ids,
        gallery_ids,
        query_cameras,
        gallery_cameras,
        camera_rule=camera_rule,
    )


def rank_features(
    query: ArrayLike,
    gallery: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cameras: ArrayLike | None = None,
    gallery_cameras: ArrayLike | None = None,
    *,
    camera_rule: CameraRule = "none",
) -> Metrics:
    """Rank the gallery for each query by cosine similarity, and return CMC, mAP and mINP.

    Args:
        query: features [q, d], rows of unit length.
        gallery: features [g, d], rows of unit length.
        query_ids: identities, integers [q].
        gallery_ids: identities, integers [g].
        query_cameras: integers [q]; only camera rules need them.
        gallery_cameras: integers [g].
        camera_rule: which gallery images a query skips, `sysu` or `llcm`; `none` skips none.

    Raises:
        UserError: shapes do not fit, cameras are missing, a row is not of unit length, or no query
            has a match.

    >>> gallery = np.eye(2)[[0, 0, 1]]
    >>> metrics = rank_features(np.eye(2)[[1]], gallery, [7], [5, 5, 7])
    >>> float(metrics.cmc[0]), metrics.mAP, metrics.queries
    (1.0, 1.0, 1)
    """
    query, gallery = np.asarray(query), np.asarray(gallery)
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"features to rank: query is {query.shape} and gallery {gallery.shape}; give rows of"
            " the same length, [q, d] and [g, d]"
        )
    if camera_rule != "none" and (query_cameras is None or gallery_cameras is None):
        raise UserError(f"cameras: missing; the rule {camera_rule} needs those of both sides")
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
        -query @ gallery.T,
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
    """The same from a matrix of distances, in any unit.

    Raises `UserError` where a distance is not finite, and where no query has a match.

    The one query finds its images at places 1 and 4: precision 1/1 and 2/4, so AP is 0.75, and
    two images found at place 4 make an INP of 0.5.

    >>> distances = np.array([[0.1, 0.2, 0.3, 0.4]])
    >>> query, camera = np.array([7]), np.array([6])
    >>> gallery, cameras = np.array([7, 5, 5, 7]), np.array([1, 1, 2, 2])
    >>> metrics = rank_distances(distances, query, gallery, camera, cameras, camera_rule="none")
    >>> metrics.mAP, metrics.mINP
    (0.75, 0.5)

    A camera-3 query sees nothing of camera 2, which leaves places 1 and 2:

    >>> metrics = rank_distances(
    ...     distances, query, gallery, np.array([3]), cameras, camera_rule="sysu")
    >>> metrics.mAP, metrics.mINP
    (1.0, 1.0)

    By identity, two images of identity 5 in front count as one place:

    >>> distances = np.array([[0.3, 0.1, 0.2, 0.4]])
    >>> for rule in ("none", "sysu"):
    ...     metrics = rank_distances(distances, query, gallery, camera, cameras, camera_rule=rule)
    ...     print(metrics.cmc[:3])
    [0. 0. 1.]
    [0. 1. 1.]
    """
    if not np.isfinite(distances).all():
        raise UserError("features to rank: some values are NaN or infinite")
    # Sorted by identity, each identity's columns are one run.
    by_identity = np.argsort(gallery_ids, kind="stable")
    _, starts = np.unique(gallery_ids[by_identity], return_index=True)

    first_place, inverse_penalty = [], []
    precision = np.full(len(query_ids), np.nan)
    rows = max(1, _CHUNK // max(1, len(gallery_ids)))
    for start in range(0, len(query_ids), rows):
        chunk = slice(start, start + rows)
        found = gallery_ids == query_ids[chunk, None]
        distance = distances[chunk]
        if camera_rule != "none":
            unseen = skipped(
                camera_rule, query_ids[chunk], query_cameras[chunk], gallery_ids, gallery_cameras
            )
            found &= ~unseen
            # Last of all: the places of the others are as if these were not there.
            distance = np.where(unseen, np.inf, distance)
        asks = found.any(axis=1)
        found, distance = found[asks], distance[asks]

        # place[i, j]: how many gallery images stand before image j in query i's ranking.
        order = _order(distance)
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(order.shape[1])[None], axis=1)

        # The hits as a flat list, query by query, each query's from its first place to its last.
        query, image = np.nonzero(found)
        hits = place[query, image]
        hits = hits[np.lexsort((hits, query))] + 1
        count = found.sum(axis=1)
        ends = np.cumsum(count)
        nth = np.arange(1, len(hits) + 1) - np.repeat(ends - count, count)
        precision[chunk][asks] = np.bincount(query, nth / hits, len(count)) / count
        inverse_penalty.append(count / hits[ends - 1])

        first = hits[ends - count] - 1
        if camera_rule != "none":
            # Identities whose nearest image stands before ours. An image that is skipped stands
            # behind every hit.
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
    """The columns of each row by distance, equal ones by column; infinite ones last, in any order.

    NumPy's stable sort can take several times as long as the one that leaves ties in any order, so
    only rows that have some are sorted by it.
    """
    order = np.argsort(distances, axis=1)
    ranked = np.take_along_axis(distances, order, axis=1)
    tied = ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] < np.inf)).any(axis=1)
    order[tied] = np.argsort(distances[tied], axis=1, kind="stable")
    return order
