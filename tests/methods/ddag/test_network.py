"""The assembly: which branch is there, what is shared, in which dtype, and how it starts."""

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.losses import cross_entropy, negative_log_likelihood
from ddag_jax.methods.ddag.graph_attention import GraphAttention
from ddag_jax.methods.ddag.method import DDAG
from ddag_jax.methods.ddag.network import TrainingOutput
from tests.models import tiny

COUNT = 8
LABELS = np.tile(np.repeat(np.arange(4), 2), 2).astype(np.int32)


def dtypes(tree: Any) -> set:
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


def train(method: DDAG, variables: dict, visible: Any, infrared: Any) -> tuple:
    return method.network.apply(
        variables, visible, infrared, jnp.array(LABELS), None, mutable=["batch_stats"]
    )


def shapes_of(method: DDAG) -> tuple[dict, TrainingOutput, dict]:
    """Of the variables, the training outputs and the embeddings, nothing being computed."""
    variables = tiny.shapes(method)
    images = jax.ShapeDtypeStruct((COUNT, tiny.HEIGHT, tiny.WIDTH, 3), jnp.result_type(float))
    output, changed = jax.eval_shape(functools.partial(train, method), variables, images, images)
    assert jax.tree.structure(changed["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )
    embeddings = jax.eval_shape(
        functools.partial(method.embed, modality="visible"), variables, images
    )
    return variables, output, embeddings


# ------------------------------------------------------------------------------------ branches


@pytest.mark.parametrize("graph", [True, False], ids=["G", "no G"])
@pytest.mark.parametrize("part", [True, False], ids=["P", "no P"])
def test_branches(part: bool, graph: bool) -> None:
    """What is off gives None and has neither parameters nor statistics."""
    variables, output, embeddings = shapes_of(
        tiny.method(part_attention=part, graph_attention=graph)
    )
    heads = {"two_stream", "neck", "classifier"}
    used = heads | ({"iwpa"} if part else set()) | ({"cgsa"} if graph else set())
    assert set(variables["params"]) == used
    assert set(variables["batch_stats"]) == used - {"classifier", "cgsa"}
    assert output.pooled.shape == (2 * COUNT, 64)
    logits = (2 * COUNT, tiny.CLASSES)
    assert output.global_logits.shape == logits
    assert getattr(output.part_logits, "shape", None) == (logits if part else None)
    assert getattr(output.graph_log_probs, "shape", None) == (logits if graph else None)
    expected = {"global": (COUNT, 64)} | ({"part": (COUNT, 64)} if part else {})
    assert {name: feature.shape for name, feature in embeddings.items()} == expected


def test_parameters_of_the_branches() -> None:
    """The unused layers of the reference are not there, and necks have no shift."""
    params = tiny.shapes(tiny.method(parts=3))["params"]
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            {name: params[name] for name in ("neck", "classifier", "iwpa", "cgsa")}
        )
    }
    linear = {
        f"iwpa/{name}/{kind}": shape
        for name in "uvz"
        for kind, shape in (("kernel", (64, 64)), ("bias", (64,)))
    }
    assert names == linear | {
        "neck/scale": (64,),
        "classifier/kernel": (64, tiny.CLASSES),
        "iwpa/gate": (3,),
        "iwpa/neck/scale": (64,),
        "cgsa/heads/kernel": (2, 64, 8),
        "cgsa/heads/a": (2, 16, 1),
        "cgsa/output/kernel": (1, 16, tiny.CLASSES),
        "cgsa/output/a": (1, 2 * tiny.CLASSES, 1),
    }


def test_concatenation_has_a_classifier_of_its_own() -> None:
    variables, output, embeddings = shapes_of(tiny.method(part_aggregation="concatenation"))
    params = variables["params"]
    assert params["classifier"]["kernel"].shape == (64, tiny.CLASSES)
    assert params["part_classifier"]["kernel"].shape == (2 * 64, tiny.CLASSES)
    assert output.part_logits.shape == (2 * COUNT, tiny.CLASSES)
    assert embeddings["part"].shape == (COUNT, 2 * 64)


def test_resnet50_is_two_thousand_channels_wide() -> None:
    variables, output, _ = shapes_of(tiny.method(backbone="resnet50", width=64))
    assert output.pooled.shape == (2 * COUNT, 2048)
    assert variables["params"]["iwpa"]["u"]["kernel"].shape == (2048, 2048)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float32, jnp.float64], ids=lambda d: d.__name__
)
def test_nothing_but_the_products_is_narrower_than_float32(dtype: Any) -> None:
    with jax.enable_x64(dtype is jnp.float64):
        wide = {jnp.promote_types(dtype, jnp.float32)}
        name = "bfloat16" if dtype is jnp.bfloat16 else "float32"
        variables, output, embeddings = shapes_of(tiny.method(compute_dtype=name))
    assert dtypes(variables) == dtypes(output) == dtypes(embeddings) == wide


# -------------------------------------------------------------------------------------- values


@pytest.fixture(scope="module")
def variables() -> dict:
    return tiny.random_variables(tiny.method())


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    shape = (2, COUNT, tiny.HEIGHT, tiny.WIDTH, 3)
    visible, infrared = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return visible, infrared


@functools.cache
def compiled(compute_dtype: str) -> Any:
    """Training and embedding in one program: training output, statistics, embeddings."""
    method = tiny.method(compute_dtype=compute_dtype)

    def both(variables: dict, visible: jax.Array, infrared: jax.Array) -> tuple:
        output, changed = train(method, variables, visible, infrared)
        return output, changed["batch_stats"], method.embed(variables, visible, "visible")

    return jax.jit(both)


def test_one_classifier_reads_both_features(variables: dict, images: tuple) -> None:
    """Doubling it doubles the global and the part logits, and changes nothing else."""
    doubled = variables | {
        "params": variables["params"]
        | {"classifier": {"kernel": 2 * variables["params"]["classifier"]["kernel"]}}
    }
    before, _, features = compiled("float32")(variables, *images)
    after, _, features_after = compiled("float32")(doubled, *images)
    np.testing.assert_allclose(after.global_logits, 2 * before.global_logits, rtol=1e-5)
    np.testing.assert_allclose(after.part_logits, 2 * before.part_logits, rtol=1e-5)
    np.testing.assert_array_equal(after.graph_log_probs, before.graph_log_probs)
    chex.assert_trees_all_equal(features, features_after)


def test_outputs(variables: dict, images: tuple) -> None:
    output, stats, features = compiled("float32")(variables, *images)
    for feature in features.values():
        np.testing.assert_allclose(np.linalg.norm(feature, axis=1), 1, rtol=1e-5)
    assert not np.allclose(features["global"], features["part"], atol=0.01)
    np.testing.assert_allclose(np.exp(output.graph_log_probs).sum(1), 1, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_bfloat16_is_close_to_float32(variables: dict, images: tuple) -> None:
    """As vectors: within a few per cent of a layer's eight bits after twenty layers."""
    narrow = compiled("bfloat16")(variables, *images)
    wide = compiled("float32")(variables, *images)
    for one, other in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.linalg.norm(one - other) < 0.1 * np.linalg.norm(other)
        assert not np.array_equal(one, other)


@pytest.mark.slow
def test_a_second_visible_view_has_no_node_in_the_graph(variables: dict, images: tuple) -> None:
    """Its keys are not those of the dropout either; all other losses are over the three views."""
    method, config = tiny.method(), tiny.method().config
    second = np.random.default_rng(1).normal(size=images[0].shape).astype(np.float32)
    visible, infrared = np.concatenate([images[0], second]), images[1]
    labels = jnp.array(np.tile(LABELS[:COUNT], 3))
    keys = jax.random.split(jax.random.key(2), 3 * COUNT)
    output, _ = jax.jit(functools.partial(method.network.apply, mutable=["batch_stats"]))(
        variables, visible, infrared, labels, keys
    )
    assert output.part_logits.shape == output.global_logits.shape == (3 * COUNT, tiny.CLASSES)
    nodes = np.r_[:COUNT, 2 * COUNT : 3 * COUNT]
    graph = GraphAttention(
        tiny.CLASSES, config.graph_heads, config.graph_head_dim, config.graph_dropout
    )
    expected = graph.apply(
        {"params": variables["params"]["cgsa"]}, output.pooled[nodes], labels[nodes], keys[nodes]
    )
    np.testing.assert_allclose(output.graph_log_probs, expected, rtol=1e-4, atol=1e-5)

    is_visible = jnp.arange(3 * COUNT) < 2 * COUNT
    _, terms = method.output_loss(output, labels, is_visible, method.memory())
    np.testing.assert_allclose(terms["part"], cross_entropy(output.part_logits, labels), rtol=1e-6)
    graph_loss = negative_log_likelihood(expected, labels[nodes])
    np.testing.assert_allclose(terms["graph"], graph_loss, rtol=1e-4)


# ------------------------------------------------------------------------------ initialisation


@pytest.fixture(scope="module")
def fresh() -> dict:
    """Heads as wide as published, so that statistics have something to count."""
    method = tiny.method(classes=395, width=32, parts=3, graph_heads=4, graph_head_dim=512)
    return jax.jit(method.init, static_argnums=1)(jax.random.key(0), (tiny.HEIGHT, tiny.WIDTH))


def check_moments(x: Any, mean: float, std: float) -> None:
    """Within five standard errors of a normal sample of this size."""
    x = np.asarray(x, np.float64)
    assert abs(x.mean() - mean) < 5 * std / math.sqrt(x.size)
    assert abs(x.std() / std - 1) < 5 / math.sqrt(2 * x.size)


def check_normal(x: Any, mean: float, std: float) -> None:
    check_moments(x, mean, std)
    assert np.abs(np.asarray(x) - mean).max() > 2 * std  # no uniform


def check_uniform(x: Any, bound: float) -> None:
    check_moments(x, 0, bound / math.sqrt(3))
    assert np.abs(x).max() <= bound


def test_convolutions_start_as_resnets(fresh: dict) -> None:
    """N(0, sqrt(2 / (k^2 * out)))."""
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(fresh["params"]["two_stream"])
        if path[-1].key == "kernel"
    ]
    assert len(kernels) == 2 + 16 + 3
    for kernel in kernels:
        k, _, _, out = kernel.shape
        check_normal(kernel, 0, math.sqrt(2 / (k * k * out)))


def test_normalisations_start_as_the_identity(fresh: dict) -> None:
    expected = {"scale": 1, "bias": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh["params"]["two_stream"]):
        if path[-1].key in expected:
            np.testing.assert_array_equal(leaf, expected[path[-1].key])
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh["batch_stats"]):
        np.testing.assert_array_equal(leaf, {"mean": 0, "var": 1}[path[-1].key])


def test_heads_start_as_the_reference(fresh: dict) -> None:
    params = fresh["params"]
    check_normal(params["classifier"]["kernel"], 0, 0.001)
    check_normal(params["neck"]["scale"], 1, 0.01)
    check_normal(params["iwpa"]["neck"]["scale"], 1, 0.01)
    np.testing.assert_allclose(params["iwpa"]["gate"], 1 / 3, rtol=1e-6)
    for name in "uvz":  # PyTorch's own: the bias too
        check_uniform(params["iwpa"][name]["kernel"], 256**-0.5)
        check_uniform(params["iwpa"][name]["bias"], 256**-0.5)
    for layer in ("heads", "output"):  # Xavier, gain 1.414, each head by itself
        for name in ("kernel", "a"):
            for head in params["cgsa"][layer][name]:
                check_uniform(head, 1.414 * math.sqrt(6 / sum(head.shape)))


def test_no_two_parameters_start_alike(fresh: dict) -> None:
    """Heads and layers each draw their own; but the stems start equal, as pretrained ones do."""
    params = dict(fresh["params"])
    streams = dict(params.pop("two_stream"))
    chex.assert_trees_all_equal(streams["visible"], streams.pop("infrared"))
    params |= streams
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if np.unique(leaf).size > 1]
    leaves = [head for leaf in leaves for head in (leaf if leaf.ndim == 3 else [leaf])]
    starts = {tuple((np.ravel(leaf)[:3] / np.std(leaf)).round(4).tolist()) for leaf in leaves}
    assert len(starts) == len(leaves)
