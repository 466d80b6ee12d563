"""SYSU-MM01's protocol against the reference's recorded draws and the published counts."""

import json
import random as python_random

import numpy as np
import pytest
import scipy.io

from ddag_jax.config import EvaluationConfig
from ddag_jax.datasets.find import find_dataset
from ddag_jax.datasets.rand_perm_cam import read_permutations
from ddag_jax.datasets.sysu_mm01 import SYSU_MM01
from ddag_jax.errors import UserError
from ddag_jax.evaluation import protocols, ranking
from ddag_jax.evaluation.table import format_table


def images(images_per_folder, test_ids):
    """The images of a tree, in an order that tells nothing."""
    wanted = set(test_ids)
    rows = [
        (int(folder[5:]), int(folder[3]), f"{folder}/{n:04d}.jpg")
        for folder, count in images_per_folder.items()
        if int(folder[5:]) in wanted
        for n in range(1, count + 1)
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    identities, cameras, names = (np.array(column)[order] for column in zip(*rows, strict=True))
    return identities, cameras, names


def random_features(identities, channels=32, seed=0, identity_share=0.3):
    """Rows of unit length, those of an identity a little alike."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((identities.max() + 1, channels), dtype=np.float32)
    features = random.standard_normal((len(identities), channels), dtype=np.float32)
    features += identity_share * common[identities]
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def recorded(golden_dir):
    return json.loads((golden_dir / "sysu_gallery.json").read_text())


@pytest.fixture(scope="module")
def recorded_images(recorded):
    return images(recorded["images_per_folder"], recorded["test_ids"])


@pytest.fixture(scope="module")
def sysu_images(split_dir):
    """The test images of SYSU-MM01 itself."""
    folders = json.loads((split_dir / "images_per_folder.json").read_text())
    return images(folders, map(int, (split_dir / "test_id.txt").read_text().split(",")))


def as_images(columns):
    identities, cameras, names = columns
    return protocols.Images(identities, cameras, np.isin(cameras, (3, 6)), names.tolist())


def judge(features, columns, dataset="sysu_mm01", split=None, **settings):
    images = columns if isinstance(columns, protocols.Images) else as_images(columns)
    settings, dataset = EvaluationConfig(**settings), find_dataset(dataset)
    found = protocols.searches(dataset, images, settings)
    return protocols.score(features, images, found, dataset, settings, split=split)


def drawn(columns, mode, **settings):
    """The galleries of a mode of SYSU-MM01, by draw."""
    (search,) = protocols.searches(
        SYSU_MM01, as_images(columns), EvaluationConfig(mode=mode, **settings)
    )
    return search.galleries


def test_file_names_alone_draw_the_same(recorded, recorded_images):
    identities, cameras, names = recorded_images
    short = np.array([name.rsplit("/", 1)[1] for name in names])
    gallery = drawn((identities, cameras, short), "all")[4]
    assert names[gallery].tolist() == recorded["trials"]["all/4"]


def test_multi_shot_draws_ten_of_each_folder_or_all(recorded, recorded_images):
    identities, cameras, _ = recorded_images
    gallery = drawn(recorded_images, "indoor", shots="multi")[0]
    assert len(set(gallery.tolist())) == len(gallery)
    expected = {
        folder: min(10, count)
        for folder, count in recorded["images_per_folder"].items()
        if folder[:4] in ("cam1", "cam2")
    }
    assert min(expected.values()) < 10
    found = [f"cam{cameras[i]}/{identities[i]:04d}" for i in gallery]
    assert {folder: found.count(folder) for folder in found} == expected


@pytest.mark.parametrize(
    ("mode", "shots", "size"),
    [
        ("all", "single", 301),
        ("indoor", "single", 112),
        ("all", "multi", 3010),
        ("indoor", "multi", 1120),
    ],
)
def test_counts_of_sysu_mm01(sysu_images, mode, shots, size):
    settings = EvaluationConfig(mode=mode, shots=shots, trials=2)
    (search,) = protocols.searches(SYSU_MM01, as_images(sysu_images), settings)
    assert len(search.query) == 3803
    first, second = search.galleries
    assert len(first) == len(second) == size
    assert first.tolist() != second.tolist()


def test_evaluation_at_sysu_mm01_s_shape(sysu_images):
    identities, cameras, _names = sysu_images
    features = {
        "global": random_features(identities, seed=1, identity_share=0),
        "part": random_features(identities, seed=2),
    }
    records = judge(features, sysu_images, trials=2)
    assert [(r["mode"], r["feature"]) for r in records] == [
        ("all", "global"),
        ("all", "part"),
        ("indoor", "global"),
        ("indoor", "part"),
    ]
    assert [(r["queries"], r["gallery"]) for r in records] == [(3803, 301)] * 2 + [(2208, 112)] * 2
    for record in records:
        assert set(record) == protocols.Record.__required_keys__
        assert json.loads(json.dumps(record)) == record
        said = {
            "dataset": "sysu_mm01",
            "dataset_title": "SYSU-MM01",
            "rendered": False,
            "direction": "infrared_to_visible",
            "shots": "single",
            "draw": "seeded",
            "flip": False,
            "rerank": False,
            "trials": 2,
            "halves": [],
            "runs": 1,
        }
        assert {key: record[key] for key in said} == said

        settings = EvaluationConfig(mode=record["mode"], trials=2)
        (search,) = protocols.searches(SYSU_MM01, as_images(sysu_images), settings)
        query = search.query
        trials = []
        for gallery in search.galleries:
            feature = features[record["feature"]]
            trials.append(
                ranking.rank_distances(
                    -feature[query] @ feature[gallery].T,
                    identities[query],
                    identities[gallery],
                    cameras[query],
                    cameras[gallery],
                    camera_rule=SYSU_MM01.camera_rule,
                )
            )
        for name, values in {
            "rank1": [t.cmc[0] for t in trials],
            "rank20": [t.cmc[19] for t in trials],
            "mAP": [t.mAP for t in trials],
            "mINP": [t.mINP for t in trials],
        }.items():
            a, b = 100 * np.array(values)
            assert record[name] == pytest.approx((a + b) / 2, abs=1e-3)
            assert record[f"{name}_std"] == pytest.approx(abs(a - b) / 2, abs=1e-3)
    assert records[1]["mAP"] > records[0]["mAP"] + 1


def test_only_the_mode_asked_for(recorded_images):
    features = {"part": random_features(recorded_images[0])}
    (record,) = judge(features, recorded_images, mode="all")
    assert record["mode"] == "all"
    assert record["trials"] == 10
    assert protocols.selection_figure([record], "part") == record["rank1"] + record["mAP"]


@pytest.mark.parametrize(
    ("dropped", "message"),
    [((1, 2), "indoor-search.*cannot be evaluated"), ((3, 6), "none of the .* no query")],
)
def test_images_that_make_a_mode_impossible(recorded_images, dropped, message):
    kept = ~np.isin(recorded_images[1], dropped)
    left = [column[kept] for column in recorded_images]
    with pytest.raises(UserError, match=message):
        judge({"part": random_features(left[0])}, left)


def test_images_of_unknown_cameras_cannot_be_judged(recorded_images):
    identities, cameras, names = recorded_images
    with pytest.raises(UserError, match="camera is not known"):
        judge({"part": random_features(identities)}, (identities, cameras * 0, names))


def test_a_feature_that_is_not_finite_names_its_image(recorded_images):
    features = random_features(recorded_images[0])
    features[17, 3] = np.nan
    with pytest.raises(UserError, match=f"part feature of image {recorded_images[2][17]}"):
        judge({"part": features}, recorded_images)


# --- The authors' permutations ----------------------------------------------------------------


def plain_permuted(cells, columns, mode, shots, trial):
    """The gallery as one would walk it: identities, cameras, the first images of the row."""
    identities, cameras, names = columns
    chosen = []
    for identity in sorted(set(identities.tolist())):
        for camera in SYSU_MM01.modes[mode]:
            files = sorted(names[(identities == identity) & (cameras == camera)])
            if files:
                row = cells[camera - 1, 0][identity - 1, 0][trial]
                assert len(row) == len(files)
                chosen += [files[k - 1] for k in row[: 1 if shots == "single" else 10]]
    return chosen


def test_the_authors_draw(split_dir, sysu_images):
    path = split_dir / "rand_perm_cam.mat"
    cells = scipy.io.loadmat(path)["rand_perm_cam"]
    draws = read_permutations(path).draws()
    images = as_images(sysu_images)
    for shots, sizes in (("single", (301, 112)), ("multi", (3010, 1120))):
        settings = EvaluationConfig(shots=shots, draw="rand_perm_cam")
        found = protocols.searches(SYSU_MM01, images, settings, draws)
        for search, size in zip(found, sizes, strict=True):
            assert len(search.galleries) == 10
            for trial in (0, 1, 9):
                drawn = sysu_images[2][search.galleries[trial]].tolist()
                assert len(drawn) == size
                assert drawn == plain_permuted(cells, sysu_images, search.mode, shots, trial)


def test_draws_that_are_missing_or_do_not_fit(split_dir, sysu_images):
    settings = EvaluationConfig(draw="rand_perm_cam")
    draws = read_permutations(split_dir / "rand_perm_cam.mat").draws()
    with pytest.raises(UserError, match=r"there is no rand_perm_cam\.mat"):
        protocols.searches(SYSU_MM01, as_images(sysu_images), settings, {})
    test = sysu_images[0].min()
    few = ~((sysu_images[0] == test) & (sysu_images[1] == 1))
    few[np.flatnonzero(~few)[:2]] = True  # two images of many are left
    with pytest.raises(UserError, match=f"does not fit cam1/{test:04d} with its 2 images"):
        protocols.searches(
            SYSU_MM01, as_images([column[few] for column in sysu_images]), settings, draws
        )


# --- RegDB and LLCM ---------------------------------------------------------------------------


def regdb_images(identities=12, each=4):
    ids = np.repeat(np.arange(3, 3 + 2 * identities, 2), 2 * each)
    infrared = np.tile(np.repeat([False, True], each), identities)
    names = [
        f"{'Thermal' if ir else 'Visible'}/{i}/{n}.bmp"
        for n, (i, ir) in enumerate(zip(ids, infrared, strict=True))
    ]
    return protocols.Images(ids, np.where(infrared, 2, 1), infrared, names)


def test_regdb_searches_all_images_in_both_directions():
    images = regdb_images()
    features = {"part": random_features(images.identities)}
    records = judge(features, images, dataset="regdb", split=3)
    assert [r["direction"] for r in records] == ["visible_to_infrared", "infrared_to_visible"]
    for record, asks in zip(records, (~images.infrared, images.infrared), strict=True):
        said = (record["mode"], record["shots"], record["draw"], record["trials"])
        assert said == (None, None, None, 1)
        assert record["halves"] == [3]
        assert (record["queries"], record["gallery"]) == (48, 48)
        ids, feature = images.identities, features["part"]
        expected = ranking.rank_distances(
            -feature[asks] @ feature[~asks].T,
            ids[asks],
            ids[~asks],
            images.cameras[asks],
            images.cameras[~asks],
            camera_rule=find_dataset("regdb").camera_rule,
        )
        assert record["rank1"] == pytest.approx(100 * expected.cmc[0])
        assert record["mAP"] == pytest.approx(100 * expected.mAP)
        assert record["rank1_std"] == 0
    mean = sum(r["rank1"] + r["mAP"] for r in records) / 2
    assert protocols.selection_figure(records, "part") == pytest.approx(mean)
    (one,) = judge(features, images, dataset="regdb", direction="infrared_to_visible")
    assert {**one, "halves": [3]} == records[1]
    table = format_table(records, "runs/regdb_3")
    assert table.splitlines()[0] == "runs/regdb_3: RegDB, trial 3"
    assert "\nvisible → infrared (48 queries, 48 gallery images)\n" in table
    assert "±" not in table


def test_llcm_draws_one_of_each_camera_and_skips_its_own():
    random = np.random.default_rng(3)
    ids, cameras, n = (
        column.ravel()
        for column in np.meshgrid(np.arange(5, 17), np.arange(1, 10), np.arange(4), indexing="ij")
    )
    both = [np.tile(column, 2) for column in (ids, cameras, n)]
    infrared = np.repeat([False, True], len(ids))
    kept = ~(infrared & (both[1] == 3))  # no infrared camera 3
    kept &= random.random(len(kept)) < 0.8
    ids, cameras, n = (column[kept] for column in both)
    infrared = infrared[kept]
    names = [
        f"test_{'nir' if ir else 'vis'}/cam{c}/{i:04d}/{k}.jpg"
        for i, c, k, ir in zip(ids, cameras, n, infrared, strict=True)
    ]
    images = protocols.Images(ids, cameras, infrared, names)
    found = protocols.searches(find_dataset("llcm"), images, EvaluationConfig(trials=2))
    assert [s.direction for s in found] == ["visible_to_infrared", "infrared_to_visible"]
    for search in found:
        asks = infrared == (search.direction == "infrared_to_visible")
        assert search.camera_rule.skips_own_camera
        assert sorted(search.query) == np.flatnonzero(asks).tolist()
        for trial, gallery in enumerate(search.galleries):
            draw = python_random.Random(trial)
            expected = []
            for identity in range(5, 17):
                for camera in range(1, 10):
                    folder = (ids == identity) & (cameras == camera) & ~asks
                    files = sorted(names[i] for i in np.flatnonzero(folder))
                    if files:
                        expected.append(draw.choice(files))
            assert [names[i] for i in gallery] == expected
    record = judge({"global": random_features(ids)}, images, dataset="llcm", trials=2)[0]
    assert (record["shots"], record["draw"], record["trials"]) == ("single", "seeded", 2)
    title = format_table([record], "x").splitlines()[0]
    assert title == "x: LLCM, single-shot, seeded draw, 2 trials"


def test_reranking_is_used_and_said(recorded_images):
    features = {"part": random_features(recorded_images[0])}
    plain, reranked = (
        judge(features, recorded_images, mode="all", trials=1, rerank=rerank)[0]
        for rerank in (False, True)
    )
    assert plain["mAP"] != reranked["mAP"]
    assert reranked["rerank"] is True
    title = format_table([reranked], "x").splitlines()[0]
    assert title.endswith(", 1 trial, k-reciprocal re-ranking (k1 20, k2 6, λ 0.3)")


# --- Averages over runs -----------------------------------------------------------------------


def test_average_over_regdb_s_splits():
    images = regdb_images()
    runs = [
        judge({"part": random_features(images.identities, seed=n)}, images, "regdb", split=n)
        for n in (2, 1, 7)
    ]
    averaged = protocols.average(runs, ["a", "b", "c"])
    assert len(averaged) == 2
    for record, same in zip(averaged, zip(*runs, strict=True), strict=True):
        assert (record["halves"], record["runs"]) == ([1, 2, 7], 3)
        for figure in protocols.FIGURES:
            values = [r[figure] for r in same]
            assert record[figure] == pytest.approx(np.mean(values))
            assert record[f"{figure}_std"] == pytest.approx(np.std(values))
            assert np.std(values) > 0
    table = format_table(averaged, "runs/regdb_*").splitlines()
    assert table[0] == "runs/regdb_*: RegDB, trials 1, 2, 7, mean of 3 runs"
    assert table[1] == "per cent; mean ± deviation over the runs"
    with pytest.raises(UserError, match="a and d are all of trial 2"):
        protocols.average([runs[0], runs[1], runs[0]], ["a", "b", "d"])


def test_no_average_over_different_protocols(recorded_images):
    features = {"part": random_features(recorded_images[0])}
    single, multi = (
        judge(features, recorded_images, mode="all", trials=1, shots=shots)
        for shots in ("single", "multi")
    )
    with pytest.raises(
        UserError, match=r"one and two were evaluated differently \(shots: single and"
    ):
        protocols.average([single, multi], ["one", "two"])
    both = judge(features, recorded_images, trials=1)
    with pytest.raises(UserError, match="1 and 2 rows"):
        protocols.average([single, both], ["one", "two"])


def test_table_names_what_it_holds(recorded_images):
    identities = recorded_images[0]
    trained, untrained = (
        judge({"global": random_features(identities, seed=seed)}, recorded_images, shots="multi")
        for seed in (1, 2)
    )
    table = format_table(trained, "runs/demo", untrained)
    heading, *lines = table.splitlines()
    said = "SYSU-MM01, infrared → visible, multi-shot, seeded draw, 10 trials"
    assert heading == f"runs/demo: {said}"
    assert max(map(len, lines)) <= 110
    for mode, record, other in zip(("all", "indoor"), trained, untrained, strict=True):
        block = table.split(f"{mode}-search (")[1].splitlines()
        assert block[1].split() == ["feature", "r1", "r5", "r10", "r20", "mAP", "mINP"]
        assert block[2].startswith("global ")
        assert block[2].endswith(f"{record['mINP']:.2f} ± {record['mINP_std']:.2f}")
        assert f"{record['rank5']:.2f} ± {record['rank5_std']:.2f}" in block[2]
        assert block[3].startswith("untrained global ")
        assert f"{other['mAP']:.2f} ± {other['mAP_std']:.2f}" in block[3]
    drawn = [{**record, "rendered": True, "flip": True} for record in trained]
    title = format_table(drawn, "x").splitlines()[0]
    assert title.startswith("x: SYSU-MM01's layout, rendered people, ")
    assert title.endswith(", averaged with mirror images")
