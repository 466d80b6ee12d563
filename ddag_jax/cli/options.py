"""Command lines as dataclasses, read by tyro; a mistake in one is a `UserError` of one line."""

import dataclasses
import difflib
import functools
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import tyro

# Its only way to a parse error as data; private, so pyproject.toml bounds the version.
from tyro import _errors

from ddag_jax.config import Config, DDAGConfig, NamedDataset
from ddag_jax.errors import UserError

_FORMER_LOSS = ("margin", "graph_reduction", "graph_weight")
"""Fields of `model` that were fields of `loss` up to version 0.1.0."""

_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _by_name(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Let the field of a dataset's name or value take the name."""
    kinds: tuple[Any, ...] = ()
    if typing.get_origin(info.type) in (typing.Union, types.UnionType):
        kinds = typing.get_args(info.type)
    if str not in kinds or NamedDataset not in kinds:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str | NamedDataset),
        str_from_instance=lambda value: [str(getattr(value, "name", value))],
    )


def parse(
    kind: Any,
    arguments: Sequence[str] | None,
    program: str,
    *,
    default: Any = None,
    description: str | None = None,
    hint: str = "",
    ignore_unknown: bool = False,
) -> Any:
    """Return the command line as an instance of a dataclass.

    Args:
        kind: the dataclass, or a union of those that subcommands stand for.
        arguments: without the program's name; None for those of this process.
        program: its name, for messages.
        default: an instance with the values of options that are not given.
        description: for --help; None for the docstring of the dataclass.
        hint: what to say of an unknown option that resembles no other; "" names --help.
        ignore_unknown: pass over unknown options, --help among them.

    Raises:
        UserError: an option is unknown, missing, or does not take the value.
        SystemExit: after --help.
    """
    hint = hint or f"{program} --help lists the options"
    arguments = list(map(_with_home, sys.argv[1:] if arguments is None else arguments))

    def refuse(event: _errors.ParseErrorEvent) -> None:
        unknown: list[str] = []
        match event:
            case _errors.MissingArgs():
                unknown = [] if ignore_unknown else event.unrecognized_tokens
                names = ", ".join(_name(context.arg) for context in event.missing_arguments)
                command = event.missing_arguments[0].source_parser.prog_suffix
                command = f"{event.prog} {command}".rstrip()
                message = f"{names}: missing; {command} --help lists the options"
            case _errors.UnrecognizedArgs():
                unknown = event.tokens
            case _errors.MissingSubcommand():
                commands = ", ".join(event.subcommand_spec.parser_from_name)
                message = f"{event.prog}: give one of {commands}"
            case _errors.InvalidChoice():
                choices = ", ".join(event.choices)
                message = f"{_name(event.argument)} {event.value}: must be one of {choices}"
            case _errors.BadValue():
                expected = event.argument.lowered.metavar
                message = f"{_name(event.argument)}: needs a value ({expected})"
            case _errors.InstantiationFailure(message=reason, argument=argument):
                message = str(reason).partition("\n")[0].strip()
                if argument is not None:
                    message = f"{_name(argument)}: must be {argument.lowered.metavar} ({message})"
            case _:
                return  # tyro prints its own message, and exits with code 2
        if unknown:
            given = unknown[0].partition("=")[0]
            near = _nearest(given.replace("_", "-"), list(_option_names(kind)))
            what = "no such option" if given.startswith("-") else "unexpected argument"
            message = f"{given}: {what}; " + (f"did you mean {near}?" if near else hint)
        raise UserError(message)

    cli: Any = tyro.cli  # its overloads know one class at a time
    with _errors.on_parse_error(refuse):
        parsed = cli(
            kind,
            args=arguments,
            prog=program,
            description=description,
            default=default if default is not None else tyro.MISSING_NONPROP,
            config=(tyro.conf.FlagCreatePairsOff,),
            registry=_REGISTRY,
            add_help=not ignore_unknown,
            return_unknown_args=ignore_unknown,
        )
    return parsed[0] if ignore_unknown else parsed


def parse_with_config(
    kind: type, load: Callable[[Any], Config], arguments: Sequence[str] | None, program: str
) -> tuple[Any, Config]:
    """Return the options of a command, and a configuration with the fields that were given too.

    Args:
        kind: dataclass of the options.
        load: the options to the configuration whose fields may follow as --section.field.
        arguments: as in `parse`.
        program: as in `parse`.

    Raises:
        UserError: that of `parse` and `load`; the fields do not make a valid configuration.
        SystemExit: after --help, which lists the fields of the configuration if one is named.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        config = load(parse(kind, arguments, program, ignore_unknown=True))
    except UserError:
        if not {"-h", "--help"}.intersection(arguments):
            raise
        config = Config()
    given = parse(_with_fields(kind, config), arguments, program)
    return given, _configured(config, given)


def override(config: Config, arguments: Sequence[str], program: str) -> Config:
    """Return `config` with the fields that are given: `--optimizer.learning-rate 0.05`.

    The fields of `model` are those of its own class, also if that is a custom one.

    Raises:
        UserError: that of `parse`; the fields do not make a valid configuration.
    """
    nothing = dataclasses.make_dataclass("Fields", [], frozen=True)
    return _configured(config, parse(_with_fields(nothing, config), arguments, program))


def _with_fields(kind: type, config: Config) -> type:
    """Return a subclass with the sections of a configuration, which are the defaults."""
    sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if isinstance(config.model, DDAGConfig):
        sections["loss"] = _former_loss(config.model)
    fields: Any = [
        (
            name,
            Annotated[type(section), tyro.conf.FlagConversionOff],
            dataclasses.field(default_factory=functools.partial(sections.__getitem__, name)),
        )
        for name, section in sections.items()
    ]
    namespace = {"__doc__": kind.__doc__}
    return dataclasses.make_dataclass(
        kind.__name__, fields, bases=(kind,), namespace=namespace, frozen=True
    )


def _former_loss(model: DDAGConfig) -> Any:
    kinds = typing.get_type_hints(DDAGConfig)
    return dataclasses.make_dataclass(
        "Loss",
        [
            (name, kinds[name], dataclasses.field(default=getattr(model, name)))
            for name in _FORMER_LOSS
        ],
        namespace={"__doc__": "Earlier spelling of these fields of model, until the next release."},
        frozen=True,
    )()


def _configured(config: Config, given: Any) -> Config:
    sections = {field.name: getattr(given, field.name) for field in dataclasses.fields(config)}
    if hasattr(given, "loss"):
        former = dataclasses.asdict(_former_loss(config.model))
        moved = {k: v for k, v in dataclasses.asdict(given.loss).items() if v != former[k]}
        for name in moved:
            option = name.replace("_", "-")
            print(f"note: --loss.{option} is now --model.{option}", file=sys.stderr)
        try:
            sections["model"] = dataclasses.replace(sections["model"], **moved)
        except ValueError as error:
            raise UserError(str(error)) from None
    try:
        return dataclasses.replace(config, **sections)
    except ValueError as error:
        raise UserError(str(error)) from None


def _with_home(argument: str) -> str:
    """Return an argument with the home folder for a leading `~`, as a shell has it at the beginning
    of a word, but not behind `=` or in quotes.

    >>> _with_home("--workdir=~/runs") == "--workdir=" + os.path.expanduser("~/runs")
    True
    """
    option, equals, value = (
        argument.partition("=") if argument.startswith("--") else ("", "", argument)
    )
    return option + equals + os.path.expanduser(value)


def _name(argument: Any) -> str:
    """Return what a message calls an argument: its option, or the name of a positional one."""
    if argument.is_positional():
        return str(argument.field.intern_name).upper()
    return str(argument.display_name())


def _nearest(given: str, names: Sequence[str]) -> str | None:
    """Return the option that `given` may mean: that field elsewhere, or a similar name."""
    field = given.lstrip("-").rpartition(".")[2]
    same = [name for name in names if name.lstrip("-").rpartition(".")[2] == field]
    alike = [name for name in names if name.count(".") == given.count(".")]
    found = same or difflib.get_close_matches(given, alike, n=1, cutoff=0.7)
    return found[0] if found else None


def _option_names(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield the options that tyro makes of a dataclass; of a union, its subcommands and theirs."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        if isinstance(name := getattr(kind, "name", None), str):  # of a subcommand
            yield name
        for member in typing.get_args(kind):
            yield from _option_names(member, prefix)
        return
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        markers = getattr(hint, "__metadata__", ())
        inner = typing.get_args(hint)[0] if markers else hint
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            omitted = tyro.conf.OmitArgPrefixes in markers
            yield from _option_names(inner, prefix if omitted else f"{prefix}{name}.")
        elif tyro.conf.Positional not in markers:
            named = [marker.name for marker in markers if getattr(marker, "name", None)]
            yield f"--{prefix}{(named or [name])[0]}".replace("_", "-")
