"""Agreement with figures recorded from the authors' code: tests/golden, or `--golden DIR`."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.config import BaselineConfig, DDAGConfig, EvaluationConfig
from ddag_jax.datasets.find import DATASETS
from ddag_jax.evaluation.protocols import Images, Search, rank_draws, searches
from ddag_jax.methods.base import View, by_modality
from ddag_jax.methods.baseline import Baseline
from ddag_jax.methods.ddag.method import DDAG
from ddag_jax.pytorch.keys import (
    Dimensions,
    KeyTable,
    agw_table,
    reference_table,
    to_state_dict,
    to_variables,
)
from ddag_jax.training.optimizer import sgd
from ddag_jax.training.state import TrainState, new_state
from ddag_jax.training.step import make_update
from tests.golden import inputs
from tests.programs import compiled

# Relative bounds (norm of the difference over the norm of the recorded array).
BOUNDS = {
    np.float64: {
        "embeddings": 1e-11,
        "outputs": 1e-11,
        "first losses": 1e-11,
        "losses": 1e-10,
        "graph weight": 1e-10,
        "gradients": 1e-7,
        "parameters": 1e-10,
        "final embeddings": 1e-10,
    },
    np.float32: {
        "embeddings": 5e-5,
        "outputs": 5e-5,
        "first losses": 2e-3,
        "losses": 2e-3,
        "graph weight": 2e-3,
        "gradients": np.inf,  # rounding alone moves them by up to 0.6
        "parameters": 5e-3,
        "final embeddings": 2e-2,
    },
}
GRADIENT_FLOOR = 1e-6  # of the case's largest gradient norm


def relative(ours: np.ndarray, recorded: np.ndarray, floor: float = 0.0) -> float:
    """Norm of the difference over that of the recorded figure; exact where the latter is zero."""
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    assert ours.shape == recorded.shape
    difference, size = np.linalg.norm(ours - recorded), np.linalg.norm(recorded)
    if difference == 0:
        return 0.0
    return float(np.inf if max(size, floor) == 0 else difference / max(size, floor))


def network_of(case: dict) -> tuple[Baseline | DDAG, KeyTable]:
    """Return the method that a case describes, and the keys of the authors' network."""
    classes = case["classes"]
    if (name := case.get("method", "ddag")) == "ddag":
        config = DDAGConfig(
            parts=case["parts"], graph_heads=case["heads"], graph_head_dim=case["head_dim"]
        )
        sizes = {size: case[size] for size in ("parts", "heads", "head_dim")}
        return DDAG(config, classes), reference_table(Dimensions(classes=classes, **sizes))
    agw = name in ("agw", "caj")
    if not agw and name != "base":
        pytest.fail(f"a case of {name}, which is not implemented")
    non_local = "one" if agw else "none"
    factors = {f"triplet_{k}": float(case[k]) for k in ("alpha", "gamma") if k in case}
    baseline = BaselineConfig(
        pooling="gem" if agw else "mean",
        non_local=non_local,
        triplet=case.get("triplet", "hard"),
        **factors,
    )
    return Baseline(baseline, classes), agw_table(classes, non_local)


class Run:
    """Our network on one recorded case, in one dtype, and what it was recorded to give."""

    def __init__(self, file: Path, dtype: type) -> None:
        with np.load(file, allow_pickle=False) as archive:
            self.recorded = {key: archive[key] for key in archive.files}
        self.case = case = json.loads(str(self.recorded["case"]))
        self.method, table = network_of(case)
        self.mappings = table.mappings
        state_dict = {
            key: inputs.weight(key, table.shapes[key], case["seed"])
            for mapping in self.mappings
            for key in mapping.keys
        }
        variables = to_variables(state_dict, self.mappings)
        self.variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        names = {2: ("visible", "infrared"), 3: ("visible", "augmented", "infrared")}
        views = names[case.get("views", 2)]
        count, size = len(case["labels"]) // len(views), (case["height"], case["width"])
        images = {
            name: jnp.asarray(
                inputs.images(name, count, *size, case["seed"]).transpose(0, 2, 3, 1), dtype
            )
            for name in views
        }
        labels = jnp.asarray(case["labels"], jnp.int32).reshape(len(views), count)
        self.views = tuple(
            View("infrared" if name == "infrared" else "visible", images[name], row)
            for name, row in zip(views, labels, strict=True)
        )
        self.images = {name: images[name] for name in ("visible", "infrared")}
        self.embed = compiled(self.method.embed, static_argnums=2)
        self.bounds = BOUNDS[dtype]
        self.faults: list[str] = []

    def compare(self, kind: str, name: str, ours: np.ndarray, floor: float = 0.0) -> None:
        difference = relative(ours, self.recorded[name], floor)
        if not difference <= self.bounds[kind]:
            self.faults.append(f"{name}: {difference:.1e} > {self.bounds[kind]:.0e}")

    def check_embeddings(self, variables: dict, kind: str, prefix: str) -> None:
        for modality, images in self.images.items():
            for name, feature in self.embed(variables, images, modality).items():
                self.compare(kind, f"{prefix}/{modality}/{name}", feature)

    def outputs(self, variables: dict, views: tuple[View, ...]) -> tuple:
        """The network's, in training mode."""
        images = by_modality(views)
        arguments = (images.visible, images.infrared)
        if not isinstance(self.method, Baseline):
            arguments += (images.labels, None)
        output, _ = self.method.network.apply(variables, *arguments, mutable=["batch_stats"])
        return tuple(output)

    def check_outputs(self, output: tuple) -> None:
        names = ("pooled", "global_logits", "part_logits", "graph_log_probs")
        for name, values in zip(names, output, strict=not isinstance(self.method, Baseline)):
            self.compare("outputs", f"train/{name}", values)

    def check_heads(self, kind: str, prefix: str, variables: dict, floor: float = 0.0) -> None:
        """Norm and first 32 values, in PyTorch's layout, of each recorded key."""
        arrays = to_state_dict(variables, self.mappings)
        names = [name for name in self.recorded if name.startswith(f"{prefix}_norm/")]
        for name in names:
            key = name.split("/", 1)[1]
            if key in ("bottleneck.bias", "wpa.bottleneck.bias"):  # none is trained, nor kept by us
                assert np.all(self.recorded[name] == 0)
                continue
            array = np.asarray(arrays[key], np.float64)
            self.compare(kind, name, np.linalg.norm(array), floor)
            self.compare(kind, f"{prefix}_head/{key}", array.ravel()[:32], floor)

    def check_training(self) -> dict:
        """Trains as the case says; returns the variables after the last step."""
        case, recorded = self.case, self.recorded
        optimizer = sgd(
            lambda _: case["lr"],
            backbone_scale=0.1,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
        )
        update = make_update(
            self.method,
            optimizer,
            axis_name=None,
            steps_per_epoch=case["steps_per_epoch"],
            nonfinite_limit=1,
        )

        @compiled
        def step_and_outputs(state: TrainState, views: tuple[View, ...]) -> tuple:
            """One program: the compiler merges the two passes through the network."""
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            return *update(state, views, None), self.outputs(variables, views)

        state = new_state(self.variables, optimizer, self.method.memory(), jax.random.key(0))
        names: tuple[str, ...] = ("identity", "triplet", "total")
        if "graph_weight" in recorded:
            names = ("identity", "triplet", "part", "graph", "without_graph", "total")
        losses, weights, gradients = [], [], {}
        for step in range(case["epochs"] * case["steps_per_epoch"]):
            if "graph_weight" in recorded and step % case["steps_per_epoch"] == 0:
                weights.append(state.memory["graph_weight"])
            state, outcome, gradient, output = step_and_outputs(state, self.views)
            if step == 0:
                self.check_outputs(output)
            losses.append(np.stack([outcome.terms[name] for name in names]))
            if step == case.get("grad_at", 0):
                gradients = {"params": gradient}
        self.compare("losses", "losses", np.stack(losses))
        first = relative(losses[0], recorded["losses"][0])
        assert first <= self.bounds["first losses"], f"first losses: {first:.1e}"
        if "graph_weight" in recorded:
            weights.append(state.memory["graph_weight"])
            self.compare("graph weight", "graph_weight", np.stack(weights))
        largest = max(float(recorded[k]) for k in recorded if k.startswith("grad_norm/"))
        self.check_heads("gradients", "grad", gradients, GRADIENT_FLOOR * largest)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        self.check_heads("parameters", "final", variables)
        return variables


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Find every case of the folder by its name; skip a kind of which it has none."""
    folder = Path(metafunc.config.getoption("--golden"))
    archives = sorted(folder.glob("*.npz"))
    metrics = [file for file in archives if file.name.endswith("metrics.npz")]
    found: dict[str, list] = {
        "case_file": [f for f in archives if f not in metrics and "case" in np.load(f).files],
        "gallery_file": sorted(folder.glob("*sysu_gallery.json")),
        "metrics_group": [
            (file, group)
            for file in metrics
            for group in sorted({key.split("/")[0] for key in np.load(file).files})
        ],
    }
    found["smallest_case"] = _smallest(found["case_file"])
    for name, cases in found.items():
        if name in metafunc.fixturenames:
            none = pytest.mark.skip(reason=f"{folder} has no {name.replace('_', ' ')}")
            ids = ["-".join(map(str, np.ravel(case))).rpartition("/")[2] for case in cases]
            metafunc.parametrize(
                name, cases or [pytest.param(None, marks=none)], ids=ids or ["none"]
            )


def _smallest(files: list[Path]) -> list[Path]:
    """Return the case with the fewest pixels of DDAG or the baseline, if any.

    Float32 cannot hold what AGW's non-local blocks make of weights that no training has scaled:
    the running statistics of a case are random, too, and normalise nothing.
    """
    pixels = {}
    for file in files:
        case = json.loads(str(np.load(file)["case"]))
        if case.get("method", "ddag") in ("ddag", "base"):
            pixels[file] = case["height"] * case["width"] * len(case["labels"])
    return [min(pixels, key=pixels.__getitem__)] if pixels else []


def test_metrics(metrics_group: tuple[Path, str]) -> None:
    """CMC, mAP and mINP of recorded features."""
    file, group = metrics_group
    with np.load(file, allow_pickle=False) as archive:
        recorded = {
            key.split("/")[1]: archive[key] for key in archive if key.startswith(f"{group}/")
        }
    expected = {key: recorded.pop(key) for key in ("cmc", "mAP", "mINP")}
    query, gallery = len(recorded["query_ids"]), len(recorded["gallery_ids"])
    features, identities, cameras = (
        np.concatenate([recorded[f"query_{name}"], recorded[f"gallery_{name}"]])
        for name in ("features", "ids", "cameras")
    )
    is_query = np.arange(query + gallery) < query
    search = Search(
        "infrared_to_visible",
        None,
        np.flatnonzero(is_query),
        [np.flatnonzero(~is_query)],
        DATASETS["sysu_mm01" if group.startswith("sysu") else "regdb"].camera_rule,
    )
    images = Images(identities, cameras, is_query, [""] * len(identities))
    (metrics,) = rank_draws(features, images, search, reranked=False)
    for key, value in expected.items():
        np.testing.assert_allclose(getattr(metrics, key), value, rtol=0, atol=1e-6, err_msg=key)


def test_gallery(gallery_file: Path) -> None:
    """The queries, and the gallery of each mode and trial, exactly and in order."""
    recorded = json.loads(gallery_file.read_text())
    listed = [
        (int(identity), int(camera.removeprefix("cam")), f"{camera}/{identity}/{number:04d}.jpg")
        for folder, count in recorded["images_per_folder"].items()
        for camera, identity in [folder.split("/")]
        if int(identity) in set(recorded["test_ids"])
        for number in range(1, count + 1)
    ]
    identities, cameras, names = (np.array(column) for column in zip(*listed, strict=True))
    images = Images(identities, cameras, np.isin(cameras, (3, 6)), names.tolist())
    found = {
        search.mode: search
        for search in searches(DATASETS["sysu_mm01"], images, EvaluationConfig(trials=10))
    }
    for key, gallery in recorded["trials"].items():
        mode, draw = key.split("/")
        assert names[found[mode].query].tolist() == recorded["query"]
        assert names[found[mode].galleries[int(draw)]].tolist() == gallery, key


@pytest.mark.slow  # compiles ResNet-50, forwards and backwards
def test_network(case_file: Path) -> None:
    """Embeddings, training outputs, losses, gradients, coefficient, state after training."""
    check_network(case_file, np.float64)


@pytest.mark.slow  # compiles ResNet-50, forwards and backwards
def test_network_in_float32(smallest_case: Path) -> None:
    """The same within float32's bounds, which show what a run rounds."""
    check_network(smallest_case, np.float32)


def check_network(case_file: Path, dtype: type) -> None:
    with jax.enable_x64(dtype is np.float64):
        run = Run(case_file, dtype)
        run.check_embeddings(run.variables, "embeddings", "eval")
        trained = run.check_training()
        run.check_embeddings(trained, "final embeddings", "final")
    assert not run.faults, "\n".join(run.faults)
