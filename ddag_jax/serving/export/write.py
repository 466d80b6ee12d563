"""Export a trained model to files, and read what such a file says about itself."""

import dataclasses
import importlib
import os
from types import ModuleType
from typing import Any, Literal, get_args

import jax
import numpy as np
from etils import epath

import ddag_jax
from ddag_jax.config import METHODS, Config, to_dict
from ddag_jax.errors import UserError
from ddag_jax.evaluation.embed import make_embed
from ddag_jax.evaluation.evaluator import check_feature, pick
from ddag_jax.io.files import as_path, new_folder, read_bytes
from ddag_jax.io.progress import say
from ddag_jax.methods.base import Method, Modality
from ddag_jax.numerics import own_settings
from ddag_jax.parallel import device_mesh
from ddag_jax.runs.evaluate import Trained, find_trained
from ddag_jax.serving.export.check import IMAGES, check_images, compare
from ddag_jax.serving.export.network import Stream
from ddag_jax.serving.threshold import stored_points

Format = Literal["onnx", "stablehlo"]
"""Also the suffix of the files."""

METADATA_FORMAT = 1
"""Of the metadata. A key may be added; another meaning of one needs the next number."""

_LONGEST = 2**31 - 1
"""Longest accepted file, bytes: what a protocol buffer may have."""


@own_settings()
def export(
    run: epath.PathLike,
    out: str | os.PathLike[str],
    *,
    format: Format = "onnx",
    feature: str | None = None,
    flip: bool | None = None,
    config: Config | None = None,
) -> list[epath.Path]:
    """Write a trained model as `out`/visible.FORMAT and `out`/infrared.FORMAT.

    A file takes uint8 RGB images [batch, height, width, 3] of the trained size, any number of them,
    and returns float32 features [batch, d] in rows of unit length. Before anything is written, it
    is run beside ours, both in float32, on 64 images of each modality; features and ranking must
    agree (check.py). What the files are, a line each, is printed.

    Args:
        run: folder of a run (its best checkpoint, or the last one), or of a checkpoint.
        out: folder to make.
        format: "onnx", run by onnxruntime and others, or "stablehlo", run by jax on CPUs, GPUs and
            TPUs.
        feature: name of a feature of the method, or `concatenation` of all. None: the one that the
            run's evaluation reports.
        flip: average a feature with the mirror image's. None: as the run's evaluation does.
        config: with a dataset of your own that the checkpoint names.

    Returns:
        The files.

    Raises:
        UserError: the checkpoint cannot be read or is of a method of your own, `out` exists, a
            package is missing, an argument is unknown, or the exported model differs from ours.
            Nothing is left in `out`.
    """
    backend = _backend(format)
    out = as_path("out", out)
    if flip is not None and not isinstance(flip, bool):
        raise UserError(f"flip: {flip!r} must be True, False or None")
    trained = find_trained(run, config)
    network = _in_float32(trained)
    settings, size = trained.config.evaluation, _image_size(trained.config)
    method = network.method()
    if feature is None:
        feature = method.features[-1] if settings.feature == "both" else settings.feature
    names = _feature_names(feature, method)
    flip = settings.flip if flip is None else flip
    metadata = _metadata(trained, feature, flip)
    with new_folder(out) as folder:
        restored, _ = network.restore(device_mesh())
        variables = jax.tree.map(np.asarray, restored)
        embed = jax.jit(make_embed(method, flip=flip), static_argnums=2)
        contents: dict[Modality, bytes] = {}
        ours, exported = {}, {}
        for modality in get_args(Modality):
            stream = Stream(network.config.model, size, variables, modality, names, flip)
            contents[modality] = backend.serialize(stream, metadata | {"modality": modality})
            images = check_images(modality, *size)
            # On a GPU or TPU as exact as on a CPU.
            with jax.default_matmul_precision("highest"):
                found = embed(variables, images, modality)
            ours[modality] = pick({name: np.asarray(x) for name, x in found.items()}, feature)
            exported[modality] = backend.load(contents[modality])(images)
        differences = compare(ours, exported)
        for modality, content in contents.items():
            (folder / f"{modality}.{format}").write_bytes(content)
    paths = []
    for modality, rows in exported.items():
        paths.append(epath.Path(out) / f"{modality}.{format}")
        say(
            f"{paths[-1]}: feature {feature} [batch, {rows.shape[1]}] of uint8"
            f" [batch, {size[0]}, {size[1]}, 3]; differs from ours by at most"
            f" {differences[modality]:.1e} (relative, float32, {IMAGES} images), ranks alike"
        )
    return paths


def read_metadata(path: epath.PathLike) -> dict[str, Any]:
    """Return what an exported file says about itself.

    Returns:
        `format` and `ddag_jax`, the versions of the metadata and of this package; `method`, the
        name of its configuration class; `configuration`, its fields; `dataset`, `checkpoint`,
        `modality`, `image_size` (height, width), `feature`, `flip`, and `thresholds`: the
        `OperatingPoints` of evaluation/pairs.py, or None if no evaluation stored them.

    Raises:
        UserError: the file cannot be read, or is not one that `export` wrote.
    """
    path = epath.Path(path)
    backend = _backend(path.suffix.removeprefix("."), path)
    try:
        found = backend.read_metadata(read_bytes(path, _LONGEST))
        if not isinstance(found, dict) or not isinstance(found.get("format"), int):
            raise ValueError("it has no metadata of ddag_jax")
    except Exception as error:  # the parsers raise any exception on what is not theirs
        raise UserError(
            f"{path}: cannot be read as an exported model ({error}); export the run again"
        ) from error
    if found["format"] > METADATA_FORMAT:
        raise UserError(
            f"{path}: was exported by ddag_jax {found.get('ddag_jax')} with metadata of format"
            f" {found['format']}; this version ({ddag_jax.__version__}) reads formats up to"
            f" {METADATA_FORMAT}: update it"
        )
    return found


def _backend(format: str, path: epath.Path | None = None) -> ModuleType:
    """Return the module of a format, which imports packages of the extra `export`."""
    if format not in get_args(Format):
        where = f"format: {format}" if path is None else f"{path}: its suffix"
        raise UserError(f"{where} must be {' or '.join(get_args(Format))}")
    try:
        return importlib.import_module(f"ddag_jax.serving.export.{format}")
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxruntime", "flatbuffers"):
            raise
        raise UserError(
            f"the format {format} needs {error.name}, which is not installed:"
            " pip install 'ddag_jax[export]'"
        ) from None


def _in_float32(trained: Trained) -> Trained:
    """Return the network with products in float32, whatever it was trained in.

    Raises:
        UserError: it is of a method that export does not know.
    """
    config = trained.config
    if type(config.model) not in METHODS.values():
        known = " and ".join(kind.__name__ for kind in METHODS.values())
        raise UserError(
            f"{trained.name}: was trained with {type(config.model).__qualname__}, a method of your"
            f" own, whose network export does not know; it exports networks of {known} (DDAG, AGW,"
            " CAJ and the baseline) only; write your network's export with jax.export"
        )
    if config.model.compute_dtype == "float32":
        return trained
    say(
        f"{trained.name}: trained with model.compute_dtype={config.model.compute_dtype}; exported,"
        " and compared, in float32"
    )
    model = dataclasses.replace(config.model, compute_dtype="float32")
    return dataclasses.replace(trained, config=dataclasses.replace(config, model=model))


def _feature_names(feature: str, method: Method) -> tuple[str, ...]:
    """Return the names of the features that one of the configuration's names stands for."""
    check_feature(feature, method, one=True)
    return method.features if feature == "concatenation" else (feature,)


def _image_size(config: Config) -> tuple[int, int]:
    return config.data.image_height, config.data.image_width


def _metadata(trained: Trained, feature: str, flip: bool) -> dict[str, Any]:
    """Return the metadata that both modalities share."""
    stored = to_dict(trained.config)
    return {
        "format": METADATA_FORMAT,
        "ddag_jax": ddag_jax.__version__,
        "method": type(trained.config.model).__name__,
        "configuration": stored["model"],
        "dataset": stored["data"]["dataset"],
        "checkpoint": f"{epath.Path(trained.name).name}/{trained.checkpoint.name}",
        "image_size": list(_image_size(trained.config)),
        "feature": feature,
        "flip": flip,
        "thresholds": stored_points(trained, feature, flip=flip),
    }
