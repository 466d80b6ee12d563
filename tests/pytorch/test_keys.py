"""The layouts: shapes by rule, each key mapped or ignored, none both."""

import json

import jax
import numpy as np
import pytest

from ddag_jax.config import DDAGConfig
from ddag_jax.methods.ddag.method import DDAG
from ddag_jax.pytorch.keys import Dimensions, reference_layout, to_variables, torchvision_layout

SMALL = Dimensions(classes=5, parts=4, heads=2, head_dim=16)


def test_the_reference_has_these_991_keys(golden_dir):
    recorded = json.loads((golden_dir / "state_dict_shapes.json").read_text())
    layout = reference_layout(Dimensions())
    assert layout.shapes == {key: tuple(shape) for key, shape in recorded.items()}
    assert len(layout.shapes) == 991


LAYOUTS = {
    "reference": reference_layout(SMALL),
    "resnet50": torchvision_layout("resnet50"),
    "resnet18": torchvision_layout("resnet18"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_key_is_mapped_or_ignored(layout):
    assert not set(layout.mapped) & set(layout.ignored)
    assert set(layout.shapes) <= set(layout.mapped) | set(layout.ignored)
    assert set(layout.mapped) | set(layout.zeros) <= set(layout.shapes)


@pytest.mark.parametrize(
    ("name", "config", "heads"),
    [
        (
            "reference",
            DDAGConfig(parts=4, graph_heads=2, graph_head_dim=16),
            ("neck", "classifier", "iwpa", "cgsa"),
        ),
        ("resnet50", DDAGConfig(), ()),
        ("resnet18", DDAGConfig(backbone="resnet18"), ()),
    ],
)
def test_the_mapped_keys_fill_our_network(name, config, heads):
    layout = LAYOUTS[name]
    arrays = {key: np.broadcast_to(np.float32(0), layout.shapes[key]) for key in layout.mapped}
    filled = jax.tree.map(np.shape, to_variables(arrays, layout.rows))
    variables = jax.eval_shape(lambda: DDAG(config, 5).init(jax.random.key(0), (32, 16)))
    wanted = {
        collection: {
            part: jax.tree.map(lambda x: x.shape, tree)
            for part, tree in parts.items()
            if part in ("two_stream", *heads)
        }
        for collection, parts in variables.items()
    }
    assert filled == wanted
