"""Embeddings in a file, of this package or another system, to be evaluated by a protocol.

A NumPy archive (`.npz`) of arrays, for a query side of Q and a gallery side of G images:

``{query,gallery}_features``  float, [Q, d] and [G, d]; rows are scaled to unit length when read,
                              unless they are of unit length already
``{query,gallery}_ids``       whole numbers: identities
``{query,gallery}_cameras``   whole numbers: the dataset's cameras, from 1 (RegDB:
                              1 visible, 2 thermal)
``{query,gallery}_names``     text: file names as the dataset has them
``{query,gallery}_infrared``  bool, may be missing: the modality, where the dataset's cameras and
                              names do not show it (images of your own)

The query side is all images of the queries' modality, the gallery side every candidate of the
other: the protocol draws galleries from them. RegDB and LLCM are searched in both directions, with
the sides exchanged.
"""

import zipfile

import numpy as np
from etils import epath
from jaxtyping import Bool, Float

from ddag_jax.datasets.dataset import Dataset
from ddag_jax.errors import UserError
from ddag_jax.evaluation.protocols import Images, Search
from ddag_jax.io.files import check_new_file, is_file, new_file, on_disk
from ddag_jax.io.foreign import foreign

_SIDES = ("query", "gallery")
_KINDS = {"iu": "whole numbers", "US": "text", "b": "bool"}
_COLUMNS = ("features", "ids", "cameras", "names")
_MODALITY = "infrared"
_LONGEST = 16 * 2**30
"""Longest accepted file, bytes; SYSU-MM01's test images, 2048 channels each, take 80 million."""


def save_features(
    path: epath.PathLike, features: Float[np.ndarray, "N d"], images: Images, search: Search
) -> None:
    """Write a file, completely or not at all.

    Args:
        path: ends in .npz, must not exist.
        features: of all images.
        images: the embedded images.
        search: its direction decides which modality is the query side.

    Raises:
        UserError: as `check_target`; the file cannot be written.
    """
    target = check_target(path)
    is_query = images.infrared == (search.direction == "infrared_to_visible")
    order = np.lexsort((np.asarray(images.names), images.cameras, images.identities))
    names = np.asarray(images.names)
    arrays = {}
    for side, chosen in (("query", order[is_query[order]]), ("gallery", order[~is_query[order]])):
        columns = (features, images.identities, images.cameras, names)
        for column, values in zip(_COLUMNS, columns, strict=True):
            arrays[f"{side}_{column}"] = values[chosen]
        arrays[f"{side}_{_MODALITY}"] = images.infrared[chosen]
    with new_file(target) as file:
        np.savez(file, **arrays)


def check_target(path: epath.PathLike) -> epath.Path:
    """Check that a file can be written, before any work is done.

    Raises:
        UserError: the file exists, does not end in .npz, or its folder does not exist.
    """
    target = epath.Path(path)
    if target.suffix != ".npz":
        raise UserError(f"{target}: a file of features ends in .npz; name it {target}.npz")
    return check_new_file(target)


def load_features(
    path: epath.PathLike, dataset: Dataset
) -> tuple[Float[np.ndarray, "N d"], Images]:
    """Read a file.

    Args:
        path: of the archive.
        dataset: of the images.

    Returns:
        float32 rows of unit length, those of the query side first, and their images.

    Raises:
        UserError: an array of the file is missing or wrong.
    """
    source = epath.Path(path)
    arrays = _read(source)
    stored = [f"{side}_{_MODALITY}" for side in _SIDES]
    if dataset.is_infrared is None and not arrays.keys() >= set(stored):
        raise UserError(
            f"{source}: has no {' and '.join(stored)}, and {dataset.title} has no other way to find"
            " an image's modality; add them, or set the field is_infrared of your Dataset"
        )
    sides = [_check_side(source, side, arrays) for side in _SIDES]
    (queries, query_images), (gallery, gallery_images) = sides
    if queries.shape[1] != gallery.shape[1]:
        raise UserError(
            f"{source}: query_features have {queries.shape[1]} channels, gallery_features"
            f" {gallery.shape[1]}; both must come from one model"
        )
    infrared = [
        _infrared(source, dataset, images) if dataset.is_infrared else images.infrared
        for images in (query_images, gallery_images)
    ]
    for side, which in zip(_SIDES, infrared, strict=True):
        if which.any() != which.all():
            raise UserError(
                f"{source}: {side} holds {which.sum()} infrared and {(~which).sum()} visible"
                " images; each side is of one modality"
            )
    if arrays.keys() >= set(stored) and any(
        (found != images.infrared).any()
        for found, images in zip(infrared, (query_images, gallery_images), strict=True)
    ):
        raise UserError(
            f"{source}: says of its images another modality than {dataset.title} shows by"
            f" {dataset.modality_shown_by}; give --data.dataset of the images' dataset, folder for"
            " your own"
        )
    if infrared[0][0] == infrared[1][0]:
        raise UserError(
            f"{source}: query and gallery are both {'infrared' if infrared[0][0] else 'visible'};"
            f" {dataset.title} searches across modalities (give --data.dataset if it is another)"
        )
    side = "infrared" if infrared[0][0] else "visible"
    if not any(direction.startswith(side) for direction in dataset.directions):
        raise UserError(
            f"{source}: the query side is {side}; {dataset.title} has queries of the other modality"
            " only: swap the sides"
        )
    images = Images(
        np.concatenate([query_images.identities, gallery_images.identities]),
        np.concatenate([query_images.cameras, gallery_images.cameras]),
        np.concatenate(infrared),
        [*query_images.names, *gallery_images.names],
    )
    return np.concatenate([queries, gallery]), images


def _read(source: epath.Path) -> dict[str, np.ndarray]:
    wanted = {f"{side}_{column}" for side in _SIDES for column in _COLUMNS}
    if source.exists() and not is_file(source):
        raise UserError(f"{source}: is not a regular file")
    try:
        with on_disk(source) as local, local.open("rb") as file:
            start = file.read(1024)
            if what := foreign(start):
                raise UserError(f"{source}: is {what}")
            if start.startswith(b"MATLAB"):
                raise UserError(
                    f"{source}: is a MATLAB file; write its arrays to an .npz with np.savez (read"
                    " them with scipy.io.loadmat, or with h5py from MATLAB's format 7.3)"
                )
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{source}: is a single array; expected an archive (.npz)")
            missing = sorted(wanted - set(archive.files))
            if missing:
                raise UserError(
                    f"{source}: has no {', '.join(missing)}; it needs"
                    " {query,gallery}_{features,ids,cameras,names}"
                )
            # The unpacked size, before anything is unpacked: a small file can unpack to a huge one.
            unpacked = sum(entry.file_size for entry in zipfile.ZipFile(file).infolist())
            if unpacked > _LONGEST:
                raise UserError(f"{source}: unpacks to {unpacked:,} bytes, too many for features")
            modality = {f"{side}_{_MODALITY}" for side in _SIDES}
            return {name: archive[name] for name in wanted | modality & set(archive.files)}
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except Exception as error:  # the parsers raise any exception on damaged or hostile bytes
        raise UserError(
            f"{source}: cannot be read as a NumPy archive ({error}); write it again with np.savez,"
            " text as text and not as objects"
        ) from None


def _check_side(
    source: epath.Path, side: str, arrays: dict[str, np.ndarray]
) -> tuple[Float[np.ndarray, "n d"], Images]:
    features, ids, cameras, names = (arrays[f"{side}_{column}"] for column in _COLUMNS)
    infrared = arrays.get(f"{side}_{_MODALITY}", np.zeros(len(ids), bool))
    if features.ndim == 2 and not len(features):
        raise UserError(
            f"{source}: has no image on the {side} side; an evaluation needs infrared and visible"
            " images (embed both into one file)"
        )
    if features.ndim != 2 or features.dtype.kind != "f" or 0 in features.shape:
        raise UserError(
            f"{source}: {side}_features is {features.dtype} of shape {features.shape}; expected"
            " floating point [images, channels]"
        )
    for name, column, kinds in (
        ("ids", ids, "iu"),
        ("cameras", cameras, "iu"),
        ("names", names, "US"),
        (_MODALITY, infrared, "b"),
    ):
        if column.shape != (len(features),) or column.dtype.kind not in kinds:
            raise UserError(
                f"{source}: {side}_{name} is {column.dtype} of shape {column.shape}; expected"
                f" {_KINDS[kinds]} [{len(features)}], one for each row of {side}_features"
            )
    if unknown := int((ids < 0).sum()):
        raise UserError(
            f"{source}: {side}_ids of {unknown} images are below 0, which stands for a person that"
            " is not known; an evaluation needs every identity"
        )
    try:
        names = names.astype(str) if names.dtype.kind == "U" else np.char.decode(names, "utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{source}: {side}_names are not text in UTF-8; write them as such"
        ) from None
    rows, broken = _unit_rows(features)
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
    side_images = Images(ids.astype(np.int64), cameras.astype(np.int64), infrared, names.tolist())
    return rows, side_images


def _unit_rows(
    features: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
    """Return float32 rows of unit length, and which are impossible: zero or not finite.

    Rows whose squares float32 cannot hold are scaled in float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rows = features.astype(np.float32)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
    extreme = np.flatnonzero(~((length[:, 0] > 1e-12) & (length[:, 0] < 1e12)))
    broken = np.zeros(len(rows), bool)
    if len(extreme):
        exact = features[extreme].astype(np.float64)
        largest = np.abs(exact).max(axis=1, keepdims=True)
        broken[extreme] = ~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            exact /= largest  # so that its squares neither overflow nor vanish
            rows[extreme] = exact / np.linalg.norm(exact, axis=1, keepdims=True)
        length[extreme] = 1
    # Features of this package keep their bits, and so their ties.
    length[np.abs(length - 1) < 1e-6] = 1
    return rows / length, broken


def _infrared(source: epath.Path, dataset: Dataset, side: Images) -> Bool[np.ndarray, " n"]:
    """Find the modality of each image."""
    assert dataset.is_infrared is not None
    found: list[bool] = []
    for name, camera in zip(side.names, side.cameras.tolist(), strict=True):
        infrared = dataset.is_infrared(name, camera)
        if infrared is None:
            raise UserError(
                f"{source}: image {name!r} of camera {camera} does not show its modality;"
                f" {dataset.title} shows it by {dataset.modality_shown_by}"
            )
        found.append(infrared)
    return np.array(found, dtype=bool)
