"""The benchmark of the data does what it prints: nothing here asserts a time."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data
from ddag_jax.datasets.checks import Counts
from ddag_jax.datasets.prepare import read_folder
from ddag_jax.synthetic.rehearsal import write_tree


def test_the_tree_has_the_published_training_counts() -> None:
    tree = data.tree(data.FULL)
    training = [image for image in tree.images if image[1] != 396]
    assert len(training) == 34_167
    assert len({name for name, _, _ in tree.images}) == len(tree.images) == 34_167 + data.TESTED
    infrared = [who for _, who, camera in training if camera in (3, 6)]
    visible = [who for _, who, camera in training if camera in (1, 2, 4, 5)]
    assert (len(visible), len(infrared)) == (22_258, 11_909)
    assert set(visible) == set(infrared) == set(range(1, 396))


def test_the_least_tree_can_be_sampled() -> None:
    tree = data.tree(data.FULL._replace(images=data.LEAST // 2))
    for cameras in ((1, 2, 4, 5), (3, 6)):
        assert {who for _, who, camera in tree.images if camera in cameras} == set(range(1, 397))


def test_the_tree_is_a_sound_dataset(tmp_path: Path) -> None:
    tree = data.tree(data.QUICK)
    write_tree(tree, tmp_path / "tree", distinct=1, heights=(32,), seed=0, progress=False)
    layout = read_folder("sysu_mm01", tmp_path / "tree")
    assert Counts.of(layout.split("train+val")) == Counts(12, 167, 89)
    assert Counts.of(layout.split("test")) == Counts(1, 4, 2)


@pytest.mark.slow  # starts processes
def test_it_prints_and_writes_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.main(["--quick", "--scratch", str(tmp_path)], tmp_path / "results")
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "results" / "data.json").read_text())["result"]
    assert os.listdir(tmp_path) == ["results"]
    assert f"written: {tmp_path / 'results' / 'data.json'}" in printed

    assert result["images"] == 256
    assert list(result["preparing"]) == ["134 images", "262 images"]
    for name, found in result["preparing"].items():
        assert found["images_per_s"] == found["images"] / found["preparing_s"]
        # A little more than raw pixels.
        assert 32 * 16 * 3 < found["stored_bytes"] < 2 * 32 * 16 * 3 + 65536 * 3 / found["images"]
        (line,) = (line for line in printed.splitlines() if line.startswith(name))
        assert f"{found['preparing_s']:.1f} s" in line
        assert f"{found['images_per_s']:,.0f}" in line
    assert list(result["loading"]) == [
        "training_batches, 1 thread",
        "training_batches, 2 threads",
        "ImageSource.images",
        "ImageSource.images, compressed records",
        "memory-mapped array",
    ]
    for name, found in result["loading"].items():
        assert found["warm_images_per_s"] == 5 * 64 / found["warm"]["median_s"]
        (line,) = (line for line in printed.splitlines() if line.startswith(name + "  "))
        assert f"{found['warm_images_per_s']:,.0f}" in line
        if found["cold"] is None:
            assert line.endswith("unknown")
        else:
            assert line.endswith(f" {found['cold_images_per_s']:,.0f}")


def test_the_other_ways_read_the_same_images(tmp_path: Path) -> None:
    write_tree(data.tree(data.QUICK), tmp_path / "tree", distinct=2, heights=(32,), seed=0)
    data.prepare_timed(tmp_path / "tree", tmp_path, (32, 16), tmp_path / "seconds.json")
    assert set(json.loads((tmp_path / "seconds.json").read_text())) == {
        "listing_s",
        "preparing_s",
        "preparing_processor_s",
    }
    source, _ = data.open_training(tmp_path, (32, 16))
    numbers = np.random.default_rng(0).permutation(len(source))
    data.write_array(source, tmp_path / "images.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy")[numbers], source.images(numbers))
    data.write_compressed(source, tmp_path / "compressed")
    np.testing.assert_array_equal(
        data.compressed(source, tmp_path / "compressed").images(numbers), source.images(numbers)
    )


def test_what_was_not_read_from_the_disk_is_not_called_cold(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    assert data.cold([path], lambda: None, needed=100_000) is None
    assert data.cold([path], lambda: None, needed=0) is not None


def test_too_few_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        data.main(["--images", "100"])
    assert stop.value.code == 2
    assert "must be 2400 or more" in capsys.readouterr().err
