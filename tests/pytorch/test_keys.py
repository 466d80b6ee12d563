"""The layouts: shapes by rule, each key mapped or ignored, none both."""

import json

import jax
import numpy as np
import pytest

from ddag_jax.config import BaselineConfig, DDAGConfig
from ddag_jax.methods.build import build_method
from ddag_jax.pytorch.keys import (
    Dimensions,
    agw_table,
    reference_table,
    to_variables,
    torchvision_table,
)

SMALL = Dimensions(classes=5, parts=4, heads=2, head_dim=16)


def test_the_reference_has_these_991_keys(golden_dir):
    recorded = json.loads((golden_dir / "state_dict_shapes.json").read_text())
    table = reference_table(Dimensions())
    assert table.shapes == {key: tuple(shape) for key, shape in recorded.items()}
    assert len(table.shapes) == 991


def test_agw_has_these_1025_keys(golden_dir):
    recorded = json.loads((golden_dir / "agw_state_dict_shapes.json").read_text())
    table = agw_table(10)
    assert table.shapes == {key: tuple(shape) for key, shape in recorded.items()}
    assert len(table.shapes) == 1025


TABLES = {
    "reference": reference_table(SMALL),
    "agw": agw_table(5),
    "agw, half": agw_table(5, "half"),
    "baseline": agw_table(5, "none"),
    "resnet50": torchvision_table("resnet50"),
    "resnet18": torchvision_table("resnet18"),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_key_is_mapped_or_ignored(table):
    assert not set(table.mapped) & set(table.ignored)
    assert set(table.shapes) <= set(table.mapped) | set(table.ignored)
    assert set(table.mapped) | set(table.zeros) <= set(table.shapes)


@pytest.mark.parametrize(
    ("name", "config", "heads"),
    [
        (
            "reference",
            DDAGConfig(parts=4, graph_heads=2, graph_head_dim=16),
            ("neck", "classifier", "iwpa", "cgsa"),
        ),
        ("agw", BaselineConfig(non_local="one"), ("neck", "classifier")),
        ("agw, half", BaselineConfig(non_local="half"), ("neck", "classifier")),
        ("baseline", BaselineConfig(), ("neck", "classifier")),
        ("resnet50", DDAGConfig(), ()),
        ("resnet18", DDAGConfig(backbone="resnet18"), ()),
    ],
)
def test_the_mapped_keys_fill_our_network(name, config, heads):
    table = TABLES[name]
    arrays = {key: np.broadcast_to(np.float32(0), table.shapes[key]) for key in table.mapped}
    filled = jax.tree.map(np.shape, to_variables(arrays, table.mappings))
    variables = jax.eval_shape(lambda: build_method(config, 5).init(jax.random.key(0), (32, 16)))
    wanted = {
        collection: {
            part: jax.tree.map(lambda x: x.shape, tree)
            for part, tree in parts.items()
            if part in ("two_stream", *heads)
        }
        for collection, parts in variables.items()
    }
    assert filled == wanted
