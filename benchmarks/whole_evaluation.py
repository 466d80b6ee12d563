"""Compare SYSU-MM01's evaluation, which embeds images once, with one pass for every draw.

    python -m benchmarks.whole_evaluation            its image counts, a small network
    python -m benchmarks.whole_evaluation --quick    a few people, to try it

Ten gallery draws of all-search and of indoor-search, single-shot: 3,803 queries, and 6,775
candidates for the gallery, of which a draw has 301 (all-search) or 112 (indoor-search). The three
variants (the option of the published protocol calls a draw a trial):

    once               as evaluate.py: embed every image once, then rank all draws
    pass per trial     embed queries and gallery of each draw, then rank it
    as the reference   as the authors' test_ddag.py, which runs one mode at a time: embed the
                       queries once for each mode, and the gallery of each draw

They differ in what they embed only. Network, random weights, prepared dataset of rendered people,
batches, ranking and figures are the same, and the figures must agree. The network is that of the
configuration debug at 64 x 32 pixels, which embeds images a hundred times as fast as the published
one; so ranking takes a larger share of the time, and the ratios are lower. Peak memory is that of a
process with one variant alone, including imports, with a program that was compiled before. Prints a
table and writes results/whole_evaluation.json.
"""

import argparse
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from benchmarks import measure
from benchmarks.evaluation import TOLERANCE, images_alike
from ddag_jax.cli import environment
from ddag_jax.config import Config
from ddag_jax.evaluation.protocols import FIGURES
from ddag_jax.io.config_file import load_config

CONFIG = "debug"
IMAGE = 64, 32
"""Height and width, pixels."""
CLASSES = 395
REPEATS = 5
DISTINCT = 8
"""Rendered people whose images are used for all identities."""

Records = list[dict[str, float]]
"""Figures by mode and feature, in per cent."""


class Size(NamedTuple):
    people: int
    """Test identities."""
    repeats: int


FULL = Size(people=96, repeats=REPEATS)
QUICK = Size(people=2, repeats=1)


def configuration(data_dir: Path) -> Config:
    """Return the configuration of the network and the dataset in `data_dir`."""
    config = load_config(CONFIG)
    height, width = IMAGE
    data = dataclasses.replace(
        config.data, dir=str(data_dir), image_height=height, image_width=width
    )
    return dataclasses.replace(config, data=data)


def write_images(size: Size, folder: Path) -> Path:
    """Prepare as many test images as SYSU-MM01 has; return the folder of the prepared dataset."""
    from ddag_jax.datasets.prepare import prepare
    from ddag_jax.synthetic.rehearsal import Tree, write_tree

    counts = {key: n for key, n in images_alike().items() if key[0] <= size.people}
    images = [
        (f"cam{camera}/{identity:04d}/{n:04d}.jpg", identity, camera)
        for (identity, camera), count in counts.items()
        for n in range(1, count + 1)
    ]
    # A dataset needs training identities.
    others = {"train": size.people + 1, "val": size.people + 2}
    for identity in others.values():
        images += [(f"cam{camera}/{identity:04d}/0001.jpg", identity, camera) for camera in (1, 3)]
    lists = {split: str(identity) for split, identity in others.items()}
    lists["test"] = ",".join(map(str, sorted({identity for identity, _ in counts})))
    files = {f"exp/{split}_id.txt": who.encode() for split, who in lists.items()}
    tree = Tree(images, files, note="benchmark")
    height, width = IMAGE
    source = folder / "people"
    write_tree(tree, source, distinct=DISTINCT, heights=(height,), seed=0, progress=False)
    prepare("sysu_mm01", source, folder / "data", height, width)
    return folder / "data"


class Evaluation:
    """One network and one dataset; all variants return the same figures."""

    def __init__(self, config: Config) -> None:
        environment.prepare()
        import jax

        from ddag_jax.data.loader import evaluation_split
        from ddag_jax.evaluation.embed import make_embed
        from ddag_jax.evaluation.evaluator import Evaluator
        from ddag_jax.methods.build import build_method
        from ddag_jax.parallel import device_mesh, map_embed, replicate

        self.config, self.mesh = config, device_mesh()
        method = build_method(config.model, CLASSES)
        size = config.data.image_height, config.data.image_width
        self.variables = replicate(
            jax.jit(method.init, static_argnums=1)(jax.random.key(0), tuple(size)), self.mesh
        )
        self.source = evaluation_split(config.data)
        self.evaluator = Evaluator(config, method, self.mesh, self.source)
        self.network = map_embed(make_embed(method, flip=False), self.mesh)
        self.embedded: dict[str, int] = {}
        """Number of embedded images, by variant."""

    def once(self) -> Records:
        self.embedded["once"] = len(self.source)
        return figures(self.evaluator.score(self.evaluator.embed(self.variables)))

    def pass_per_trial(self) -> Records:
        return self._trial_by_trial("pass per trial", lambda trial: True)

    def as_the_reference(self) -> Records:
        return self._trial_by_trial("as the reference", lambda trial: trial == 0)

    def _trial_by_trial(self, way: str, asks_anew: Callable[[int], bool]) -> Records:
        from ddag_jax.datasets.sysu_mm01 import SYSU_MM01
        from ddag_jax.evaluation.protocols import score

        evaluator, self.embedded[way] = self.evaluator, 0
        means: Records = []
        for search in evaluator.searches:
            trials = []
            for trial, gallery in enumerate(search.galleries):
                wanted = [gallery]
                if asks_anew(trial):
                    features: dict[str, np.ndarray] = {}
                    wanted = [search.query, gallery]
                for numbers in wanted:
                    self._embed(numbers, features)
                    self.embedded[way] += len(numbers)
                this = [search._replace(galleries=[gallery])]
                trials.append(
                    figures(
                        score(features, evaluator.images, this, SYSU_MM01, self.config.evaluation)
                    )
                )
            means += [
                {name: float(np.mean([record[name] for record in same])) for name in FIGURES}
                for same in zip(*trials, strict=True)
            ]
        return means

    def _embed(self, numbers: Int[np.ndarray, " n"], features: dict[str, np.ndarray]) -> None:
        """Write the features of these images to their rows; the other rows are zero at first."""
        from ddag_jax.evaluation.embed import embed_images
        from ddag_jax.parallel import shard

        size = self.mesh.size
        found = embed_images(
            lambda images, modality: self.network(
                self.variables, shard(images, self.mesh), modality
            ),
            lambda indices: self.source.images(numbers[indices]),
            self.source.infrared[numbers],
            -(-self.config.evaluation.batch_size // size) * size,
        )
        for name, rows in found.items():
            whole = features.setdefault(
                name, np.zeros((len(self.source), rows.shape[1]), np.float32)
            )
            whole[numbers] = rows


def figures(records: Sequence[Mapping[str, Any]]) -> Records:
    """Return the figures of evaluation records."""
    return [{name: record[name] for name in FIGURES} for record in records]


WAYS: dict[str, Callable[[Evaluation], Records]] = {
    "once": Evaluation.once,
    "pass per trial": Evaluation.pass_per_trial,
    "as the reference": Evaluation.as_the_reference,
}


def alone(config: Config, way: str) -> None:
    """Run one variant, to measure its memory."""
    WAYS[way](Evaluation(config))


def largest_difference(one: Records, others: Sequence[Records]) -> float:
    """Return the largest difference of a figure, in per cent.

    Raises:
        SystemExit: it exceeds TOLERANCE.
    """
    largest = 0.0
    for other in others:
        for mine, theirs in zip(one, other, strict=True):
            for name in FIGURES:
                difference = abs(mine[name] - theirs[name])
                if not difference <= TOLERANCE:
                    raise SystemExit(
                        f"{name} is {mine[name]} in one variant, {theirs[name]} in another: the"
                        f" difference {difference:.3g} exceeds {TOLERANCE:g} per cent"
                    )
                largest = max(largest, difference)
    return largest


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """Run the command; write the results to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.whole_evaluation",
        description="Compare SYSU-MM01's evaluation with one embedding pass for every draw",
    )
    parser.add_argument("--quick", action="store_true", help="a few people, to try it")
    given = parser.parse_args(arguments)
    size = QUICK if given.quick else FULL

    with tempfile.TemporaryDirectory() as scratch:
        config = configuration(write_images(size, Path(scratch)))
        evaluation = Evaluation(config)
        ways = {way: functools.partial(run, evaluation) for way, run in WAYS.items()}
        # This run, for the figures, also serves as the warm-up.
        once, *others = (way() for way in ways.values())
        difference = largest_difference(once, others)
        times = measure.interleaved(ways, size.repeats, warmup=0)
        peaks = {way: measure.peak_memory(functools.partial(alone, config, way)) for way in WAYS}
    print(measure.describe(measure.machine()), end="\n\n")
    searches = {str(search.mode): search for search in evaluation.evaluator.searches}
    queries = len(searches["all"].query)
    galleries = {mode: len(search.galleries[0]) for mode, search in searches.items()}
    candidates = len(evaluation.source) - queries
    trials = config.evaluation.trials
    print(
        f"{CONFIG}'s network, images of {IMAGE[0]} x {IMAGE[1]}; {trials} trials of"
        f" all-search and indoor-search\n{queries:,} queries, {candidates:,} candidates, of which"
        f" a trial draws {galleries['all']} and {galleries['indoor']}\nimages embedded: "
        + ", ".join(f"{way} {count:,}" for way, count in evaluation.embedded.items())
        + f"\nfigures differ by at most {difference:.1g} per cent"
    )
    records = {}
    for way in list(WAYS)[1:]:
        print()
        pair = {name: times[name] for name in ("once", way)}
        records[way] = measure.compared(pair, peaks, 1, "evaluations")
    print("target 5, aim 8, of a pass per trial")
    result = {
        **size._asdict(),
        "config": CONFIG,
        "image": IMAGE,
        "queries": queries,
        "candidates": candidates,
        "galleries": galleries,
        "trials": trials,
        "embedded": evaluation.embedded,
        "largest_difference": difference,
        "once beside": records,
    }
    print("written:", measure.write("whole_evaluation", result, folder))


if __name__ == "__main__":
    main()
