"""Compare an exported model on the CPU, run by onnxruntime, with our own embedding.

    python -m benchmarks.export            ResNet-50, 288 x 144 pixels, 1 and 32 images at once
    python -m benchmarks.export --quick    a small network on small images, to try it

The published network (B+P, since the graph is used in training only) in float32 with untrained
weights on noise; of the visible stream. Both sides take uint8 images, normalise them and return the
part feature. First the features must agree within FLOAT32_FEATURES of workload.py. Then both run in
turn, in one process, with the same number of threads. Ours has glibc's allocator as evaluate.py
sets it, which onnxruntime then has too. The first calls are not timed: ours compiles there. The
latency is the median time of a call. Prints a table and writes results/export.json.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import measure, workload
from benchmarks.train_step import threads
from ddag_jax.cli import environment

BATCHES = (1, 32)
ROUNDS = 15
OURS, THEIRS = "ours", "onnxruntime"


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """Run the command; write the results to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.export",
        description="Compare an exported model on the CPU with our own embedding",
    )
    parser.add_argument("--quick", action="store_true", help="a small network on small images")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=BATCHES, help="images at once (default: 1 32)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timed calls of each side")
    given = parser.parse_args(arguments)
    config = (workload.tiny if given.quick else workload.published)(8)
    environment.prepare()
    import jax  # not before: it reads the environment when it is imported
    import onnxruntime

    from benchmarks import jax_ddag
    from ddag_jax.serving.export import onnx
    from ddag_jax.serving.export.check import relative_difference
    from ddag_jax.serving.export.network import Stream

    size = config.data.image_height, config.data.image_width
    variables = jax_ddag.random_variables(config)
    embed = jax_ddag.Embedding(config, variables)
    values = jax.tree.map(np.asarray, variables)
    stream = Stream(config.model, size, values, "visible", ("part",), False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    session = onnxruntime.InferenceSession(
        onnx.serialize(stream, {}), options, providers=["CPUExecutionProvider"]
    )

    def ours(images: np.ndarray) -> np.ndarray:
        return np.asarray(embed(images, "visible")["part"])

    def theirs(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([onnx.FEATURE], {onnx.IMAGES: images})[0])

    print(measure.describe(measure.machine()), f"onnxruntime {onnxruntime.__version__}", sep="\n")
    name = f"{config.model.backbone} of width {config.model.width}"
    print(f"\n{name}, {size[0]} x {size[1]}, float32, {threads()} threads on each side\n")
    draw = np.random.default_rng(0)
    rows, records = [], {}
    for batch in given.batch:
        images = draw.integers(0, 256, (batch, *size, 3), np.uint8)
        difference = relative_difference(ours(images), theirs(images))
        if not difference <= workload.FLOAT32_FEATURES:
            raise SystemExit(
                f"the features differ: {difference:.2g} (relative) exceeds"
                f" {workload.FLOAT32_FEATURES:g}"
            )
        sides = {
            OURS: functools.partial(ours, images),
            THEIRS: functools.partial(theirs, images),
        }
        times = measure.interleaved(sides, given.rounds)
        ratio = times[OURS].median / times[THEIRS].median
        per_second = {side: batch / taken.median for side, taken in times.items()}
        records[str(batch)] = {
            "times": times,
            "images_per_s": per_second,
            "ratio": ratio,
            "largest_difference": difference,
        }
        for side, taken in times.items():
            latency = f"{1e3 * taken.median:,.1f} ms"
            spread = f"{1e3 * taken.min:,.1f} to {1e3 * taken.max:,.1f}"
            speed = f"{per_second[side]:,.2f}"
            rows.append([f"{batch} at once, {side}", latency, spread, speed])
    print(measure.table(["", "latency (median)", "lowest to highest", "images/s"], rows))
    for batch, record in records.items():
        print(
            f"{batch} at once: ours takes {record['ratio']:.3f} times onnxruntime's time; features"
            f" differ by at most {record['largest_difference']:.1g} (relative)"
        )
    setting = {"image_size": size, "threads": threads(), "rounds": given.rounds}
    print("written:", measure.write("export", setting | {"batches": records}, folder))


if __name__ == "__main__":
    main()
