"""The whole way at the datasets' own counts: draw, prepare, open, search."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from ddag_jax.config import DataConfig, EvaluationConfig
from ddag_jax.data.loader import ImageSource, evaluation_split, training_split
from ddag_jax.data.sampler import steps_per_epoch
from ddag_jax.datasets.checks import RENDERED, Counts
from ddag_jax.datasets.find import find_dataset
from ddag_jax.datasets.llcm import LLCM
from ddag_jax.datasets.prepare import read_folder
from ddag_jax.evaluation.protocols import Images, Search, score, searches
from ddag_jax.synthetic.rehearsal import llcm_tree
from tests.datasets.commands import call, call_prepare
from tests.datasets.test_rand_perm_cam import cells

AS_PUBLISHED = "counts are the published ones"


def config(dataset: str, data_dir: Path, trial: int = 1) -> DataConfig:
    return DataConfig(
        dataset=dataset, dir=str(data_dir), image_height=32, image_width=16, trial=trial
    )


def counts(source: ImageSource) -> Counts:
    infrared = int(source.infrared.sum())
    return Counts(source.classes, len(source) - infrared, infrared)


def images(source: ImageSource) -> Images:
    return Images(source.identities, source.cameras, source.infrared, source.names)


def sizes(found: list[Search]) -> list[tuple[int, list[int]]]:
    """Queries and gallery images of each search; of each trial, where they differ."""
    return [(len(s.query), sorted({len(gallery) for gallery in s.galleries})) for s in found]


def valid_queries(source: ImageSource, found: list[Search], dataset: str) -> list[int]:
    """Of each search, by random features: who counts does not depend on them."""
    features = np.random.default_rng(0).standard_normal((len(source), 4), np.float32)
    records = score(
        {"any": features},
        images(source),
        found,
        find_dataset(dataset),
        EvaluationConfig(),
        rendered=True,
    )
    return [record["queries"] for record in records]


def rehearse_and_prepare(dataset: str, folder: Path, *options: object) -> str:
    """What the first command printed."""
    code, out, error = call("rehearse", dataset, "--to", folder / "tree", *options)
    assert (code, error) == (0, "")
    code, prepared, error = call_prepare(dataset, folder / "tree", folder)
    assert (code, error) == (0, "")
    assert prepared.splitlines()[:-1] == out.splitlines()[:-1]
    shutil.rmtree(folder / "tree")  # tens of thousands of files
    return out


@pytest.mark.slow  # draws, decodes and stores 45,863 images
def test_sysu_mm01(split_dir: Path, tmp_path: Path) -> None:
    out = rehearse_and_prepare("sysu_mm01", tmp_path, "--exp", split_dir)
    assert "(22 more identities are in no list: ignored)" in out
    assert AS_PUBLISHED in out
    training, validation = training_split(config("sysu_mm01", tmp_path), seed=0)
    assert counts(training) == Counts(395, 22_258, 11_909)
    assert validation is None
    visible, infrared = int((~training.infrared).sum()), int(training.infrared.sum())
    assert steps_per_epoch(visible, infrared, 8, 4) == 696
    # A picture of somebody, whoever stands for him.
    assert training.images(np.array([0, len(training) - 1])).std() > 10

    source = evaluation_split(config("sysu_mm01", tmp_path))
    assert counts(source) == Counts(96, 6_775, 3_803)
    assert source.rendered
    single = searches(find_dataset("sysu_mm01"), images(source), EvaluationConfig())
    assert [search.mode for search in single] == ["all", "indoor"]
    assert sizes(single) == [(3_803, [301]), (3_803, [112])]
    assert valid_queries(source, single, "sysu_mm01") == [3_803, 2_208]
    multi = searches(find_dataset("sysu_mm01"), images(source), EvaluationConfig(shots="multi"))
    assert sizes(multi) == [(3_803, [3_010]), (3_803, [1_120])]

    # The authors' permutations came along: 1-based positions among a folder's files.
    permuted = searches(
        find_dataset("sysu_mm01"),
        images(source),
        EvaluationConfig(draw="rand_perm_cam"),
        source.draws,
    )
    assert sizes(permuted) == sizes(single)
    raw = scipy.io.loadmat(split_dir / "rand_perm_cam.mat")["rand_perm_cam"]
    for trial, gallery in enumerate(permuted[0].galleries):
        for number in gallery[:3]:
            camera, identity = int(source.cameras[number]), int(source.identities[number])
            drawn = raw[camera - 1, 0][identity - 1, 0][trial, 0]
            assert source.names[number] == f"cam{camera}/{identity:04d}/{drawn:04d}.jpg"


@pytest.mark.slow  # draws, decodes and stores 8,240 images
def test_regdb(tmp_path: Path) -> None:
    out = rehearse_and_prepare("regdb", tmp_path)
    assert AS_PUBLISHED in out
    everyone, halves = set(), []
    for trial in range(1, 11):
        training, validation = training_split(config("regdb", tmp_path, trial), seed=0)
        source = evaluation_split(config("regdb", tmp_path, trial))
        assert counts(training) == counts(source) == Counts(206, 2_060, 2_060)
        assert validation is None
        learnt, judged = set(training.identities.tolist()), set(source.identities.tolist())
        assert not learnt & judged
        everyone |= learnt | judged
        halves.append(frozenset(learnt))
        found = searches(find_dataset("regdb"), images(source), EvaluationConfig())
        assert [search.direction for search in found] == [
            "visible_to_infrared",
            "infrared_to_visible",
        ]
        assert sizes(found) == [(2_060, [2_060])] * 2
    assert everyone == set(range(1, 413))
    assert len(set(halves)) == 10
    assert valid_queries(source, found, "regdb") == [2_060, 2_060]


@pytest.mark.slow  # draws, decodes and stores 2,374 images
def test_llcm_at_a_twentieth(tmp_path: Path) -> None:
    out = rehearse_and_prepare("llcm", tmp_path, "--scale", 0.05)
    assert AS_PUBLISHED not in out
    training, _ = training_split(config("llcm", tmp_path), seed=0)
    source = evaluation_split(config("llcm", tmp_path))
    assert counts(training) == Counts(36, 856, 706)
    assert counts(source) == Counts(18, 445, 367)
    assert not set(training.identities.tolist()) & set(source.identities.tolist())
    assert set(training.cameras[~training.infrared]) == set(range(1, 10))
    assert set(training.cameras[training.infrared]) == {1, 2, 4, 5, 6, 7, 8, 9}
    found = searches(find_dataset("llcm"), images(source), EvaluationConfig())
    folders = Counter(
        infrared
        for _, _, infrared in set(
            zip(
                source.identities.tolist(),
                source.cameras.tolist(),
                source.infrared.tolist(),
                strict=True,
            )
        )
    )
    assert sizes(found) == [(445, [folders[True]]), (367, [folders[False]])]
    assert min(valid_queries(source, found, "llcm")) > 300


def test_llcm_has_the_published_counts() -> None:
    tree = llcm_tree(seed=0, scale=1.0)
    for top, split, infrared in (
        ("vis/", "train", False),
        ("nir/", "train", True),
        ("test_vis/", "test", False),
        ("test_nir/", "test", True),
    ):
        drawn = [(name, who) for name, who, _ in tree.images if name.startswith(top)]
        published = LLCM.counts[split]
        assert len(drawn) == (published.infrared if infrared else published.visible)
        assert len({who for _, who in drawn}) == published.identities
        assert len({name for name, _ in drawn}) == len(drawn)
        if split == "train":
            lines = tree.lists[f"idx/train_{top[:-1]}.txt"].decode().splitlines()
            assert [line.split()[0] for line in lines] == [name for name, _ in drawn]
            assert sorted({int(line.split()[1]) for line in lines}) == list(range(713))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_least_llcm_is_sound(tmp_path: Path, seed: int) -> None:
    options = ("--scale", 0.01, "--seed", seed, "--distinct", 1, "--height", 32)
    code, out, error = call("rehearse", "llcm", "--to", tmp_path / "tree", *options)
    assert (code, error) == (0, "")
    assert "train                    7       166       137" in out
    assert "test                     4        99        82" in out


# --- Small ones ------------------------------------------------------------------------------


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """Lists and permutations of three people and of one in no list."""
    folder = tmp_path / "exp"
    folder.mkdir()
    for split, identity in (("train", 1), ("val", 2), ("test", 4)):
        (folder / f"{split}_id.txt").write_text(f"{identity}\n")
    shape = {(camera, identity): camera for camera in range(1, 7) for identity in (1, 2, 4, 7)}
    scipy.io.savemat(folder / "rand_perm_cam.mat", {"rand_perm_cam": cells(shape)})
    (folder / "rand_perm_cam.mat").chmod(0o444)  # as files of others may be
    return folder


def rehearse(exp: Path, *options: object) -> tuple[int, str, str]:
    return call("rehearse", "sysu_mm01", "--exp", exp, "--to", exp.parent / "tree", *options)


def test_folders_hold_what_the_permutations_say(exp: Path) -> None:
    code, out, _ = rehearse(exp, "--distinct", 1, "--height", 32)
    assert code == 0
    tree = exp.parent / "tree"
    found = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    drawn = {
        f"cam{camera}/{identity:04d}/{number:04d}.jpg"
        for camera in range(1, 7)
        for identity in (1, 2, 4, 7)
        for number in range(1, camera + 1)
    }
    lists = {f"exp/{split}_id.txt" for split in ("train", "val", "test")}
    assert found == drawn | lists | {"exp/rand_perm_cam.mat", RENDERED}
    assert (tree / RENDERED).read_text().startswith("rehearsal of sysu_mm01, ")
    assert read_folder("sysu_mm01", tree).rendered
    # Not the real counts, which it is to have: said aloud.
    assert "warning: train: 1 identities, 12 visible and 9 infrared images; published are" in out


def test_identities_take_the_people_in_turn(exp: Path) -> None:
    assert rehearse(exp, "--distinct", 2, "--height", 32)[0] == 0
    first, second, fourth = (
        {path.read_bytes() for path in (exp.parent / "tree" / "cam6" / folder).iterdir()}
        for folder in ("0001", "0002", "0004")
    )
    assert len(first) == 4  # six files
    assert not first & second
    assert second == fourth


def test_an_image_is_one_file_with_many_names(exp: Path) -> None:
    assert rehearse(exp, "--distinct", 2, "--height", 32)[0] == 0
    files = list((exp.parent / "tree").rglob("*.jpg"))
    assert len(files) == 4 * (1 + 2 + 3 + 4 + 5 + 6)
    assert len({path.stat().st_ino for path in files}) <= 2 * 6 * 4
    assert not any(path.stat().st_mode & 0o222 for path in files)


def test_where_there_are_no_links_it_writes_copies(
    exp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rehearse(exp, "--distinct", 2, "--height", 32)[0] == 0
    tree = exp.parent / "tree"
    linked = {path: path.read_bytes() for path in tree.rglob("*.jpg")}
    shutil.rmtree(tree)

    def refuse(path: Path, target: Path) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert rehearse(exp, "--distinct", 2, "--height", 32)[0] == 0
    assert {path: path.read_bytes() for path in tree.rglob("*.jpg")} == linked
    assert len({path.stat().st_ino for path in linked}) == len(linked)


def test_the_same_again(exp: Path) -> None:
    tree = exp.parent / "tree"
    contents = []
    for seed in (3, 3, 4):
        assert rehearse(exp, "--distinct", 2, "--height", 32, "--seed", seed)[0] == 0
        contents.append({p: p.read_bytes() for p in tree.rglob("*.jpg")})
        shutil.rmtree(tree)
    assert contents[0] == contents[1] != contents[2]


def test_an_existing_folder_is_left_alone(exp: Path) -> None:
    (exp.parent / "tree").mkdir()
    code, out, error = rehearse(exp)
    assert (code, out) == (2, "")
    assert "tree exists" in error
    assert not list((exp.parent / "tree").iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("sysu_mm01", "--exp: sysu_mm01 needs the folder"),
        ("regdb --exp .", "--exp: sysu_mm01 needs the folder"),
        ("sysu_mm01 --exp nowhere", "nowhere: no such folder"),
        ("regdb --scale 0.5", "--scale: only llcm can be scaled, not regdb"),
        ("llcm --scale 0", "--scale 0.0: must be"),
        ("llcm --scale 1.5", "--scale 1.5: must be"),
        ("llcm --scale nan", "--scale nan: must be"),
        ("regdb --distinct 0", "--distinct 0: must be from 1 to 1000"),
        ("regdb --height 8", "height must be from 32 to 1024, not 8"),
        ("regdb --seed -1", "--seed -1: must be 0 or more"),
        ("regdb --scal 1", "--scale"),
    ],
)
def test_bad_options(arguments: str, told: str, tmp_path: Path) -> None:
    code, out, error = call("rehearse", *arguments.split(), "--to", tmp_path / "tree")
    assert (code, out) == (2, "")
    assert told in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_bad_lists(exp: Path) -> None:
    (exp / "val_id.txt").unlink()
    (exp / "train_id.txt").write_text("one\n")
    (exp / "rand_perm_cam.mat").unlink()
    code, _, error = rehearse(exp)
    assert code == 2
    assert error.startswith("error: 3 faults:\n")
    assert "val_id.txt: no such file" in error
    assert "train_id.txt: 1 entry is not a whole number" in error
    assert "rand_perm_cam.mat: cannot be read" in error
    assert list(exp.parent.iterdir()) == [exp]


def test_lists_of_another_release(exp: Path) -> None:
    (exp / "test_id.txt").write_text("4,5,6\n")
    code, _, error = rehearse(exp)
    assert code == 2
    assert "2 listed identities have no image in rand_perm_cam.mat (5, 6)" in error
