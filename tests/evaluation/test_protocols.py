"""SYSU-MM01's protocol against the reference's recorded draws and the published counts."""

import json

import numpy as np
import pytest

from ddag_jax.errors import InputError
from ddag_jax.evaluation import protocols, ranking


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


def test_file_names_alone_draw_the_same(recorded, recorded_images):
    identities, cameras, names = recorded_images
    short = [name.rsplit("/", 1)[1] for name in names]
    drawn = protocols.sysu_gallery(identities, cameras, short, mode="all", shots="single", trial=4)
    assert names[drawn].tolist() == recorded["trials"]["all/4"]


def test_multi_shot_draws_ten_of_each_folder_or_all(recorded, recorded_images):
    identities, cameras, _ = recorded_images
    drawn = protocols.sysu_gallery(*recorded_images, mode="indoor", shots="multi", trial=0)
    assert len(set(drawn.tolist())) == len(drawn)
    expected = {
        folder: min(10, count)
        for folder, count in recorded["images_per_folder"].items()
        if folder[:4] in ("cam1", "cam2")
    }
    assert min(expected.values()) < 10
    found = [f"cam{cameras[i]}/{identities[i]:04d}" for i in drawn]
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
    assert len(protocols.sysu_query(*sysu_images)) == 3803
    first, second = (
        protocols.sysu_gallery(*sysu_images, mode=mode, shots=shots, trial=trial)
        for trial in (0, 1)
    )
    assert len(first) == len(second) == size
    assert first.tolist() != second.tolist()


def test_evaluation_at_sysu_mm01_s_shape(sysu_images):
    identities, cameras, _names = sysu_images
    features = {
        "global": random_features(identities, seed=1, identity_share=0),
        "part": random_features(identities, seed=2),
    }
    records = protocols.evaluate_sysu(features, *sysu_images, trials=2)
    assert [(r["mode"], r["feature"]) for r in records] == [
        ("all", "global"),
        ("all", "part"),
        ("indoor", "global"),
        ("indoor", "part"),
    ]
    assert [(r["queries"], r["gallery"]) for r in records] == [(3803, 301)] * 2 + [(2208, 112)] * 2
    for record in records:
        figures = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
        keys = {"dataset", "mode", "shots", "draw", "feature", "trials", "queries", "gallery"}
        assert set(record) == keys | set(figures) | {f"{figure}_std" for figure in figures}
        assert json.loads(json.dumps(record)) == record
        assert (record["dataset"], record["draw"]) == ("sysu_mm01", "seeded")
        assert (record["shots"], record["trials"]) == ("single", 2)

        query = protocols.sysu_query(*sysu_images)
        trials = []
        for trial in range(2):
            gallery = protocols.sysu_gallery(
                *sysu_images, mode=record["mode"], shots="single", trial=trial
            )
            feature = features[record["feature"]]
            trials.append(
                ranking.rank(
                    feature[query],
                    feature[gallery],
                    identities[query],
                    identities[gallery],
                    cameras[query],
                    cameras[gallery],
                    camera_rule="sysu",
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


def test_only_the_modes_asked_for(recorded_images):
    features = {"part": random_features(recorded_images[0])}
    (record,) = protocols.evaluate_sysu(features, *recorded_images, modes=("all",))
    assert record["mode"] == "all"
    assert record["trials"] == 10
    assert protocols.selection_figure([record], "part") == record["rank1"] + record["mAP"]


@pytest.mark.parametrize(
    ("dropped", "message"),
    [((1, 2), "indoor-search.*cannot be evaluated"), ((3, 6), "none of the .* infrared camera")],
)
def test_images_that_make_a_mode_impossible(recorded_images, dropped, message):
    kept = ~np.isin(recorded_images[1], dropped)
    left = [column[kept] for column in recorded_images]
    with pytest.raises(InputError, match=message):
        protocols.evaluate_sysu({"part": random_features(left[0])}, *left)


def test_a_feature_that_is_not_finite_names_its_image(recorded_images):
    features = random_features(recorded_images[0])
    features[17, 3] = np.nan
    with pytest.raises(InputError, match=f"part feature of image {recorded_images[2][17]}"):
        protocols.evaluate_sysu({"part": features}, *recorded_images)


def test_table_names_what_it_holds(recorded_images):
    identities = recorded_images[0]
    trained, untrained = (
        protocols.evaluate_sysu(
            {"global": random_features(identities, seed=seed)}, *recorded_images, shots="multi"
        )
        for seed in (1, 2)
    )
    table = protocols.format_table(trained, "runs/demo", untrained)
    heading, *lines = table.splitlines()
    assert heading == "runs/demo: SYSU-MM01, multi-shot, seeded draw, 10 trials"
    assert max(map(len, lines)) <= 110
    for mode, record, other in zip(("all", "indoor"), trained, untrained, strict=True):
        block = table.split(f"{mode}-search (")[1].splitlines()
        assert block[1].split() == ["feature", "r1", "r5", "r10", "r20", "mAP", "mINP"]
        assert block[2].startswith("global ")
        assert block[2].endswith(f"{record['mINP']:.2f} ± {record['mINP_std']:.2f}")
        assert f"{record['rank5']:.2f} ± {record['rank5_std']:.2f}" in block[2]
        assert block[3].startswith("untrained global ")
        assert f"{other['mAP']:.2f} ± {other['mAP_std']:.2f}" in block[3]
