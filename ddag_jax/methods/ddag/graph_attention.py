"""Cross-modality graph-structured attention, CGSA (section 3.3, Eq. 6-8); training only."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from ddag_jax.models.precision import at_least_float32

xavier = jax.nn.initializers.variance_scaling(1.414**2, "fan_avg", "uniform")


def same_identity(labels: Int[Array, " k"], neighbours: int | None = None) -> Bool[Array, "k k"]:
    """Return the adjacency matrix: nodes with equal labels are connected, self-loops included.

    Implements Eq. 6. With `neighbours` (N_g in Table 3) a node is connected to only that many
    images of its identity: itself, the first image of the other modality, the first remaining one
    of its own modality, and so on alternately.

    Args:
        labels: identities of the batch, the visible half first, then the infrared half.
        neighbours: maximum number of neighbours including the node itself; None for all.

    >>> same_identity(jnp.array([0, 0, 0, 0]), neighbours=2).astype(int).tolist()
    [[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    """
    equal = labels[:, None] == labels[None]
    if neighbours is None:
        return equal
    k = len(labels)
    modality = jnp.arange(k) >= k // 2
    other = modality[:, None] != modality[None]
    itself = jnp.eye(k, dtype=bool)

    def place(group: Bool[Array, "k k"]) -> Int[Array, "k k"]:
        return jnp.cumsum(group, axis=1) - 1

    # Priority of a node's neighbours: itself 0, the other modality 1, 3, 5 ..., its own 2, 4 ...
    # Ranking closes the gaps if one modality has fewer images than the other.
    order = jnp.where(other, 2 * place(equal & other) + 1, 2 * place(equal & ~other & ~itself) + 2)
    order = jnp.where(equal, jnp.where(itself, 0, order), 2 * k)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    return equal & (rank < neighbours)


def keep(
    keys: Key[Array, "..."], shape: tuple[int, ...], rate: float, dtype: DTypeLike
) -> Float[Array, "..."]:
    """Return inverted-dropout factors, 0 or 1 / (1 - rate), of shape [*keys.shape, *shape]."""
    # Flattened keys: XLA compiles programs with fewer axes faster.
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys.ravel())
    return kept.reshape(*keys.shape, *shape).astype(dtype) / (1 - rate)


def pair_keys(keys: Key[Array, " k"]) -> Key[Array, "k k"]:
    """Return a key for each ordered pair of images, derived from the keys of the two images.

    The keys are independent of the positions in the batch, which depend on the number of devices.
    """
    tokens = jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32))(keys)
    return jax.vmap(lambda key: jax.vmap(lambda token: jax.random.fold_in(key, token))(tokens))(
        keys
    )


class GraphAttentionHeads(nn.Module):
    """`heads` attention heads of width `features` over a graph (Eq. 7 and the sum of Eq. 8).

    Each head computes h = x W, e_ij = LeakyReLU_0.2(a . [h_i, h_j]), the softmax over the
    neighbours of i, dropout on the attention, and the sum over j of attention_ij h_j. Without
    `keys` there is no dropout.
    """

    heads: int
    features: int
    dropout: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "k c"],
        adjacency: Bool[Array, "k k"],
        keys: Key[Array, "k k"] | None,
    ) -> Float[Array, "k l d"]:
        wide = at_least_float32(self.dtype)

        def per_head(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            return jnp.stack([xavier(k, shape, dtype) for k in jax.random.split(key, self.heads)])

        kernel = self.param("kernel", per_head, (x.shape[-1], self.features), wide)
        a = self.param("a", per_head, (2 * self.features, 1), wide)[..., 0]
        h = jnp.einsum("kc,lcd->kld", x.astype(self.dtype), kernel.astype(self.dtype))
        own, other = jnp.split(a, 2, axis=1)
        scores = (
            jnp.einsum("kld,ld->lk", h.astype(wide), own)[:, :, None]
            + jnp.einsum("kld,ld->lk", h.astype(wide), other)[:, None]
        )
        scores = jnp.where(adjacency, jax.nn.leaky_relu(scores, 0.2), -jnp.inf)
        attention = jax.nn.softmax(scores, axis=-1)
        self.sow("intermediates", "graph_attention", attention)
        if keys is not None:
            factors = keep(keys, (self.heads,), self.dropout, wide)
            attention = attention * jnp.moveaxis(factors, -1, 0)
        return jnp.einsum("lij,jld->ild", attention.astype(h.dtype), h)


class GraphAttention(nn.Module):
    """Graph attention network that returns log-probabilities of the identity of each node.

    Dropout is applied to the input, each attention matrix and the concatenated heads; it is
    disabled if `keys` (one per image) is None. As in the authors' code, the sum of the output layer
    passes through ELU before the log-softmax.
    """

    classes: int
    heads: int = 4
    head_dim: int = 512
    dropout: float = 0.2
    neighbours: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        pooled: Float[Array, "k c"],
        labels: Int[Array, " k"],
        keys: Key[Array, " k"] | None,
    ) -> Float[Array, "k y"]:
        adjacency = same_identity(labels, self.neighbours)
        wide = at_least_float32(self.dtype)
        x = pooled
        first = last = None
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
            x = x * keep(keys[:, 0], x.shape[1:], self.dropout, x.dtype)
            first, last = pair_keys(keys[:, 1]), pair_keys(keys[:, 3])
        x = GraphAttentionHeads(self.heads, self.head_dim, self.dropout, self.dtype, name="heads")(
            x, adjacency, first
        )
        x = jax.nn.elu(x).reshape(len(x), -1)
        if keys is not None:
            x = x * keep(keys[:, 2], x.shape[1:], self.dropout, x.dtype)
        x = GraphAttentionHeads(1, self.classes, self.dropout, self.dtype, name="output")(
            x, adjacency, last
        )
        return jax.nn.log_softmax(jax.nn.elu(x[:, 0].astype(wide)), axis=-1)
