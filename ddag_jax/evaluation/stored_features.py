"""Embeddings as a file, ours or another system's, so that any model can be judged by a protocol.

A NumPy archive (`.npz`) of eight arrays, for a query side of Q and a gallery side of G images:

``{query,gallery}_features``  float, [Q, d] and [G, d]; rows are scaled to unit length when read
``{query,gallery}_ids``       whole numbers: identities
``{query,gallery}_cameras``   whole numbers: the dataset's cameras, from 1 (RegDB:
                              1 visible, 2 thermal)
``{query,gallery}_names``     text: file names as the dataset has them

The query side is all images of the modality that asks, the gallery side every candidate of the
other: what a trial draws of them is the protocol's. RegDB and LLCM are searched in both directions,
with the sides in turn.
"""

import re
import zipfile
from pathlib import PurePosixPath

import numpy as np
from etils import epath
from jaxtyping import Bool, Float

from ddag_jax.errors import UserError
from ddag_jax.evaluation.protocols import QUERY_CAMERAS, TITLES, Dataset, Images, Search
from ddag_jax.io.files import is_file, whole_file

_SIDES = ("query", "gallery")
_COLUMNS = ("features", "ids", "cameras", "names")
_LONGEST = 16 * 2**30
"""Bytes; SYSU-MM01's test images, 2048 channels each, take 80 million."""


def save_features(
    path: epath.PathLike, features: Float[np.ndarray, "N d"], images: Images, search: Search
) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: ends in .npz, must not exist.
        features: of all images.
        images: whose they are.
        search: whose direction says which modality is the query side.

    Raises:
        UserError: `check_target`'s.
    """
    target = check_target(path)
    asks = images.infrared == (search.direction == "infrared_to_visible")
    order = np.lexsort((np.asarray(images.names), images.cameras, images.identities))
    names = np.asarray(images.names)
    arrays = {}
    for side, chosen in (("query", order[asks[order]]), ("gallery", order[~asks[order]])):
        columns = (features, images.identities, images.cameras, names)
        for column, values in zip(_COLUMNS, columns, strict=True):
            arrays[f"{side}_{column}"] = values[chosen]
    try:
        with whole_file(target) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error}); name another file") from None


def check_target(path: epath.PathLike) -> epath.Path:
    """The file to write, found possible before any work is done.

    Raises:
        UserError: it exists, does not end in .npz, or its folder does not exist.
    """
    target = epath.Path(path)
    if target.suffix != ".npz":
        raise UserError(f"{target}: a file of features ends in .npz; name it {target}.npz")
    if target.exists():
        raise UserError(f"{target}: exists already; name another file, or remove it")
    if not target.parent.is_dir():
        raise UserError(f"{target}: its folder does not exist; make it first")
    return target


def load_features(
    path: epath.PathLike, dataset: Dataset
) -> tuple[Float[np.ndarray, "N d"], Images]:
    """Reads a file.

    Args:
        path: of the archive.
        dataset: whose images these are.

    Returns:
        float32 rows of unit length, the query side's before the gallery side's, and whose they are.

    Raises:
        UserError: what is wrong with the file, array by array.
    """
    source = epath.Path(path)
    arrays = _read(source)
    sides = [_check_side(source, side, arrays) for side in _SIDES]
    (queries, asking), (gallery, answering) = sides
    if queries.shape[1] != gallery.shape[1]:
        raise UserError(
            f"{source}: query_features have {queries.shape[1]} channels, gallery_features"
            f" {gallery.shape[1]}; both must come from one model"
        )
    infrared = [_infrared(source, dataset, side) for side in (asking, answering)]
    for side, which in zip(_SIDES, infrared, strict=True):
        if which.any() != which.all():
            raise UserError(
                f"{source}: {side} holds {which.sum()} infrared and {(~which).sum()} visible"
                " images; each side is of one modality"
            )
    if infrared[0][0] == infrared[1][0]:
        raise UserError(
            f"{source}: query and gallery are both {'infrared' if infrared[0][0] else 'visible'};"
            f" {TITLES[dataset]} searches across modalities (give --data.dataset if it is another)"
        )
    if dataset == "sysu_mm01" and not infrared[0][0]:
        raise UserError(
            f"{source}: the query side is visible; SYSU-MM01's queries are cameras 3 and 6: swap"
            " the sides"
        )
    images = Images(
        np.concatenate([asking.identities, answering.identities]),
        np.concatenate([asking.cameras, answering.cameras]),
        np.concatenate(infrared),
        [*asking.names, *answering.names],
    )
    return np.concatenate([queries, gallery]), images


def _read(source: epath.Path) -> dict[str, np.ndarray]:
    wanted = {f"{side}_{column}" for side in _SIDES for column in _COLUMNS}
    if source.exists() and not is_file(source):
        raise UserError(f"{source}: is not a regular file")
    try:
        with source.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{source}: is a single array; expected an archive (.npz)")
            missing = sorted(wanted - set(archive.files))
            if missing:
                raise UserError(
                    f"{source}: has no {', '.join(missing)}; it needs"
                    " {query,gallery}_{features,ids,cameras,names}"
                )
            # What a packed file unpacks to, before any of it is: a bomb is small.
            unpacked = sum(entry.file_size for entry in zipfile.ZipFile(file).infolist())
            if unpacked > _LONGEST:
                raise UserError(f"{source}: unpacks to {unpacked:,} bytes, too many for features")
            return {name: archive[name] for name in wanted}
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except Exception as error:  # damaged or hostile bytes make the parsers raise anything
        raise UserError(
            f"{source}: cannot be read as a NumPy archive ({error}); write it again with np.savez,"
            " text as text and not as objects"
        ) from None


def _check_side(
    source: epath.Path, side: str, arrays: dict[str, np.ndarray]
) -> tuple[Float[np.ndarray, "n d"], Images]:
    features, ids, cameras, names = (arrays[f"{side}_{column}"] for column in _COLUMNS)
    if features.ndim != 2 or features.dtype.kind != "f" or 0 in features.shape:
        raise UserError(
            f"{source}: {side}_features is {features.dtype} of shape {features.shape}; expected"
            " floating point [images, channels]"
        )
    for name, column, kinds in (
        ("ids", ids, "iu"),
        ("cameras", cameras, "iu"),
        ("names", names, "US"),
    ):
        if column.shape != (len(features),) or column.dtype.kind not in kinds:
            raise UserError(
                f"{source}: {side}_{name} is {column.dtype} of shape {column.shape}; expected"
                f" {'text' if kinds == 'US' else 'whole numbers'} [{len(features)}], one for each"
                f" row of {side}_features"
            )
    features = features.astype(np.float32)
    try:
        names = names.astype(str) if names.dtype.kind == "U" else np.char.decode(names, "utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{source}: {side}_names are no text in UTF-8") from None
    length = np.linalg.norm(features, axis=1, keepdims=True)
    broken = ~np.isfinite(length[:, 0]) | (length[:, 0] == 0)
    if broken.any():
        raise UserError(
            f"{source}: {side}_features of {names[broken.argmax()]} (row {broken.argmax()}) are"
            " zero or not finite"
        )
    keys = list(zip(ids.tolist(), cameras.tolist(), names.tolist(), strict=True))
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(
            f"{source}: {side} holds image {twice[2]} of identity {twice[0]}, camera {twice[1]}"
            " twice; give each image once"
        )
    side_images = Images(
        ids.astype(np.int64), cameras.astype(np.int64), np.zeros(len(ids), bool), names.tolist()
    )
    return features / length, side_images


_WORDS = {
    "regdb": (re.compile(r"visible", re.I), re.compile(r"thermal", re.I)),
    "llcm": (re.compile(r"(test_)?vis|.*_vis", re.I), re.compile(r"(test_)?nir|.*_nir", re.I)),
}
"""What a part of a name is, in either modality."""


def _infrared(source: epath.Path, dataset: Dataset, side: Images) -> Bool[np.ndarray, " n"]:
    """The modality by camera (SYSU-MM01) or by name (the others, whose cameras do not tell)."""
    if dataset == "sysu_mm01":
        strange = ~np.isin(side.cameras, range(1, 7))
        if strange.any():
            raise UserError(
                f"{source}: {side.names[int(strange.argmax())]} is of camera"
                f" {side.cameras[strange.argmax()]}; SYSU-MM01 has cameras 1 to 6"
            )
        return np.isin(side.cameras, QUERY_CAMERAS)
    visible, infrared = _WORDS[dataset]
    found: list[bool] = []
    for name in side.names:
        path = PurePosixPath(name.replace("\\", "/"))
        parts = [*path.parts[:-1], path.stem]
        kinds = {False for p in parts if visible.fullmatch(p)}
        kinds |= {True for p in parts if infrared.fullmatch(p)}
        if len(kinds) != 1:
            raise UserError(
                f"{source}: the name {name!r} does not say its modality; {TITLES[dataset]}'s names"
                " do, by their folder (Visible or Thermal; vis, nir, test_vis or test_nir)"
            )
        found += kinds
    return np.array(found, dtype=bool)
