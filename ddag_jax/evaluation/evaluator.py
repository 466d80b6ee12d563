"""A network's figures on one set of images: embed each once, then the protocol."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddag_jax.build import build_embed
from ddag_jax.config import Config
from ddag_jax.data.loader import ImageSource
from ddag_jax.evaluation.embed import Modality, embed
from ddag_jax.evaluation.protocols import Mode, Record, draw_sysu, evaluate_sysu
from ddag_jax.models.ddag import DDAG
from ddag_jax.parallel import Mesh, map_embed, shard
from ddag_jax.typing import Embeddings


class Evaluator:
    """Compiled once, called with the variables of any checkpoint of the same network.

    Raises `InputError` when made, not when called, where the images do not allow the protocol.
    """

    def __init__(
        self,
        config: Config,
        model: DDAG,
        mesh: Mesh,
        source: ImageSource,
        modes: Sequence[Mode] = ("all", "indoor"),
    ) -> None:
        self._settings = config.evaluation
        self._mesh = mesh
        self._source = source
        self._modes = modes
        self._embed = map_embed(build_embed(model), mesh)
        draw_sysu(
            source.identities,
            source.cameras,
            source.names,
            shots=self._settings.shots,
            trials=1,
            modes=modes,
        )

    def embed(self, variables: Any, progress: str | None = None) -> dict[str, np.ndarray]:
        """Features "global" and, where P is on, "part", float32 [images, d], of `variables`,
        {"params", "batch_stats"}, replicated over the mesh."""

        def embed_batch(images: Any, modality: Modality) -> Embeddings:
            return self._embed(variables, shard(images, self._mesh), modality)

        source, size = self._source, self._mesh.size
        return embed(
            embed_batch,
            source.images,
            source.infrared,
            -(-self._settings.batch_size // size) * size,
            progress,
        )

    def judge(self, features: dict[str, np.ndarray]) -> list[Record]:
        """The protocol's records of such features."""
        source = self._source
        return evaluate_sysu(
            features,
            source.identities,
            source.cameras,
            source.names,
            shots=self._settings.shots,
            trials=self._settings.trials,
            modes=self._modes,
        )


def reported_feature(config: Config) -> str:
    """The feature whose figures are published: part where P is on, else global."""
    return "part" if config.model.part_attention else "global"
