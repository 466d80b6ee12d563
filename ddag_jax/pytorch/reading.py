"""Reads state dicts from files that strangers wrote: tensors come in, code never runs."""

import contextlib
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from ddag_jax.errors import UserError

_ENCLOSING = ("net", "state_dict", "model")
_LONGEST_NAME = 1000
_WRAPPER = "module."  # torch.nn.DataParallel's


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a `.safetensors` file, or in a file that `torch.save` wrote.

    It may lie under "net", "state_dict" or "model", and every key may begin with "module.", which
    is taken off.

    Returns:
        Tensors on the CPU, as they were stored.

    Raises:
        UserError: there is no such file, it is damaged, it holds anything but tensors and plain
            or NumPy numbers (nothing of it is then run), or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    stored = _load(path)
    for name in _ENCLOSING:
        if isinstance(stored, Mapping) and isinstance(stored.get(name), Mapping):
            stored = stored[name]
            break
    if not isinstance(stored, Mapping) or not stored:
        raise UserError(
            f"{path}: holds no state dict, neither by itself nor under one of "
            + ", ".join(_ENCLOSING)
        )
    strangers = [
        str(key)
        for key, value in stored.items()
        if not isinstance(key, str) or not isinstance(value, torch.Tensor)
    ]
    if strangers:
        raise UserError(f"{path}: not tensors by name, as a state dict has: {', '.join(strangers)}")
    if all(key.startswith(_WRAPPER) for key in stored):
        return {key.removeprefix(_WRAPPER): value for key, value in stored.items()}
    return dict(stored)


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _check_names(path)
        with torch.serialization.safe_globals(_numpy_names()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or hostile bytes make the parsers raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        refused = [line for line in reason if "Unsupported" in line or "GLOBAL" in line]
        raise UserError(
            f"{path}: refused: not weights that can be read safely, or damaged:"
            f" {(refused or reason)[0].strip()[:300]}"
        ) from None


def _check_names(path: Path) -> None:
    """Raises ValueError where a pickle holds a name without end: PyTorch searches its own message
    about it in a time that grows with the square of the length."""
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(file):
            archive = stack.enter_context(zipfile.ZipFile(file))
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            pickles = [stack.enter_context(archive.open(name)) for name in names]
        else:  # older: a magic number, a version, the system, the state dict, the storages' keys
            file.seek(0)
            pickles = [file] * 5
        for stream in pickles:
            for _, word, _ in pickletools.genops(stream):
                if isinstance(word, str | bytes) and len(word) > _LONGEST_NAME:
                    raise ValueError(f"a name of {len(word):,} characters")


def _numpy_names() -> list[Any]:
    """What pickles of NumPy's numbers and arrays call, by the names of NumPy 1 and of NumPy 2.

    The reference stores its `cmc` and `mAP` so. None of them does more than hold numbers.
    """
    scalar, reconstruct = np.float64().__reduce__()[0], np.empty(0).__reduce__()[0]
    functions = [
        (function, f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")
        for name, function in (("scalar", scalar), ("_reconstruct", reconstruct))
    ]
    dtypes = {type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64)}
    return [*functions, np.ndarray, np.dtype, *dtypes]
