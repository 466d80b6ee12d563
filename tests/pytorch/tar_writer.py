"""Write files as PyTorch 0.1 did: a tar of `sys_info`, `pickle`, `tensors` and `storages`.

Written after the layout that `torch.load` still reads; `torch.save` has no longer a writer of it.
"""

import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

_KINDS = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.int64: torch.LongStorage,
    torch.uint8: torch.ByteStorage,
}
SYSTEM = {
    "protocol_version": 1000,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def write_tar(
    path: Path,
    value: Any,
    *,
    change: Mapping[str, Callable[[bytes], bytes]] | None = None,
    system: Mapping[str, Any] = SYSTEM,
) -> None:
    """Save `value`, with its tensors as they lie in their storages: views stay views.

    Args:
        path: file to write.
        value: nested dictionaries and lists with tensors.
        change: what becomes of the bytes of a member, by its name.
        system: content of `sys_info`.
    """
    tensors: dict[int, torch.Tensor] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, one: Any) -> int | None:
            if isinstance(one, torch.nn.Parameter) or not isinstance(one, torch.Tensor):
                return None
            tensors[id(one)] = one
            return id(one)

    written = io.BytesIO()
    Pickler(written, protocol=2).dump(value)
    members = {
        "sys_info": pickle.dumps(dict(system), protocol=2),
        "pickle": written.getvalue(),
        "tensors": _tensors(tensors),
        "storages": _storages(tensors),
    }
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            content = (change or {}).get(name, bytes)(content)
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1485000000.5  # type: ignore[assignment]
            tar.addfile(member, io.BytesIO(content))


def _key(one: torch.Tensor) -> int:
    return one.untyped_storage().data_ptr()


def _storages(tensors: Mapping[int, torch.Tensor]) -> bytes:
    """Number of storages; of each its key, device and class, then length and numbers; no views."""
    whole = {_key(one): one for one in tensors.values()}
    content = pickle.dumps(len(whole), protocol=2)
    for key, one in whole.items():
        numbers = torch.tensor([], dtype=one.dtype).set_(one.untyped_storage())
        content += pickle.dumps((key, "cpu", _KINDS[one.dtype]), protocol=2)
        content += struct.pack("<q", len(numbers)) + numbers.numpy().tobytes()
    return content + pickle.dumps([], protocol=2)


def _tensors(tensors: Mapping[int, torch.Tensor]) -> bytes:
    content = pickle.dumps(len(tensors), protocol=2)
    for key, one in tensors.items():
        content += pickle.dumps((key, _key(one), torch.FloatTensor), protocol=2)
        content += struct.pack("<ii", one.dim(), 0)
        content += struct.pack(f"<{one.dim()}q", *one.shape)
        content += struct.pack(f"<{one.dim()}q", *one.stride())
        content += struct.pack("<q", one.storage_offset())
    return content
