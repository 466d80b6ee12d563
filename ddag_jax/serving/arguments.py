"""Checks of arguments that a caller from Python may get wrong; commands check their options."""

import operator
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.io.files import as_path

Sources: TypeAlias = epath.PathLike | Sequence[epath.PathLike]
"""A path, or several."""


def as_paths(name: str, sources: Sources) -> list[epath.Path]:
    """Return one path or several as a list.

    Raises:
        UserError: there is none, or one of them is not a path.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    if not isinstance(sources, list | tuple | set):
        raise UserError(f"{name}: is a {type(sources).__name__}; give a path, or a list of paths")
    if not sources:
        raise UserError(f"{name}: is empty; give files, folders or lists of images")
    return [as_path(name, one) for one in sources]


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise UserError if a value is not one of a few texts."""
    if value not in known:
        raise UserError(f"{name}: {value!r} must be {' or '.join(known)}")


def check_count(name: str, value: Any) -> int:
    """Return a whole number of at least 1. Raises UserError if the value is not one."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise UserError(f"{name}: {value!r} must be a whole number of at least 1")
    return number
