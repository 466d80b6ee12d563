"""Configurations by name or file."""

import importlib.util
import sys
from pathlib import Path

import ddag_jax
from ddag_jax.config import Config
from ddag_jax.errors import UserError

_PACKAGE = Path(ddag_jax.__file__).parent


def load_config(name: str) -> Config:
    """Return the configuration of a Python file, or of a shipped one by its name ("demo").

    Args:
        name: file with a function `get_config()`, or a path below `configs` without its ending.

    Raises:
        UserError: there is no such file, or it does not make a valid `Config`.
    """
    path = Path(name)
    if not path.is_file():
        relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
        path = (_shipped() / relative).with_suffix(".py")
    if not path.is_file():
        shipped = sorted(
            str(file.relative_to(_shipped()).with_suffix("")) for file in _shipped().rglob("*.py")
        )
        raise UserError(
            f"{name}: no such configuration; give a Python file with get_config(), or one of "
            + ", ".join(shipped)
        )
    spec = importlib.util.spec_from_file_location(f"ddag_jax_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name, to resolve annotations that are strings.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # a user's file can raise anything
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise UserError(f"{path}: get_config() must return a ddag_jax.config.Config")
    return config


def _shipped() -> Path:
    """Return the folder of shipped configurations: inside the package in a wheel, else beside."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"
