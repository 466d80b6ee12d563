"""Published protocols: queries, galleries and figures of a `Dataset`. NumPy only.

A dataset prescribes directions, search modes and, unless every image of a modality is in the
gallery, how many images a draw takes of each identity and camera.

A seeded draw is the reference's: Python's generator, seeded with the draw's number, chooses among
the sorted files of each folder, identities ascending, cameras ascending within.

Dimensions: N images, q queries, g gallery images, d channels.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from ddag_jax.config import EvaluationConfig
from ddag_jax.datasets.dataset import CameraRule, Dataset, Direction, Shots, label
from ddag_jax.errors import UserError
from ddag_jax.evaluation.pairs import OperatingPoints
from ddag_jax.evaluation.ranking import Metrics, distances, rank_distances
from ddag_jax.evaluation.reranking import rerank
from ddag_jax.io.progress import Progress

FIGURES = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")


class Images(NamedTuple):
    """Identity, camera, modality and file name of N images, in any order."""

    identities: Int[np.ndarray, " N"]
    cameras: Int[np.ndarray, " N"]
    """The dataset's own numbers, from 1."""
    infrared: Bool[np.ndarray, " N"]
    names: Sequence[str]
    """File names; within a folder (of one identity, camera and modality) they sort as the files
    do."""


class Search(NamedTuple):
    """One block of a table: queries, and the gallery of each draw."""

    direction: Direction
    mode: str | None
    """None if the dataset has no modes."""
    query: Int[np.ndarray, " q"]
    """Positions of images."""
    galleries: list[Int[np.ndarray, " g"]]
    """Positions of images, for each draw; one gallery if nothing is drawn."""
    camera_rule: CameraRule


class Record(TypedDict):
    """The figures of one search and one feature, ready for JSON.

    Figures are means in per cent, `_std` their population deviations: over the draws of one run,
    or over the runs if there are several.
    """

    dataset: str
    """Its name."""
    dataset_title: str
    rendered: bool
    """Whether the images are rendered people in the dataset's layout."""
    direction: Direction
    mode: str | None
    """Null if the dataset has no modes."""
    shots: Shots | None
    """Gallery images of each identity and camera; null if the protocol has no choice (RegDB)."""
    draw: str | None
    """How the gallery is drawn: `seeded`, the reference's draw from the draw's number, or
    `rand_perm_cam`, the authors' permutations; null if nothing is drawn."""
    camera_rule: Literal["protocol", "none"]
    """Whether queries skip gallery images by their cameras as the protocol says."""
    feature: str
    """One of the method's features, or `concatenation`; `stored` for features from a file."""
    flip: bool
    """Features are averaged with those of the mirror images."""
    rerank: bool
    """Ranked by k-reciprocal neighbours."""
    trials: int
    """Number of gallery draws of a run."""
    halves: list[int]
    """Numbers of the published splits (RegDB's trials) of the runs; empty if there is only one."""
    runs: int
    """Number of runs that the figures average."""
    rank1: float
    rank5: float
    rank10: float
    rank20: float
    mAP: float
    mINP: float
    rank1_std: float
    rank5_std: float
    rank10_std: float
    rank20_std: float
    mAP_std: float
    mINP_std: float
    queries: int
    """Queries with a match in the gallery; the others enter no figure."""
    gallery: int
    """Gallery images of a draw."""
    operating_points: NotRequired[OperatingPoints | None]
    """Thresholds of the feature, equal in all searches; null where all pairs are of one kind, and
    absent from averages and from evaluations while training."""


def _folders(
    identities: Int[np.ndarray, " N"],
    cameras: Int[np.ndarray, " N"],
    names: Sequence[str] | np.ndarray,
    candidates: Bool[np.ndarray, " N"],
) -> list[list[int]]:
    """Return the candidates by folder, in the reference's order, sorted by name in each."""
    order = np.lexsort((np.asarray(names), cameras, identities))
    order = order[candidates[order]]
    folders = np.stack([identities[order], cameras[order]])
    starts = np.flatnonzero((folders[:, 1:] != folders[:, :-1]).any(axis=0)) + 1
    return [part.tolist() for part in np.split(order, starts) if len(part)]


def _seeded(folders: list[list[int]], number: int, images: int) -> Int[np.ndarray, " g"]:
    """Draw the reference's gallery of a draw's number, counted from 0.

    For several images of a folder, which the reference lacks, `random.sample` takes the place of
    `random.choice`: without replacement, all of them (shuffled) if a folder has fewer.
    """
    generator = random.Random(number)
    drawn: list[int] = []
    for files in folders:
        if images == 1:
            drawn.append(generator.choice(files))
        else:
            drawn.extend(generator.sample(files, min(images, len(files))))
    return np.array(drawn, dtype=np.int64)


def _permuted(
    folders: list[list[int]],
    images: Images,
    permutations: Mapping[str, Sequence[Sequence[int]]],
    number: int,
    taken: int,
) -> Int[np.ndarray, " g"]:
    """Return the authors' gallery of a draw: the first images of its row for each folder."""
    if not permutations:
        raise UserError(
            "evaluation.draw: there is no rand_perm_cam.mat; put it into the dataset's exp folder"
            " and prepare the dataset again, or draw with --evaluation.draw seeded"
        )
    drawn: list[int] = []
    for files in folders:
        folder = f"cam{images.cameras[files[0]]}/{images.identities[files[0]]:04d}"
        row = permutations[folder][number][:taken] if folder in permutations else None
        if row is None or max(row) > len(files):
            raise UserError(
                f"evaluation.draw: rand_perm_cam.mat does not fit {folder} with its {len(files)}"
                " images; use the file and the images of the same release"
            )
        drawn.extend(files[position - 1] for position in row)
    return np.array(drawn, dtype=np.int64)


def searches(
    dataset: Dataset,
    images: Images,
    settings: EvaluationConfig,
    permutations: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> list[Search]:
    """Return the searches of a dataset's protocol on these images, in the published order.

    Args:
        dataset: prescribes the protocol.
        images: all candidates, of both modalities.
        settings: direction, mode, shots, draw, trials; `check_settings` has accepted them.
        permutations: the authors' draws by `cam{camera}/{identity:04d}`, for `rand_perm_cam`.

    Raises:
        UserError: a search has no query, gallery image or match; the permutations are missing or do
            not fit.
    """
    unknown = np.flatnonzero(images.cameras < 1)
    if len(unknown) and dataset.needs_cameras:
        raise UserError(
            f"{dataset.title} evaluation: of {len(unknown)} images the camera is not known (first:"
            f" {images.names[unknown[0]]}), and the protocol needs cameras; give every image's, or"
            " of your own images none's (those of the reference's training arrays have none, and"
            " cannot be held out for evaluation)"
        )
    order = np.lexsort((np.asarray(images.names), images.cameras, images.identities))
    found = []
    for direction, mode in dataset.searches(settings):
        is_query = images.infrared == (direction == "infrared_to_visible")
        candidates = ~is_query
        if mode is not None:
            candidates &= np.isin(images.cameras, dataset.modes[mode])
        taken = dataset.drawn.get(settings.shots)
        if taken is not None:
            folders = _folders(images.identities, images.cameras, images.names, candidates)
            galleries = [
                _seeded(folders, number, taken)
                if settings.draw == "seeded"
                else _permuted(folders, images, permutations or {}, number, taken)
                for number in range(settings.trials)
            ]
        else:
            galleries = [order[candidates[order]]]
        query = order[is_query[order]]
        rule = dataset.camera_rule
        if settings.camera_rule == "none":
            rule = CameraRule(counts=rule.counts)
        search = Search(direction, mode, query, galleries, rule)
        _check(search, images, dataset)
        found.append(search)
    return found


def _check(search: Search, images: Images, dataset: Dataset) -> None:
    where = f"{dataset.title} {label(search.direction, search.mode)}"
    if not len(search.query):
        kind = "infrared" if search.direction == "infrared_to_visible" else "visible"
        raise UserError(
            f"{where}: none of the {len(images.identities)} images is {kind}, so there is no query"
        )
    if not len(search.galleries[0]):
        cameras = f" of its cameras {dataset.modes[search.mode]}" if search.mode else ""
        raise UserError(
            f"{where}: none of the {len(images.identities)} images can be in its gallery{cameras},"
            " so it cannot be evaluated"
        )
    gallery = images.identities[search.galleries[0]]
    if not np.isin(images.identities[search.query], gallery).any():
        raise UserError(
            f"{where}: no query's identity is in the gallery, so it cannot be evaluated"
        )


def score(
    features: Mapping[str, Float[np.ndarray, "N d"]],
    images: Images,
    found: Sequence[Search],
    dataset: Dataset,
    settings: EvaluationConfig,
    *,
    rendered: bool = False,
    split: int | None = None,
) -> list[Record]:
    """Return the figures of embeddings of unit length, a record for each search and feature.

    Args:
        features: by name.
        images: the embedded images.
        found: by `searches`, of these images.
        dataset: prescribes the protocol.
        settings: what the searches were made by; whether to re-rank.
        rendered: whether the images are rendered.
        split: number of the published split (RegDB's trial).

    Raises:
        UserError: a feature is not finite; names its image.
    """
    for name, feature in features.items():
        broken = ~np.isfinite(feature).all(axis=1)
        if broken.any():
            i = broken.argmax()
            raise UserError(
                f"{dataset.title} evaluation: the {name} feature of image {images.names[i]}"
                f" (identity {images.identities[i]}, camera {images.cameras[i]}) holds NaN or"
                " infinite values"
            )
    records = []
    rankings = len(features) * sum(len(search.galleries) for search in found)
    bar = Progress(rankings, "ranking", "search")
    for search in found:
        for name, feature in features.items():
            results = rank_draws(feature, images, search, settings.rerank, bar)
            common: dict[str, Any] = {
                "dataset": dataset.name,
                "dataset_title": dataset.title,
                "rendered": rendered,
                "direction": search.direction,
                "mode": search.mode,
                "shots": settings.shots if dataset.drawn else None,
                "draw": None if dataset.drawn.get(settings.shots) is None else settings.draw,
                "camera_rule": settings.camera_rule,
                "feature": name,
                "flip": settings.flip,
                "rerank": settings.rerank,
                "trials": len(results),
                "halves": [] if split is None else [split],
                "runs": 1,
            }
            figures = {
                **{
                    f"rank{k}": [100 * float(r.cmc[k - 1]) for r in results] for k in (1, 5, 10, 20)
                },
                "mAP": [100 * r.mAP for r in results],
                "mINP": [100 * r.mINP for r in results],
            }
            # Which queries have a match depends on the folders, so it is the same in every draw.
            counts = {"queries": results[0].queries, "gallery": len(search.galleries[0])}
            records.append(cast(Record, common | _mean_and_deviation(figures) | counts))
    bar.close()
    return records


def rank_draws(
    feature: Float[np.ndarray, "N d"],
    images: Images,
    search: Search,
    reranked: bool,
    bar: Progress | None = None,
) -> list[Metrics]:
    """Return the figures of each draw of a search, for rows of unit length.

    Without re-ranking, each image that any draw takes is compared once. Images of equal features
    keep the gallery's order, see `ranking.distances`.
    """
    query = search.query
    candidates = np.unique(np.concatenate(search.galleries))
    if not reranked:
        compared = distances(feature[query], feature[candidates])
    results = []
    for gallery in search.galleries:
        if reranked:
            ranked_by = rerank(feature[query], feature[gallery])
        else:
            ranked_by = np.take(compared, np.searchsorted(candidates, gallery), axis=1)
        results.append(
            rank_distances(
                ranked_by,
                images.identities[query],
                images.identities[gallery],
                images.cameras[query],
                images.cameras[gallery],
                camera_rule=search.camera_rule,
            )
        )
        if bar is not None:
            bar.update()
    return results


def _mean_and_deviation(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {
        **{name: float(np.mean(values)) for name, values in figures.items()},
        **{f"{name}_std": float(np.std(values)) for name, values in figures.items()},
    }


def average(runs: Sequence[Sequence[Record]], names: Sequence[str]) -> list[Record]:
    """Return means and deviations over runs, as RegDB's published figures are over ten splits.

    Args:
        runs: the records of each run, of one protocol.
        names: of the runs, for messages.

    Raises:
        UserError: two runs were evaluated differently, or are of the same published split.
    """
    varying = {f"{name}{end}" for name in FIGURES for end in ("", "_std")}
    varying |= {"halves", "rendered", "operating_points"}
    if all(run[0]["halves"] for run in runs):
        varying |= {"queries", "gallery"}
    for name, run in zip(names, runs, strict=True):
        kept = [{k: v for k, v in record.items() if k not in varying} for record in run]
        first = [{k: v for k, v in record.items() if k not in varying} for record in runs[0]]
        if kept != first:
            raise UserError(
                f"{names[0]} and {name} were evaluated differently ({_difference(first, kept)});"
                " only runs of one protocol have an average"
            )
    splits = [split for run in runs for split in run[0]["halves"]]
    if len(set(splits)) != len(splits):
        twice = next(split for split in splits if splits.count(split) > 1)
        both = [name for name, run in zip(names, runs, strict=True) if twice in run[0]["halves"]]
        raise UserError(
            f"{' and '.join(both)} are all of trial {twice}; give one run of each trial"
        )
    averaged = []
    for same in zip(*runs, strict=True):
        rows = [cast(Mapping[str, Any], record) for record in same]
        figures = {name: [row[name] for row in rows] for name in FIGURES}
        record = {**rows[0], "halves": sorted(splits), "runs": len(runs)}
        record.pop("operating_points", None)  # a threshold is of one network
        averaged.append(cast(Record, record | _mean_and_deviation(figures)))
    return averaged


def _difference(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> str:
    for one, other in zip(first, second, strict=False):
        for key in one:
            if one[key] != other[key]:
                return f"{key}: {one[key]} and {other[key]}"
    return f"{len(first)} and {len(second)} rows"


def kind(settings: EvaluationConfig) -> str:
    """Return the settings that are not the published ones, as part of a file name.

    >>> kind(EvaluationConfig()), kind(EvaluationConfig(shots="multi", trials=5, flip=True))
    ('', '_multi_5_trials_flip')
    """
    words = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "batch_size" or value == field.default:
            continue
        named = {
            "trials": f"{value}_trials",
            "feature": f"{value}_feature",
            "camera_rule": "no_camera_rule",
        }
        if value == "all" and field.name == "shots":  # all-search is a mode
            named["shots"] = "whole_gallery"
        words.append(field.name if value is True else named.get(field.name, str(value)))
    return "".join(f"_{word}" for word in words)


def selection_figure(records: Sequence[Record], feature: str) -> float:
    """Return rank-1 + mAP of a feature, mean over the searches, in per cent: 0 to 200.

    The best checkpoint is the one with the highest figure.
    """
    return float(np.mean([r["rank1"] + r["mAP"] for r in records if r["feature"] == feature]))
