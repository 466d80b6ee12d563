"""DDAG's loss: Eq. 9 to 11."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddag_jax.losses import batch_hard_triplet, cross_entropy, negative_log_likelihood
from ddag_jax.methods.ddag.network import TrainingOutput


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
    graph_weight: Float[Array, ""],
    *,
    margin: float,
    graph_reduction: str,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return L_P + w L_g (Eq. 11) for one device's images, and its terms.

    Args:
        output: of the network.
        labels: class of each image.
        graph_weight: w; no gradient flows through it.
        margin: of the triplet loss.
        graph_reduction: of `graph_loss`.
        axis_name: the device axis among whose features positives and negatives are sought.

    Returns:
        The total and `identity`, `triplet`, `part`, `graph` (0 for a branch that is off),
        `without_graph` (L_P, Eq. 10; without part attention L_b) and `graph_weight`.
    """
    zero = jnp.zeros((), output.global_logits.dtype)
    identity = cross_entropy(output.global_logits, labels)
    triplet = batch_hard_triplet(output.pooled, labels, margin, axis_name)
    part = zero if output.part_logits is None else cross_entropy(output.part_logits, labels)
    graph = (
        zero
        if output.graph_log_probs is None
        else graph_loss(output.graph_log_probs, labels, graph_reduction, axis_name)
    )
    without_graph = identity + triplet + part
    weight = jax.lax.stop_gradient(graph_weight)
    terms = {
        "identity": identity,
        "triplet": triplet,
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
