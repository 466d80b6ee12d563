"""Compare embedding image files, as ddag-embed does, with the evaluation's embedding.

    python -m benchmarks.serving            the published network, 192 images of 288 x 144 pixels
    python -m benchmarks.serving --quick    a small network on small images, to try it

Rendered people are written as JPEG files and prepared as a dataset. The evaluation embeds the
prepared images, which are decoded and resized already; ddag-embed decodes and resizes the files.
Same checkpoint (random weights), same batch size. Both run in turn in one process; the features
must be equal, bit for bit. Prints a table and writes results/serving.json.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, workload
from ddag_jax.cli import environment
from ddag_jax.config import Config, EvaluationConfig
from ddag_jax.synthetic.files import write_people
from ddag_jax.synthetic.image import People

BATCH = 32
IDENTITIES = 8
"""In the test set, with 4 images in each of 2 infrared cameras, and 8 visible images of each."""
REPEATS = 5


def prepared(folder: Path, config: Config, height: int) -> tuple[Config, list[Path]]:
    """Write people into a folder and prepare them; return the configuration and the test files."""
    from ddag_jax.data.loader import evaluation_split
    from ddag_jax.datasets.prepare import prepare

    people = People(
        train_identities=2,
        val_identities=2,
        test_identities=IDENTITIES,
        images_per_camera=4,
        height=height,
    )
    write_people(people, folder / "people", progress=False)
    size = config.data.image_height, config.data.image_width
    prepare("sysu_mm01", folder / "people", folder / "data", *size)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(folder / "data")),
        evaluation=EvaluationConfig(batch_size=BATCH),
    )
    return config, [folder / "people" / name for name in evaluation_split(config.data).names]


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """Run the command; write the results to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description="Compare embedding image files with the evaluation's embedding",
    )
    parser.add_argument("--quick", action="store_true", help="a small network on small images")
    given = parser.parse_args(arguments)
    environment.prepare()
    from benchmarks import jax_ddag
    from ddag_jax.data.loader import evaluation_split
    from ddag_jax.evaluation.evaluator import Evaluator
    from ddag_jax.parallel import device_mesh
    from ddag_jax.runs.checkpoint import Meta, save_weights
    from ddag_jax.runs.evaluate import find_trained
    from ddag_jax.serving.embed import embed_found
    from ddag_jax.serving.images import find_images
    from ddag_jax.serving.model import load

    with tempfile.TemporaryDirectory() as scratch:
        config = (workload.tiny if given.quick else workload.published)(IDENTITIES)
        config, files = prepared(Path(scratch), config, 64 if given.quick else 288)
        weights = Path(scratch) / "weights"
        variables = jax_ddag.random_variables(config)
        save_weights(weights, variables, Meta(config, workload.CLASSES).to_json())

        mesh, source = device_mesh(), evaluation_split(config.data)
        trained = find_trained(weights)
        evaluator = Evaluator(config, trained.method(), mesh, source)
        on_devices, _ = trained.restore(mesh)
        found: dict[str, Any] = {}

        def evaluation() -> None:
            found["evaluation"] = evaluator.embed(on_devices)["part"]

        table = Path(scratch) / "list.csv"
        kinds = ["infrared" if night else "visible" for night in source.infrared.tolist()]
        lines = [f"{file},{kind}" for file, kind in zip(files, kinds, strict=True)]
        table.write_text("\n".join(["path,modality", *lines, ""]))
        images, _ = find_images([table])
        model = load(weights)

        def from_files() -> None:
            found["ddag-embed"], _ = embed_found(model, images, "part", what="files")

        times = measure.interleaved({"ddag-embed": from_files, "evaluation": evaluation}, REPEATS)
    if not np.array_equal(found["evaluation"], found["ddag-embed"]):
        raise SystemExit("the features differ")
    print(measure.describe(measure.machine()), end="\n\n")
    size = f"{config.data.image_height} x {config.data.image_width}"
    print(f"{len(files)} images of {size}, {BATCH} at once, float32; features are equal")
    per_second = {name: len(files) / taken.median for name, taken in times.items()}
    rows = [[name, str(taken), f"{per_second[name]:,.2f}"] for name, taken in times.items()]
    print(measure.table(["", "median (lowest to highest)", "images/s"], rows))
    ratio = per_second["ddag-embed"] / per_second["evaluation"]
    print(f"ddag-embed embeds {ratio:.3f} times as many images a second")
    result = {
        "images": len(files),
        "image_size": size,
        "batch": BATCH,
        "times": times,
        "images_per_s": per_second,
        "ratio": ratio,
    }
    print("written:", measure.write("serving", result, folder))


if __name__ == "__main__":
    main()
