"""Queries beside their most similar gallery images, each marked right or wrong."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw

from ddag_jax.evaluation.embed import ReadImages
from ddag_jax.evaluation.protocols import Images, Search
from ddag_jax.evaluation.ranking import distances, skipped

SHOWN = 10
"""Number of gallery images in a list."""
_GAP = 6
_HEIGHT = 144  # pixels of an image in the picture
_RIGHT, _WRONG, _QUERY = (0, 130, 70), (200, 40, 40), (60, 60, 60)


class Nearest(NamedTuple):
    """The most similar gallery images of each query, in a search's first gallery."""

    images: Int[np.ndarray, "q n"]
    """Indices of images, the most similar first; -1 past the last one that the query may find."""
    similarity: Float[np.ndarray, "q n"]
    """Inner products; -inf where the index is -1. n is 10, or the size of a smaller gallery."""


def nearest_images(
    features: Float[np.ndarray, "N d"],
    images: Images,
    search: Search,
    query: Int[np.ndarray, " q"],
) -> Nearest:
    """Rank the first gallery of a search for some queries and keep the ten nearest images.

    Args:
        features: of all images, of unit length.
        images: identities and cameras of these images.
        search: whose gallery and camera rule to use; images that the rule excludes are left out.
        query: indices of the queries.
    """
    gallery = search.galleries[0]
    similarity = -distances(features[query], features[gallery])  # equal images keep their order
    unseen = skipped(
        search.camera_rule,
        images.identities[query],
        images.cameras[query],
        images.identities[gallery],
        images.cameras[gallery],
    )
    similarity[unseen] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :SHOWN]
    similarity = np.take_along_axis(similarity, order, axis=1)
    return Nearest(np.where(np.isfinite(similarity), gallery[order], -1), similarity)


def spread(count: int, chosen: int) -> Int[np.ndarray, " n"]:
    """Return at most `chosen` of the numbers 0 ... count - 1, evenly spaced.

    >>> spread(10, 4), spread(2, 4)
    (array([0, 3, 6, 9]), array([0, 1]))
    """
    return np.linspace(0, count - 1, min(chosen, count)).astype(int)


def choose_queries(
    average_precision: Float[np.ndarray, " q"],
    identities: Int[np.ndarray, " q"],
    count: int,
    hardest: int = 10,
) -> tuple[Int[np.ndarray, " n"], list[int]]:
    """Choose queries to show: half are the worst of the hardest identities, the rest evenly spaced.

    Args:
        average_precision: of each query; NaN without a right gallery image.
        identities: of the queries.
        count: number of queries to choose, if there are that many.
        hardest: number of hardest identities: those with the lowest mean average precision.

    Returns:
        Positions of the chosen queries, ascending, and the hardest identities, the hardest first.
    """
    valid = np.flatnonzero(~np.isnan(average_precision))
    people, whose = np.unique(identities[valid], return_inverse=True)
    mean = np.bincount(whose, average_precision[valid]) / np.bincount(whose)
    hard = people[np.argsort(mean, kind="stable")][:hardest]
    worst = valid[np.argsort(average_precision[valid], kind="stable")]
    chosen: set[int] = set()
    for identity in hard:
        mine = worst[identities[worst] == identity]
        chosen.update(mine[: max(1, count // 2 // len(hard))].tolist())
    chosen = set(sorted(chosen)[:count])
    others = np.setdiff1d(valid, list(chosen))
    chosen.update(others[spread(len(others), count - len(chosen))].tolist())
    return np.array(sorted(chosen)), hard.tolist()


def ranked_lists(
    features: Float[np.ndarray, "N d"],
    images: Images,
    search: Search,
    read_images: ReadImages,
    rows: int = 8,
) -> Image.Image:
    """Draw queries of a search, one per row, each with its ten nearest images of the first gallery.

    Right images have a tick in a green frame, wrong ones a cross in a red frame.

    Args:
        features: of all images, of unit length.
        images: identities and cameras of these images.
        search: its queries and galleries.
        read_images: reads images by index.
        rows: number of queries, evenly spaced over all of them.
    """
    query = search.query[spread(len(search.query), rows)]
    nearest = nearest_images(features, images, search, query).images
    identities = images.identities
    _, h, w, _ = read_images(query[:1]).shape
    size = (round(_HEIGHT * w / h), _HEIGHT)
    across = (1 + nearest.shape[1]) * (size[0] + _GAP) + 3 * _GAP
    picture = Image.new("RGB", (across, len(query) * (size[1] + _GAP) + _GAP), "white")
    for row, (asked, found) in enumerate(zip(query, nearest, strict=True)):
        top = _GAP + row * (size[1] + _GAP)
        numbers = np.concatenate([[asked], found[found >= 0]])
        for column, (number, image) in enumerate(zip(numbers, read_images(numbers), strict=True)):
            left = _GAP + column * (size[0] + _GAP) + (2 * _GAP if column else 0)
            right = bool(identities[number] == identities[asked])
            colour = _QUERY if column == 0 else _RIGHT if right else _WRONG
            box = (left - 3, top - 3, left + size[0] + 2, top + size[1] + 2)
            draw = ImageDraw.Draw(picture)
            draw.rectangle(box, fill=colour)
            picture.paste(Image.fromarray(image).resize(size), (left, top))
            if column:
                _mark(draw, left, top, right, colour)
    return picture


def _mark(draw: ImageDraw.ImageDraw, left: int, top: int, right: bool, colour: tuple) -> None:
    """Draw a tick or a cross in the upper left corner: colour must not be the only sign."""
    draw.rectangle((left, top, left + 15, top + 15), fill=colour)
    lines = [(3, 8, 6, 12), (6, 12, 12, 4)] if right else [(4, 4, 11, 11), (11, 4, 4, 11)]
    for x0, y0, x1, y1 in lines:
        draw.line((left + x0, top + y0, left + x1, top + y1), fill="white", width=2)
