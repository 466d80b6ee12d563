"""Convert weights between PyTorch files and our checkpoints; nothing is written unless all fit."""

import contextlib
import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from etils import epath

import ddag_jax
from ddag_jax.config import (
    BaselineConfig,
    Config,
    DataConfig,
    DDAGConfig,
    NamedDataset,
    method_name,
)
from ddag_jax.datasets.dataset import Dataset, check_settings
from ddag_jax.datasets.find import DATASETS, find_dataset
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import BucketError, is_bucket
from ddag_jax.io.files import is_file, new_folder, whole_file
from ddag_jax.io.storable import check_storable
from ddag_jax.pytorch.keys import (
    Dimensions,
    KeyTable,
    agw_table,
    reference_table,
    to_state_dict,
    to_variables,
    torchvision_table,
)
from ddag_jax.pytorch.reading import read_state_dicts
from ddag_jax.runs.checkpoint import Meta, find_checkpoint, read_meta, read_variables, save_weights

_RANKS = 20  # of the reference's `cmc`


@dataclasses.dataclass(frozen=True)
class Summary:
    """Result of a conversion."""

    keys: int
    """Number of keys in the state dict that was read or written."""
    mapped: int
    """Number of keys that our variables are made of."""
    ignored: Mapping[str, int]
    """Number of keys that were ignored, or written as zeros, by reason."""
    parameters: int
    """Number of trained values."""
    statistics: int
    """Number of running statistics of batch normalisation."""
    checksum: str
    """SHA-256 of our variables; the same for both directions."""
    taken: str = ""
    """Names that the state dict was nested under, and the prefix of its keys that was removed."""
    beside: tuple[str, ...] = ()
    """Names of other state dicts in the file that fit as well."""
    stored: str = ""
    """What the checkpoint says that it was trained on."""
    notes: tuple[str, ...] = ()
    """What the file did not say, a sentence each."""

    def table(self, read: bool) -> str:
        """Format as a table; `read`: the state dict was read, not written."""
        lines = [
            *([("taken from", self.taken)] if self.taken else []),
            *(("  left", f"{place or 'the file'}, which fits as well") for place in self.beside),
            *([("stored as", self.stored)] if self.stored else []),
            ("keys read" if read else "keys written", f"{self.keys:,}"),
            ("mapped", f"{self.mapped:,}"),
            ("ignored" if read else "zeros", f"{sum(self.ignored.values()):,}"),
            *((f"  {count:,}", reason) for reason, count in sorted(self.ignored.items())),
            ("parameters", f"{self.parameters:,} and {self.statistics:,} running statistics"),
            ("sha256", self.checksum),
        ]
        return "\n".join(f"{name:<14}{value}" for name, value in lines)


class _Network(NamedTuple):
    """What a state dict is, going by its keys and shapes."""

    what: str
    table: KeyTable
    model: Any = None
    """Configuration of its method; None: a backbone."""
    classes: int = 0


def from_torchvision(source: str, destination: str, *, overwrite: bool = False) -> Summary:
    """Convert ImageNet weights of a ResNet-50 or -18 to a checkpoint for `train.py --init`.

    It holds both stems and the shared stages, and no heads.

    Args:
        source: see `read_state_dicts`; keys of torchvision or timm, with or without `fc`, also
            below a prefix.
        destination: folder to write.
        overwrite: replace a checkpoint there.

    Raises:
        UserError: the file cannot be read, is of another network (every missing, unexpected and
            misshapen key is listed), or `destination` exists.
    """
    output = _new_checkpoint(destination, overwrite)
    read = _read(source, "torchvision", _imagenet_network)
    backbone = "resnet50" if "layer1.0.conv3.weight" in read.tensors else "resnet18"
    meta = {"backbone": backbone, "version": ddag_jax.__version__}
    return _convert(read, output, meta)


def _imagenet_network(tensors: Mapping[str, torch.Tensor]) -> _Network:
    backbone = "resnet50" if "layer1.0.conv3.weight" in tensors else "resnet18"
    what = f"a {backbone} of ImageNet as torchvision and timm name it"
    return _Network(what, torchvision_table(backbone))


def from_reference(
    source: str,
    destination: str,
    *,
    image_size: tuple[int, int],
    dataset: str | NamedDataset | None = None,
    trial: int | None = None,
    overwrite: bool = False,
) -> Summary:
    """Convert a checkpoint of the PyTorch reference to one for `evaluate.py`.

    Classes, parts, heads and their width are inferred from the shapes.

    Args:
        source: see `read_state_dicts`.
        destination: folder to write.
        image_size: height and width, in pixels, of the images that it was trained on.
        dataset: that it was trained on. None: the published one with as many training identities
            as it has classes, else SYSU-MM01; a note says which.
        trial: of RegDB, which of its ten it was trained on. None: 1, with a note.
        overwrite: replace a checkpoint there.

    Raises:
        UserError: the file cannot be read, is of another network (every missing, unexpected and
            misshapen key is listed), the dataset has no such trial, or `destination` exists.
    """
    output = _new_checkpoint(destination, overwrite)
    read = _read(source, "reference", _reference_network)
    return _convert_trained(source, read, output, image_size, dataset, trial)


def _reference_network(tensors: Mapping[str, torch.Tensor]) -> _Network:
    dimensions = Dimensions.of(tensors)
    what = (
        f"the reference's network ({dimensions.classes} classes, {dimensions.parts} parts,"
        f" {dimensions.heads} heads of {dimensions.head_dim}, going by its shapes)"
    )
    model = DDAGConfig(
        parts=dimensions.parts, graph_heads=dimensions.heads, graph_head_dim=dimensions.head_dim
    )
    return _Network(what, reference_table(dimensions), model, dimensions.classes)


def from_agw(
    source: str,
    destination: str,
    *,
    image_size: tuple[int, int],
    dataset: str | NamedDataset | None = None,
    trial: int | None = None,
    overwrite: bool = False,
) -> Summary:
    """Convert a checkpoint of AGW's or CAJ's code to one for `evaluate.py`.

    Both have one network. Classes and non-local blocks are inferred from the shapes; without
    non-local blocks it is their baseline, which has average pooling.

    Arguments and errors are those of `from_reference`.
    """
    output = _new_checkpoint(destination, overwrite)
    read = _read(source, "agw", _agw_network)
    return _convert_trained(source, read, output, image_size, dataset, trial)


def _agw_network(tensors: Mapping[str, torch.Tensor]) -> _Network:
    classes = Dimensions.of(tensors).classes
    inner = tensors.get(_NON_LOCAL_KEY)
    if inner is None:
        model, what = BaselineConfig(), "the baseline of AGW's code"
    else:
        non_local: Any = "one" if len(inner) == 1 else "half"
        model = BaselineConfig(pooling="gem", non_local=non_local, triplet="weighted")
        what = "the network of AGW and CAJ"
    table = agw_table(classes, model.non_local)
    return _Network(f"{what} ({classes} classes)", table, model, classes)


_NON_LOCAL_KEY = "NL_2.0.g.0.weight"
_KINDS = {
    "reference": ("wpa.", "a network of DDAG"),
    "agw": ("visible_module.", "a network of AGW or CAJ, or their baseline"),
    "torchvision": ("layer1.", "an ImageNet ResNet"),
}
"""What each subcommand reads: how keys start, below any prefix, that those below it have not, and
what it is."""


class _Read(NamedTuple):
    """A state dict that fits a network, and where in the file it was found."""

    tensors: dict[str, torch.Tensor]
    network: _Network
    place: str
    """Names of the dictionaries that it was nested in."""
    prefix: str
    """Of its keys, which was removed."""
    outside: int
    """Number of keys without the prefix."""
    beside: tuple[str, ...]
    """Places of other state dicts in the file that fit as well."""


def _read(
    source: str, kind: str, describe: Callable[[Mapping[str, torch.Tensor]], _Network]
) -> _Read:
    """Read the first state dict of a file that fits, without a prefix that its keys may have.

    Raises:
        UserError: it cannot be read, or none fits: all faults of the one with the fewest are
            listed, or another subcommand is named.
    """
    start, wanted = _KINDS[kind]
    found = read_state_dicts(source)
    kinds = [_kind(one.tensors) for one in found]
    others = [other for other in kinds if other is not None]
    if others and kind not in others:
        raise UserError(
            f"{source}: is {_KINDS[others[0]][1]}, not {wanted}; nothing was written; convert it"
            f" with convert_weights.py {others[0]}"
        )
    fitting: list[_Read] = []
    faulty: list[tuple[list[str], _Read]] = []
    for one in (one for one, its in zip(found, kinds, strict=True) if its in (kind, None)):
        for prefix in _prefixes(one.tensors, start) or [""]:
            tensors = {
                key.removeprefix(prefix): value
                for key, value in one.tensors.items()
                if key.startswith(prefix)
            }
            try:
                network = describe(tensors)
            except ValueError as error:  # of a configuration that was made from it
                raise UserError(f"{source}: {error}") from None
            outside = len(one.tensors) - len(tensors)
            read = _Read(tensors, network, one.place, prefix, outside, ())
            if faults := _faults(tensors, network.table):
                faulty.append((faults, read))
            else:
                fitting.append(read)
    if not fitting:
        faults, read = min(faulty, key=lambda one: len(one[0]))
        where = f" in {_taken(read)}" if read.place or read.prefix else ""
        raise UserError(
            f"{source}: not {read.network.what}; {len(faults)} keys differ{where}, nothing was"
            " written:\n  " + "\n  ".join(sorted(faults))
        )
    first = fitting[0]
    if alike := [one.prefix for one in fitting[1:] if one.place == first.place]:
        raise UserError(
            f"{source}: holds several such networks, under {first.prefix or 'no prefix'} and under"
            f" {', '.join(alike)}; keep one of them in the file"
        )
    return first._replace(beside=tuple(one.place for one in fitting[1:]))


def _kind(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the subcommand for a state dict, going by its keys."""
    return next((kind for kind, (start, _) in _KINDS.items() if _prefixes(tensors, start)), None)


def _prefixes(tensors: Mapping[str, torch.Tensor], start: str) -> list[str]:
    """Return what comes before `start` in keys: "" or, for example, "module."."""
    return list(
        dict.fromkeys(
            key[:at]
            for key in tensors
            if (at := f".{key}".find(f".{start}")) >= 0  # the dot before it is not in the key
        )
    )


def _taken(read: _Read) -> str:
    """Describe where a state dict was found."""
    place, prefix = read.place or "the file", read.prefix
    return f"{place}, keys without {prefix}" if prefix else place


def _convert(read: _Read, output: epath.Path, meta: dict[str, Any]) -> Summary:
    table = read.network.table
    variables = to_variables(_arrays(read.tensors, table), table.mappings)
    _write_checkpoint(output, variables, meta)
    summary = _summary(read.tensors, table, variables)
    ignored = dict(summary.ignored)
    if read.outside:
        ignored[f"without the prefix {read.prefix}"] = read.outside
    return dataclasses.replace(
        summary,
        keys=summary.keys + read.outside,
        ignored=ignored,
        taken=_taken(read) if read.place or read.prefix else "",
        beside=read.beside,
    )


def _convert_trained(
    source: str,
    read: _Read,
    output: epath.Path,
    image_size: tuple[int, int],
    dataset: str | NamedDataset | None,
    trial: int | None,
) -> Summary:
    """Write a checkpoint that `evaluate.py` takes, and note what its file does not say."""
    classes = read.network.classes
    known = {name: _training_identities(one) for name, one in DATASETS.items()}
    notes = []
    if dataset is None:
        dataset = next(
            (name for name, counts in known.items() if classes in counts), str(DataConfig.dataset)
        )
        notes.append(
            f"its file does not say what it was trained on: {dataset} is stored,"
            + (
                f" which has as many training identities as it has classes ({classes})"
                if classes in known[dataset]
                else f" but of the published datasets none has {classes} training identities"
            )
            + "; if it was another, convert it again with --dataset"
        )
    found = find_dataset(dataset)
    counts = _training_identities(found)
    if not notes and counts and classes not in counts:
        notes.append(
            f"it has {classes} classes, and {found.title}"
            f" {' or '.join(map(str, counts))} training identities: it was trained on another"
            " dataset, or on a part of this one"
        )
    if found.splits and trial is None:
        notes.append(
            f"its file does not say which trial of {found.title} it was trained on: 1 is stored,"
            f" of 1 to {found.splits}; another trial tests on people that it was trained on, so if"
            " it was another, convert it again with --trial"
        )
    height, width = image_size
    try:
        data = DataConfig(
            dataset,
            image_height=height,
            image_width=width,
            trial=DataConfig.trial if trial is None else trial,
        )
        config = Config(data=data, model=read.network.model)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    check_settings(found, config.data, config.evaluation)
    stored = f"{found.name}, {f'trial {data.trial}, ' if found.splits else ''}images of"
    return dataclasses.replace(
        _convert(read, output, Meta(config, classes).to_json()),
        stored=f"{stored} {height} x {width} pixels, {classes} classes",
        notes=tuple(notes),
    )


def _training_identities(dataset: Dataset) -> list[int]:
    """Return the published numbers of identities that a dataset is trained on; [] if unknown."""
    lists: tuple[Any, ...] = ("train+val", "train")
    splits = dict.fromkeys(dataset.train_split(DataConfig(train_on=one)) for one in lists)
    return [dataset.counts[split].identities for split in splits if split in dataset.counts]


def to_reference(source: str, destination: str, *, overwrite: bool = False) -> Summary:
    """Convert our run or checkpoint to a file for the reference's own `load_state_dict`.

    It holds {"net", "epoch", "cmc", "mAP"}. "net" has all 991 keys (with four heads); those that
    the network does not use are zeros. "epoch" is 0, so that training would start anew, and the
    figures are nan, since our checkpoints hold none. They are plain numbers, because recent
    versions of `torch.load` reject those of NumPy.

    Args:
        source: a run's folder (its best checkpoint) or a checkpoint.
        destination: file to write.
        overwrite: replace a file there.

    Raises:
        UserError: there is no checkpoint, the reference has no such network (every field that
            it cannot have is named), or `destination` exists.
    """
    return _to_pytorch(source, destination, overwrite, _DDAG)


def to_agw(source: str, destination: str, *, overwrite: bool = False) -> Summary:
    """Convert our run or checkpoint to a file for the `load_state_dict` of AGW's or CAJ's code.

    It holds {"net", "epoch", "cmc", "mAP", "mINP"}, as `to_reference` says. A network with neither
    GeM pooling nor non-local blocks becomes one of their baseline.

    Args:
        source: a run's folder (its best checkpoint) or a checkpoint.
        destination: file to write.
        overwrite: replace a file there.

    Raises:
        UserError: as `to_reference`.
    """
    return _to_pytorch(source, destination, overwrite, _AGW)


class _Theirs(NamedTuple):
    """What a code of the authors can hold."""

    name: str
    command: str
    method: type
    networks: tuple[Mapping[str, Any], ...]
    """The fields that it fixes, of each of its networks."""
    figures: Mapping[str, Any]
    table: Callable[[Any, int], KeyTable]
    """Of a model's configuration and its number of classes."""


_FIGURES = {"epoch": 0, "cmc": [math.nan] * _RANKS, "mAP": math.nan}
_RESNET = {"backbone": "resnet50", "width": 64}
_DDAG = _Theirs(
    "the reference",
    "to-reference",
    DDAGConfig,
    (
        {
            **_RESNET,
            "pooling": "mean",
            "part_attention": True,
            "part_aggregation": "weighted",
            "part_residual": "bn",
            "part_neck": True,
            "graph_attention": True,
            "graph_neighbours": None,
        },
    ),
    _FIGURES,
    lambda model, classes: reference_table(
        Dimensions(classes, model.parts, model.graph_heads, model.graph_head_dim)
    ),
)
_AGW = _Theirs(
    "AGW's code",
    "to-agw",
    BaselineConfig,
    (
        {**_RESNET, "pooling": "gem", "gem_power": 3.0, "non_local": "one"},
        {**_RESNET, "pooling": "mean", "non_local": "none"},
    ),
    {**_FIGURES, "mINP": math.nan},
    lambda model, classes: agw_table(classes, model.non_local),
)


def _to_pytorch(source: str, destination: str, overwrite: bool, theirs: _Theirs) -> Summary:
    output = epath.Path(destination)
    if output.is_dir() or (output.exists() and not overwrite):
        raise UserError(_exists(destination, replaceable=is_file(output)))
    checkpoint = find_checkpoint(source)
    meta = read_meta(checkpoint)
    if faults := _not_in(theirs, meta.config.model):
        raise UserError(f"{source}: {theirs.name} cannot hold this network: {'; '.join(faults)}")
    table = theirs.table(meta.config.model, meta.classes)
    variables = read_variables(checkpoint)
    arrays = to_state_dict(variables, table.mappings)
    found = {key: array.shape for key, array in arrays.items()}
    needed = {key: table.shapes[key] for key in table.mapped}
    if found != needed:
        differing = sorted(k for k in needed.keys() | found.keys() if needed.get(k) != found.get(k))
        raise UserError(f"{checkpoint}: not of its own configuration: {', '.join(differing)}")
    net = {
        key: torch.from_numpy(arrays[key])
        if key in arrays
        else torch.zeros(shape, dtype=torch.float32 if shape else torch.int64)
        for key, shape in table.shapes.items()
    }
    with _named_fault(output, RuntimeError):  # PyTorch's
        output.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(output) as file:
            torch.save({"net": net, **theirs.figures}, file)
    return _summary(net, table, variables)


def _not_in(theirs: _Theirs, model: Any) -> list[str]:
    """Return how a network differs from the nearest that a code of the authors can be."""
    if not isinstance(model, theirs.method):
        others = [one for one in (_DDAG, _AGW) if isinstance(model, one.method)]
        hint = f"; use convert_weights.py {others[0].command}" if others else ""
        return [f"its method is {method_name(model)}{hint}"]
    return min(
        (
            [
                f"model.{field} is {getattr(model, field)}, there always {value}"
                for field, value in fixed.items()
                if getattr(model, field) != value
            ]
            for fixed in theirs.networks
        ),
        key=len,
    )


def _faults(tensors: Mapping[str, torch.Tensor], table: KeyTable) -> list[str]:
    """Return how a state dict differs from a table, a line for each key."""
    needed = dict.fromkeys((*table.mapped, *table.zeros))
    faults = [f"missing     {key}" for key in needed if key not in tensors]
    for key, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if key not in table.shapes and key not in table.ignored:
            faults.append(f"unexpected  {key}")
        elif shape != table.shapes.get(key, shape):
            faults.append(f"misshapen   {key}: {shape} instead of {table.shapes[key]}")
        elif key in needed and not _is_float32(tensor):
            faults.append(f"mistyped    {key}: {tensor.dtype}, not all of it numbers of float32")
        elif key in table.zeros and tensor.any():
            faults.append(f"not zero    {key}: our network has no shift there")
    return faults


def _arrays(tensors: Mapping[str, torch.Tensor], table: KeyTable) -> dict[str, np.ndarray]:
    """Return the arrays of the mapped keys as float32."""
    return {key: tensors[key].detach().float().numpy() for key in dict.fromkeys(table.mapped)}


def _is_float32(tensor: torch.Tensor) -> bool:
    """Return whether float32 represents every value exactly; nan is not accepted."""
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        return False
    return bool((tensor.float().to(tensor.dtype) == tensor).all())


def _summary(
    state_dict: Mapping[str, torch.Tensor], table: KeyTable, variables: dict[str, Any]
) -> Summary:
    def leaves(tree: Any, path: str) -> list[tuple[str, np.ndarray]]:
        if not isinstance(tree, Mapping):
            return [(path, np.ascontiguousarray(tree))]
        return [leaf for name in sorted(tree) for leaf in leaves(tree[name], f"{path}/{name}")]

    digest = hashlib.sha256()
    counts: Counter[str] = Counter()
    for path, array in leaves(variables, ""):
        digest.update(path.encode())
        digest.update(array.data)
        counts[path.split("/")[1]] += array.size
    return Summary(
        keys=len(state_dict),
        mapped=len(set(table.mapped)),
        ignored=Counter(table.ignored[key] for key in state_dict if key in table.ignored),
        parameters=counts["params"],
        statistics=counts["batch_stats"],
        checksum=digest.hexdigest(),
    )


def _new_checkpoint(destination: str, overwrite: bool) -> epath.Path:
    """Return where to write a checkpoint; raise UserError if something else is there."""
    output = epath.Path(destination)
    check_storable(output)
    replaceable = (output / "meta").exists() and not (output / "progress").exists()
    if output.exists() and not (overwrite and replaceable):
        raise UserError(_exists(destination, replaceable))
    return output


def _exists(destination: str, replaceable: bool) -> str:
    if replaceable:
        return f"{destination}: exists already; replace it with --overwrite, or name another output"
    return (
        f"{destination}: exists already and is not the output of an earlier conversion; name"
        " another output"
    )


@contextlib.contextmanager
def _named_fault(output: epath.Path, of_library: type[Exception]) -> Iterator[None]:
    """Raise UserError if an output cannot be written.

    Args:
        output: the file or folder.
        of_library: what the library that writes it raises about the disk, beside OSErrors.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, of_library) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{output}: cannot be written ({why}); name another output") from error


def _write_checkpoint(output: epath.Path, variables: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write a checkpoint beside its place first: an earlier one is kept until it is complete.

    A folder in a bucket cannot be renamed at once, so that there it is written in its place, after
    an earlier one was removed.
    """
    if is_bucket(output):
        output.rmtree(missing_ok=True)
        try:
            save_weights(output, variables, meta)
        except BaseException:
            with contextlib.suppress(BucketError, OSError):
                output.rmtree(missing_ok=True)
            raise
        return
    with (
        _named_fault(output, ValueError),  # tensorstore's
        new_folder(output, replace=True) as folder,
    ):
        written = folder / "new"  # orbax makes its folder, and works beside it
        save_weights(written, variables, meta)
        for item in sorted(written.iterdir()):
            item.rename(folder / item.name)
        written.rmdir()
