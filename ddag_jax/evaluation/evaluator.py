"""A network's figures on one set of images: embed each once, then apply the protocol."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ddag_jax.config import Config
from ddag_jax.data.loader import ImageSource
from ddag_jax.datasets.find import find_dataset
from ddag_jax.errors import UserError
from ddag_jax.evaluation.embed import embed_images, make_embed
from ddag_jax.evaluation.protocols import Images, Record, score, searches
from ddag_jax.methods.base import Method, Modality
from ddag_jax.parallel import Mesh, is_first_process, map_embed, my_part, shard


class Evaluator:
    """Compiled once, called with the variables of any checkpoint of the same network.

    Raises:
        UserError: when made, not when called, if the images do not allow the protocol or the
            method has no feature of the configuration's name.
    """

    def __init__(self, config: Config, method: Method, mesh: Mesh, source: ImageSource) -> None:
        self._config = config
        self._mesh = mesh
        self._source = source
        self._features = method.features
        self._embed = map_embed(make_embed(method, flip=config.evaluation.flip), mesh)
        check_feature(config.evaluation.feature, method)
        self.images = Images(source.identities, source.cameras, source.infrared, source.names)
        self._dataset = find_dataset(config.data.dataset)
        self.searches = searches(self._dataset, self.images, config.evaluation, source.draws)

    def embed(
        self,
        variables: Any,
        progress: str | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        source: ImageSource | None = None,
    ) -> dict[str, Float[np.ndarray, "N d"]]:
        """Return the method's features of all images, float32 rows of unit length by name.

        Args:
            variables: {"params", "batch_stats"}, replicated over the mesh.
            progress: title of the progress bar; None for no bar.
            interrupted: as in `embed_images`, whose errors are raised.
            source: other images of the same size; None for those of the evaluation.
        """
        images = source or self._source

        def embed_batch(batch: Any, modality: Modality) -> Mapping[str, Any]:
            return self._embed(variables, shard(batch, self._mesh), modality)

        size = self._mesh.size
        found = embed_images(
            embed_batch,
            lambda numbers: images.images(my_part(numbers)),
            images.infrared,
            -(-self._config.evaluation.batch_size // size) * size,
            progress if is_first_process() else None,
            interrupted,
        )
        return {name: found[name] for name in self._features}

    def selected(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the features that `evaluation.feature` selects, by name."""
        chosen = self._config.evaluation.feature
        return dict(features) if chosen == "both" else {chosen: pick(features, chosen)}

    def score(self, features: Mapping[str, np.ndarray]) -> list[Record]:
        """Return the protocol's records for the features that `embed` returned."""
        data, settings = self._config.data, self._config.evaluation
        return score(
            self.selected(features),
            self.images,
            self.searches,
            self._dataset,
            settings,
            rendered=self._source.rendered,
            split=data.trial if self._dataset.splits else None,
        )


def check_feature(name: str, method: Method, *, one: bool = False) -> None:
    """Raise UserError if `evaluation.feature` names no feature of the method.

    Args:
        name: of the feature.
        method: whose features are meant.
        one: the name must stand for a single feature, so it may not be `both`.
    """
    joined = ("concatenation",) if len(method.features) > 1 else ()
    known = (*method.features, *(() if one else ("both",)), *joined)
    if name not in known:
        raise UserError(
            f"{'feature' if one else 'evaluation.feature'}: {name!r}, but this network's features"
            f" are {', '.join(method.features)}; give one of {', '.join(known)}"
        )


def pick(features: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return one of the features by its name in the configuration, in rows of unit length.

    `concatenation` is all of them side by side; its cosine similarity is the mean of theirs.
    """
    if name == "concatenation":
        scale = np.float32(len(features) ** 0.5)
        return np.concatenate(list(features.values()), axis=1) / scale
    return features[name]


def while_training(config: Config) -> Config:
    """Return the configuration of the evaluations during training: fast, and of all features."""
    settings = dataclasses.replace(
        config.evaluation,
        mode=find_dataset(config.data.dataset).mode_while_training,
        draw="seeded",
        feature="both",
        rerank=False,
    )
    return dataclasses.replace(config, evaluation=settings)
