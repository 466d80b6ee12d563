"""Trace and load a program once for each file of tests, where it would be once for each run.

What builds the train step and the embedding are pure functions of configurations. In this process
they return the same object for equal arguments, so that JAX finds what it compiled. Runs in
processes of their own, as those that are killed, build everything anew.
"""

import functools
import inspect
from collections.abc import Callable, Hashable
from types import ModuleType
from typing import Any

import jax

from ddag_jax import parallel
from ddag_jax.evaluation import embed
from ddag_jax.methods import build as methods
from ddag_jax.training import build as training

_built: dict[Hashable, Any] = {}


def share() -> None:
    """Replace the functions, before others import them."""
    _share(methods, "build_method", lambda *arguments: arguments)
    _share(
        training,
        "build_optimizer",
        lambda config, *rest: (config.optimizer, _batch(config), *rest),
    )
    _share(
        training,
        "build_train_step",
        lambda config, *rest: (
            config.augment,
            config.training.views,
            training.nonfinite_limit(config),
            *rest,
        ),
    )
    _share(parallel, "map_train_step", lambda *arguments: arguments)
    _share(embed, "make_embed", lambda method, flip: (method, flip))
    _share(parallel, "map_embed", lambda *arguments: arguments)


def forget() -> None:
    """Free the programs: together those of all files are gigabytes."""
    _built.clear()
    jax.clear_caches()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile as the product compiles a train step."""
    mesh = parallel.device_mesh()
    return jax.jit(function, compiler_options=parallel.compiler_options(mesh), **options)


def _batch(config: Any) -> tuple[int, int]:
    return config.training.identities_per_batch, config.training.images_per_identity


def _share(module: ModuleType, name: str, key: Callable[..., Hashable]) -> None:
    build = getattr(module, name)
    signature = inspect.signature(build)

    @functools.wraps(build)
    def shared(*arguments: Any, **options: Any) -> Any:
        given = signature.bind(*arguments, **options)
        given.apply_defaults()
        what = name, key(*given.arguments.values())
        try:
            hash(what)
        except TypeError:  # a configuration that is not frozen
            return build(*arguments, **options)
        if what not in _built:
            _built[what] = build(*arguments, **options)
        return _built[what]

    setattr(module, name, shared)
