"""Read state dicts from files of untrusted origin: only tensors are loaded, code never runs."""

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
from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.io.files import on_disk

_ENCLOSING = ("net", "state_dict", "model")
_LONGEST_NAME = 1000
_WRAPPER = "module."  # torch.nn.DataParallel's


def read_state_dict(path: epath.PathLike) -> dict[str, torch.Tensor]:
    """Read a state dict from a `.safetensors` file, or from a file written by `torch.save`.

    It may be nested under "net", "state_dict" or "model". If every key starts with "module.", this
    prefix is removed.

    Returns:
        Tensors on the CPU, in their stored dtypes.

    Raises:
        UserError: there is no such file, it is damaged, it holds anything other than tensors and
            plain or NumPy numbers (no code of it is run), or it holds no state dict.
    """
    with on_disk(path) as file:
        if not file.is_file():
            raise UserError(f"{path}: no such file")
        stored = _load(file, path)
    for name in _ENCLOSING:
        if isinstance(stored, Mapping) and isinstance(stored.get(name), Mapping):
            stored = stored[name]
            break
    if not isinstance(stored, Mapping) or not stored:
        raise UserError(
            f"{path}: holds no state dict, neither by itself nor under one of "
            + ", ".join(_ENCLOSING)
        )
    faults = [
        str(key)
        for key, value in stored.items()
        if not isinstance(key, str) or not isinstance(value, torch.Tensor)
    ]
    if faults:
        raise UserError(f"{path}: not tensors by name, as a state dict has: {', '.join(faults)}")
    if all(key.startswith(_WRAPPER) for key in stored):
        return {key.removeprefix(_WRAPPER): value for key, value in stored.items()}
    return dict(stored)


def _load(file: Path, path: epath.PathLike) -> Any:
    """Return what a file holds; `path` is its name in messages."""
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        _check_names(file)
        with torch.serialization.safe_globals(_numpy_names()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # parsers raise any type on damaged or malicious bytes
        reason = str(error).strip().splitlines() or [type(error).__name__]
        refused = [line for line in reason if "Unsupported" in line or "GLOBAL" in line]
        raise UserError(
            f"{path}: refused: not weights that can be read safely, or damaged:"
            f" {(refused or reason)[0].strip()[:300]}"
        ) from None


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


def _numpy_names() -> list[Any]:
    """Return what pickles of NumPy numbers and arrays call, by the names of NumPy 1 and NumPy 2.

    The reference stores its `cmc` and `mAP` in this form. All of them only hold numbers.
    """
    scalar, reconstruct = np.float64().__reduce__()[0], np.empty(0).__reduce__()[0]
    functions = [
        (function, f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")
        for name, function in (("scalar", scalar), ("_reconstruct", reconstruct))
    ]
    dtypes = {type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64)}
    return [*functions, np.ndarray, np.dtype, *dtypes]
