"""The figures recorded from the PyTorch reference: any folder of such cases, `--golden DIR`."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddag_jax.evaluation.protocols import sysu_gallery, sysu_query
from ddag_jax.evaluation.ranking import rank
from ddag_jax.losses import batch_hard_triplet
from ddag_jax.methods.ddag.model import DDAG
from ddag_jax.pytorch.keys import Row, reference_rows, to_state_dict, to_variables
from ddag_jax.training.optimizer import sgd
from ddag_jax.training.state import new_state
from ddag_jax.training.step import make_update

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


def weights_module(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_weights", folder / "golden_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case_shapes(recorded_shapes: dict[str, list[int]], case: dict) -> dict[str, list[int]]:
    """The recorded case's shapes with another number of classes, parts, heads and head width."""
    classes, heads, width = case["classes"], case["heads"], case["head_dim"]
    shapes = {k: v for k, v in recorded_shapes.items() if not k.startswith("attention_")}
    channels = shapes["classifier.weight"][1]
    shapes["classifier.weight"] = [classes, channels]
    shapes["wpa.gate"] = [case["parts"]]
    shapes["out_att.W"], shapes["out_att.a"] = [heads * width, classes], [2 * classes, 1]
    for head in range(heads):
        shapes[f"attention_{head}.W"] = [channels, width]
        shapes[f"attention_{head}.a"] = [2 * width, 1]
    return shapes


@pytest.fixture(scope="module")
def shared_golden(golden_dir: Path) -> Path:
    """Where the rules behind the cases lie, wherever the cases themselves do."""
    folder = Path(__file__).parents[2] / "shared" / "golden"
    if not (folder / "golden_weights.py").is_file():
        pytest.skip(f"{folder} holds no golden_weights.py to rebuild the weights with")
    return folder


class Run:
    """Our network on one recorded case, in one dtype, and what it was recorded to give."""

    def __init__(self, file: Path, shared: Path, dtype: type) -> None:
        with np.load(file, allow_pickle=False) as archive:
            self.recorded = {key: archive[key] for key in archive.files}
        self.case = case = json.loads(str(self.recorded["case"]))
        golden = weights_module(shared)
        shapes = case_shapes(json.loads((shared / "state_dict_shapes.json").read_text()), case)
        self.rows: list[Row] = reference_rows(case["heads"])
        state_dict = {
            key: golden.weight(key, shapes[key], case["seed"])
            for row in self.rows
            for key in row.keys
        }
        variables = to_variables(state_dict, self.rows)
        self.variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        self.labels = jnp.asarray(case["labels"], jnp.int32)
        half, size = len(case["labels"]) // 2, (case["height"], case["width"])
        self.images = {
            modality: jnp.asarray(
                golden.images(modality, half, *size, case["seed"]).transpose(0, 2, 3, 1), dtype
            )
            for modality in ("visible", "infrared")
        }
        self.model = DDAG(
            classes=case["classes"],
            parts=case["parts"],
            graph_heads=case["heads"],
            graph_head_dim=case["head_dim"],
            dtype=dtype,
        )
        self.bounds = BOUNDS[dtype]
        self.faults: list[str] = []

    def compare(self, kind: str, name: str, ours: np.ndarray, floor: float = 0.0) -> None:
        difference = relative(ours, self.recorded[name], floor)
        if not difference <= self.bounds[kind]:
            self.faults.append(f"{name}: {difference:.1e} > {self.bounds[kind]:.0e}")

    def check_embeddings(self, variables: dict, kind: str, prefix: str) -> None:
        embed = jax.jit(
            lambda variables, images, modality: self.model.apply(
                variables, images, modality, method="embed"
            ),
            static_argnums=2,
        )
        for modality, images in self.images.items():
            features = embed(variables, images, modality)
            self.compare(kind, f"{prefix}/{modality}/global", features.global_feature)
            self.compare(kind, f"{prefix}/{modality}/part", features.part_feature)

    def check_outputs(self) -> None:
        output, _ = jax.jit(
            lambda variables: self.model.apply(
                variables,
                self.images["visible"],
                self.images["infrared"],
                self.labels,
                None,
                mutable=["batch_stats"],
            )
        )(self.variables)
        for name in ("pooled", "global_logits", "part_logits", "graph_log_probs"):
            self.compare("outputs", f"train/{name}", getattr(output, name))
        correct = batch_hard_triplet(output.pooled, self.labels, 0.3).correct
        assert int(correct) == int(self.recorded["train/triplet_correct"])

    def check_heads(self, kind: str, prefix: str, variables: dict, floor: float = 0.0) -> None:
        """Norm and first 32 values, in PyTorch's layout, of each recorded key."""
        arrays = to_state_dict(variables, self.rows)
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
        update = jax.jit(
            make_update(
                self.model,
                optimizer,
                margin=0.3,
                graph_reduction="mean",
                dynamic_weight=True,
                steps_per_epoch=case["steps_per_epoch"],
                nonfinite_limit=1,
            )
        )
        state = new_state(self.variables, optimizer, graph_weight=0.0, seed=0)
        losses, weights, gradients = [], [], {}
        for step in range(case["epochs"] * case["steps_per_epoch"]):
            if step % case["steps_per_epoch"] == 0:
                weights.append(state.graph_weight)
            state, terms, gradient = update(
                state, self.images["visible"], self.images["infrared"], self.labels, None
            )
            losses.append(np.stack(terms[:6]))  # as recorded; the coefficient follows
            if step == case.get("grad_at", 0):
                gradients = {"params": gradient}
        weights.append(state.graph_weight)
        self.compare("losses", "losses", np.stack(losses))
        first = relative(losses[0], recorded["losses"][0])
        assert first <= self.bounds["first losses"], f"first losses: {first:.1e}"
        self.compare("graph weight", "graph_weight", np.stack(weights))
        largest = max(float(recorded[k]) for k in recorded if k.startswith("grad_norm/"))
        self.check_heads("gradients", "grad", gradients, GRADIENT_FLOOR * largest)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        self.check_heads("parameters", "final", variables)
        return variables


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case of the folder, found by its name. Without a folder one test of each kind remains,
    for the fixture golden_dir to skip."""
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
    for name, cases in found.items():
        if name in metafunc.fixturenames:
            ids = ["-".join(map(str, np.ravel(case))).rpartition("/")[2] for case in cases]
            metafunc.parametrize(name, cases or [None], ids=ids or ["none"])


def test_metrics(metrics_group: tuple[Path, str], golden_dir: Path) -> None:
    """CMC, mAP and mINP of recorded features."""
    file, group = metrics_group
    with np.load(file, allow_pickle=False) as archive:
        recorded = {
            key.split("/")[1]: archive[key] for key in archive if key.startswith(f"{group}/")
        }
    expected = {key: recorded.pop(key) for key in ("cmc", "mAP", "mINP")}
    metrics = rank(**recorded, camera_rule="sysu" if group.startswith("sysu") else "none")
    for key, value in expected.items():
        np.testing.assert_allclose(getattr(metrics, key), value, rtol=0, atol=1e-6, err_msg=key)


def test_gallery(gallery_file: Path, golden_dir: Path) -> None:
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
    assert names[sysu_query(identities, cameras, names)].tolist() == recorded["query"]
    for key, gallery in recorded["trials"].items():
        mode, trial = key.split("/")
        drawn = sysu_gallery(
            identities, cameras, names, mode=mode, shots="single", trial=int(trial)
        )
        assert names[drawn].tolist() == gallery, key


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_network(case_file: Path, golden_dir: Path, shared_golden: Path, dtype: type) -> None:
    """Embeddings, training outputs, losses, gradients, coefficient, state after training."""
    with jax.enable_x64(dtype is np.float64):
        run = Run(case_file, shared_golden, dtype)
        run.check_embeddings(run.variables, "embeddings", "eval")
        run.check_outputs()
        trained = run.check_training()
        run.check_embeddings(trained, "final embeddings", "final")
    assert not run.faults, "\n".join(run.faults)
