"""Configurations by name or path, and their fields by the command line."""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import tyro

import ddag_jax
from ddag_jax.config import Config, NamedDataset
from ddag_jax.errors import UserError

_PACKAGE = Path(ddag_jax.__file__).parent


def _shipped() -> Path:
    """The configurations that come with us: beside the package in a checkout, in it in a wheel."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def load_config(name: str) -> Config:
    """The configuration of a file with `get_config()`, or of a shipped one by its name ("demo").

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
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever a user's own file can raise
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise UserError(f"{path}: get_config() must return a ddag_jax.config.Config")
    return config


_NAMED_DATASETS = tyro.constructors.ConstructorRegistry()


@_NAMED_DATASETS.primitive_rule
def _dataset_value(
    field: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Show a `data.dataset` of the user's own by its name; on the command line only names fit."""
    if field.type is not NamedDataset:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, NamedDataset),
        str_from_instance=lambda value: [value.name],
    )


def override(config: Config, arguments: Sequence[str], program: str) -> Config:
    """`config` with the fields that `arguments` name: `--optimizer.learning-rate 0.05`.

    Raises:
        UserError: an unknown field (with the nearest one) or a value that it does not take.
    """
    with one_line_faults():
        result, unknown = tyro.cli(
            Config,
            default=config,
            args=list(arguments),
            prog=program,
            config=(tyro.conf.FlagConversionOff,),
            registry=_NAMED_DATASETS,
            return_unknown_args=True,
        )
    if unknown:
        fields = [
            f"--{section.name}.{field.name}".replace("_", "-")
            for section in dataclasses.fields(Config)
            for field in dataclasses.fields(getattr(config, section.name))
        ]
        given = unknown[0].split("=")[0]
        near = difflib.get_close_matches(given.replace("_", "-"), fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"{program} --help lists the fields"
        raise UserError(f"{given}: no such option or configuration field; {hint}")
    return result


@contextlib.contextmanager
def one_line_faults() -> Iterator[None]:
    """Makes an `UserError` of one line of what tyro tells in a box and exits with.

    `--help` passes, as the exit that it is.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_one_line(printed.getvalue())) from None


def _one_line(box: str) -> str:
    """What tyro says of a fault, without the box and without the explanation of each option."""
    parts = [""]
    for line in box.splitlines()[1:]:  # the first is a title
        text = line[2:].rstrip("│╯ ")  # a frame of blanks where the terminal knows ASCII only
        if set(text) <= {"─", "-"}:
            parts.append("")
        elif not text.startswith(" " * 5):  # deeper is what an option means
            parts[-1] += " " + text.strip()
    told = [part.strip(" .") for part in parts if not part.startswith(" Argument helptext")]
    sentence = "; ".join(part for part in told if part).removeprefix("Error parsing ")
    sentence = sentence.replace("__tyro-dummy-inner__.", "")  # the union of our commands
    return re.sub(r"^(\w+): (?=\1\.)", "", sentence)  # our own message names the section already
