"""Read the files of PyTorch 0.1 (2016 and 2017), without running anything that is in them.

Such a file is a tar of four members: `sys_info`, `storages` (runs of numbers), `tensors` (shapes
over them) and `pickle` (the saved object, with numbers in the place of tensors). ImageNet's weights
of that time are still distributed so. `torch.load` reads it only with `weights_only=False`, which
runs any code that the file names. Here a pickle is a list of instructions; those that weights need
are understood, and a name in it is compared with a short list, never imported.
"""

import io
import math
import pickletools
import struct
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

_MEMBERS = ("sys_info", "storages", "tensors", "pickle")
_MAGIC_AT, _MAGIC = 257, b"ustar"
_MOST_AXES = 32
_DTYPES = {
    "Double": "<f8", "Float": "<f4", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2",
    "Char": "i1", "Byte": "u1",
}  # fmt: skip
_STORAGES = {
    f"{module} {kind}Storage": dtype
    for module in ("torch", "torch.cuda")
    for kind, dtype in _DTYPES.items()
}
_VARIABLES = ("torch.nn.parameter Parameter", "torch.autograd.variable Variable")
_ENDS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "BINSTRING", "SHORT_BINSTRING", "STRING", "UNICODE", "BINUNICODE",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar archive, uncompressed."""
    with path.open("rb") as file:
        file.seek(_MAGIC_AT)
        return file.read(len(_MAGIC)) == _MAGIC


def read_tar(path: Path) -> Any:
    """Return what was saved: nested dictionaries, lists, plain values and tensors on the CPU.

    Raises:
        ValueError: the tar is another one, or a pickle in it names anything else.
        Exception: of any type, on damaged or malicious bytes.
    """
    with tarfile.open(path, "r:") as tar:
        held = {member.name: member for member in tar.getmembers()}
        if missing := [name for name in _MEMBERS if name not in held]:
            raise ValueError(
                f"a tar archive of {', '.join([*held][:5])}; PyTorch's of 2016 has"
                f" {', '.join(missing)} as well: unpack it, and give the file with the weights"
            )
        contents = {name: _content(tar, held[name]) for name in _MEMBERS}
    system = _unpack(contents["sys_info"])
    if not isinstance(system, Mapping) or not system.get("little_endian", True):
        raise ValueError("written on a big-endian machine")
    tensors = _tensors(contents["tensors"], _storages(contents["storages"]))

    def placed(number: Any) -> torch.Tensor:
        if isinstance(number, tuple):
            raise ValueError("holds a whole model, not only its state_dict()")
        return tensors[int(number)]

    return _unpack(contents["pickle"], placed)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> io.BytesIO:
    """Return the bytes of a plain member: no link, and no sparse one, which has a size at will."""
    file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    content = b"" if file is None else file.read()
    if file is None or len(content) != member.size:
        raise ValueError(f"its member {member.name} is cut short, or no file")
    return io.BytesIO(content)


def _storages(stream: io.BytesIO) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for _ in range(_count(stream)):
        key, _, kind = _unpack(stream)
        dtype = np.dtype(_STORAGES[kind.name])
        (length,) = _numbers(stream, 1)
        size = length * dtype.itemsize
        if not 0 <= size <= stream.getbuffer().nbytes - stream.tell():
            raise ValueError(f"a storage of {length:,} numbers is longer than the file")
        found[int(key)] = np.frombuffer(bytearray(stream.read(size)), dtype)
    for key, root, offset, length in _unpack(stream):
        if not 0 <= offset <= offset + length <= len(found[root]):
            raise ValueError("a view reaches beyond its storage")
        found[int(key)] = found[int(root)][offset : offset + length]
    return found


def _tensors(stream: io.BytesIO, storages: Mapping[int, np.ndarray]) -> dict[int, torch.Tensor]:
    found = {}
    for _ in range(_count(stream)):
        key, storage = map(int, _unpack(stream)[:2])
        axes, _ = struct.unpack("<ii", stream.read(8))
        if not 0 <= axes <= _MOST_AXES:
            raise ValueError(f"a tensor of {axes} axes")
        shape, strides = _numbers(stream, axes), _numbers(stream, axes)
        (offset,) = _numbers(stream, 1)
        numbers = torch.from_numpy(storages[storage])
        if not axes or 0 in shape:  # PyTorch 0.1 has no scalars
            found[key] = numbers[:0]
            continue
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if min(*shape, *strides, offset) < 0 or last >= len(numbers):
            raise ValueError("a tensor reaches beyond its storage")
        if math.prod(shape) > len(numbers):
            raise ValueError("a tensor has more numbers than its storage")
        found[key] = numbers.as_strided(shape, strides, offset)
    return found


def _count(stream: io.BytesIO) -> int:
    count = _unpack(stream)
    if type(count) is not int:
        raise ValueError("no number of entries")
    return count


def _numbers(stream: io.BytesIO, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}q", stream.read(8 * count))


class _Name(NamedTuple):
    """A class or function that a pickle names: its module, a space, its own name."""

    name: str


class _Variable:
    """A `Variable` or `Parameter`: a tensor, which older versions store in its state."""

    def __init__(self, tensor: Any = None) -> None:
        self.tensor = tensor


def _no_tensors(number: Any) -> Any:
    raise ValueError("a tensor out of place")


def _unpack(stream: io.BytesIO, tensor: Callable[[Any], Any] = _no_tensors) -> Any:
    """Return the value of the pickle that begins at the stream's position.

    Args:
        stream: is left behind the pickle.
        tensor: returns the tensor of a persistent number.

    Raises:
        ValueError: an instruction or a name is not among those that weights need.
        Exception: of any type, on damaged or malicious bytes.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    instructions: Iterable[tuple[Any, Any, Any]] = pickletools.genops(stream)
    for opcode, argument, _ in instructions:
        match opcode.name:
            case "PROTO":
                if argument > 2:
                    raise ValueError(f"a pickle of protocol {argument}")
            case name if name in _VALUES:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack[-_ENDS[name] :] = [tuple(stack[-_ENDS[name] :])]
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                items = stack[-2:]
                del stack[-2:]
                _set(stack[-1], items)
            case "SETITEMS":
                items = since_mark()
                _set(stack[-1], items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Name(argument))
            case "BINPERSID":
                stack.append(tensor(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(_make(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                # Five values: the tensor and settings. Three, or an OrderedDict's: settings only.
                if isinstance(stack[-1], _Variable) and len(state) == 5:
                    stack[-1].tensor = state[0]
            case "STOP":
                return _plain(stack.pop())
            case name:
                raise ValueError(f"instruction {name} in a pickle")
    raise ValueError("a pickle without an end")


def _make(what: Any, arguments: Any) -> Any:
    """Return what a call in a pickle stands for."""
    name = what.name if isinstance(what, _Name) else type(what).__name__
    if name == "collections OrderedDict":
        made: dict[Any, Any] = {}
        for pairs in arguments:  # of Python 2, a list of [key, value]
            for key, value in pairs:
                _set(made, [key, value])
        return made
    if name in _VARIABLES:
        return _Variable(*arguments[:1])
    if name == "torch Size":
        return tuple(*arguments)
    raise ValueError(f"GLOBAL {name}")


def _set(target: Any, items: list[Any]) -> None:
    if type(target) is not dict:
        raise ValueError("items of what is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):  # hashing nested tuples may take for ever
            raise ValueError("a key that is neither text nor a number")
        target[key] = _plain(value)


def _plain(value: Any) -> Any:
    return value.tensor if isinstance(value, _Variable) else value
