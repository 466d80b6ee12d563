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
def test_a_field_that_does_nothing_is_an_error(
    kind: type, fields: dict[str, Any], needed: dict[str, str]
) -> None:
    """It names the field and the one that switches it off."""
    name, (switch, value) = next(iter(fields)), next(iter(needed.items()))
    with pytest.raises(ValueError, match=rf"model\.{name}: does nothing with model\.{switch}="):
        kind(**fields)
    assert getattr(kind(**fields | {switch: value}), name) == fields[name]


def test_every_section_is_covered() -> None:
    assert {field.name for field in dataclasses.fields(Config)} == set(SECTIONS)


def changed() -> Config:
    return Config(
        data=DataConfig(dir="elsewhere", image_height=96, image_width=48, holdout_identities=3),
        model=DDAGConfig(
            backbone="resnet18", graph_neighbours=4, part_neck=False, graph_weight=0.5
        ),
        optimizer=OptimizerConfig(drop_epochs=(30, 50)),
        training=TrainingConfig(steps_per_epoch=5, mapping="pmap"),
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
    assert config.training == TrainingConfig(steps_per_epoch=5)
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
        "model.backbone": ("resnet50", "resnet18"),
        "model.graph_neighbours": (None, 4),
        "model.part_neck": (True, False),
        "model.graph_weight": (None, 0.5),
        "optimizer.drop_epochs": ((20, 50), (30, 50)),
        "training.steps_per_epoch": (None, 5),
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
