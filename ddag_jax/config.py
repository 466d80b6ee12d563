"""Every setting of a run, as frozen dataclasses that check themselves when made.

Where the paper's text and the authors' code differ, the default is the code, which made the
published numbers, and the comment says so. `(n)` after a field is its symbol or equation.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol


@typing.runtime_checkable
class NamedDataset(Protocol):
    """A dataset of the user's own, a `ddag_jax.datasets.dataset.Dataset`."""

    @property
    def name(self) -> str:
        """The name that checkpoints store."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and which of them are for training."""

    dataset: str | NamedDataset = "sysu_mm01"
    """`sysu_mm01`, `regdb` or `llcm`; `folder` for images of your own; in a configuration file also
    a `Dataset` of your own."""
    dir: str = "data"
    """Folder that `python -m ddag_jax.data prepare` wrote the dataset to, or a copy of it in a
    bucket: gs://bucket/data."""
    image_height: int = 288
    """Pixels; the dataset must have been prepared at this size."""
    image_width: int = 144
    """Pixels."""
    trial: int = 1
    """RegDB: which of its ten published splits to train and test on, 1 to 10; a model each."""
    train_on: Literal["train", "train+val"] = "train+val"
    """Identity lists to train on: `train` (296 identities of SYSU-MM01) leaves the 99 of `val` to
    choose the best checkpoint by; `train+val` (395) is the published setting. RegDB and LLCM have
    no `val` list; `train+val` is all that they train on. Own images: the splits of their list."""
    holdout_identities: int = 0
    """This many training identities, drawn by the seed, are kept out of training to choose the
    best checkpoint by. For `train+val`; `train` has `val` for it."""
    label_noise: float = 0.0
    """Annotation noise, to measure robustness: this share of the training images, drawn by the
    seed, gets another training identity's label. Evaluation images keep their labels."""
    cache: str | None = None
    """Folder of this machine that a dataset in a bucket is copied to, once. None: ddag_jax_data_UID
    (the user's number) in the temporary folder."""

    def __post_init__(self) -> None:
        _check(
            self.image_height >= 32 and self.image_width >= 16,
            f"data.image_height, data.image_width: {self.image_height} x {self.image_width} is too"
            " small; the network needs at least 32 x 16 pixels",
        )
        _check(self.trial >= 1, f"data.trial: {self.trial} must be at least 1")
        _check(self.holdout_identities >= 0, "data.holdout_identities: must be 0 (none) or a count")
        _check(
            self.train_on == "train+val" or self.holdout_identities == 0,
            "data.holdout_identities: only with data.train_on=train+val; with train_on=train the"
            " identities of val_id.txt are held out already, so set it to 0",
        )
        _check(
            0 <= self.label_noise < 1,
            f"data.label_noise: {self.label_noise} must be a share of the images, in [0, 1)",
        )


Channels = Literal["none", "exchange", "adaptive-grey", "grey"]
Triplet = Literal["hard", "weighted", "squared", "hetero-centre"]


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation (section 4.1 and the code); erasing and channels as in CAJ's code.

    In this order: pad and crop, flip, normalise, erase, change channels. docs/augmentation.md has
    pictures.
    """

    padding: int = 10
    """Zero padding on each side before the random crop back to size, pixels."""
    flip: bool = True
    """Flip left-right with probability 1/2."""
    erasing: float = 0.0
    """Probability of filling a random rectangle of an image, of every view. CAJ: 0.5."""
    erasing_share: tuple[float, float] = (0.02, 0.4)
    """Least and greatest area of the rectangle, as a share of the image's; uniform between."""
    erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Least and greatest height over width of the rectangle; uniform between."""
    erasing_fill: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    """Red, green, blue of the rectangle after normalisation, in standard deviations from the mean
    colour. CAJ's code has these; (0, 0, 0), the mean colour, is LLCM's authors'."""
    visible_channels: Channels = "none"
    """What is done to the channels of visible images: with training.views=3 those of V' only, V
    keeps its colours; with 2 those of V. `exchange`: one channel, drawn, in all three (CAJ);
    `adaptive-grey`: that, or grey, or nothing, see infrared_channels; `grey`: grey, with
    grey_probability."""
    infrared_channels: Channels = "none"
    """The same of infrared images. `adaptive-grey` (CAJ): each channel in all three with
    probability 1/4, grey and unchanged with 1/8 each."""
    grey_probability: float = 0.5
    """Of `grey`."""

    def __post_init__(self) -> None:
        _check(self.padding >= 0, "augment.padding: must be 0 or more pixels")
        for field in ("erasing", "grey_probability"):
            value = getattr(self, field)
            _check(0 <= value <= 1, f"augment.{field}: {value} is not a probability in [0, 1]")
        for field, limit in (("erasing_share", 1.0), ("erasing_aspect", math.inf)):
            bounds = getattr(self, field)
            _check(
                len(bounds) == 2 and 0 < bounds[0] <= bounds[1] < limit,
                f"augment.{field}: {bounds} must be the least and the greatest value, above 0"
                + (" and below 1" if limit == 1 else ""),
            )
        _check(
            len(self.erasing_fill) == 3,
            f"augment.erasing_fill: {self.erasing_fill} must be red, green and blue",
        )
        for field in ("erasing_share", "erasing_aspect", "erasing_fill"):
            _check(
                self.erasing > 0 or getattr(self, field) == getattr(AugmentConfig, field),
                f"augment.{field}: does nothing with augment.erasing=0; leave it out, or set"
                " augment.erasing to a probability (CAJ: 0.5)",
            )
        _check(
            "grey" in (self.visible_channels, self.infrared_channels)
            or self.grey_probability == AugmentConfig.grey_probability,
            "augment.grey_probability: does nothing while neither augment.visible_channels nor"
            " augment.infrared_channels is grey; leave it out, or set one of them to grey",
        )


@dataclasses.dataclass(frozen=True)
class TwoStreamConfig:
    """What the methods of the package share: backbone, pooling, triplet loss."""

    backbone: Literal["resnet50", "resnet18"] = "resnet50"
    width: int = 64
    """Channels of the stem: 64 in the published ResNets."""
    pooling: Literal["mean", "gem", "gem-learnable"] = "mean"
    """Of the last feature map. `gem` is AGW's generalised mean with a constant power, as its code
    has it; AGW's paper has it learnable, here at the neck's learning rate."""
    gem_power: float = 3.0
    """Power of `gem`; of `gem-learnable` at the start."""
    triplet: Triplet = "hard"
    """Triplet loss of the pooled features, in Euclidean distance: batch-hard (Eq. 1), AGW's
    weighted regularised, CAJ's enhanced squared difference, or that of the modality centres (Liu et
    al. 2020)."""
    margin: float = 0.3
    """Of the batch-hard and of the hetero-centre triplet loss."""
    triplet_alpha: float = 1.0
    """Of the squared triplet: factor of the distances in its softmaxes."""
    triplet_gamma: float = 1.0
    """Of the squared triplet: factor of the squared difference, which is clamped at 88, as in CAJ's
    code. At the scale of a network's features the published 1 may clamp every anchor: the loss is
    88, has no gradient, and the log has a warning."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and matrix products; everything else is at least float32."""

    def __post_init__(self) -> None:
        _check(
            self.width >= 8,
            "model.width: must be at least 8 channels (64 in the published ResNets)",
        )
        _check(self.margin >= 0, "model.margin: must be 0 or more")
        # Below 1 the gradient at 0, which ReLU leaves everywhere, is infinite.
        _check(self.gem_power >= 1, "model.gem_power: must be at least 1, the mean (AGW: 3)")
        _check(self.triplet_alpha > 0, "model.triplet_alpha: must be above 0 (CAJ: 1)")
        _check(self.triplet_gamma > 0, "model.triplet_gamma: must be above 0 (CAJ: 1)")
        if self.pooling == "mean":
            self._without_effect("gem_power", "model.pooling=mean")
        if self.triplet in ("weighted", "squared"):
            self._without_effect("margin", f"model.triplet={self.triplet}")
        if self.triplet != "squared":
            for field in ("triplet_alpha", "triplet_gamma"):
                self._without_effect(field, f"model.triplet={self.triplet}")

    def _without_effect(self, field: str, under: str) -> None:
        _check(
            getattr(self, field) == getattr(type(self), field),
            f"model.{field}: does nothing with {under}; leave it out, or change {under}",
        )


@dataclasses.dataclass(frozen=True)
class DDAGConfig(TwoStreamConfig):
    """DDAG (methods/ddag): the network and its losses.

    With both branches off it is the baseline B; with one of them on, B+P or B+G; with both, B+P+G.
    """

    part_attention: bool = True
    """Intra-modality weighted-part aggregation (IWPA, section 3.2): the P of B+P."""
    parts: int = 3
    """Horizontal stripes (p)."""
    part_aggregation: Literal["weighted", "average", "concatenation"] = "weighted"
    """How refined parts become one feature (Table 2)."""
    part_residual: Literal["bn", "plain", "none"] = "bn"
    """What is added to the aggregated parts (Table 2, Eq. 5): the batch-normalised pooled feature,
    the pooled feature as it is, or nothing."""
    part_neck: bool = True
    """A second batch normalisation before the classifier reads the part feature. Code: yes;
    paper (Eq. 5): no."""
    graph_attention: bool = True
    """Cross-modality graph-structured attention (CGSA, section 3.3): the G of B+G."""
    graph_heads: int = 4
    """Attention heads (L)."""
    graph_head_dim: int = 512
    """Width of a head (d). Code: 512; paper: 256."""
    graph_dropout: float = 0.2
    """Probability of dropping a feature or an attention weight in the graph branch."""
    graph_neighbours: int | None = None
    """Images of its own identity that a node may attend to (N_g, Table 3): itself first, then
    the modalities in turn. None: all of them."""
    graph_reduction: Literal["mean", "sum"] = "mean"
    """Over the nodes, of the graph loss (Eq. 9). Code: mean; paper: sum."""
    graph_weight: float | None = None
    """Coefficient of the graph loss (Eq. 11). None: dynamic, 0 in the first epoch, then
    1 / (1 + mean of L_P over the previous epoch)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.parts >= 1, "model.parts: must be at least 1 stripe (the paper: 3)")
        _check(self.graph_heads >= 1, "model.graph_heads: must be at least 1 (the paper: 4)")
        _check(self.graph_head_dim >= 1, "model.graph_head_dim: must be at least 1 (the code: 512)")
        _check(
            0 <= self.graph_dropout < 1,
            f"model.graph_dropout: {self.graph_dropout} is not a probability in [0, 1)",
        )
        _check(
            self.graph_neighbours is None or self.graph_neighbours >= 1,
            "model.graph_neighbours: must be 1 (itself) or more; for N_g = 0 switch the graph off"
            " with model.graph_attention=False",
        )
        _check(
            self.graph_weight is None or self.graph_weight >= 0,
            "model.graph_weight: must be 0 or more, or None for the dynamic coefficient",
        )


@dataclasses.dataclass(frozen=True)
class BaselineConfig(TwoStreamConfig):
    """The baseline B (methods/baseline.py): identity and triplet loss on the pooled feature.

    With `pooling="gem"`, `non_local="one"` and `triplet="weighted"` it is AGW; with "squared",
    CAJ.
    """

    non_local: Literal["none", "one", "half"] = "none"
    """AGW's five non-local blocks in stages 2 and 3: with an inner width of one channel, as AGW's
    code has it, or of half the channels, which was surely meant."""


class MethodConfig(Protocol):
    """What a method's own configuration needs, beside being a frozen dataclass of plain fields."""

    def build(self, classes: int, axis_name: str | None) -> Any:
        """Return the `ddag_jax.methods.base.Method` for `classes` training identities.

        `axis_name` is the device axis that batch statistics and losses span, or None.
        """


METHODS: Mapping[str, type] = {"ddag": DDAGConfig, "baseline": BaselineConfig}
"""The methods that come with the package, by the name that a checkpoint has for them."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """SGD with momentum, two groups of learning rates, linear warm-up, step drops."""

    learning_rate: float = 0.1
    """Of the neck, classifier, part and graph attention, after warm-up."""
    backbone_scale: float = 0.1
    """The backbone's learning rate, as a share of `learning_rate`."""
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    """On every trained parameter, batch normalisation included, as PyTorch's SGD does it."""
    warmup_epochs: int = 10
    """Epochs 0 ... warmup_epochs - 1 run at (epoch + 1) / warmup_epochs of the learning rate."""
    drop_epochs: tuple[int, ...] = (20, 50)
    """From each of these epochs on, the learning rate is `drop_factor` times lower.
    Code: 20 and 50; paper: 30 and 50."""
    drop_factor: float = 0.1
    linear_scaling: bool = False
    """Multiply the learning rate by the batch's size, in shares of the published 32 images of a
    modality (n * m, whatever training.views is): the linear rule for larger batches. Keep the
    warm-up with it."""

    def __post_init__(self) -> None:
        _check(self.learning_rate > 0, "optimizer.learning_rate: must be above 0")
        _check(self.backbone_scale >= 0, "optimizer.backbone_scale: must be 0 or more")
        _check(0 <= self.momentum < 1, "optimizer.momentum: must be in [0, 1)")
        _check(self.weight_decay >= 0, "optimizer.weight_decay: must be 0 or more")
        _check(self.warmup_epochs >= 0, "optimizer.warmup_epochs: must be 0 or more")
        _check(
            list(self.drop_epochs) == sorted(set(self.drop_epochs)),
            f"optimizer.drop_epochs: {self.drop_epochs} must rise",
        )
        _check(0 < self.drop_factor <= 1, "optimizer.drop_factor: must be in (0, 1]")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    epochs: int = 81
    """Code: 81 (0-80); paper: 80."""
    steps_per_epoch: int | None = None
    """None: max(visible, infrared training images) // (n * m) + 1, as the reference counts."""
    identities_per_batch: int = 8
    """Over all devices (n)."""
    identities_per_device: int | None = None
    """In place of identities_per_batch, which becomes this many times the devices: the batch grows
    with them. See optimizer.linear_scaling."""
    images_per_identity: int = 4
    """In each modality (m)."""
    views: Literal[2, 3] = 2
    """Of the images of a batch: V (visible) and I (infrared), 2 * n * m images a step; with 3 also
    V', the same visible images augmented once more, 3 * n * m. See augment.visible_channels."""
    seed: int = 0
    """Of initialisation, sampling, augmentation and dropout."""
    mapping: Literal["shard_map", "pmap"] = "shard_map"
    """How the step is mapped over the devices; the results are identical."""
    log_every: int = 20
    """Steps between two log lines."""
    eval_every: int = 2
    """Epochs between two evaluations; the last epoch is always evaluated."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a step does whose loss or gradient is not finite, beside leaving the state as it was:
    stop the run, or be skipped."""
    nonfinite_limit: int = 10
    """With on_nonfinite=skip: this many such steps in a row stop the run all the same."""

    def __post_init__(self) -> None:
        for field in (
            "epochs",
            "images_per_identity",
            "log_every",
            "eval_every",
            "nonfinite_limit",
        ):
            _check(getattr(self, field) >= 1, f"training.{field}: must be at least 1")
        _check(
            self.identities_per_batch >= 2,
            "training.identities_per_batch: the triplet loss needs at least 2 identities",
        )
        _check(
            self.identities_per_device is None or self.identities_per_device >= 1,
            "training.identities_per_device: must be at least 1, or None for identities_per_batch",
        )
        _check(
            self.steps_per_epoch is None or self.steps_per_epoch >= 1,
            "training.steps_per_epoch: must be at least 1, or None for the reference's count",
        )
        _check(self.seed >= 0, "training.seed: must be 0 or more")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The dataset's protocol; the defaults are those that papers publish. Evaluations while
    training are without re-ranking, and in all-search on SYSU-MM01, whatever is set here."""

    direction: Literal["published", "infrared_to_visible", "visible_to_infrared"] = "published"
    """Modality of the queries, then of the gallery. Published: SYSU-MM01 infrared to visible, the
    others both."""
    mode: str = "both"
    """SYSU-MM01: gallery of cameras 1, 2, 4, 5 (`all`), of 1, 2 (`indoor`), or `both`."""
    shots: Literal["single", "multi", "all"] = "single"
    """SYSU-MM01: 1 or 10 gallery images of each identity and camera. Own images: 1 (`single`), or
    every image of the gallery's modality (`all`)."""
    draw: Literal["seeded", "rand_perm_cam"] = "seeded"
    """SYSU-MM01: how the gallery is drawn: by the reference's generator, seeded with the draw's
    number, or by the authors' published permutations, exp/rand_perm_cam.mat. LLCM: seeded."""
    camera_rule: Literal["protocol", "none"] = "protocol"
    """Which gallery images a query skips because of their camera: those that the protocol says, or
    none. Own images only."""
    trials: int = 10
    """SYSU-MM01, LLCM and own images: gallery draws, averaged. RegDB has no draw: its trials are
    runs."""
    feature: str = "both"
    """What is ranked: all features of the method (`both`), one of them by its name (DDAG: `global`
    and, where P is on, `part`), or all of them side by side (`concatenation`). Published: the part
    feature where P is on, else the global one."""
    flip: bool = False
    """Average each image's feature with its mirror image's. Not in the published figures."""
    rerank: bool = False
    """Re-rank by k-reciprocal neighbours (Zhong et al. 2017). Not in the published figures."""
    batch_size: int = 128
    """Images embedded at once, over all devices."""

    def __post_init__(self) -> None:
        _check(self.trials >= 1, "evaluation.trials: must be at least 1")
        _check(
            self.trials <= 10 or self.draw == "seeded",
            f"evaluation.trials: rand_perm_cam.mat has 10, not {self.trials}",
        )
        _check(self.batch_size >= 1, "evaluation.batch_size: must be at least 1")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. Saved, resolved, with every checkpoint."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    model: Any = dataclasses.field(default_factory=DDAGConfig)
    """The method and its settings: DDAGConfig, BaselineConfig, or a MethodConfig of your own."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            values = getattr(self, section.name)
            if section.name == "model":
                _check(
                    type(values) in METHODS.values()
                    or (dataclasses.is_dataclass(values) and hasattr(values, "build")),
                    f"model: {type(values).__name__} is neither a method's configuration of"
                    " ddag_jax.config nor a dataclass with build(classes, axis_name)",
                )
            for name, kind in typing.get_type_hints(type(values)).items():
                value = getattr(values, name)
                _check(
                    _is_of(value, kind),
                    f"{section.name}.{name}: {repr(value)[:80]} is not of the kind {kind}, or"
                    " beyond all bounds",
                )
        self._check_erasing_fits()

    def _check_erasing_fits(self) -> None:
        """Check that some rectangle of the least area is lower and narrower than the image."""
        augment, height, width = self.augment, self.data.image_height, self.data.image_width
        area = augment.erasing_share[0] * height * width
        least, greatest = augment.erasing_aspect
        # Height and width are rounded: below H - 1/2 the height is at most H - 1.
        _check(
            augment.erasing == 0
            or max(least, area / (width - 0.5) ** 2) <= min(greatest, (height - 0.5) ** 2 / area),
            f"augment.erasing_share, augment.erasing_aspect: no rectangle of {area:.0f} pixels or"
            f" more with height / width in {augment.erasing_aspect} is lower and narrower than"
            f" {height} x {width}; lower the share or change the aspect",
        )


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's kind; numbers finite, whole ones of 32 bits, text short."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_is_of(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return (
            isinstance(value, tuple) and len(value) < 1000 and all(_is_of(v, inner) for v in value)
        )
    if kind is float:
        return type(value) in (int, float) and -1e300 < value < 1e300
    if kind is int:
        return type(value) is int and abs(value) < 2**31
    if kind is str:
        return isinstance(value, str) and len(value) < 4096
    return isinstance(kind, type) and isinstance(value, kind)


def method_name(model: Any) -> str:
    """Return the name that a checkpoint stores for a method: `ddag`, or the name of a custom class.

    >>> method_name(DDAGConfig())
    'ddag'
    """
    for name, kind in METHODS.items():
        if type(model) is kind:
            return name
    return type(model).__qualname__


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain values, {section: {field: value}}, to store as JSON.

    A custom dataset is stored by its name.
    """
    sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        name: {
            field.name: _stored(getattr(section, field.name))
            for field in dataclasses.fields(section)
        }
        for name, section in sections.items()
    }


def _stored(value: Any) -> Any:
    return value.name if isinstance(value, NamedDataset) else value


def from_dict(
    values: Mapping[str, Any], model: type, own: Config | None = None
) -> tuple[Config, list[str]]:
    """Return a stored configuration, and the fields that it lacks, which take their defaults.

    Args:
        values: what `to_dict` (and JSON) made of it.
        model: class of the section `model`.
        own: a configuration whose dataset is taken where the stored one has its name.

    Raises:
        ValueError: a field is unknown or out of range; it is named as SECTION.FIELD.
    """
    kinds: dict[str, Any] = {
        field.name: model if field.name == "model" else field.default_factory
        for field in dataclasses.fields(Config)
    }
    _refuse_unknown("", values, kinds)
    dataset: Any = None if own is None else own.data.dataset
    made, missing = {}, []
    for name, kind in kinds.items():
        stored = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.get(name, {}).items()
        }
        fields = [field.name for field in dataclasses.fields(kind)]
        _refuse_unknown(f"{name}.", stored, fields)
        missing += [f"{name}.{field}" for field in fields if field not in stored]
        if name == "data" and stored.get("dataset") == getattr(dataset, "name", None):
            stored["dataset"] = dataset
        made[name] = kind(**stored)
    return Config(**made), missing


def _refuse_unknown(prefix: str, given: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{prefix}{unknown[0]}: unknown field in the stored configuration")


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Return fields in which two configurations differ, {"section.field": (one's, other's)}."""
    pairs = {}
    for section in dataclasses.fields(Config):
        mine, theirs = getattr(one, section.name), getattr(other, section.name)
        if type(mine) is not type(theirs):
            pairs[section.name] = (type(mine).__qualname__, type(theirs).__qualname__)
            continue
        for field in dataclasses.fields(mine):
            values = _stored(getattr(mine, field.name)), _stored(getattr(theirs, field.name))
            if values[0] != values[1]:
                pairs[f"{section.name}.{field.name}"] = values
    return pairs
