"""A network's figures on one set of images: embed each once, then the protocol."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ddag_jax.build import build_embed
from ddag_jax.config import Config
from ddag_jax.data.loader import ImageSource
from ddag_jax.datasets.find import find_dataset
from ddag_jax.evaluation.embed import Modality, embed
from ddag_jax.evaluation.protocols import Images, Record, score, searches
from ddag_jax.methods.ddag.model import DDAG
from ddag_jax.parallel import Mesh, is_first_process, map_embed, my_part, shard
from ddag_jax.types import Embeddings


class Evaluator:
    """Compiled once, called with the variables of any checkpoint of the same network.

    Raises `UserError` when made, not when called, where the images do not allow the protocol.
    """

    def __init__(self, config: Config, model: DDAG, mesh: Mesh, source: ImageSource) -> None:
        self._config = config
        self._mesh = mesh
        self._source = source
        self._embed = map_embed(build_embed(model, flip=config.evaluation.flip), mesh)
        self.images = Images(source.identities, source.cameras, source.infrared, source.names)
        self._dataset = find_dataset(config.data.dataset)
        self.searches = searches(self._dataset, self.images, config.evaluation, source.draws)

    def embed(
        self,
        variables: Any,
        progress: str | None = None,
        give_up: Callable[[], bool] = lambda: False,
    ) -> dict[str, np.ndarray]:
        """Features "global" and, where P is on, "part", float32 [images, d], of `variables`,
        {"params", "batch_stats"}, replicated over the mesh. Raises `GaveUp` as `embed` does."""

        def embed_batch(images: Any, modality: Modality) -> Embeddings:
            return self._embed(variables, shard(images, self._mesh), modality)

        source, size = self._source, self._mesh.size
        return embed(
            embed_batch,
            lambda numbers: source.images(my_part(numbers)),
            source.infrared,
            -(-self._config.evaluation.batch_size // size) * size,
            progress if is_first_process() else None,
            give_up,
        )

    def judged(self, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What of the features the protocol looks at, by name."""
        chosen = self._config.evaluation.feature
        return features if chosen == "both" else {chosen: pick(features, chosen)}

    def judge(self, features: dict[str, np.ndarray]) -> list[Record]:
        """The protocol's records of what `embed` gave."""
        data, settings = self._config.data, self._config.evaluation
        return score(
            self.judged(features),
            self.images,
            self.searches,
            self._dataset,
            settings,
            rendered=self._source.rendered,
            split=data.trial if self._dataset.splits else None,
        )


def pick(features: dict[str, np.ndarray], name: str) -> np.ndarray:
    """One of the features by its name in the configuration, rows of unit length.

    The concatenation's cosine similarity is the mean of its two parts'.
    """
    if name == "concatenation":
        return np.concatenate([features["global"], features["part"]], axis=1) / np.float32(2**0.5)
    return features[name]


def reported_feature(config: Config) -> str:
    """The feature whose figures are published: part where P is on, else global."""
    return "part" if config.model.part_attention else "global"


def while_training(config: Config) -> Config:
    """What is judged every few epochs: nothing that takes long, both features."""
    settings = dataclasses.replace(
        config.evaluation,
        mode=find_dataset(config.data.dataset).mode_while_training,
        draw="seeded",
        feature="both",
        rerank=False,
    )
    return dataclasses.replace(config, evaluation=settings)
