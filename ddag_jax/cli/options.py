"""Configurations by name or path, and their fields by the command line."""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path

import tyro

import ddag_jax
from ddag_jax.config import Config
from ddag_jax.errors import InputError

_PACKAGE = Path(ddag_jax.__file__).parent


def _shipped() -> Path:
    """The configurations that come with us: beside the package in a checkout, in it in a wheel."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def load_config(name: str) -> Config:
    """The configuration of a file with `get_config()`, or of a shipped one by its name ("demo").

    Raises:
        InputError: there is no such file, or it does not make a valid `Config`.
    """
    path = Path(name)
    if not path.is_file():
        relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
        path = (_shipped() / relative).with_suffix(".py")
    if not path.is_file():
        shipped = sorted(
            str(file.relative_to(_shipped()).with_suffix("")) for file in _shipped().rglob("*.py")
        )
        raise InputError(
            f"{name}: no such configuration; give a Python file with get_config(), or one of "
            + ", ".join(shipped)
        )
    spec = importlib.util.spec_from_file_location(f"ddag_jax_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever a user's own file can raise
        raise InputError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise InputError(f"{path}: get_config() must return a ddag_jax.config.Config")
    return config


def override(config: Config, arguments: Sequence[str], program: str) -> Config:
    """`config` with the fields that `arguments` name: `--optimizer.learning-rate 0.05`.

    Raises:
        InputError: an unknown field (with the nearest one) or a value that it does not take.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            result, unknown = tyro.cli(
                Config,
                default=config,
                args=list(arguments),
                prog=program,
                config=(tyro.conf.FlagConversionOff,),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise InputError(_first_sentence(printed.getvalue())) from None
    if unknown:
        fields = [
            f"--{section.name}.{field.name}".replace("_", "-")
            for section in dataclasses.fields(Config)
            for field in dataclasses.fields(getattr(config, section.name))
        ]
        given = unknown[0].split("=")[0]
        near = difflib.get_close_matches(given.replace("_", "-"), fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"{program} --help lists the fields"
        raise InputError(f"{given}: no such option or configuration field; {hint}")
    return result


def _first_sentence(box: str) -> str:
    """What tyro says of a fault, out of the box that it draws around it."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    end = next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))
    sentence = " ".join(lines[:end]).removeprefix("Error parsing ")
    return re.sub(r"^(\w+): (?=\1\.)", "", sentence)  # our own message names the section already
