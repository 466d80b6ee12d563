"""DDAG's loss: Eq. 9 to 11."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddag_jax.config import DDAGConfig
from ddag_jax.losses import cross_entropy, negative_log_likelihood
from ddag_jax.methods.ddag.network import TrainingOutput
from ddag_jax.methods.triplet import triplet_terms
from ddag_jax.types import Array as AnyArray


def graph_loss(
    log_probs: Float[Array, "k y"],
    labels: Int[Array, " k"],
    reduction: str,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Return Eq. 9: "mean" (the code) over the nodes, or their "sum" (the paper).

    The sum is this device's mean times the nodes of all devices, since the step averages the
    devices' losses.
    """
    loss = negative_log_likelihood(log_probs, labels)
    if reduction == "mean":
        return loss
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    return loss * len(labels) * devices


def loss_terms(
    output: TrainingOutput,
    labels: Int[Array, " k"],
    visible: Bool[AnyArray, " k"],
    graph_weight: Float[Array, ""],
    config: DDAGConfig,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return L_P + w L_g (Eq. 11) for one device's images, and its terms.

    Args:
        output: of the network.
        labels: class of each image, visible ones first.
        visible: whether the image is visible.
        graph_weight: w; no gradient flows through it.
        config: of the triplet loss and of the graph loss's reduction.
        axis_name: the device axis among whose features positives and negatives are sought.

    Returns:
        The total and `identity`, `triplet`, `part`, `graph` (0 for a branch that is off),
        `without_graph` (L_P, Eq. 10; without part attention L_b) and `graph_weight`; with the
        squared triplet also `clamped`.
    """
    zero = jnp.zeros((), output.global_logits.dtype)
    identity = cross_entropy(output.global_logits, labels)
    triplet = triplet_terms(config, output.pooled, labels, visible, axis_name)
    part = zero if output.part_logits is None else cross_entropy(output.part_logits, labels)
    graph = (
        zero
        if output.graph_log_probs is None
        else graph_loss(  # the nodes are the first visible view and the infrared one
            output.graph_log_probs,
            labels[: len(output.graph_log_probs)],
            config.graph_reduction,
            axis_name,
        )
    )
    without_graph = identity + triplet["triplet"] + part
    weight = jax.lax.stop_gradient(graph_weight)
    terms = {
        "identity": identity,
        **triplet,
        "part": part,
        "graph": graph,
        "without_graph": without_graph,
        "graph_weight": weight,
    }
    return without_graph + weight * graph, terms


def dynamic_graph_weight(mean_without_graph: Float[Array, ""]) -> Float[Array, ""]:
    """Return the coefficient of the graph loss (Eq. 11) from the last epoch's mean of L_P.

    >>> float(dynamic_graph_weight(jnp.array(3.0)))
    0.25
    """
    return 1 / (1 + mean_without_graph)
