"""SYSU-MM01's protocol: who is query, who is gallery, and the table it ends in. NumPy only.

Every test image of the infrared cameras 3 and 6 is a query. The gallery is drawn anew in each
trial: of each identity and each of the mode's visible cameras, one image (single-shot) or ten
(multi-shot). Figures are averaged over the trials.

Images are told apart by three arrays of length N in any common order: identity, camera (1 ... 6)
and name. A folder is what shares identity and camera; within it, names sort as the files do.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from jaxtyping import Float, Int

from ddag_jax.errors import InputError
from ddag_jax.evaluation.ranking import Metrics, rank_distances

Mode = Literal["all", "indoor"]
Shots = Literal["single", "multi"]

QUERY_CAMERAS = (3, 6)
GALLERY_CAMERAS: dict[Mode, tuple[int, ...]] = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
IMAGES_DRAWN: dict[Shots, int] = {"single": 1, "multi": 10}


class Record(TypedDict):
    """What one mode and one feature scored, ready for JSON.

    Figures are means over the trials in per cent, `_std` their population deviations.
    """

    dataset: str
    mode: Mode
    shots: Shots
    draw: str
    """How the gallery is drawn: `seeded`, the reference's draw from the trial's number."""
    feature: str
    """`global` or `part`."""
    trials: int
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


FIGURES = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")


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
    """Indices of the gallery that the reference draws in this trial, in its order.

    Single-shot is the reference's `random.seed(trial)` and `random.choice` over the sorted files
    of each folder, identities ascending, cameras ascending within. Multi-shot, which the reference
    lacks, puts `random.sample` in its place: 10 files without replacement, all of them (shuffled)
    where a folder has fewer. A camera that an identity lacks is passed over and draws nothing.

    >>> ids, cameras = np.array([1, 1, 1, 2]), np.array([1, 1, 2, 4])
    >>> names = ["0001.jpg", "0002.jpg", "0001.jpg", "0001.jpg"]
    >>> sysu_gallery(ids, cameras, names, mode="all", shots="single", trial=0)
    array([1, 2, 3])
    """
    order = np.lexsort((np.asarray(names), cameras, identities))
    order = order[np.isin(cameras[order], GALLERY_CAMERAS[mode])]
    folders = np.stack([identities[order], cameras[order]])
    new_folder = (folders[:, 1:] != folders[:, :-1]).any(axis=0)

    draw = random.Random(trial)
    drawn: list[int] = []
    for folder in np.split(order, np.flatnonzero(new_folder) + 1):
        files = folder.tolist()
        if not files:  # np.split gives one empty part where there is nothing to split
            continue
        if shots == "single":
            drawn.append(draw.choice(files))
        else:
            drawn.extend(draw.sample(files, min(IMAGES_DRAWN[shots], len(files))))
    return np.array(drawn, dtype=np.int64)


def draw_sysu(
    identities: Int[np.ndarray, " N"],
    cameras: Int[np.ndarray, " N"],
    names: Sequence[str] | np.ndarray,
    *,
    shots: Shots,
    trials: int,
    modes: Sequence[Mode],
) -> tuple[np.ndarray, dict[Mode, list[np.ndarray]]]:
    """Indices of the queries, and of each mode's gallery in each trial.

    Raises `InputError` where the images leave a mode without query or gallery, or no query of a
    mode has a match.
    """
    query = sysu_query(identities, cameras, names)
    if not len(query):
        raise InputError(
            f"SYSU-MM01 evaluation: none of the {len(identities)} images is of an infrared camera"
            " (3 or 6), so there is no query"
        )
    galleries = {
        mode: [
            sysu_gallery(identities, cameras, names, mode=mode, shots=shots, trial=trial)
            for trial in range(trials)
        ]
        for mode in modes
    }
    for mode, drawn in galleries.items():
        if not len(drawn[0]):
            raise InputError(
                f"SYSU-MM01 {mode}-search: none of the {len(identities)} images is of its"
                f" gallery's cameras {GALLERY_CAMERAS[mode]}, so this mode cannot be evaluated"
            )
        if not np.isin(identities[query], identities[drawn[0]]).any():
            raise InputError(
                f"SYSU-MM01 {mode}-search: no query's identity is in the gallery, so this mode"
                " cannot be evaluated"
            )
    return query, galleries


def evaluate_sysu(
    features: Mapping[str, Float[np.ndarray, "N d"]],
    identities: Int[np.ndarray, " N"],
    cameras: Int[np.ndarray, " N"],
    names: Sequence[str] | np.ndarray,
    *,
    shots: Shots = "single",
    trials: int = 10,
    modes: Sequence[Mode] = ("all", "indoor"),
) -> list[Record]:
    """Evaluates embeddings of unit length; one record a mode and feature, in that order.

    `modes=("all",)` is what training evaluates on its held-out identities.

    Raises `InputError` where the images leave a mode without query or gallery, where no query has
    a match, and where a feature is not finite (named by its image).
    """
    query, galleries = draw_sysu(
        identities, cameras, names, shots=shots, trials=trials, modes=modes
    )
    for name, feature in features.items():
        broken = ~np.isfinite(feature).all(axis=1)
        if broken.any():
            i = broken.argmax()
            raise InputError(
                f"SYSU-MM01 evaluation: the {name} feature of image {names[i]} (identity"
                f" {identities[i]}, camera {cameras[i]}) holds NaN or infinite values"
            )
    # Each image that any trial draws is compared with the queries once; trials take columns.
    candidates = np.unique(np.concatenate([g for drawn in galleries.values() for g in drawn]))
    distances = {
        name: -feature[query] @ feature[candidates].T for name, feature in features.items()
    }
    records = []
    for mode, drawn in galleries.items():
        for name, distance in distances.items():
            results = [
                rank_distances(
                    distance[:, np.searchsorted(candidates, gallery)],
                    identities[query],
                    identities[gallery],
                    cameras[query],
                    cameras[gallery],
                    camera_rule="sysu",
                )
                for gallery in drawn
            ]
            records.append(_record(results, mode, shots, name, len(drawn[0])))
    return records


def _record(
    results: Sequence[Metrics], mode: Mode, shots: Shots, feature: str, gallery: int
) -> Record:
    figures = {f"rank{k}": [100 * float(r.cmc[k - 1]) for r in results] for k in (1, 5, 10, 20)}
    figures["mAP"] = [100 * r.mAP for r in results]
    figures["mINP"] = [100 * r.mINP for r in results]
    record: dict[str, Any] = {
        "dataset": "sysu_mm01",
        "mode": mode,
        "shots": shots,
        "draw": "seeded",
        "feature": feature,
        "trials": len(results),
        **{name: float(np.mean(values)) for name, values in figures.items()},
        **{f"{name}_std": float(np.std(values)) for name, values in figures.items()},
        # Who has a match depends on which folders exist, so it is the same in every trial.
        "queries": results[0].queries,
        "gallery": gallery,
    }
    return Record(**record)  # type: ignore[typeddict-item]


def selection_figure(records: Sequence[Record], feature: str) -> float:
    """What the best checkpoint is chosen by: rank-1 + mAP of this feature in all-search.

    In 0 ... 200, per cent; the more the better.
    """
    (record,) = [r for r in records if r["mode"] == "all" and r["feature"] == feature]
    return record["rank1"] + record["mAP"]


def format_table(records: Sequence[Record], title: str, untrained: Sequence[Record] = ()) -> str:
    """The records as a table like the paper's: a block a mode, a row a feature.

    Args:
        records: of one dataset, number of shots, draw and number of trials, which the heading
            names beside the title.
        title: whose figures these are.
        untrained: records of a network of the same shape before training, for rows below.
    """
    first = records[0]
    datasets = {"sysu_mm01": "SYSU-MM01"}
    lines = [
        f"{title}: {datasets[first['dataset']]}, {first['shots']}-shot, {first['draw']} draw,"
        f" {first['trials']} trial{'s' * (first['trials'] > 1)}",
        "per cent; mean ± deviation over the trials",
    ]
    for mode in dict.fromkeys(r["mode"] for r in records):
        rows = [("", r) for r in records if r["mode"] == mode]
        rows += [("untrained ", r) for r in untrained if r["mode"] == mode]
        counts = f"{rows[0][1]['queries']:,} queries, {rows[0][1]['gallery']:,} gallery images"
        lines += ["", f"{mode}-search ({counts})"]
        heads = ("r1", "r5", "r10", "r20", "mAP", "mINP")
        lines.append(f"{'feature':<18}" + "".join(f"{head:>15}" for head in heads))
        for prefix, record in rows:
            values: Mapping[str, Any] = record
            cells = (f"{values[name]:.2f} ± {values[name + '_std']:.2f}" for name in FIGURES)
            lines.append(f"{prefix + record['feature']:<18}" + "".join(f"{c:>15}" for c in cells))
    return "\n".join(lines)
