"""Features of images in a file that names the network: a gallery to search.

The file is one of stored features (evaluation/stored_features.py), infrared images on the query
side and visible ones on the gallery side, with more arrays:

``{query,gallery}_infrared``    bool: the modality
``{query,gallery}_files``       text: absolute paths
``{query,gallery}_{identity,camera,tracklet}_texts``
                                text: as given; empty if not known
``{query,gallery}_stamps``      int64, [n, 2]: size in bytes, time of the last change in nanoseconds
``embedded_by``                 text: JSON of `EmbeddedBy`

Text is UTF-8 bytes. Identities that are not known have the number -1. Nothing is compressed, so
that the features can be mapped into memory.
"""

import dataclasses
import io
import json
import os
import struct
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Shaped

from ddag_jax.datasets.image_table import numbered
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import check_on_disk
from ddag_jax.io.files import is_file, new_file
from ddag_jax.methods.base import Modality
from ddag_jax.serving.images import LABELS, FoundImage

SIDES: dict[Modality, str] = {"infrared": "query", "visible": "gallery"}
"""The side of the file that images of a modality are on, in the order of the rows."""

UNKNOWN = -1
"""Number of an identity that is not known."""

_ALIGNED = 64  # bytes; a map into memory is as fast as an array then
_BLOCK = 4096  # rows


@dataclasses.dataclass(frozen=True)
class EmbeddedBy:
    """What decides a feature, apart from the image: equal for equal features."""

    checksum: int
    """Of the network's variables."""
    model: dict[str, Any]
    """The method's configuration."""
    image_size: list[int]
    """Height and width, pixels."""
    feature: str
    flip: bool
    """Averaged with the mirror image's feature."""
    infrared_range: list[int] | None = None
    """Values that become black and white of infrared images with 16 bits; None: there are none."""
    run: str = dataclasses.field(default="", compare=False)
    """The run or checkpoint, as it was given."""


class Index(NamedTuple):
    """An opened file. Rows are those of the infrared images, then those of the visible ones."""

    path: epath.Path
    embedded_by: EmbeddedBy
    images: list[FoundImage]
    features: dict[Modality, Float[np.ndarray, "n d"]]
    """Of each modality, mapped into memory; float32 or float16."""


class Rows(NamedTuple):
    """Images of a new file, and their features in blocks, in order, one after the other."""

    images: Sequence[FoundImage]
    blocks: Iterable[Float[np.ndarray, "_ d"]]


def write_index(
    path: epath.PathLike,
    embedded_by: EmbeddedBy,
    rows: dict[Modality, Rows],
    width: int,
    dtype: np.dtype,
) -> None:
    """Write a file, whole or not at all; an existing one is replaced.

    Args:
        path: of the file.
        embedded_by: the network.
        rows: of each modality.
        width: channels of a feature.
        dtype: of the stored features.

    Raises:
        UserError: it cannot be written.
    """
    people = [image.identity for side in SIDES for image in rows[side].images if image.identity]
    # Faults of spelling matter to an evaluation, which finds them; a search shows the text.
    identities = {"": UNKNOWN} | numbered("identity", "identities", people, [], [])
    given = [image.camera for side in SIDES for image in rows[side].images if image.camera]
    cameras = numbered("camera", "cameras", given, [], [], least=1)
    with new_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for modality, side in SIDES.items():
            images, blocks = rows[modality]
            without = 0 if given else 1 + (modality == "infrared")
            texts = {name: [getattr(i, name) for i in images] for name in LABELS}
            columns = {
                "ids": np.array([identities[i.identity] for i in images], np.int64),
                "cameras": np.array([cameras.get(i.camera, without) for i in images], np.int64),
                "names": _text([os.fsencode(i.name) for i in images]),
                "infrared": np.full(len(images), modality == "infrared"),
                "files": _text([os.fsencode(i.file) for i in images]),
                **{f"{name}_texts": _text(values) for name, values in texts.items()},
                "stamps": np.array([i.stamp for i in images], np.int64).reshape(-1, 2),
            }
            for name, values in columns.items():
                _write_array(archive, f"{side}_{name}", [values], values.shape, values.dtype)
            shape = (len(images), width)
            _write_array(archive, f"{side}_features", blocks, shape, dtype)
        said = np.array(json.dumps(dataclasses.asdict(embedded_by)).encode())
        _write_array(archive, "embedded_by", [said], (), said.dtype)


def _text(values: Sequence[str | bytes]) -> Shaped[np.ndarray, " n"]:
    # A name that is not UTF-8 comes from the system with surrogates in place of its bytes.
    encoded = [v if isinstance(v, bytes) else v.encode(errors="surrogateescape") for v in values]
    return np.array(encoded, dtype=np.bytes_) if encoded else np.empty(0, "S1")


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    blocks: Iterable[Shaped[np.ndarray, "..."]],
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> None:
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, described | {"shape": shape})
    entry = zipfile.ZipInfo(f"{name}.npy")
    # Zeros as an extra field, after the fixed 30 bytes, the name, and 20 of a large file's sizes.
    assert archive.fp is not None
    before = archive.fp.tell() + 30 + len(entry.filename) + 20 + header.tell()
    entry.extra = b"\0" * (-before % _ALIGNED)
    with archive.open(entry, "w", force_zip64=True) as member:
        member.write(header.getvalue())
        for block in blocks:
            member.write(np.ascontiguousarray(block, dtype).data)


def is_index(path: epath.PathLike) -> bool:
    """Return whether a path names a file of features, by its suffix."""
    return epath.Path(path).suffix == ".npz"


def open_index(path: epath.PathLike) -> Index:
    """Open a file, its features mapped into memory.

    Raises:
        UserError: there is none, it is damaged, or it does not name its network.
    """
    check_on_disk(path, "a file of features to search")
    source = epath.Path(path)
    if not source.exists():
        raise UserError(f"{source}: no such file")
    if not is_file(source):
        raise UserError(f"{source}: is not a regular file")
    try:
        with zipfile.ZipFile(source) as archive:
            if "embedded_by.npy" not in archive.namelist():
                raise UserError(
                    f"{source}: does not name the network that its features are of; embed the"
                    " images again with ddag-embed"
                )
            said = json.loads(bytes(_read(archive, "embedded_by").item()))
            embedded_by = EmbeddedBy(**said)
            images: list[FoundImage] = []
            features: dict[Modality, np.ndarray] = {}
            for modality, side in SIDES.items():
                features[modality] = _map(source, archive, f"{side}_features")
                names = [
                    list(map(os.fsdecode, _read(archive, f"{side}_{name}").tolist()))
                    for name in ("files", "names")
                ]
                labels = [
                    [
                        text.decode(errors="surrogateescape")
                        for text in _read(archive, f"{side}_{name}_texts").tolist()
                    ]
                    for name in LABELS
                ]
                stamps = map(tuple, _read(archive, f"{side}_stamps").tolist())
                found = [
                    FoundImage(file, name, modality, identity, camera, tracklet, stamp)
                    for file, name, identity, camera, tracklet, stamp in zip(
                        *names, *labels, stamps, strict=True
                    )
                ]
                if len(features[modality]) != len(found):
                    raise ValueError(f"{side}_features and {side}_files differ in length")
                images += found
    except UserError:
        raise
    except Exception as error:  # the parsers raise any exception on damaged bytes
        raise UserError(
            f"{source}: cannot be read as features of ddag-embed ({error}); embed the images again"
        ) from None
    return Index(source, embedded_by, images, features)


def _read(archive: zipfile.ZipFile, name: str) -> Shaped[np.ndarray, "..."]:
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _map(source: epath.Path, archive: zipfile.ZipFile, name: str) -> Float[np.ndarray, "n d"]:
    """Map an array of the archive into memory."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    with source.open("rb") as file:
        file.seek(entry.header_offset)
        fixed = file.read(30)
        skipped = sum(struct.unpack("<HH", fixed[26:30]))  # the name and the extra field
        file.seek(skipped, os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} has an array header of version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if len(shape) != 2 or fortran or dtype not in (np.float32, np.float16):
        raise ValueError(f"{name} is {dtype} of shape {shape}")
    if not shape[0]:
        return np.empty(shape, dtype)
    return np.memmap(os.fspath(source), dtype, "r", start, shape)


def blocks_of(features: Float[np.ndarray, "n d"]) -> Iterator[Float[np.ndarray, "_ d"]]:
    """Yield rows in order, some thousand at a time."""
    for start in range(0, len(features), _BLOCK):
        yield features[start : start + _BLOCK]


def check_same_network(index: Index, wanted: EmbeddedBy) -> None:
    """Raise UserError if the features of a file are not those of a network.

    The message says what differs.
    """
    found = index.embedded_by
    if found == wanted:
        return
    if found.feature != wanted.feature and dataclasses.replace(
        found, feature=""
    ) == dataclasses.replace(wanted, feature=""):
        raise UserError(
            f"{index.path}: holds the feature {found.feature}, not {wanted.feature}; give --feature"
            f" {found.feature}, or embed the images again"
        )
    for field in dataclasses.fields(EmbeddedBy):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if field.compare and one != other:
            break
    how = f"({field.name}: {one}, and here {other})"
    if field.name == "checksum":
        how = "(another checkpoint)"
    elif field.name == "model":
        names = sorted(name for name in {**one, **other} if one.get(name) != other.get(name))
        how = f"(model.{names[0]}: {one.get(names[0])}, and here {other.get(names[0])})"
    raise UserError(
        f"{index.path}: its features are of {found.run}, not of {wanted.run} {how}; name its own"
        " run, or embed the images again"
    )
