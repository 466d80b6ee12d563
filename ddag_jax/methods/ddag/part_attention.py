"""Intra-modality weighted-part aggregation, IWPA (section 3.2, Eq. 2-5)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddag_jax.models.linear import Linear
from ddag_jax.models.normalisation import BatchNorm
from ddag_jax.models.pooling import stripe_matrix
from ddag_jax.models.precision import at_least_float32


class PartAttention(nn.Module):
    """Self-attention between horizontal parts of a feature map, aggregated into one feature.

    A call takes the last feature map, the pooled feature x° and its batch-normalised form, and
    returns a feature of width c (parts * c for concatenation).

    Attributes:
        parts: number of horizontal stripes p.
        aggregation: "weighted", "average" or "concatenation" of the parts (Table 2).
        residual: feature added to the parts: "bn" (batch-normalised), "plain" (x°) or "none".
        neck: apply a second batch normalisation, as the authors' code does; Eq. 5 omits it.
        dtype: dtype of the matrix products; float32 or wider elsewhere.
        axis_name: device axis of the batch statistics.
    """

    parts: int = 3
    aggregation: str = "weighted"
    residual: str = "bn"
    neck: bool = True
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        feature_map: Float[Array, "b h w c"],
        pooled: Float[Array, "b c"],
        normalised: Float[Array, "b c"],
        train: bool,
    ) -> Float[Array, "b d"]:
        c = feature_map.shape[-1]
        wide = pooled.dtype
        rows = feature_map.astype(wide).mean(2)
        stripes = jnp.einsum("ph,bhc->bpc", stripe_matrix(rows.shape[1], self.parts, wide), rows)
        u = Linear(c, self.dtype, name="u")(stripes)
        v = Linear(c, self.dtype, name="v")(stripes)
        z = Linear(c, self.dtype, name="z")(stripes)
        attention = part_weights(u, v)
        self.sow("intermediates", "part_attention", attention)
        refined = jnp.einsum("bij,bjc->bic", attention.astype(z.dtype), z).astype(wide)  # Eq. 4
        added = {"bn": normalised, "plain": pooled, "none": jnp.zeros_like(pooled)}[self.residual]
        if self.aggregation == "concatenation":
            feature = (refined + added[:, None]).reshape(len(refined), self.parts * c)
        elif self.aggregation == "average":
            feature = refined.mean(1) + added
        else:
            gate = self.param("gate", nn.initializers.constant(1 / self.parts), (self.parts,), wide)
            weights = jax.nn.softmax(gate)
            self.sow("intermediates", "part_weights", weights)
            feature = jnp.einsum("p,bpc->bc", weights, refined) + added  # Eq. 5
        if self.neck:
            feature = BatchNorm(
                use_bias=False, scale_init=neck_scale, axis_name=self.axis_name, name="neck"
            )(feature, train)
        return feature


def part_weights(u: Float[Array, "b p c"], v: Float[Array, "b p c"]) -> Float[Array, "b p p"]:
    """Return the softmax over j of u(x_i) . v(x_j), unscaled (Eq. 2-3), in at least float32."""
    scores = jnp.einsum("bic,bjc->bij", u, v, preferred_element_type=at_least_float32(u.dtype))
    return jax.nn.softmax(scores, axis=-1)


def neck_scale(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Initialise the scale of the neck with mean 1 and standard deviation 0.01."""
    return 1 + 0.01 * jax.random.normal(key, shape, dtype)
