"""What the configuration refuses, and its way through JSON and back."""

import dataclasses
import json
from typing import Any

import pytest

from ddag_jax.config import (
    AugmentConfig,
    BaselineConfig,
    Config,
    DataConfig,
    DDAGConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainingConfig,
    differences,
    from_dict,
    method_name,
    to_dict,
)

SECTIONS = {
    "data": DataConfig,
    "augment": AugmentConfig,
    "model": DDAGConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}

OUT_OF_RANGE = [
    ("data", "image_height", 31),
    ("data", "image_width", 15),
    ("data", "holdout_identities", -1),
    ("augment", "padding", -1),
    ("augment", "erasing", -0.1),
    ("augment", "erasing", 1.1),
    ("augment", "grey_probability", -0.1),
    ("augment", "grey_probability", 1.1),
    ("augment", "erasing_share", (0.0, 0.4)),
    ("augment", "erasing_share", (0.4, 0.02)),
    ("augment", "erasing_share", (0.02, 1.0)),
    ("augment", "erasing_share", (0.02,)),
    ("augment", "erasing_aspect", (0.0, 3.0)),
    ("augment", "erasing_aspect", (3.0, 0.3)),
    ("augment", "erasing_aspect", (0.3, 1.0, 3.0)),
    ("augment", "erasing_fill", (0.0, 0.0)),
    ("model", "width", 7),
    ("model", "parts", 0),
    ("model", "graph_heads", 0),
    ("model", "graph_head_dim", 0),
    ("model", "graph_dropout", 1.0),
    ("model", "graph_dropout", -0.1),
    ("model", "graph_neighbours", 0),
    ("model", "margin", -0.1),
    ("model", "graph_weight", -0.1),
    ("model", "gem_power", 0.0),
    ("model", "triplet_alpha", 0.0),
    ("model", "triplet_gamma", 0.0),
    ("optimizer", "learning_rate", 0.0),
    ("optimizer", "backbone_scale", -0.1),
    ("optimizer", "momentum", 1.0),
    ("optimizer", "momentum", -0.1),
    ("optimizer", "weight_decay", -1e-4),
    ("optimizer", "warmup_epochs", -1),
    ("optimizer", "drop_epochs", (50, 20)),
    ("optimizer", "drop_epochs", (20, 20)),
    ("optimizer", "drop_factor", 0.0),
    ("optimizer", "drop_factor", 1.1),
    ("training", "epochs", 0),
    ("training", "images_per_identity", 0),
    ("training", "log_every", 0),
    ("training", "eval_every", 0),
    ("training", "identities_per_batch", 1),
    ("training", "steps_per_epoch", 0),
    ("training", "seed", -1),
    ("evaluation", "trials", 0),
    ("evaluation", "batch_size", 0),
]
AT_THE_LIMIT = [
    ("data", "image_height", 32),
    ("data", "image_width", 16),
    ("augment", "padding", 0),
    ("augment", "erasing", 0.0),
    ("augment", "erasing", 1.0),
    ("model", "width", 8),
    ("model", "parts", 1),
    ("model", "graph_dropout", 0.0),
    ("model", "graph_neighbours", 1),
    ("model", "margin", 0.0),
    ("model", "graph_weight", 0.0),
    ("optimizer", "momentum", 0.0),
    ("optimizer", "warmup_epochs", 0),
    ("optimizer", "drop_epochs", ()),
    ("optimizer", "drop_factor", 1.0),
    ("training", "identities_per_batch", 2),
    ("training", "steps_per_epoch", 1),
]


@pytest.mark.parametrize(("section", "field", "value"), OUT_OF_RANGE, ids=str)
def test_out_of_range_is_named(section: str, field: str, value: Any) -> None:
    """One line; also from a stored configuration."""
    with pytest.raises(ValueError, match=f"{section}[.]{field}") as error:
        SECTIONS[section](**{field: value})
    assert "\n" not in str(error.value)
    stored = to_dict(Config())
    stored[section][field] = value
    with pytest.raises(ValueError, match=f"{section}[.]{field}"):
        from_dict(stored, DDAGConfig)


@pytest.mark.parametrize(("section", "field", "value"), AT_THE_LIMIT, ids=str)
def test_the_limit_itself_is_allowed(section: str, field: str, value: Any) -> None:
    assert getattr(SECTIONS[section](**{field: value}), field) == value


@pytest.mark.parametrize(
    ("fields", "idle", "cause"),
    [
        ({"erasing_share": (0.02, 0.3)}, "erasing_share", "erasing=0"),
        ({"erasing_aspect": (0.5, 2.0)}, "erasing_aspect", "erasing=0"),
        ({"erasing_fill": (0.0, 0.0, 0.0)}, "erasing_fill", "erasing=0"),
        ({"grey_probability": 0.3}, "grey_probability", "visible_channels"),
        (
            {"grey_probability": 0.3, "visible_channels": "adaptive-grey"},
            "grey_probability",
            "infrared_channels",
        ),
    ],
    ids=str,
)
def test_a_field_that_does_nothing_is_an_error(fields: Any, idle: str, cause: str) -> None:
    """It names both fields; with the other one set, it is none."""
    with pytest.raises(ValueError, match=rf"^augment\.{idle}: does nothing .*augment\.{cause}"):
        AugmentConfig(**fields)
    AugmentConfig(**{**fields, "erasing": 0.1, "infrared_channels": "grey"})


def test_an_erased_rectangle_must_fit_into_the_image() -> None:
    erasing = AugmentConfig(erasing=0.5, erasing_share=(0.6, 0.9), erasing_aspect=(0.3, 1.0))
    with pytest.raises(
        ValueError, match=r"augment\.erasing_share, augment\.erasing_aspect: .* 288 x 144; lower"
    ):
        Config(augment=erasing)  # 24,883 pixels of which the height is no more than the width
    wide = DataConfig(image_height=144, image_width=288)
    assert Config(data=wide, augment=erasing).augment == erasing
    narrow = DataConfig(image_height=10_000, image_width=32)
    assert Config(data=narrow).augment.erasing == 0  # where nothing is erased, any size will do
    with pytest.raises(ValueError, match=r"augment\.erasing_share"):
        Config(data=narrow, augment=AugmentConfig(erasing=0.5))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("training", "views", 1),
        ("training", "views", 4),
        ("training", "views", 2.0),
        ("training", "views", True),
        ("augment", "visible_channels", "gray"),
        ("augment", "infrared_channels", 3),
        ("augment", "erasing_fill", (0.0, 0.0, "red")),
        ("augment", "erasing_fill", (0.0, 0.0, 0.0, 0.0)),
        ("augment", "erasing_fill", (0.0, 0.0, float("nan"))),
    ],
    ids=str,
)
def test_another_kind_of_value_is_named(section: str, field: str, value: Any) -> None:
    stored = to_dict(Config(augment=AugmentConfig(erasing=0.5)))
    stored[section][field] = value
    with pytest.raises(ValueError, match=f"{section}[.]{field}"):
        from_dict(stored, DDAGConfig)


def test_holdout_needs_both_lists() -> None:
    with pytest.raises(ValueError, match=r"data\.holdout_identities: only with"):
        DataConfig(train_on="train", holdout_identities=4)
    assert DataConfig(train_on="train+val", holdout_identities=4).holdout_identities == 4


@pytest.mark.parametrize("kind", [DDAGConfig, BaselineConfig])
@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"gem_power": 2.0}, {"pooling": "gem"}),
        ({"triplet_gamma": 0.02}, {"triplet": "squared"}),
        ({"triplet_alpha": 2.0}, {"triplet": "squared"}),
        ({"triplet_gamma": 0.02, "triplet": "weighted"}, {"triplet": "squared"}),
        ({"margin": 0.5, "triplet": "weighted"}, {"triplet": "hetero-centre"}),
        ({"margin": 0.5, "triplet": "squared"}, {"triplet": "hard"}),
    ],
    ids=str,
)
def test_a_method_s_field_that_does_nothing_is_an_error(
    kind: type, fields: dict[str, Any], needed: dict[str, str]
) -> None:
    """It names the field and the one that switches it off."""
    name, (switch, value) = next(iter(fields)), next(iter(needed.items()))
    with pytest.raises(ValueError, match=rf"model\.{name}: does nothing with model\.{switch}="):
        kind(**fields)
    assert getattr(kind(**fields | {switch: value}), name) == fields[name]


def test_a_power_below_one_is_an_error() -> None:
    """Its gradient at 0 is infinite."""
    with pytest.raises(ValueError, match=r"model\.gem_power: must be at least 1"):
        BaselineConfig(pooling="gem", gem_power=0.5)
    assert BaselineConfig(pooling="gem", gem_power=1.0).gem_power == 1


def test_a_subclass_s_own_default_is_not_an_error() -> None:
    """It was not set, whatever the triplet is."""

    @dataclasses.dataclass(frozen=True)
    class Gentle(BaselineConfig):
        triplet_gamma: float = 0.02

    assert Gentle().triplet_gamma == 0.02
    with pytest.raises(ValueError, match=r"model\.triplet_gamma: does nothing"):
        Gentle(triplet_gamma=1.0)


def test_every_section_is_covered() -> None:
    assert {field.name for field in dataclasses.fields(Config)} == set(SECTIONS)


def changed() -> Config:
    return Config(
        data=DataConfig(dir="elsewhere", image_height=96, image_width=48, holdout_identities=3),
        augment=AugmentConfig(erasing=0.5, erasing_fill=(0.0, 0.0, 0.0), visible_channels="grey"),
        model=DDAGConfig(
            backbone="resnet18", graph_neighbours=4, part_neck=False, graph_weight=0.5
        ),
        optimizer=OptimizerConfig(drop_epochs=(30, 50)),
        training=TrainingConfig(steps_per_epoch=5, views=3, mapping="pmap"),
    )


@pytest.mark.parametrize(
    "config",
    [Config(), changed(), Config(model=BaselineConfig(width=32))],
    ids=["default", "changed", "baseline"],
)
def test_through_json_and_back(config: Config) -> None:
    stored = json.loads(json.dumps(to_dict(config)))
    again, missing = from_dict(stored, type(config.model))
    assert again == config
    assert missing == []
    assert hash(again) == hash(config)  # tuples are tuples again


def test_an_unknown_field_is_an_error_that_names_it() -> None:
    values = to_dict(Config())
    values["model"]["partz"] = 3
    with pytest.raises(ValueError, match=r"model\.partz: unknown"):
        from_dict(values, DDAGConfig)
    with pytest.raises(ValueError, match="extra: unknown"):
        from_dict(to_dict(Config()) | {"extra": {}}, DDAGConfig)


def test_a_missing_field_takes_its_default_and_is_named() -> None:
    values = to_dict(changed())
    del values["training"]["mapping"], values["optimizer"]
    config, missing = from_dict(values, DDAGConfig)
    assert config.training == TrainingConfig(steps_per_epoch=5, views=3)
    assert config.optimizer == OptimizerConfig()
    fields = [f"optimizer.{field.name}" for field in dataclasses.fields(OptimizerConfig)]
    assert missing == [*fields, "training.mapping"]


@dataclasses.dataclass(frozen=True)
class OwnConfig:
    """What somebody's own method takes."""

    temperature: float = 0.5
    names: tuple[str, ...] = ()

    def build(self, classes: int, axis_name: str | None) -> Any:
        raise NotImplementedError


def test_a_method_of_ones_own_goes_in_and_is_checked() -> None:
    config = Config(model=OwnConfig(names=("a",)))
    assert method_name(config.model) == "OwnConfig"
    stored = json.loads(json.dumps(to_dict(config)))
    assert from_dict(stored, OwnConfig) == (config, [])
    with pytest.raises(ValueError, match=r"model\.temperature: 'hot' is not of the kind"):
        Config(model=OwnConfig(temperature="hot"))
    with pytest.raises(ValueError, match="model: TrainingConfig is neither"):
        Config(model=TrainingConfig())


def test_differences() -> None:
    assert differences(Config(), Config()) == {}
    assert differences(Config(), changed()) == {
        "data.dir": ("data", "elsewhere"),
        "data.image_height": (288, 96),
        "data.image_width": (144, 48),
        "data.holdout_identities": (0, 3),
        "augment.erasing": (0.0, 0.5),
        "augment.erasing_fill": ((0.4914, 0.4822, 0.4465), (0.0, 0.0, 0.0)),
        "augment.visible_channels": ("none", "grey"),
        "model.backbone": ("resnet50", "resnet18"),
        "model.graph_neighbours": (None, 4),
        "model.part_neck": (True, False),
        "model.graph_weight": (None, 0.5),
        "optimizer.drop_epochs": ((20, 50), (30, 50)),
        "training.steps_per_epoch": (None, 5),
        "training.views": (2, 3),
        "training.mapping": ("shard_map", "pmap"),
    }


def test_the_defaults_are_the_codes() -> None:
    """The settings that made the published numbers."""
    config = Config()
    assert (config.data.image_height, config.data.image_width) == (288, 144)
    assert config.data.train_on == "train+val"
    model = config.model
    assert (model.backbone, model.width, model.parts) == ("resnet50", 64, 3)
    assert (model.part_aggregation, model.part_residual, model.part_neck) == (
        "weighted",
        "bn",
        True,
    )
    assert (model.graph_heads, model.graph_head_dim, model.graph_dropout) == (4, 512, 0.2)
    assert model.part_attention
    assert model.graph_attention
    assert model.graph_neighbours is None
    assert (model.margin, model.graph_reduction, model.graph_weight) == (0.3, "mean", None)
    assert config.optimizer == OptimizerConfig(0.1, 0.1, 0.9, True, 5e-4, 10, (20, 50), 0.1)
    training = config.training
    assert (training.epochs, training.identities_per_batch, training.images_per_identity) == (
        81,
        8,
        4,
    )
    assert (config.augment.padding, config.augment.flip) == (10, True)
    assert config.augment.erasing == 0
    assert (config.augment.visible_channels, config.augment.infrared_channels) == ("none", "none")
    assert training.views == 2
