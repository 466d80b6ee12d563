"""Queries with the gallery images that the network finds most alike, right and wrong marked."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from ddag_jax.evaluation.protocols import Images, Search
from ddag_jax.evaluation.ranking import skipped

_SHOWN = 10
_GAP = 6
_HEIGHT = 144  # pixels of an image in the picture
_RIGHT, _WRONG, _QUERY = (0, 130, 70), (200, 40, 40), (60, 60, 60)


def ranked_lists(
    features: Float[np.ndarray, "N d"],
    images: Images,
    search: Search,
    read_images: Callable[[Int[np.ndarray, " b"]], UInt8[np.ndarray, "b h w 3"]],
    rows: int = 8,
) -> Image.Image:
    """A search's first trial: a row a query, itself and its ten nearest gallery images.

    A right one has a tick in a green frame, a wrong one a cross in a red frame.

    Args:
        features: of unit length.
        images: whose they are.
        search: who asks, among whom.
        read_images: numbers of images to images.
        rows: queries, spread evenly over all of them.
    """
    gallery = search.galleries[0]
    query = search.query
    query = query[np.linspace(0, len(query) - 1, min(rows, len(query))).astype(int)]
    similarity = features[query] @ features[gallery].T
    identities, cameras = images.identities, images.cameras
    unseen = skipped(
        search.camera_rule,
        identities[query],
        cameras[query],
        identities[gallery],
        cameras[gallery],
    )
    similarity[unseen] = -np.inf
    nearest = gallery[np.argsort(-similarity, axis=1, kind="stable")[:, :_SHOWN]]

    _, h, w, _ = read_images(query[:1]).shape
    size = (round(_HEIGHT * w / h), _HEIGHT)
    across = (1 + nearest.shape[1]) * (size[0] + _GAP) + 3 * _GAP
    picture = Image.new("RGB", (across, len(query) * (size[1] + _GAP) + _GAP), "white")
    for row, (asked, found) in enumerate(zip(query, nearest, strict=True)):
        top = _GAP + row * (size[1] + _GAP)
        numbers = np.concatenate([[asked], found])
        for column, (number, image) in enumerate(zip(numbers, read_images(numbers), strict=True)):
            left = _GAP + column * (size[0] + _GAP) + (2 * _GAP if column else 0)
            right = identities[number] == identities[asked]
            colour = _QUERY if column == 0 else _RIGHT if right else _WRONG
            box = (left - 3, top - 3, left + size[0] + 2, top + size[1] + 2)
            draw = ImageDraw.Draw(picture)
            draw.rectangle(box, fill=colour)
            picture.paste(Image.fromarray(image).resize(size), (left, top))
            if column:
                _mark(draw, left, top, right, colour)
    return picture


def _mark(draw: ImageDraw.ImageDraw, left: int, top: int, right: bool, colour: tuple) -> None:
    """A tick or a cross in the upper left corner, so that colour is not all that tells."""
    draw.rectangle((left, top, left + 15, top + 15), fill=colour)
    lines = [(3, 8, 6, 12), (6, 12, 12, 4)] if right else [(4, 4, 11, 11), (11, 4, 4, 11)]
    for x0, y0, x1, y1 in lines:
        draw.line((left + x0, top + y0, left + x1, top + y1), fill="white", width=2)
