"""CGSA against PyTorch and a loop over nodes; N_g of Table 3; the dropout's place and scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.methods.ddag.graph_attention import (
    GraphAttention,
    GraphAttentionHeads,
    keep,
    pair_keys,
    same_identity,
)
from tests.models import torch_modules
from tests.models.torch_modules import as_jax, assert_close, randomise, to_ours, to_torch

CHANNELS, HEADS, HEAD_DIM, CLASSES = 6, 2, 4, 5
LABELS = np.array([0, 0, 1, 1, 3, 3] * 2)  # visible half, infrared half
RATE = 0.4


def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(LABELS), CHANNELS))


def random_params(seed: int = 1) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "heads": {
            "kernel": rng.normal(size=(HEADS, CHANNELS, HEAD_DIM)),
            "a": rng.normal(size=(HEADS, 2 * HEAD_DIM, 1)),
        },
        "output": {
            "kernel": rng.normal(size=(1, HEADS * HEAD_DIM, CLASSES)),
            "a": rng.normal(size=(1, 2 * CLASSES, 1)),
        },
    }


def graph(dropout: float = 0.0, neighbours: int | None = None) -> GraphAttention:
    return GraphAttention(CLASSES, HEADS, HEAD_DIM, dropout, neighbours, jnp.float64)


@functools.partial(jax.jit, static_argnums=0)
def apply(module: GraphAttention, params: dict, x: jax.Array, labels: jax.Array, keys) -> tuple:
    """Output, and the attention that the heads and the output layer sow."""
    return module.apply({"params": params}, x, labels, keys, mutable=["intermediates"])


# --------------------------------------------------------------------------- without dropout


def test_as_pytorch_with_gradients() -> None:
    theirs = randomise(torch_modules.GraphAttention(CHANNELS, HEADS, HEAD_DIM, CLASSES), 0)

    def arrays(gradients: bool) -> dict:
        get = lambda p: (p.grad if gradients else p.detach()).numpy().copy()  # noqa: E731
        return {
            "heads": {
                "kernel": np.stack([get(p) for p in theirs.weights]),
                "a": np.stack([get(p) for p in theirs.scores]),
            },
            "output": {"kernel": get(theirs.out_weight)[None], "a": get(theirs.out_score)[None]},
        }

    x = to_torch(features()).requires_grad_()
    y = theirs(x, to_torch(LABELS[:, None] == LABELS[None]))
    g = np.random.default_rng(1).normal(size=y.shape)
    y.backward(to_torch(g))

    @jax.jit
    def ours(params: dict, x: jax.Array, g: jax.Array) -> tuple:
        y, pull = jax.vjp(
            lambda params, x: graph().apply({"params": params}, x, jnp.array(LABELS), None),
            params,
            x,
        )
        return y, *pull(g)

    with jax.enable_x64(True):
        got = ours(as_jax(arrays(False)), features(), g)
    jax.tree.map(assert_close, got, (to_ours(y), arrays(True), to_ours(x.grad)))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def heads_by_node(
    params: dict, x: np.ndarray, adjacency: np.ndarray, factors: np.ndarray | None = None
) -> np.ndarray:
    """Eq. 7 and the sum of Eq. 8, a node and a head at a time; `factors` of dropout, [i, j, l]."""
    heads = len(params["kernel"])
    out = np.zeros((len(x), heads, params["kernel"].shape[-1]))
    for head, (kernel, a) in enumerate(zip(params["kernel"], params["a"], strict=True)):
        h = x @ kernel
        for i in range(len(x)):
            seen = np.flatnonzero(adjacency[i])
            e = np.array([(a[:, 0] @ np.concatenate([h[i], h[j]])) for j in seen])
            alpha = softmax(np.where(e > 0, e, 0.2 * e))
            if factors is not None:
                alpha = alpha * factors[i, seen, head]
            out[i, head] = alpha @ h[seen]
    return out


def by_node(params: dict, x: np.ndarray, adjacency: np.ndarray) -> np.ndarray:
    x = elu(heads_by_node(params["heads"], x, adjacency)).reshape(len(x), -1)
    x = elu(heads_by_node(params["output"], x, adjacency)[:, 0])
    return np.stack([np.log(softmax(row)) for row in x])


@pytest.mark.parametrize("neighbours", [None, 1, 3], ids=str)
def test_as_a_loop_over_nodes(neighbours: int | None) -> None:
    params = random_params()
    with jax.enable_x64(True):
        ours, _ = apply(graph(neighbours=neighbours), params, features(), LABELS, None)
    adjacency = np.array(same_identity(jnp.array(LABELS), neighbours))
    assert_close(ours, by_node(params, features(), adjacency))


# --------------------------------------------------------------------------------------- N_g


def seen_by(labels: list[int], neighbours: int | None) -> list[list[int]]:
    adjacency = np.asarray(same_identity(jnp.array(labels), neighbours))
    return [np.flatnonzero(row).tolist() for row in adjacency]


def turns(labels: list[int], node: int) -> list[int]:
    """The node, then the other modality's and its own images in turn, each in slot order."""
    half = len(labels) // 2
    mates = [j for j in range(len(labels)) if labels[j] == labels[node] and j != node]
    other = [j for j in mates if (j >= half) != (node >= half)]
    own = [j for j in mates if (j >= half) == (node >= half)]
    order = [node]
    while other or own:
        order += [queue.pop(0) for queue in (other, own) if queue]
    return order


@pytest.mark.parametrize("neighbours", [1, 2, 3, 4, 7, 8, 20, None], ids=str)
@pytest.mark.parametrize(
    "labels",
    [
        ([0] * 4 + [1] * 4) * 2,  # the published batch: 4 + 4 of each identity
        [0, 1, 0, 1, 1, 0, 0, 1],  # not in groups
        [0, 0, 0, 1, 0, 1, 1, 1],  # 3 + 1 and 1 + 3
        [0, 0, 1, 1, 1, 1],  # one identity in a single modality's half
    ],
    ids=["4+4", "mixed", "unequal", "one-sided"],
)
def test_neighbours(labels: list[int], neighbours: int | None) -> None:
    expected = [sorted(turns(labels, node)[:neighbours]) for node in range(len(labels))]
    assert seen_by(labels, neighbours) == expected


def test_neighbours_of_the_published_batch() -> None:
    """Spelled out: 1 is the node itself, 8 every image of its identity."""
    labels = ([0] * 4 + [1] * 4) * 2
    assert seen_by(labels, 1) == [[node] for node in range(16)]
    assert seen_by(labels, 2)[5] == [5, 12]
    assert seen_by(labels, 4)[1] == [0, 1, 8, 9]
    assert seen_by(labels, 4)[12] == [4, 5, 12, 13]
    assert seen_by(labels, 8)[0] == [0, 1, 2, 3, 8, 9, 10, 11]


# ----------------------------------------------------------------------------------- dropout


def image_keys(seed: int = 0, count: int = len(LABELS)) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def test_factors_are_inverted_dropout() -> None:
    factors = np.asarray(keep(image_keys(count=200), (100,), RATE, jnp.float32))
    assert factors.shape == (200, 100)
    np.testing.assert_allclose(np.unique(factors), [0, 1 / (1 - RATE)], rtol=1e-6)
    assert abs(factors.mean() - 1) < 0.02  # deviation of the mean: 0.006
    assert not np.array_equal(factors[0], factors[1])


def test_each_ordered_pair_has_a_key_of_its_own() -> None:
    data = np.asarray(jax.random.key_data(pair_keys(image_keys())))
    assert len(np.unique(data.reshape(-1, data.shape[-1]), axis=0)) == len(LABELS) ** 2


def test_attention_dropout_follows_the_softmax() -> None:
    """What remains is scaled by 1 / (1 - rate) and not normalised anew."""
    keys = pair_keys(image_keys())
    params = random_params()["heads"]
    adjacency = LABELS[:, None] == LABELS[None]
    heads = GraphAttentionHeads(HEADS, HEAD_DIM, RATE, jnp.float64)
    with jax.enable_x64(True):
        factors = np.asarray(keep(keys, (HEADS,), RATE, jnp.float64))
        ours = jax.jit(heads.apply)({"params": params}, features(), adjacency, keys)
    assert 0 < np.mean(factors == 0) < 1
    expected = heads_by_node(params, features(), adjacency, factors)
    assert_close(ours, expected)


def test_dropout_sits_in_four_places() -> None:
    """On the input, on the heads' attention, on the concatenated heads, on the output layer's
    attention, each with a key of its own, rebuilt here from the images' keys."""
    params, keys = random_params(), image_keys()
    adjacency = LABELS[:, None] == LABELS[None]
    with jax.enable_x64(True):
        ours, _ = apply(graph(RATE), params, features(), LABELS, keys)
        parts = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
        before, after = (
            np.asarray(keep(parts[:, i], (size,), RATE, jnp.float64))
            for i, size in ((0, CHANNELS), (2, HEADS * HEAD_DIM))
        )
        attention, output = (
            np.asarray(keep(pair_keys(parts[:, i]), (size,), RATE, jnp.float64))
            for i, size in ((1, HEADS), (3, 1))
        )
    x = heads_by_node(params["heads"], features() * before, adjacency, attention)
    x = elu(x).reshape(len(x), -1) * after
    x = elu(heads_by_node(params["output"], x, adjacency, output)[:, 0])
    assert_close(ours, np.stack([np.log(softmax(row)) for row in x]))


def test_an_image_meets_the_same_dropout_wherever_it_stands() -> None:
    """Images permuted with their keys permute the outputs; fewer identities change none of them."""
    params, keys = random_params(), image_keys()
    order = np.random.default_rng(2).permutation(len(LABELS))
    first = np.flatnonzero(LABELS == 0)
    with jax.enable_x64(True):
        module = graph(RATE)
        whole, _ = apply(module, params, features(), LABELS, keys)
        permuted, _ = apply(module, params, features()[order], LABELS[order], keys[order])
        alone, _ = apply(module, params, features()[first], LABELS[first], keys[first])
        others, _ = apply(module, params, features(), LABELS, image_keys(1))
    assert_close(permuted, np.asarray(whole)[order])
    assert_close(alone, np.asarray(whole)[first])
    assert not np.allclose(others, whole)


def test_without_keys_there_is_no_dropout() -> None:
    params = random_params()
    with jax.enable_x64(True):
        with_rate, _ = apply(graph(RATE), params, features(), LABELS, None)
        without, _ = apply(graph(0.0), params, features(), LABELS, None)
        rate_zero, _ = apply(graph(0.0), params, features(), LABELS, image_keys())
    np.testing.assert_array_equal(with_rate, without)
    np.testing.assert_array_equal(rate_zero, without)
