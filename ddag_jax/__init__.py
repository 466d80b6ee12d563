"""DDAG (Ye et al., ECCV 2020) in JAX and Flax: visible-infrared person re-identification.

    train(config, workdir, ...)             train; checkpoints and a log in `workdir`
    evaluate(run_or_checkpoint, ...)        the published protocol's figures, as records
    load(run_or_checkpoint, ...)            a trained model with embed(images, modality)
    embed(run, images, to, ...)             the features of image files, in a file
    search(run, gallery, query, ...)        the gallery images most similar to each query
    export(run, out, ...)                   the model as ONNX or StableHLO
    rank(query, gallery, ...)               CMC, mAP and mINP of any features
    Config and its parts                    every setting of a run
    Dataset, CameraRule                     a dataset of your own and its protocol
    UserError                               what the caller can fix

Importing the package does not import jax; the first use of a function does. JAX's settings of the
calling program (x64, matrix precision, strict promotion) do not reach into these functions, and are
unchanged after them (numerics.py). Nothing else of the process is set up here: train.py and
evaluate.py also keep compiled programs between processes (JAX_COMPILATION_CACHE_DIR) and tune the C
library's allocator. `train` handles SIGTERM and SIGINT while it runs, so it belongs into the main
thread.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddag_jax.config import (
        AugmentConfig,
        BaselineConfig,
        Config,
        DataConfig,
        DDAGConfig,
        EvaluationConfig,
        OptimizerConfig,
        TrainingConfig,
    )
    from ddag_jax.datasets.dataset import CameraRule, Dataset
    from ddag_jax.errors import UserError
    from ddag_jax.evaluation.ranking import rank_features as rank
    from ddag_jax.runs.evaluate import evaluate
    from ddag_jax.runs.train import train
    from ddag_jax.serving.embed import embed
    from ddag_jax.serving.export import export
    from ddag_jax.serving.model import load
    from ddag_jax.serving.search import search

__version__ = "0.2.0"

__all__ = [
    "AugmentConfig",
    "BaselineConfig",
    "CameraRule",
    "Config",
    "DDAGConfig",
    "DataConfig",
    "Dataset",
    "EvaluationConfig",
    "OptimizerConfig",
    "TrainingConfig",
    "UserError",
    "__version__",
    "embed",
    "evaluate",
    "export",
    "load",
    "rank",
    "search",
    "train",
]

_PLACES = {
    "CameraRule": "datasets.dataset.CameraRule",
    "Dataset": "datasets.dataset.Dataset",
    "UserError": "errors.UserError",
    "embed": "serving.embed.embed",
    "evaluate": "runs.evaluate.evaluate",
    "export": "serving.export.export",
    "load": "serving.model.load",
    "rank": "evaluation.ranking.rank_features",
    "search": "serving.search.search",
    "train": "runs.train.train",
}
"""Where a public name is, below this package; what is not here is in `config`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES.get(name, f"config.{name}").rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
