"""Files of features: evaluated as the features themselves are, or refused with the reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddag_jax.config import EvaluationConfig
from ddag_jax.datasets.find import DATASETS, find_dataset
from ddag_jax.datasets.folder import FOLDER
from ddag_jax.errors import UserError
from ddag_jax.evaluation.protocols import Images, score, searches
from ddag_jax.evaluation.stored_features import load_features, save_features

NAMES = {
    "sysu_mm01": lambda i, c, ir, n: f"cam{c}/{i:04d}/{n:04d}.jpg",
    "regdb": lambda i, c, ir, n: f"{'Thermal' if ir else 'Visible'}/{i}/{n}.bmp",
    "folder": lambda i, c, ir, n: f"{n}.png",
    "llcm": lambda i, c, ir, n: f"test_{'nir' if ir else 'vis'}/cam{c}/{i:04d}/{n}.jpg",
}


def people(dataset: str) -> tuple[np.ndarray, Images]:
    """Five identities, two images in each of two visible and two infrared cameras, shuffled."""
    cameras = {"sysu_mm01": (1, 2, 3, 6), "regdb": (1, 1, 2, 2)}.get(dataset, (1, 2, 1, 2))
    rows = [
        (i, c, place > 1, NAMES[dataset](i, c, place > 1, 10 * place + n))
        for i in (2, 3, 5, 8, 13)
        for place, c in enumerate(cameras)
        for n in range(2)
    ]
    random = np.random.default_rng(0)
    columns = [np.array(c) for c in zip(*[rows[i] for i in random.permutation(40)], strict=True)]
    features = random.standard_normal((40, 16), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids, cams, infrared, names = columns
    return features, Images(ids, cams, infrared, names.tolist())


@pytest.mark.parametrize("dataset", NAMES)
def test_a_file_is_judged_as_its_features_are(dataset: str, tmp_path: Path) -> None:
    features, images = people(dataset)
    features[:10] = features[10:20]  # ties
    settings = EvaluationConfig(trials=3)
    found = searches(find_dataset(dataset), images, settings)
    expected = score({"stored": features}, images, found, find_dataset(dataset), settings)
    file = tmp_path / "features.npz"
    save_features(file, features, images, found[0])
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]
    stored = np.load(file)
    assert sorted(stored.files) == sorted(
        f"{side}_{column}"
        for side in ("query", "gallery")
        for column in ("features", "ids", "cameras", "names", "infrared")
    )
    assert len(stored["query_ids"]) == len(stored["gallery_ids"]) == 20
    loaded, again = load_features(file, find_dataset(dataset))
    found = searches(find_dataset(dataset), again, settings)
    assert score({"stored": loaded}, again, found, find_dataset(dataset), settings) == expected


def test_where_only_the_file_can_say_the_modality(tmp_path: Path) -> None:
    features, images = people("folder")
    found = searches(FOLDER, images, EvaluationConfig())
    save_features(tmp_path / "good.npz", features, images, found[0])
    arrays = dict(np.load(tmp_path / "good.npz"))
    del arrays["query_infrared"]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match="has no query_infrared and gallery_infrared, and own"):
        load_features(tmp_path / "bad.npz", FOLDER)


def test_rows_of_any_length_and_names_as_bytes(tmp_path: Path) -> None:
    features, images = people("sysu_mm01")
    settings = EvaluationConfig(trials=3)
    found = searches(DATASETS["sysu_mm01"], images, settings)
    file, other = tmp_path / "a.npz", tmp_path / "b.npz"
    save_features(file, features, images, found[0])
    arrays = dict(np.load(file))
    for side in ("query", "gallery"):
        arrays[f"{side}_features"] = arrays[f"{side}_features"].astype(np.float64) * 7
        arrays[f"{side}_names"] = arrays[f"{side}_names"].astype("S")
    np.savez(other, **arrays)
    (one, first), (two, second) = (
        load_features(path, DATASETS["sysu_mm01"]) for path in (file, other)
    )
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert first.names == second.names


def stored(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A file whose features are changed."""
    features, images = people("sysu_mm01")
    found = searches(DATASETS["sysu_mm01"], images, EvaluationConfig())
    save_features(tmp_path / "good.npz", features, images, found[0])
    arrays = dict(np.load(tmp_path / "good.npz"))
    for side in ("query", "gallery"):
        arrays[f"{side}_features"] = change(arrays[f"{side}_features"])
    np.savez(tmp_path / "changed.npz", **arrays)
    return tmp_path / "changed.npz"


@pytest.mark.parametrize(
    ("length", "dtype"),
    [
        (1e25, np.float32),
        (1e-30, np.float32),
        (1e-44, np.float32),  # subnormal numbers: one digit is left
        (1e200, np.float64),
        (1e-310, np.float64),
        (1e13, np.float32),
        (1e-13, np.float64),
        (30_000, np.float16),
    ],
)
def test_rows_of_extreme_length_are_scaled(tmp_path: Path, length: float, dtype: type) -> None:
    """Their squares are beyond float32, or float64; every other row is left at unit length."""

    def change(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        rows[::2] *= length
        return rows.astype(dtype)

    path = stored(tmp_path, change)
    expected, _ = load_features(tmp_path / "good.npz", DATASETS["sysu_mm01"])
    found, _ = load_features(path, DATASETS["sysu_mm01"])
    assert found.dtype == np.float32
    worst = 0.5 if length == 1e-44 else 1e-3 if dtype is np.float16 else 1e-6
    np.testing.assert_allclose(found[::2], expected[::2], atol=worst)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    if dtype is np.float32:
        np.testing.assert_array_equal(found[1::2], expected[1::2])  # bit for bit


@pytest.mark.parametrize("value", [0.0, -0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_and_what_is_no_number_are_refused(tmp_path: Path, value: float, dtype: type) -> None:
    def change(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(dtype) * dtype(1e25)
        rows[3] = np.where(np.isfinite(value) | (np.arange(rows.shape[1]) == 2), value, rows[3])
        return rows

    path = stored(tmp_path, change)
    with pytest.raises(UserError, match=r"\(row 3\) are zero or not finite"):
        load_features(path, DATASETS["sysu_mm01"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(2000), "is a MATLAB file; write its"),
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(2000), "h5py"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a pointer of Git LFS"),
        (b"<html><head><title>Sign in</title>", "a web page"),
    ],
)
def test_another_kind_of_file_is_called_so(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "features.npz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_features(tmp_path / "features.npz", DATASETS["sysu_mm01"])


def broken(name: str, value: object) -> object:
    def change(arrays: dict) -> dict:
        return {**arrays, name: value(arrays[name]) if callable(value) else value}

    return change


def swap(arrays: dict) -> dict:
    sides = {"query": "gallery", "gallery": "query"}
    return {f"{sides[k.split('_')[0]]}_{k.split('_')[1]}": v for k, v in arrays.items()}


FAULTS = {
    "no names": (lambda a: {k: v for k, v in a.items() if k != "query_names"}, "no query_names"),
    "pickled": (broken("query_names", lambda a: a.astype(object)), "cannot be read"),
    "not floating": (broken("query_features", lambda a: a.astype(int)), "query_features is int64"),
    "flat": (broken("gallery_features", lambda a: a[0]), "expected floating point"),
    "other length": (broken("gallery_ids", lambda a: a[1:]), r"gallery_ids is int64 of shape"),
    "ids as text": (broken("query_ids", lambda a: a.astype(str)), "expected whole numbers"),
    "unknown people": (
        broken("query_ids", lambda a: a * 0 - 1),
        "query_ids of 20 images are below",
    ),
    "no modality": (broken("query_infrared", lambda a: a.astype(int)), "expected bool"),
    "other width": (broken("query_features", lambda a: a[:, 1:]), "have 15 channels"),
    "zero row": (broken("query_features", lambda a: a * (np.arange(20) != 4)[:, None]), "row 4"),
    "not finite": (broken("query_features", lambda a: a / 0), "row 0"),
    "swapped": (swap, "swap the sides"),
    "same modality": (lambda a: {**a, **{k: a["query" + k[7:]] for k in a if k[0] == "g"}}, "both"),
    "mixed": (broken("query_cameras", lambda a: np.where(a == 3, 1, a)), "one modality"),
    "camera 7": (broken("query_cameras", lambda a: a * 0 + 7), "the camera, 1 to 6"),
    "an image twice": (broken("gallery_names", lambda a: a[[0] * 20]), "twice"),
}


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value)")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(fault: str, tmp_path: Path) -> None:
    features, images = people("sysu_mm01")
    found = searches(DATASETS["sysu_mm01"], images, EvaluationConfig())
    save_features(tmp_path / "good.npz", features, images, found[0])
    change, message = FAULTS[fault]
    bad = tmp_path / "bad.npz"
    np.savez(bad, **change(dict(np.load(tmp_path / "good.npz"))))
    with pytest.raises(UserError, match=message) as caught:
        load_features(bad, DATASETS["sysu_mm01"])
    assert str(caught.value).startswith(str(bad))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and no more"])
def test_a_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    file.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        load_features(file, DATASETS["regdb"])
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UserError, match="single array"):
        load_features(tmp_path / "x.npy", DATASETS["regdb"])
    with pytest.raises(UserError, match="no such file"):
        load_features(tmp_path / "y.npz", DATASETS["regdb"])


@pytest.mark.parametrize("dataset", ["regdb", "llcm"])
def test_names_must_show_the_modality(dataset: str, tmp_path: Path) -> None:
    features, images = people(dataset)
    found = searches(find_dataset(dataset), images, EvaluationConfig())
    images = images._replace(names=[f"{n}.png" for n in range(40)])
    save_features(tmp_path / "x.npz", features, images, found[0])
    with pytest.raises(UserError, match="does not show its modality"):
        load_features(tmp_path / "x.npz", find_dataset(dataset))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    features, images = people("regdb")
    search = searches(DATASETS["regdb"], images, EvaluationConfig())[0]
    file = tmp_path / "x.npz"
    file.write_text("mine")
    for target, message in (
        (file, "exists already"),
        (tmp_path / "x.npy", "ends in .npz"),
        (tmp_path / "none" / "x.npz", "folder does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            save_features(target, features, images, search)
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_a_file_of_own_images_names_the_option(tmp_path: Path) -> None:
    """Not that both sides are visible, which SYSU-MM01's cameras 1 and 2 would say."""
    arrays: dict[str, np.ndarray] = {}
    for side, infrared in (("query", True), ("gallery", False)):
        arrays |= {
            f"{side}_features": np.eye(4, dtype=np.float32),
            f"{side}_ids": np.arange(4),
            f"{side}_cameras": np.full(4, 1 + infrared),
            f"{side}_names": np.array([f"{i}.jpg" for i in range(4)]),
            f"{side}_infrared": np.full(4, infrared),
        }
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UserError, match="says of its images another modality than SYSU-MM01 shows"):
        load_features(tmp_path / "f.npz", find_dataset("sysu_mm01"))
    _, images = load_features(tmp_path / "f.npz", FOLDER)
    assert images.infrared.sum() == 4
