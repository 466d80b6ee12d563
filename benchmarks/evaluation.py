"""Compare SYSU-MM01's whole evaluation of stored embeddings with a plain loop over the queries.

    python -m benchmarks.evaluation                the split in ../shared/data/sysu_mm01_split,
                                                   else as many images, spread evenly
    python -m benchmarks.evaluation --split DIR    test_id.txt and images_per_folder.json in DIR
    python -m benchmarks.evaluation --quick        a few people, to try it

Ten gallery draws of all-search and indoor-search, with one feature and with two, single- and
multi-shot; then time and memory of re-ranking for one single-shot draw. Embeddings are random rows
of unit length with 2048 channels; those of an identity are slightly similar. Prints a table and
writes results/evaluation.json. Takes several minutes, nearly all in the plain loop.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from benchmarks import measure
from ddag_jax.config import EvaluationConfig
from ddag_jax.datasets.sysu_mm01 import INFRARED_CAMERAS, SYSU_MM01
from ddag_jax.evaluation import protocols
from ddag_jax.evaluation.protocols import Images
from ddag_jax.evaluation.reranking import rerank

SPLIT = Path(__file__).parents[2] / "shared" / "data" / "sysu_mm01_split"

SEEN_BY = {"123456": 53, "3456": 37, "12456": 2, "456": 1, "346": 1, "12356": 1, "356": 1}
"""Number of SYSU-MM01's test identities by the cameras that recorded them."""
IMAGES = {1: 1374, 2: 1565, 3: 1883, 4: 1918, 5: 1918, 6: 1920}
"""Number of its test images by camera."""

TOLERANCE = 0.01
"""Largest difference of a figure, in per cent: four of the 38,030 queries of ten draws, at rank 1.
Both sides multiply float32 matrices, of different shapes, so that rounding may swap two distances
that are nearly equal."""


@dataclasses.dataclass(frozen=True)
class Size:
    people: int
    channels: int
    trials: int
    repeats: int


FULL = Size(people=96, channels=2048, trials=10, repeats=3)
QUICK = Size(people=6, channels=32, trials=2, repeats=1)


def images_of_split(folder: Path) -> dict[tuple[int, int], int]:
    """Return the number of images of each (identity, camera) among the test identities.

    Args:
        folder: contains test_id.txt and images_per_folder.json.
    """
    tested = set(map(int, (folder / "test_id.txt").read_text().split(",")))
    counts = json.loads((folder / "images_per_folder.json").read_text())
    folders = {(int(name[5:]), int(name[3])): count for name, count in counts.items()}
    return {key: count for key, count in folders.items() if key[0] in tested}


def images_alike() -> dict[tuple[int, int], int]:
    """Return such numbers without the split: the images of each camera, spread evenly over its
    identities."""
    seen_by = [cameras for cameras, people in SEEN_BY.items() for _ in range(people)]
    folders = {}
    for camera, images in IMAGES.items():
        seen = [i for i, cameras in enumerate(seen_by, start=1) if str(camera) in cameras]
        for nth, identity in enumerate(seen):
            folders[identity, camera] = images // len(seen) + (nth < images % len(seen))
    return folders


def listed(folders: Mapping[tuple[int, int], int], people: int) -> Images:
    """Return the images of the first `people` identities."""
    kept = set(sorted({identity for identity, _ in folders})[:people])
    rows = [
        (identity, camera, f"{n:04d}.jpg")
        for (identity, camera), count in sorted(folders.items())
        for n in range(1, count + 1)
        if identity in kept
    ]
    identities, cameras, names = zip(*rows, strict=True)
    infrared = np.isin(cameras, INFRARED_CAMERAS)
    return Images(np.array(identities), np.array(cameras), infrared, names)


def embeddings(identities: Int[np.ndarray, " N"], channels: int, seed: int) -> np.ndarray:
    """Return random float32 rows of unit length, [N, channels]; those of an identity are slightly
    similar."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((len(identities), channels), dtype=np.float32)
    common = random.standard_normal((identities.max() + 1, channels), dtype=np.float32)
    features += 0.2 * common[identities]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features


def ours(
    features: Mapping[str, np.ndarray], images: Images, settings: EvaluationConfig
) -> list[dict[str, float]]:
    """Return the figures of each search and feature, in per cent."""
    found = protocols.searches(SYSU_MM01, images, settings)
    records = protocols.score(features, images, found, SYSU_MM01, settings)
    figures = (*protocols.FIGURES, *(f"{name}_std" for name in protocols.FIGURES))
    return [{name: dict[str, Any](record)[name] for name in figures} for record in records]


def plain(
    features: Mapping[str, np.ndarray], images: Images, settings: EvaluationConfig
) -> list[dict[str, float]]:
    """Return the same figures, computed draw by draw and query by query, on the same galleries."""
    records = []
    for search in protocols.searches(SYSU_MM01, images, settings):
        for feature in features.values():
            trials = [
                plain_ranking(
                    -feature[search.query] @ feature[gallery].T,
                    images.identities[search.query],
                    images.identities[gallery],
                    images.cameras[search.query],
                    images.cameras[gallery],
                )
                for gallery in search.galleries
            ]
            mean, deviation = np.mean(trials, axis=0), np.std(trials, axis=0)
            record = dict(zip(protocols.FIGURES, mean.tolist(), strict=True))
            for name, value in zip(protocols.FIGURES, deviation.tolist(), strict=True):
                record[f"{name}_std"] = value
            records.append(record)
    return records


def plain_ranking(
    distances: Float[np.ndarray, "q g"],
    query_ids: Int[np.ndarray, " q"],
    gallery_ids: Int[np.ndarray, " g"],
    query_cameras: Int[np.ndarray, " q"],
    gallery_cameras: Int[np.ndarray, " g"],
) -> Float[np.ndarray, " 6"]:
    """Return rank-1, 5, 10, 20, mAP and mINP in per cent: sort, then loop over the queries."""
    order = np.argsort(distances, axis=1)
    places, precisions, penalties = [], [], []
    for query, ranked in enumerate(order):
        if query_cameras[query] == 3:
            ranked = ranked[gallery_cameras[ranked] != 2]
        ids = gallery_ids[ranked]
        hits = np.flatnonzero(ids == query_ids[query]) + 1
        if not len(hits):
            continue
        precisions.append(np.mean(np.arange(1, len(hits) + 1) / hits))
        penalties.append(len(hits) / hits[-1])
        _, firsts = np.unique(ids, return_index=True)
        people = ids[np.sort(firsts)]
        places.append(np.flatnonzero(people == query_ids[query])[0] + 1)
    curve = [np.mean(np.array(places) <= k) for k in (1, 5, 10, 20)]
    return 100 * np.array([*curve, np.mean(precisions), np.mean(penalties)])


def pair(queries: int, gallery: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features of queries and gallery to re-rank, of 96 identities in turn."""
    features = embeddings(np.arange(queries + gallery) % 96, channels, seed=0)
    return features[:queries], features[queries:]


def rerank_pair(queries: int, gallery: int, channels: int) -> None:
    rerank(*pair(queries, gallery, channels))


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """Run the command; write the results to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description="Compare SYSU-MM01's whole evaluation with a plain loop over the queries",
    )
    parser.add_argument(
        "--split",
        type=Path,
        metavar="DIR",
        help="folder of test_id.txt and images_per_folder.json (default:"
        " ../shared/data/sysu_mm01_split beside the checkout if it exists, else as many images,"
        " spread evenly)",
    )
    parser.add_argument("--quick", action="store_true", help="a few people, to try it")
    given = parser.parse_args(arguments)
    split = given.split or (SPLIT if SPLIT.is_dir() else None)
    size = QUICK if given.quick else FULL

    print(measure.describe(measure.machine()), end="\n\n")
    folders = images_of_split(split) if split else images_alike()
    images = listed(folders, size.people)
    both = {
        name: embeddings(images.identities, size.channels, seed)
        for seed, name in enumerate(("global", "part"))
    }

    rows, results, galleries = [], {}, {}
    for shots in ("single", "multi"):
        settings = EvaluationConfig(shots=shots, trials=size.trials)
        found = protocols.searches(SYSU_MM01, images, settings)
        galleries[shots] = {str(search.mode): len(search.galleries[0]) for search in found}
        for features in ({"part": both["part"]}, both):
            name = f"{shots}-shot, {len(features)} feature{'s' * (len(features) > 1)}"
            variants = {
                "ours": functools.partial(ours, features, images, settings),
                "plain loop": functools.partial(plain, features, images, settings),
            }
            # This run, for the figures, also serves as the warm-up.
            difference = largest_difference(*(variant() for variant in variants.values()))
            times = measure.interleaved(variants, size.repeats, warmup=0)
            ratio = times["plain loop"].median / times["ours"].median
            rows.append([name, *map(str, times.values()), f"{ratio:.1f}", f"{difference:.1g}"])
            results[name] = {**times, "ratio": ratio, "largest_difference": difference}
    queries = len(found[0].query)
    print(
        f"{size.trials} trials, all-search and indoor-search, {queries:,} queries,"
        f" {size.channels:,} channels; {'the split' if split else 'images spread evenly'}\n"
        "median (lowest to highest); largest difference of any figure, per cent"
    )
    print(measure.table(["", "ours", "plain loop", "ratio", "difference"], rows), end="\n\n")

    shape = queries, galleries["single"]["all"], size.channels
    query, gallery = pair(*shape)
    times = measure.interleaved({"re-ranking": lambda: rerank(query, gallery)}, size.repeats)
    peak = measure.peak_memory(functools.partial(rerank_pair, *shape))
    memory = "unknown" if peak is None else f"{peak:.0f} MiB, Python and embeddings included"
    print(f"re-ranking {queries:,} × {len(gallery):,}: {times['re-ranking']}; peak memory {memory}")

    result = {
        "images": "split" if split else "spread evenly",
        **dataclasses.asdict(size),
        "queries": queries,
        "galleries": galleries,
        "evaluation": results,
        "reranking": times["re-ranking"],
        "reranking_peak_mib": peak,
    }
    print("written:", measure.write("evaluation", result, folder))


def largest_difference(
    ours: Sequence[Mapping[str, float]], plain: Sequence[Mapping[str, float]]
) -> float:
    """Return the largest difference of a figure, in per cent.

    Raises:
        SystemExit: it exceeds TOLERANCE.
    """
    differences = [
        abs(one[name] - other[name])
        for one, other in zip(ours, plain, strict=True)
        for name in other
    ]
    largest = float(np.max(differences))  # NaN, where there is one
    if not largest <= TOLERANCE:
        raise SystemExit(
            f"the two evaluations differ by {largest:.3g} per cent; the bound is {TOLERANCE:g}"
        )
    return largest


if __name__ == "__main__":
    main()
