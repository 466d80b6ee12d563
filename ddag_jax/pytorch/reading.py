"""Read state dicts from files of untrusted origin: only tensors are loaded, code never runs."""

import argparse
import contextlib
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.io.files import on_disk
from ddag_jax.io.foreign import foreign
from ddag_jax.pytorch.tar_format import is_tar, read_tar

_USUAL = ("net", "state_dict", "model", "model_state_dict")
"""Names under which most files have their state dict."""
_DEEPEST = 4
_LONGEST_NAME = 1000
_WRAPPER = "module."  # torch.nn.DataParallel's


class StateDict(NamedTuple):
    """A state dict in a file."""

    place: str
    """Names of the dictionaries that it is nested in: "model.state_dict"; "" if in none."""
    tensors: dict[str, torch.Tensor]
    """On the CPU, in their stored dtypes."""


def read_state_dicts(path: str | Path) -> list[StateDict]:
    """Read every state dict of a `.safetensors` file, or of a file written by `torch.save`.

    Files of PyTorch 0.1 are read, too (tar_format.py).

    Returns:
        At least one: first those under the usual names, then in the file's order.

    Raises:
        UserError: there is no such file, it is damaged, it holds anything other than tensors and
            plain or NumPy numbers (no code of it is run), or it holds no state dict.
    """
    with on_disk(path) as file:
        if not file.is_file():
            raise UserError(f"{path}: no such file")
        with file.open("rb") as opened:
            if what := foreign(opened.read(1024)):
                raise UserError(f"{path}: refused: is {what}")
        stored = _load(file, path)
    found = sorted(_nested(stored), key=lambda one: _rank(one.place))
    if found:
        return found
    for name in _USUAL:
        if isinstance(stored, Mapping) and isinstance(stored.get(name), Mapping):
            stored = stored[name]
            break
    if not isinstance(stored, Mapping) or not stored:
        raise UserError(
            f"{path}: holds no state dict, neither by itself nor nested, as under one of "
            + ", ".join(_USUAL)
        )
    faults = [
        str(key)[:100]
        for key, value in stored.items()
        if not isinstance(key, str) or not isinstance(value, torch.Tensor)
    ]
    raise UserError(f"{path}: not tensors by name, as a state dict has: {', '.join(faults)}")


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the first of `read_state_dicts`, without the prefix "module." that all keys may have.

    Raises:
        UserError: as `read_state_dicts`.
    """
    tensors = read_state_dicts(path)[0].tensors
    while all(key.startswith(_WRAPPER) for key in tensors):
        tensors = {key.removeprefix(_WRAPPER): value for key, value in tensors.items()}
    return tensors


def _nested(stored: Any) -> Iterator[StateDict]:
    """Yield the state dicts in what a file holds, each once: one may be nested in several."""
    seen: set[int] = set()

    def inside(value: Any, place: tuple[str, ...]) -> Iterator[StateDict]:
        if not isinstance(value, Mapping) or not value or id(value) in seen:
            return
        seen.add(id(value))
        if all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items()):
            yield StateDict(".".join(place), dict(value))
        elif len(place) < _DEEPEST:
            for name, one in value.items():
                yield from inside(one, (*place, str(name)[:100]))

    return inside(stored, ())


def _rank(place: str) -> int:
    name = place.rpartition(".")[2]
    return _USUAL.index(name) if name in _USUAL else len(_USUAL)


def _load(file: Path, path: epath.PathLike) -> Any:
    """Return what a file holds; `path` is its name in messages."""
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        if is_tar(file):
            return read_tar(file)
        _check_names(file)
        with torch.serialization.safe_globals(_harmless_names()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # parsers raise any type on damaged or malicious bytes
        reason = str(error).strip().splitlines() or [type(error).__name__]
        refused = [line for line in reason if "Unsupported" in line or "GLOBAL" in line]
        raise UserError(
            f"{path}: refused: not weights that can be read safely, or damaged:"
            f" {(refused or reason)[0].strip()[:300]}{_advice(path, str(error))}"
        ) from None


def _advice(path: Path, reason: str) -> str:
    """Return how to save a file's tensors alone, where it holds more than tensors."""
    if "TorchScript" in reason:
        tensors = f"torch.jit.load('{path}', 'cpu').state_dict()"
    elif "GLOBAL" in reason or "whole model" in reason:
        tensors = (
            f"torch.load('{path}', 'cpu', weights_only=False); x = x.state_dict() if hasattr(x,"
            " 'state_dict') else {k: x[k] for k in ('net', 'state_dict', 'model') if k in x}"
        )
    else:
        return ""
    return (
        "; if you trust its origin (this runs code that it names), save its tensors alone and"
        f" convert those: python -c \"import torch; x = {tensors}; torch.save(x, 'tensors.pth')\""
    )


def _check_names(path: Path) -> None:
    """Raise ValueError if a pickle holds an excessively long name: PyTorch searches its own message
    about it in time quadratic in the length."""
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(file):
            archive = stack.enter_context(zipfile.ZipFile(file))
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            pickles = [stack.enter_context(archive.open(name)) for name in names]
        else:  # legacy format: magic number, version, system, state dict, keys of the storages
            file.seek(0)
            pickles = [file] * 5
        for stream in pickles:
            for _, word, _ in pickletools.genops(stream):
                if isinstance(word, str | bytes) and len(word) > _LONGEST_NAME:
                    raise ValueError(f"a name of {len(word):,} characters")


def _harmless_names() -> list[Any]:
    """Return what the pickles of training scripts name beside tensors, and what only holds values.

    That is NumPy's numbers and arrays, by the names of NumPy 1 and NumPy 2 (the reference stores
    its `cmc` and `mAP` in this form), and the options of a command line.
    """
    scalar, reconstruct = np.float64().__reduce__()[0], np.empty(0).__reduce__()[0]
    functions = [
        (function, f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")
        for name, function in (("scalar", scalar), ("_reconstruct", reconstruct))
    ]
    dtypes = {type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64)}
    return [*functions, np.ndarray, np.dtype, *dtypes, argparse.Namespace]
