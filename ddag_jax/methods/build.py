"""From a configuration to its method."""

from typing import Any

from ddag_jax.config import BaselineConfig, DDAGConfig
from ddag_jax.errors import UserError
from ddag_jax.methods.base import Method
from ddag_jax.methods.baseline import Baseline
from ddag_jax.methods.ddag.method import DDAG

_MEMBERS = ("features", "init", "memory", "loss", "remember", "epoch_figures", "embed")


def build_method(config: Any, classes: int, axis_name: str | None = None) -> Method:
    """Return the method that a configuration's `model` describes.

    Args:
        config: of the package (`DDAGConfig`, `BaselineConfig`), or a dataclass with
            `build(classes, axis_name)`.
        classes: training identities, the width of the classifiers.
        axis_name: the device axis that batch statistics and losses span; None for one device.

    Raises:
        UserError: the object that a custom `build` returned lacks a member of `Method`.
    """
    if hasattr(config, "build"):  # before the package's own, which it may be derived from
        method: Method = config.build(classes, axis_name)
        missing = [name for name in _MEMBERS if not hasattr(method, name)]
        if missing:
            raise UserError(
                f"model: {type(config).__name__}.build returned a {type(method).__name__} without"
                f" {', '.join(missing)}; ddag_jax/methods/base.py lists what a method needs"
            )
        return method
    match config:
        case DDAGConfig():
            return DDAG(config, classes, axis_name)
        case BaselineConfig():
            return Baseline(config, classes, axis_name)
    raise TypeError(f"{type(config).__name__} is not a method's configuration")
