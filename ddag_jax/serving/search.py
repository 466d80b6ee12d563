"""Search a gallery for the people on query images.

No camera rule applies: every gallery image can be found. Images of one tracklet count as one, by
the mean of their features.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from ddag_jax.config import Config
from ddag_jax.datasets.checks import count
from ddag_jax.datasets.images import check_range, read_image, with_range
from ddag_jax.errors import UserError
from ddag_jax.evaluation.pairs import OperatingPoints
from ddag_jax.evaluation.table import describe_pairs
from ddag_jax.io.buckets import absolute
from ddag_jax.io.files import as_path, check_new_file, new_file
from ddag_jax.methods.base import Modality
from ddag_jax.numerics import own_settings
from ddag_jax.serving.arguments import Sources, as_paths, check_choice, check_count
from ddag_jax.serving.contact_sheet import ContactSheet, write_contact_sheet
from ddag_jax.serving.embed import as_range, embed_found, embedded_by
from ddag_jax.serving.images import FoundImage, check_tracklets, find_images
from ddag_jax.serving.index import Index, check_same_network, is_index, open_index
from ddag_jax.serving.model import Model, load
from ddag_jax.serving.nearest import top_k
from ddag_jax.serving.results import Hit, Result, SearchResults
from ddag_jax.serving.threshold import find_threshold, parse_threshold

_BLOCK = 4096  # rows


class _Item(NamedTuple):
    """An image, or a tracklet: its first image and their number."""

    image: FoundImage
    images: int


class _Side(NamedTuple):
    """Images or tracklets, and a row of features for each."""

    items: list["_Item"]
    rows: Float[np.ndarray, "n d"]


@own_settings()
def search(
    run: epath.PathLike,
    gallery: Sources,
    query: Sources,
    *,
    top: int = 10,
    threshold: str | float | None = None,
    gallery_modality: Modality | None = None,
    query_modality: Modality | None = None,
    feature: str | None = None,
    infrared_range: tuple[int, int] | None = None,
    config: Config | None = None,
    sheet: epath.PathLike | None = None,
    json: epath.PathLike | None = None,
) -> SearchResults:
    """Return the gallery images that are most similar to each query.

    Args:
        run: folder of a run (its best checkpoint, or the last one), or of a checkpoint.
        gallery: a file of features (.npz, by `embed`) of the same network, or images: files,
            folders and lists, see `serving.images.find_images`.
        query: images.
        top: number of hits of a query.
        threshold: leave out hits that are less similar: the cosine similarity, or "eer",
            "far=1e-2" or "far=1e-3", which the run's evaluation stored.
        gallery_modality: of the gallery images, where neither list nor folder says it; of a file
            of features with both, the one to search.
        query_modality: of the query images, likewise.
        feature: name of the feature; None for that of the gallery's file, or else the one that the
            evaluation reports.
        infrared_range: values that become black and white of infrared images with 16 bits, as in
            preparation; None: that of the gallery's file, or else such images are not read.
        config: with a method of your own that the checkpoint names.
        sheet: file to write a page to look at, .html; must not exist.
        json: file to write the results to; must not exist.

    Raises:
        UserError: an image, the network, the gallery's file, the threshold or a target is missing
            or does not fit. All are found before the first image is read.
    """
    top = check_count("--top", top)
    if infrared_range is not None:
        infrared_range = check_range(infrared_range)
    if gallery_modality is not None:
        check_choice("--gallery-modality", gallery_modality, get_args(Modality))
    wanted = None if threshold is None else parse_threshold(threshold)
    _check_targets(sheet, json)
    stored = _stored_gallery(gallery)
    index = None if stored is None else open_index(stored)
    if index is not None:
        check_tracklets(os.fspath(index.path), index.images)
    notes: list[str] = []
    gallery_images: list[FoundImage] = []
    if index is None:
        gallery_images, found = find_images(gallery, gallery_modality, whose="gallery")
        notes += found
    query_images, found = find_images(query, query_modality, whose="query")
    notes += found
    model = load(run, config=config)
    if index is not None:
        # First the network: one of another method may have no feature of this name.
        feature = feature or index.embedded_by.feature
        if infrared_range is None:
            infrared_range = as_range(index.embedded_by.infrared_range)
        check_same_network(index, embedded_by(model, feature, infrared_range))
    name = model.reported(feature)
    accepted, points = None, None
    if wanted is not None:
        accepted, points = find_threshold(model.trained, name, wanted)

    unreadable: list[str] = []
    if index is None:
        sides = _embedded(model, gallery_images, name, infrared_range, "gallery", notes, unreadable)
    else:
        by_modality = {m: [i for i in index.images if i.modality == m] for m in index.features}
        sides = [
            _by_tracklet(by_modality[modality], rows)
            for modality, rows in index.features.items()
            if len(rows) and gallery_modality in (None, modality)
        ]
        if not sides:
            raise UserError(f"{index.path}: holds no {gallery_modality} image")
    size = sum(len(side.items) for side in sides)
    if top > size:
        notes.append(
            f"--top {top}: the gallery has {count(range(size), 'entry', 'entries')}, so each query"
            " lists all of it"
        )
    queries = _embedded(model, query_images, name, infrared_range, "query", notes, unreadable)
    try:
        results = [result for asked in queries for result in _ranked(asked, sides, top, accepted)]
    except UserError as error:  # ours are finite
        raise UserError(str(error) if index is None else f"{index.path}: {error}") from None
    order = {image.file: place for place, image in enumerate(query_images)}
    results.sort(key=lambda result: order[result.file])
    if points is not None:
        notes += _of_one_modality(results)
    notes += _gone(results, index)
    answer = SearchResults(
        run=absolute(model.trained.name),
        checkpoint=model.trained.checkpoint.name,
        feature=name,
        threshold=accepted,
        threshold_from=_described(wanted, points),
        gallery=size,
        results=results,
        notes=notes,
        unreadable=unreadable,
    )
    if json is not None:
        with new_file(json) as file:
            file.write(answer.to_json().encode())
    if sheet is not None:
        shown = functools.partial(_picture, model, infrared_range)
        write_contact_sheet(sheet, _contact_sheet(answer), shown)
    return answer


def _check_targets(sheet: epath.PathLike | None, json: epath.PathLike | None) -> None:
    for name, target in (("sheet", sheet), ("json", json)):
        if target is not None:
            check_new_file(as_path(f"--{name}", target))
    if sheet is not None and epath.Path(sheet).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--sheet {sheet}: is a page; name it {sheet}.html")
    if sheet is not None and json is not None and os.path.abspath(sheet) == os.path.abspath(json):
        raise UserError(f"--sheet and --json: both are {sheet}; name two files")


def _of_one_modality(results: Sequence[Result]) -> list[str]:
    """Return a remark if hits are of their query's modality, for which no threshold is measured."""
    alike = sum(hit.modality == result.modality for result in results for hit in result.hits)
    if not alike:
        return []
    what = count(range(alike), "hit is", "hits are")
    return [
        f"{what} of the query's own modality; the threshold is measured on pairs of a visible and"
        " an infrared image, and accepts too much there (--gallery-modality searches one of them)"
    ]


def _gone(results: Sequence[Result], index: Index | None) -> list[str]:
    """Return a remark if hits of a file of features have no image file any more."""
    files = {hit.file for result in results for hit in result.hits}
    gone = [file for file in files if not os.path.exists(file)]
    if index is None or not gone:
        return []
    what = count(gone, "image that was found is", "images that were found are")
    return [
        f"{what} not there any more; python -m ddag_jax.serving prune {index.path} removes such"
        " images from the gallery"
    ]


def _contact_sheet(found: SearchResults) -> ContactSheet:
    entries = count(range(found.gallery), "entry", "entries")
    said = [
        f"Run {found.run}, checkpoint {found.checkpoint}, feature {found.feature}; a gallery of"
        f" {entries}."
    ]
    if found.threshold is not None:
        said.append(f"Threshold {found.threshold:.3f}, {found.threshold_from}.")
    return ContactSheet(
        f"Search with run {epath.Path(found.run).name}",
        [*said, *found.notes, *found.unreadable],
        found.threshold,
        found.results,
    )


def _picture(
    model: Model, infrared_range: tuple[int, int] | None, file: str, modality: Modality
) -> UInt8[np.ndarray, "h w 3"] | None:
    """Return an image as the network sees it; None if it is gone."""
    try:
        return read_image(
            with_range(epath.Path(file), modality == "infrared", infrared_range), *model.image_size
        )
    except (UserError, OSError):
        return None


def _stored_gallery(gallery: Sources) -> epath.Path | None:
    """Return the file of features that is the gallery, or None if it is images."""
    sources = as_paths("--gallery", gallery)
    if not any(map(is_index, sources)):
        return None
    if len(sources) > 1:
        raise UserError(
            "--gallery: give one file of features (.npz), or images; ddag-embed --add joins them"
        )
    return sources[0]


def _embedded(
    model: Model,
    images: Sequence[FoundImage],
    feature: str,
    infrared_range: tuple[int, int] | None,
    what: str,
    notes: list[str],
    unreadable: list[str],
) -> list[_Side]:
    """Embed images; return those of each modality that can be read."""
    rows, faults = embed_found(model, images, feature, infrared_range=infrared_range, what=what)
    readable = faults.readable(len(images))
    notes += faults.notes(len(images))
    unreadable += faults.unreadable
    if not readable.any():
        raise UserError("\n  ".join([f"--{what}: no image can be read:", *faults.unreadable[:10]]))
    sides = []
    for modality in dict.fromkeys(image.modality for image in images):
        chosen = [i for i in np.flatnonzero(readable).tolist() if images[i].modality == modality]
        if chosen:
            sides.append(_by_tracklet([images[i] for i in chosen], rows[chosen]))
    return sides


def _by_tracklet(images: Sequence[FoundImage], rows: Float[np.ndarray, "n d"]) -> _Side:
    """Join the images of each tracklet: their feature is the mean, scaled to unit length."""
    keys = [image.tracklet or f"\0{number}" for number, image in enumerate(images)]
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    if len(first) == len(images):
        return _Side([_Item(image, 1) for image in images], rows)
    place = {key: number for number, key in enumerate(first)}
    group = np.array([place[key] for key in keys])
    sums = np.zeros((len(first), rows.shape[1]), np.float32)
    for start in range(0, len(rows), _BLOCK):
        np.add.at(sums, group[start : start + _BLOCK], rows[start : start + _BLOCK])
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    sizes = np.bincount(group).tolist()
    # One labelled image names its tracklet.
    names = {key: i.identity for key, i in zip(keys, images, strict=True) if i.identity}
    items = [
        _Item(images[i]._replace(identity=names.get(key, "")), size)
        for (key, i), size in zip(first.items(), sizes, strict=True)
    ]
    return _Side(items, sums)


def _ranked(
    asked: _Side, sides: Sequence[_Side], top: int, threshold: float | None
) -> list[Result]:
    found = [top_k(asked.rows, side.rows, top, progress="searching") for side in sides]
    results = []
    for number, item in enumerate(asked.items):
        hits = [
            (similarity, side.items[row])
            for side, nearest in zip(sides, found, strict=True)
            for similarity, row in zip(*(one[number].tolist() for one in nearest), strict=True)
        ]
        hits.sort(key=lambda hit: -hit[0])  # equal ones keep the gallery's order
        ranked = [
            Hit(rank, similarity, **_said(found))
            for rank, (similarity, found) in enumerate(hits[:top], start=1)
        ]
        result = Result(hits=ranked, **_said(item))
        results.append(result if threshold is None else result.above(threshold))
    return results


def _said(item: _Item) -> dict[str, Any]:
    """Return the fields that a result and a hit share."""
    image = item.image
    return {
        "file": image.file,
        "identity": image.identity or None,
        "modality": image.modality,
        "tracklet": image.tracklet or None,
        "images": item.images,
    }


def _described(threshold: str | float | None, points: OperatingPoints | None) -> str | None:
    """Return what a threshold is from, in words."""
    if threshold is None:
        return None
    if points is None or not isinstance(threshold, str):
        return "as given"
    point = points["points"][threshold]
    assert point is not None  # `find_threshold` has found it
    rates = (
        f"false accepts {100 * point['false_accept_rate']:.2g} %,"
        f" true accepts {100 * point['true_accept_rate']:.1f} %"
    )
    return f"that of {threshold}: {rates}, from {describe_pairs(points)}"
