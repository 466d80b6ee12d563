"""Compute the contents of the report of an evaluated run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ddag_jax.datasets.dataset import label
from ddag_jax.evaluation.embed import ReadImages
from ddag_jax.evaluation.pairs import OperatingPoints, compare_pairs
from ddag_jax.evaluation.protocols import Images, Record, Search, rank_draws
from ddag_jax.evaluation.table import describe
from ddag_jax.methods.base import HasBatchAttention, HasFeatureMap, Method, Modality
from ddag_jax.report import figures
from ddag_jax.report.attention import (
    batch_attention,
    choose_batch,
    look_at,
    stripes,
)
from ddag_jax.report.figures import Figure
from ddag_jax.report.page import Block, Page
from ddag_jax.report.ranked_lists import choose_queries, nearest_images, spread
from ddag_jax.report.thumbnails import thumbnails
from ddag_jax.report.training_curves import training_curves

QUERIES = 96
"""Number of ranked lists in a report, over all searches."""
_PEOPLE_MAPPED, _IMAGES_MAPPED = 12, 480
_LOOKED_AT, _EXAMPLES = 32, 6
_IMAGES_OF_A_PERSON = 24
_BATCH = 8, 4  # maximum identities, and images per identity and modality, of the graph's batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedRun:
    """An evaluated run: the input of the report."""

    title: str
    """Title of the page: the run."""
    images: Images
    read_images: ReadImages
    searches: Sequence[Search]
    features: Mapping[str, Float[np.ndarray, "N _"]]
    """All features of the network, by name."""
    evaluated: Mapping[str, Float[np.ndarray, "N _"]]
    """The features in the table."""
    reported: str
    """Name of the feature in the ranked lists, the histogram and the map."""
    reported_feature: Float[np.ndarray, "N _"]
    untrained: Mapping[str, Float[np.ndarray, "N _"]]
    """The features in the table, of the network before training."""
    records: Sequence[Record]
    untrained_records: Sequence[Record]
    operating_points: Mapping[str, OperatingPoints | None]
    """Of the features in the table."""
    reranked: bool
    method: Method
    """The method, without a device axis."""
    variables: Any
    """{"params", "batch_stats"} of the trained network, on this host."""
    batch: tuple[int, int]
    """Identities, and images per identity and modality, of a training batch."""
    log: Sequence[Mapping[str, Any]]
    """Lines of the run's log; empty if it has no log."""


def page_contents(run: EvaluatedRun) -> Page:
    """Return the contents of the page."""
    charts, precisions = _curves(run)
    return Page(
        title=run.title,
        protocol=", ".join(describe(run.records[0])),
        several=run.records[0]["trials"] > 1,
        blocks=_blocks(run),
        curves=charts,
        lists=_lists(run, precisions),
        embeddings=_embeddings(run),
        operating_points=run.operating_points,
        attention=_attention(run),
        training=_training(run.log),
    )


def _blocks(run: EvaluatedRun) -> list[Block]:
    """Return the table: a block per search and a row per feature, the untrained network last."""
    blocks = []
    for search in run.searches:
        rows = [
            (prefix + record["feature"], record)
            for prefix, records in (("", run.records), ("untrained ", run.untrained_records))
            for record in records
            if (record["direction"], record["mode"]) == (search.direction, search.mode)
        ]
        blocks.append(Block(label(search.direction, search.mode), rows))
    return blocks


def cmc_curves(run: EvaluatedRun, search: Search) -> dict[str, Float[np.ndarray, " 20"]]:
    """Return the CMC curve of each feature, averaged over the draws of a search.

    The curves of the untrained network are named "untrained FEATURE".
    """
    return {
        prefix + name: np.mean(
            [trial.cmc for trial in rank_draws(feature, run.images, search, run.reranked)], axis=0
        )
        for prefix, features in (("", run.evaluated), ("untrained ", run.untrained))
        for name, feature in features.items()
    }


def _curves(run: EvaluatedRun) -> tuple[list[Figure], list[np.ndarray]]:
    """Return the CMC charts, and each query's average precision in the first draw by search."""
    charts, precisions = [], []
    for search in run.searches:
        name = f"cmc_{search.mode or search.direction}"
        title = label(search.direction, search.mode)
        charts.append(figures.cmc(name, title, cmc_curves(run, search)))
        (first, *_) = rank_draws(
            run.reported_feature,
            run.images,
            search._replace(galleries=search.galleries[:1]),
            reranked=False,
        )
        precisions.append(first.average_precision)
    return charts, precisions


def _lists(run: EvaluatedRun, precisions: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the ranked lists, and the images of all identities in them, as JSON values."""
    identities, cameras = run.images.identities, run.images.cameras
    searches: list[dict[str, Any]] = []
    shown: list[int] = []
    for search, precision in zip(run.searches, precisions, strict=True):
        places, hardest = choose_queries(
            precision, identities[search.query], QUERIES // len(run.searches)
        )
        asked = search.query[places]
        nearest = nearest_images(run.reported_feature, run.images, search, asked)
        rows = []
        for query, place, found, similarity in zip(asked, places, *nearest, strict=True):
            seen = found >= 0
            shown += [int(query), *found[seen].tolist()]
            rows.append(
                {
                    "query": int(query),
                    "precision": round(float(precision[place]), 4),
                    "found": found[seen].tolist(),
                    "similarity": [round(float(value), 3) for value in similarity[seen]],
                }
            )
        name = label(search.direction, search.mode)
        searches.append({"label": name, "hardest": hardest, "queries": rows})
    people = {who: _images_of(run, who) for who in np.unique(identities[shown]).tolist()}
    # One image of each identity in turn, so that a limit on the size leaves some of each.
    turns = [
        images[turn]
        for turn in range(_IMAGES_OF_A_PERSON)
        for images in people.values()
        if turn < len(images)
    ]
    jpegs = thumbnails(run.read_images, shown, turns)
    return {
        "searches": searches,
        "people": {
            identity: {
                "images": [number for number in images if number in jpegs],
                "total": int((identities == identity).sum()),
            }
            for identity, images in people.items()
        },
        "images": {
            number: [
                int(identities[number]),
                int(cameras[number]),
                "infrared" if run.images.infrared[number] else "visible",
                jpeg,
            ]
            for number, jpeg in jpegs.items()
        },
    }


def _images_of(run: EvaluatedRun, identity: int) -> list[int]:
    """Return indices of a person's images by camera and name, evenly spaced if there are many."""
    mine = np.flatnonzero(run.images.identities == identity)
    names = np.asarray(run.images.names)[mine]
    mine = mine[np.lexsort((names, run.images.cameras[mine]))]
    return mine[spread(len(mine), _IMAGES_OF_A_PERSON)].tolist()


def _embeddings(run: EvaluatedRun) -> list[Figure]:
    """Return the t-SNE map of some identities and the histogram of all similarities."""
    from sklearn.manifold import TSNE

    identities, infrared = run.images.identities, run.images.infrared
    people = np.unique(identities)
    people = people[spread(len(people), _PEOPLE_MAPPED)]
    each = _IMAGES_MAPPED // len(people) // 2
    numbers = np.concatenate(
        [
            mine[spread(len(mine), each)]
            for identity in people
            for modality in (infrared, ~infrared)
            if len(mine := np.flatnonzero((identities == identity) & modality))
        ]
    )
    points = TSNE(
        perplexity=min(30, (len(numbers) - 1) / 3), metric="cosine", init="random", random_state=0
    ).fit_transform(run.reported_feature[numbers])
    charts = [figures.embedding_map(points, identities[numbers], infrared[numbers], "t-SNE")]
    pairs = compare_pairs(run.reported_feature, identities, infrared)
    if pairs is not None:
        charts.append(figures.similarities(pairs))
    return charts


def _attention(run: EvaluatedRun) -> list[Figure]:
    """Return the attention figures that the method supports: parts, Grad-CAM, graph."""
    return [
        *(_examples(run, run.method) if isinstance(run.method, HasFeatureMap) else ()),
        *(_graph(run, run.method) if isinstance(run.method, HasBatchAttention) else ()),
    ]


def _examples(run: EvaluatedRun, method: HasFeatureMap) -> list[Figure]:
    """Return the part attention, and pairs of images with Grad-CAM of their similarity."""
    search = run.searches[0]
    asked = search.query[spread(len(search.query), _LOOKED_AT)]
    nearest = nearest_images(run.reported_feature, run.images, search, asked)
    seen = nearest.images[:, 0] >= 0
    asked, found, similarity = asked[seen], nearest.images[seen, 0], nearest.similarity[seen, 0]
    modality: Modality = "infrared" if run.images.infrared[asked[0]] else "visible"
    other: Modality = "visible" if modality == "infrared" else "infrared"

    def look(numbers: Int[np.ndarray, " b"], modality: Modality, others: Any) -> Any:
        compared = run.features if run.reported == "concatenation" else (run.reported,)
        targets = {name: run.features[name][others] for name in compared}
        return look_at(method, run.variables, run.read_images(numbers), modality, targets)

    asking, answering = look(asked, modality, found), look(found, other, asked)
    charts = []
    bands: list[tuple[float, float]] = []
    if asking.parts is not None:
        bands = stripes(asking.activation.shape[1], asking.parts.shape[1])
        for looks, kind in ((asking, modality), (answering, other)):
            title = f"Part attention, mean of {len(asked)} {kind} images"
            charts.append(figures.part_map(f"part_attention_{kind}", title, looks.parts.mean(0)))
        if asking.part_weights is not None:
            charts.append(figures.part_weights(asking.part_weights))
    for number, row in enumerate(spread(len(asked), _EXAMPLES), start=1):
        both = np.array([asked[row], found[row]])
        identity, camera = run.images.identities[both], run.images.cameras[both]
        right = identity[0] == identity[1]
        title = (
            f"{'✓' if right else '✗'} identity {identity[0]}, camera {camera[0]} → identity"
            f" {identity[1]}, camera {camera[1]}: {similarity[row]:.2f}"
        )
        alt = (
            f"Identity {identity[0]} seen by camera {camera[0]}, and the image found first:"
            f" identity {identity[1]}, camera {camera[1]}, {'right' if right else 'wrong'},"
            f" similarity {similarity[row]:.2f}; over each the Grad-CAM of the similarity."
        )
        query, answer = run.read_images(both)
        shown = figures.Example(
            query,
            answer,
            asking.activation[row],
            answering.activation[row],
            bands,
            asking.part_weights,
            None if asking.parts is None else asking.parts[row].mean(0),
        )
        charts.append(figures.example(f"example_{number}", title, alt, shown))
    return charts


def _graph(run: EvaluatedRun, method: HasBatchAttention) -> list[Figure]:
    """Return the graph attention between the images of a batch; empty if there is none."""
    batch = choose_batch(
        run.images.identities,
        run.images.infrared,
        *(min(wanted, most) for wanted, most in zip(run.batch, _BATCH, strict=True)),
    )
    if batch is None:
        return []
    visible, infrared = (
        np.reshape(
            pixels := run.read_images(numbers.reshape(-1)), (*numbers.shape, *pixels.shape[1:])
        )
        for numbers in (batch.visible, batch.infrared)
    )
    attention = batch_attention(method, run.variables, visible, infrared)
    if attention is None:
        return []
    return [figures.graph_map(attention, batch.identities, batch.visible.shape[1])]


def _training(lines: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Return the training curves of a log."""
    titles = {
        "losses": ("Loss terms", "loss"),
        "learning_rate": ("Learning rate", "learning rate"),
        "rank1": ("Rank-1 while training", "rank-1, %"),
        "mAP": ("mAP while training", "mAP, %"),
    }
    return [
        figures.curves(
            name,
            *titles.get(name, (f"Coefficient {name.replace('_', ' ')}", "weight")),
            series,
            logarithmic=name == "learning_rate",
        )
        for name, series in training_curves(lines).items()
    ]
