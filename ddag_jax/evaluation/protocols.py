"""The published protocols: who asks, among whom, and the table it ends in. NumPy only.

SYSU-MM01
    Every image of the infrared cameras 3 and 6 is a query. The gallery is drawn anew in each
    trial: of each identity and each of the mode's visible cameras (1, 2, 4, 5 in all-search; 1, 2
    in indoor-search) one image (single-shot) or ten (multi-shot).
RegDB
    Every image of one modality is a query, every one of the other in the gallery; both directions.
    Nothing is drawn: the published figures average ten halves of the people, a model each.
LLCM
    Every image of one modality is a query; the gallery is one image of each identity and each
    camera of the other, drawn anew in each trial; both directions.

A seeded draw is the reference's: Python's generator, seeded with the trial's number, chooses among
the sorted files of each folder, identities ascending, cameras ascending within.

Dimensions: N images, q queries, g gallery images, d channels.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from ddag_jax.config import EvaluationConfig
from ddag_jax.errors import UserError
from ddag_jax.evaluation.ranking import CameraRule, Metrics, rank_distances
from ddag_jax.evaluation.reranking import rerank
from ddag_jax.io.progress import Progress

Dataset = Literal["sysu_mm01", "regdb", "llcm"]
Direction = Literal["infrared_to_visible", "visible_to_infrared"]
Mode = Literal["all", "indoor"]
Shots = Literal["single", "multi"]

TITLES: dict[Dataset, str] = {"sysu_mm01": "SYSU-MM01", "regdb": "RegDB", "llcm": "LLCM"}
DIRECTIONS: dict[Direction, str] = {
    "visible_to_infrared": "visible → infrared",
    "infrared_to_visible": "infrared → visible",
}
QUERY_CAMERAS = (3, 6)
GALLERY_CAMERAS: dict[Mode, tuple[int, ...]] = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
IMAGES_DRAWN: dict[Shots, int] = {"single": 1, "multi": 10}
FIGURES = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")


class Images(NamedTuple):
    """Who is to be seen on N images, in any common order."""

    identities: Int[np.ndarray, " N"]
    cameras: Int[np.ndarray, " N"]
    """The dataset's own numbers, from 1."""
    infrared: Bool[np.ndarray, " N"]
    names: Sequence[str]
    """File names; within a folder (what shares identity, camera and modality) they sort as the
    files do."""


class Search(NamedTuple):
    """One block of a table: these queries, among each trial's gallery."""

    direction: Direction
    mode: Mode | None
    """SYSU-MM01's."""
    query: Int[np.ndarray, " q"]
    """Positions of images."""
    galleries: list[Int[np.ndarray, " g"]]
    """A trial each, positions of images; one where nothing is drawn."""
    camera_rule: CameraRule


class Record(TypedDict):
    """What one search and one feature scored, ready for JSON.

    Figures are means in per cent, `_std` their population deviations: over the trials of one run,
    or over the runs where there are several.
    """

    dataset: Dataset
    rendered: bool
    """Whether the images are drawings in the dataset's layout."""
    direction: Direction
    mode: Mode | None
    """SYSU-MM01's; null for the others."""
    shots: Shots | None
    """Gallery images of each identity and camera; null where the gallery is everyone (RegDB)."""
    draw: str | None
    """How the gallery is drawn: `seeded`, the reference's draw from the trial's number, or
    `rand_perm_cam`, the authors' permutations; null where nothing is drawn."""
    feature: str
    """`global`, `part`, `concatenation`; `stored` for features that came in a file."""
    flip: bool
    """Features averaged with those of the mirror images."""
    rerank: bool
    """Ranked by k-reciprocal neighbours."""
    trials: int
    """Gallery draws of a run."""
    halves: list[int]
    """RegDB's halves ("trials" in its files) that the figures come from; empty for the others."""
    runs: int
    """That the figures average."""
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
    """Gallery images of a trial."""


def label(direction: Direction, mode: Mode | None) -> str:
    """A search in a table: `all-search`, or the direction where there are no modes."""
    return f"{mode}-search" if mode else DIRECTIONS[direction]


def published_directions(dataset: Dataset) -> tuple[Direction, ...]:
    """The directions that papers report, in their order."""
    if dataset == "sysu_mm01":
        return ("infrared_to_visible",)
    return ("visible_to_infrared", "infrared_to_visible")


def sysu_query(
    identities: Int[np.ndarray, " N"],
    cameras: Int[np.ndarray, " N"],
    names: Sequence[str] | np.ndarray,
) -> Int[np.ndarray, " q"]:
    """Indices of the query images: by identity, then camera 3 and 6, then name.

    >>> sysu_query(np.array([2, 1, 1]), np.array([3, 6, 1]), ["0001.jpg", "0001.jpg", "0001.jpg"])
    array([1, 0])
    """
    order = np.lexsort((np.asarray(names), cameras, identities))
    return order[np.isin(cameras[order], QUERY_CAMERAS)]


def sysu_gallery(
    identities: Int[np.ndarray, " N"],
    cameras: Int[np.ndarray, " N"],
    names: Sequence[str] | np.ndarray,
    *,
    mode: Mode,
    shots: Shots,
    trial: int,
) -> Int[np.ndarray, " g"]:
    """Indices of the gallery that the reference draws in this trial (from 0), in its order.

    Multi-shot, which the reference lacks, puts `random.sample` in the place of `random.choice`: 10
    files without replacement, all of them (shuffled) where a folder has fewer. A camera that an
    identity lacks is passed over and draws nothing.

    >>> ids, cameras = np.array([1, 1, 1, 2]), np.array([1, 1, 2, 4])
    >>> names = ["0001.jpg", "0002.jpg", "0001.jpg", "0001.jpg"]
    >>> sysu_gallery(ids, cameras, names, mode="all", shots="single", trial=0)
    array([1, 2, 3])
    """
    candidates = np.isin(cameras, GALLERY_CAMERAS[mode])
    return _seeded(_folders(identities, cameras, names, candidates), trial, shots)


def _folders(
    identities: Int[np.ndarray, " N"],
    cameras: Int[np.ndarray, " N"],
    names: Sequence[str] | np.ndarray,
    candidates: Bool[np.ndarray, " N"],
) -> list[list[int]]:
    """The candidates, folder by folder as the reference walks them, sorted by name in each."""
    order = np.lexsort((np.asarray(names), cameras, identities))
    order = order[candidates[order]]
    folders = np.stack([identities[order], cameras[order]])
    starts = np.flatnonzero((folders[:, 1:] != folders[:, :-1]).any(axis=0)) + 1
    return [part.tolist() for part in np.split(order, starts) if len(part)]


def _seeded(folders: list[list[int]], trial: int, shots: Shots) -> Int[np.ndarray, " g"]:
    draw = random.Random(trial)
    drawn: list[int] = []
    for files in folders:
        if shots == "single":
            drawn.append(draw.choice(files))
        else:
            drawn.extend(draw.sample(files, min(IMAGES_DRAWN[shots], len(files))))
    return np.array(drawn, dtype=np.int64)


def _permuted(
    folders: list[list[int]],
    images: Images,
    draws: Mapping[str, Sequence[Sequence[int]]],
    trial: int,
    shots: Shots,
) -> Int[np.ndarray, " g"]:
    """The authors' draw: the first images of the trial's row of each folder's permutations."""
    if not draws:
        raise UserError(
            "evaluation.draw: there is no rand_perm_cam.mat; put it into the dataset's exp folder"
            " and prepare the dataset again, or draw with --evaluation.draw seeded"
        )
    drawn: list[int] = []
    for files in folders:
        folder = f"cam{images.cameras[files[0]]}/{images.identities[files[0]]:04d}"
        row = draws[folder][trial][: IMAGES_DRAWN[shots]] if folder in draws else None
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
    draws: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> list[Search]:
    """The dataset's protocol on these images: the blocks of its table, in the published order.

    Args:
        dataset: whose protocol.
        images: all candidates, of both modalities.
        settings: direction, mode, shots, draw, trials.
        draws: the authors' permutations by `cam{camera}/{identity:04d}`, for that draw.

    Raises:
        UserError: a search is left without query, gallery or match; the draw has no permutations
            or they do not fit.
    """
    title = TITLES[dataset]
    unknown = np.flatnonzero(images.cameras < 1)
    if len(unknown) and dataset != "regdb":
        raise UserError(
            f"{title} evaluation: of {len(unknown)} images the camera is not known (first:"
            f" {images.names[unknown[0]]}), and the protocol goes by cameras; images of the"
            " reference's training arrays cannot be held out to judge by"
        )
    modes: tuple[Mode | None, ...] = (None,)
    if dataset == "sysu_mm01":
        modes = ("all", "indoor") if settings.mode == "both" else (settings.mode,)
    directions = published_directions(dataset)
    if settings.direction != "published":
        directions = (settings.direction,)
    found = []
    for direction in directions:
        for mode in modes:
            asks = images.infrared == (direction == "infrared_to_visible")
            candidates = ~asks
            if mode is not None:
                candidates = np.isin(images.cameras, GALLERY_CAMERAS[mode])
                asks = np.isin(images.cameras, QUERY_CAMERAS)
            order = np.lexsort((np.asarray(images.names), images.cameras, images.identities))
            if dataset == "regdb":
                galleries = [order[candidates[order]]]
            else:
                folders = _folders(images.identities, images.cameras, images.names, candidates)
                galleries = [
                    _seeded(folders, trial, settings.shots)
                    if settings.draw == "seeded"
                    else _permuted(folders, images, draws or {}, trial, settings.shots)
                    for trial in range(settings.trials)
                ]
            rules: dict[Dataset, CameraRule] = {"sysu_mm01": "sysu", "llcm": "llcm"}
            rule = rules.get(dataset, "none")
            search = Search(direction, mode, order[asks[order]], galleries, rule)
            _check(search, images, title)
            found.append(search)
    return found


def _check(search: Search, images: Images, title: str) -> None:
    where = f"{title} {label(search.direction, search.mode)}"
    if not len(search.query):
        kind = "infrared" if search.direction == "infrared_to_visible" else "visible"
        raise UserError(
            f"{where}: none of the {len(images.identities)} images is {kind}, so there is no query"
        )
    if not len(search.galleries[0]):
        cameras = f" of its cameras {GALLERY_CAMERAS[search.mode]}" if search.mode else ""
        raise UserError(
            f"{where}: none of the {len(images.identities)} images can be in its gallery{cameras},"
            " so it cannot be evaluated"
        )
    gallery = images.identities[search.galleries[0]]
    if not np.isin(images.identities[search.query], gallery).any():
        raise UserError(
            f"{where}: no query's identity is in the gallery, so it cannot be evaluated"
        )


def evaluate(
    features: Mapping[str, Float[np.ndarray, "N d"]],
    images: Images,
    found: Sequence[Search],
    dataset: Dataset,
    settings: EvaluationConfig,
    *,
    rendered: bool = False,
    half: int | None = None,
) -> list[Record]:
    """Judges embeddings of unit length; one record a search and feature, in that order.

    Args:
        features: by name.
        images: whose they are.
        found: by `searches`, of these images.
        dataset: whose protocol.
        settings: what the searches were made by; whether to re-rank.
        rendered: whether the images are drawings.
        half: which of RegDB's ten.

    Raises:
        UserError: a feature is not finite (named by its image).
    """
    for name, feature in features.items():
        broken = ~np.isfinite(feature).all(axis=1)
        if broken.any():
            i = broken.argmax()
            raise UserError(
                f"{TITLES[dataset]} evaluation: the {name} feature of image {images.names[i]}"
                f" (identity {images.identities[i]}, camera {images.cameras[i]}) holds NaN or"
                " infinite values"
            )
    records = []
    rankings = len(features) * sum(len(search.galleries) for search in found)
    bar = Progress(rankings, "ranking", "search")
    for search in found:
        for name, feature in features.items():
            results = rank_trials(feature, images, search, settings.rerank, bar)
            drawn = dataset != "regdb"
            common: dict[str, Any] = {
                "dataset": dataset,
                "rendered": rendered,
                "direction": search.direction,
                "mode": search.mode,
                "shots": settings.shots if drawn else None,
                "draw": settings.draw if drawn else None,
                "feature": name,
                "flip": settings.flip,
                "rerank": settings.rerank,
                "trials": len(results),
                "halves": [] if half is None else [half],
                "runs": 1,
            }
            figures = {
                **{
                    f"rank{k}": [100 * float(r.cmc[k - 1]) for r in results] for k in (1, 5, 10, 20)
                },
                "mAP": [100 * r.mAP for r in results],
                "mINP": [100 * r.mINP for r in results],
            }
            # Who has a match depends on which folders exist, so it is the same in every trial.
            counts = {"queries": results[0].queries, "gallery": len(search.galleries[0])}
            records.append(cast(Record, common | _mean_and_deviation(figures) | counts))
    bar.close()
    return records


def rank_trials(
    feature: Float[np.ndarray, "N d"],
    images: Images,
    search: Search,
    reranked: bool,
    bar: Progress | None = None,
) -> list[Metrics]:
    """The figures of each of a search's trials, for rows of unit length.

    Without re-ranking, each image that any trial draws is compared once.
    """
    query = search.query
    candidates = np.unique(np.concatenate(search.galleries))
    if not reranked:
        compared = -feature[query] @ feature[candidates].T
    results = []
    for gallery in search.galleries:
        if reranked:
            distances = rerank(feature[query], feature[gallery])
        else:
            distances = np.take(compared, np.searchsorted(candidates, gallery), axis=1)
        results.append(
            rank_distances(
                distances,
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
    """Means and deviations over runs, as RegDB's published figures are over its ten halves.

    Args:
        runs: the records of each, of one protocol.
        names: of the runs, for messages.

    Raises:
        UserError: two runs were judged differently, or are of the same half of RegDB.
    """
    varying = {f"{name}{end}" for name in FIGURES for end in ("", "_std")} | {"halves", "rendered"}
    if all(run[0]["halves"] for run in runs):
        varying |= {"queries", "gallery"}
    for name, run in zip(names, runs, strict=True):
        kept = [{k: v for k, v in record.items() if k not in varying} for record in run]
        first = [{k: v for k, v in record.items() if k not in varying} for record in runs[0]]
        if kept != first:
            raise UserError(
                f"{names[0]} and {name} were judged differently ({_difference(first, kept)}); only"
                " runs of one protocol have an average"
            )
    halves = [half for run in runs for half in run[0]["halves"]]
    if len(set(halves)) != len(halves):
        twice = next(half for half in halves if halves.count(half) > 1)
        both = [name for name, run in zip(names, runs, strict=True) if twice in run[0]["halves"]]
        raise UserError(
            f"{' and '.join(both)} are all of trial {twice}; RegDB's average is over different ones"
        )
    averaged = []
    for same in zip(*runs, strict=True):
        rows = [cast(Mapping[str, Any], record) for record in same]
        figures = {name: [row[name] for row in rows] for name in FIGURES}
        record = {**same[0], "halves": sorted(halves), "runs": len(runs)}
        averaged.append(cast(Record, record | _mean_and_deviation(figures)))
    return averaged


def _difference(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> str:
    for one, other in zip(first, second, strict=False):
        for key in one:
            if one[key] != other[key]:
                return f"{key}: {one[key]} and {other[key]}"
    return f"{len(first)} and {len(second)} rows"


def kind(settings: EvaluationConfig) -> str:
    """What tells an evaluation from the published one, to name files by.

    >>> kind(EvaluationConfig()), kind(EvaluationConfig(shots="multi", trials=5, flip=True))
    ('', '_multi_5_trials_flip')
    """
    words = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "batch_size" or value == field.default:
            continue
        named = {"trials": f"{value}_trials", "feature": f"{value}_feature"}
        words.append(field.name if value is True else named.get(field.name, str(value)))
    return "".join(f"_{word}" for word in words)


def selection_figure(records: Sequence[Record], feature: str) -> float:
    """What the best checkpoint is chosen by: rank-1 + mAP of this feature, mean over the searches.

    In 0 ... 200, per cent; the more the better.
    """
    return float(np.mean([r["rank1"] + r["mAP"] for r in records if r["feature"] == feature]))


def format_table(records: Sequence[Record], title: str, untrained: Sequence[Record] = ()) -> str:
    """The records as a table like the paper's: a block a search, a row a feature.

    Args:
        records: of one protocol, which the heading names beside the title.
        title: whose figures these are.
        untrained: records of a network of the same shape before training, for rows below.
    """
    first = records[0]
    several = first["runs"] > 1 or first["trials"] > 1
    over = "runs" if first["runs"] > 1 else "trials"
    lines = [
        f"{title}: " + ", ".join(describe(first)),
        "per cent" + f"; mean ± deviation over the {over}" * several,
    ]
    blocks = dict.fromkeys((r["direction"], r["mode"]) for r in records)
    for direction, mode in blocks:
        rows = [("", r) for r in records if (r["direction"], r["mode"]) == (direction, mode)]
        rows += [
            ("untrained ", r) for r in untrained if (r["direction"], r["mode"]) == (direction, mode)
        ]
        counts = f"{rows[0][1]['queries']:,} queries, {rows[0][1]['gallery']:,} gallery images"
        lines += ["", f"{label(direction, mode)} ({counts})"]
        heads = ("r1", "r5", "r10", "r20", "mAP", "mINP")
        lines.append(f"{'feature':<18}" + "".join(f"{head:>15}" for head in heads))
        for prefix, record in rows:
            values: Mapping[str, Any] = record
            cells = (
                f"{values[name]:.2f}" + f" ± {values[name + '_std']:.2f}" * several
                for name in FIGURES
            )
            lines.append(f"{prefix + record['feature']:<18}" + "".join(f"{c:>15}" for c in cells))
    return "\n".join(lines)


def describe(record: Record) -> list[str]:
    """What a table must say so that it cannot be misread."""
    said = [TITLES[record["dataset"]] + "'s layout, rendered people" * record["rendered"]]
    if record["mode"]:
        said.append(DIRECTIONS[record["direction"]])
    if record["shots"]:
        said.append(f"{record['shots']}-shot")
    if record["draw"]:
        said += [
            f"{record['draw']} draw",
            f"{record['trials']} trial{'s' * (record['trials'] > 1)}",
        ]
    if record["halves"]:
        several = len(record["halves"]) > 1
        said.append(f"trial{'s' * several} {', '.join(map(str, record['halves']))}")
    if record["runs"] > 1:
        said.append(f"mean of {record['runs']} runs")
    if record["flip"]:
        said.append("averaged with mirror images")
    if record["rerank"]:
        said.append("k-reciprocal re-ranking (k1 20, k2 6, λ 0.3)")
    return said
