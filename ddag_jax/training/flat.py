"""The train state as a few vectors, which a GPU updates with as many kernels.

As a tree, ResNet-50's state is some four hundred arrays, and XLA for GPUs updates each of them by a
kernel of its own, most of which take less time than their launch. As a vector for each part of the
network (`two_stream`, `classifier`, ...) a dozen kernels do the same. Only the state that goes from
step to step is flat, and only where `flat_state_pays`: checkpoints, evaluation and the method see
the tree.

An optimiser of a flat state must be element-wise, as `optimizer.sgd` is: a norm of each array, or a
mask by the names in a part, would be another one.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddag_jax.parallel import Mesh, flat_state_pays, on_all_devices
from ddag_jax.training.state import TrainState

Form = Callable[[TrainState], TrainState]


class _Layout(NamedTuple):
    """Where the arrays of a part are in its vector."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]


@jax.tree_util.register_pytree_with_keys_class
class Flat:
    """A nested dictionary whose parts, the values of the outermost one, are a vector each.

    The vector has the part's arrays in the order of `jax.tree.leaves`. A part of several dtypes
    stays as it is. As a pytree it is {part: vector}, with the same paths to the parts.
    """

    def __init__(self, parts: Mapping[str, Any], layouts: Mapping[str, _Layout | None]) -> None:
        self.parts, self._layouts = dict(parts), dict(layouts)

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "Flat":
        """Join the arrays of each part of a nested dictionary."""
        parts, layouts = dict[str, Any](), dict[str, _Layout | None]()
        for name, part in sorted(tree.items()):
            leaves, structure = jax.tree.flatten(part)
            parts[name], layouts[name] = part, None
            if len({leaf.dtype for leaf in leaves}) == 1:
                parts[name] = jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
                layouts[name] = _Layout(structure, tuple(leaf.shape for leaf in leaves))
        return cls(parts, layouts)

    def tree(self) -> dict[str, Any]:
        """Return the nested dictionary."""
        return {name: _split(part, self._layouts[name]) for name, part in self.parts.items()}

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], Hashable]:
        """Return the parts with their keys, and the rest (jax's protocol of a pytree)."""
        keyed = [(jax.tree_util.DictKey(name), part) for name, part in self.parts.items()]
        return keyed, tuple(self._layouts.items())

    @classmethod
    def tree_unflatten(
        cls, layouts: tuple[tuple[str, _Layout | None], ...], parts: Iterable[Any]
    ) -> "Flat":
        """Return it with other parts (jax's protocol of a pytree)."""
        names = [name for name, _ in layouts]
        return cls(dict(zip(names, parts, strict=True)), dict(layouts))


def _split(part: Any, layout: _Layout | None) -> Any:
    """Return the tree of a part."""
    if layout is None:
        return part
    ends = itertools.accumulate(map(math.prod, layout.shapes), initial=0)
    leaves = [
        part[start:end].reshape(shape)
        for (start, end), shape in zip(itertools.pairwise(ends), layout.shapes, strict=True)
    ]
    return jax.tree.unflatten(layout.structure, leaves)


def as_tree(tree: Any) -> Any:
    """Return a `Flat`'s nested dictionary, and anything else as it is."""
    return tree.tree() if isinstance(tree, Flat) else tree


def formed_like(other: Any, tree: Any) -> Any:
    """Return a nested dictionary as a `Flat` if `other` is one, and else as it is."""
    return Flat.of(tree) if isinstance(other, Flat) else tree


def flatten(state: TrainState) -> TrainState:
    """Return the state with flat parameters, statistics and optimiser state.

    Of the optimiser's state, what has the structure of the parameters is flat.
    """
    structure: Any = jax.tree.structure(state.params)

    def like_params(tree: Any) -> bool:
        return bool(jax.tree.structure(tree) == structure)

    return state.replace(
        params=Flat.of(state.params),
        batch_stats=Flat.of(state.batch_stats),
        opt_state=jax.tree.map(
            lambda x: Flat.of(x) if like_params(x) else x, state.opt_state, is_leaf=like_params
        ),
    )


def unflatten(state: TrainState) -> TrainState:
    """Return a flat state as a tree, and a tree as it is."""
    whole: TrainState = jax.tree.map(as_tree, state, is_leaf=lambda x: isinstance(x, Flat))
    return whole


def state_forms(mesh: Mesh) -> tuple[Form, Form]:
    """Return the functions to the form of the state that the step takes on a mesh, and back.

    Each returns the state on all devices of the mesh. Where the step takes the tree they return
    their argument.
    """
    if not flat_state_pays(mesh):
        return (lambda state: state), (lambda state: state)
    return on_all_devices(flatten, mesh), on_all_devices(unflatten, mesh)
