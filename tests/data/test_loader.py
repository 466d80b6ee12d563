import gc
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from ddag_jax.config import DataConfig
from ddag_jax.data.loader import (
    ImageSource,
    evaluation_split,
    open_split,
    training_batches,
    training_split,
)
from ddag_jax.data.sampler import IdentitySampler, Sample
from ddag_jax.datasets.builder import VERSION
from ddag_jax.errors import UserError
from ddag_jax.types import Batch

SIZE = (32, 16)


def make_config(data_dir: Path, **settings: object) -> DataConfig:
    return DataConfig(dir=str(data_dir), image_height=32, image_width=16, **settings)


def make_sampler(source: ImageSource) -> IdentitySampler:
    return IdentitySampler(
        source.labels, source.infrared, identities_per_batch=4, images_per_identity=2, seed=0
    )


def equal(one: Batch, two: Batch) -> bool:
    return all(map(np.array_equal, one, two))


def test_split_holds_its_identities_in_order(data_dir: Path) -> None:
    source = open_split(data_dir, "sysu_mm01", SIZE, "train")
    assert len(source) == 4 * 6 * 2
    keys = list(zip(source.identities.tolist(), source.cameras.tolist(), source.names, strict=True))
    assert keys == sorted(keys)
    assert sorted(set(source.identities.tolist())) == [1, 2, 3, 16]
    assert source.names[0] == "cam1/0001/0001.jpg"
    np.testing.assert_array_equal(source.infrared, np.isin(source.cameras, [3, 6]))
    assert source.classes == 4
    # Labels are ranks, not numbers.
    np.testing.assert_array_equal(source.labels, np.searchsorted([1, 2, 3, 16], source.identities))


def test_images_are_those_of_the_files(data_dir: Path, tree: Path) -> None:
    source = open_split(data_dir, "sysu_mm01", SIZE, "train+val")
    assert len(source) == 6 * 6 * 2
    chosen = np.array([70, 0, 3, 4, 0, 25])  # out of order, repeated, of both splits
    images = source.images(chosen)
    assert images.dtype == np.uint8
    assert images.shape == (6, 32, 16, 3)
    for number, image in zip(chosen, images, strict=True):
        with PIL.Image.open(tree / source.names[number]) as file:
            np.testing.assert_array_equal(image, np.asarray(file.convert("RGB")))


@pytest.mark.parametrize("mask", [True, False])
def test_subset(data_dir: Path, mask: bool) -> None:
    source = open_split(data_dir, "sysu_mm01", SIZE, "train+val")
    chosen = np.isin(source.identities, [2, 5])
    part = source.subset(chosen if mask else np.flatnonzero(chosen))
    assert set(part.identities.tolist()) == {2, 5}
    assert [name.split("/")[1] for name in part.names] == ["0002"] * 12 + ["0005"] * 12
    np.testing.assert_array_equal(part.labels, [0] * 12 + [1] * 12)
    numbers = np.flatnonzero(chosen)
    np.testing.assert_array_equal(part.images(np.array([13, 1])), source.images(numbers[[13, 1]]))
    # A subset of a subset counts from its own beginning.
    last = part.subset(np.array([13]))
    np.testing.assert_array_equal(last.images(np.array([0])), source.images(numbers[[13]]))


def test_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_split(tmp_path / "none", "sysu_mm01", (96, 48), "train")
    message = str(caught.value)
    assert "\n" not in message
    assert "none/sysu_mm01/96x48" in message
    command = "python -m ddag_jax.data prepare sysu_mm01 --from FOLDER --to "
    assert command + str(tmp_path / "none") + " --image-size 96 48" in message


def test_prepared_at_another_size(data_dir: Path) -> None:
    with pytest.raises(UserError, match=r"there is one of 32x16 pixels.*--image-size 96 48,"):
        open_split(data_dir, "sysu_mm01", (96, 48), "train")


def test_half_deleted_is_not_prepared(tmp_path: Path) -> None:
    """What a killed prepare leaves has another name, and what has no description is not whole."""
    (tmp_path / "sysu_mm01" / "32x16" / f"incomplete.AB12CD_{VERSION}").mkdir(parents=True)
    (tmp_path / "sysu_mm01" / "32x16" / VERSION).mkdir()
    with pytest.raises(UserError, match="no prepared dataset; run"):
        open_split(tmp_path, "sysu_mm01", SIZE, "train")


def test_training_split_of_the_published_setting(data_dir: Path) -> None:
    training, validation = training_split(make_config(data_dir), seed=0)
    assert set(training.identities.tolist()) == {1, 2, 3, 4, 5, 16}
    assert validation is None


def test_training_split_with_val_held_out(data_dir: Path) -> None:
    training, validation = training_split(make_config(data_dir, train_on="train"), seed=0)
    assert set(training.identities.tolist()) == {1, 2, 3, 16}
    assert validation is not None
    assert set(validation.identities.tolist()) == {4, 5}


def test_training_split_with_a_drawn_holdout(data_dir: Path) -> None:
    config = make_config(data_dir, holdout_identities=2)
    draws = []
    for seed in range(8):
        training, validation = training_split(config, seed=seed)
        assert validation is not None
        held = set(validation.identities.tolist())
        assert len(held) == 2
        assert held.isdisjoint(training.identities.tolist())
        assert held | set(training.identities.tolist()) == {1, 2, 3, 4, 5, 16}
        assert len(training) + len(validation) == 72
        again = training_split(config, seed=seed)[1]
        assert again is not None
        assert again.names == validation.names
        draws.append(frozenset(held))
    assert len(set(draws)) > 1


def test_holdout_of_everyone(data_dir: Path) -> None:
    with pytest.raises(UserError, match=r"data\.holdout_identities: 6 of 6 identities"):
        training_split(make_config(data_dir, holdout_identities=6), seed=0)


def test_batches_are_those_of_the_sampler(data_dir: Path) -> None:
    training, _ = training_split(make_config(data_dir), seed=0)
    sampler = make_sampler(training)
    batches = list(
        training_batches(training, sampler, steps_per_epoch=3, first_step=0, last_step=7)
    )
    assert len(batches) == 7
    for step, batch in enumerate(batches):
        labels, visible, infrared = sampler.sample(step // 3, step % 3)
        assert batch.visible.dtype == np.uint8
        assert batch.visible.shape == batch.infrared.shape == (4, 2, 32, 16, 3)
        np.testing.assert_array_equal(batch.labels, labels)
        for slot in range(4):
            np.testing.assert_array_equal(batch.visible[slot], training.images(visible[slot]))
            np.testing.assert_array_equal(batch.infrared[slot], training.images(infrared[slot]))


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_start_anywhere(data_dir: Path, threads: int) -> None:
    training, _ = training_split(make_config(data_dir), seed=0)

    def read(first: int) -> list[Batch]:
        return list(
            training_batches(
                training,
                make_sampler(training),
                steps_per_epoch=3,
                first_step=first,
                last_step=8,
                threads=threads,
                read_ahead=4,
            )
        )

    whole = read(0)
    for first in (1, 3, 7, 8):
        resumed = read(first)
        assert len(resumed) == 8 - first
        assert all(map(equal, whole[first:], resumed))


def test_processes_share_a_batch_by_slots(data_dir: Path) -> None:
    training, _ = training_split(make_config(data_dir), seed=0)

    def read(index: int, count: int) -> list[Batch]:
        return list(
            training_batches(
                training,
                make_sampler(training),
                steps_per_epoch=5,
                first_step=0,
                last_step=3,
                process_index=index,
                process_count=count,
            )
        )

    parts = zip(read(0, 2), read(1, 2), strict=True)
    for whole, (first, second) in zip(read(0, 1), parts, strict=True):
        assert first.visible.shape == (2, 2, 32, 16, 3)
        joined = Batch(*(np.concatenate(both) for both in zip(first, second, strict=True)))
        assert equal(whole, joined)


def test_reads_a_little_ahead_and_stops_with_its_reader(data_dir: Path) -> None:
    training, _ = training_split(make_config(data_dir), seed=0)
    sampler = make_sampler(training)
    read = []

    class Spy(IdentitySampler):
        def __init__(self) -> None:
            pass

        def sample(self, epoch: int, step: int) -> Sample:
            read.append(step)
            return sampler.sample(epoch, step)

    before = set(threading.enumerate())
    batches = training_batches(
        training, Spy(), steps_per_epoch=9, first_step=0, last_step=10**6, read_ahead=2
    )
    next(batches)
    for _ in range(100):
        if len(read) >= 3:
            break
        time.sleep(0.05)
    del batches
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert not set(threading.enumerate()) - before
    assert 3 <= len(read) <= 4


def test_a_failing_read_reaches_the_reader(data_dir: Path) -> None:
    training, _ = training_split(make_config(data_dir), seed=0)
    other = open_split(data_dir, "sysu_mm01", SIZE, "val")
    batches = training_batches(
        other, make_sampler(training), steps_per_epoch=9, first_step=0, last_step=9
    )
    with pytest.raises(IndexError):
        list(batches)


# --- Damaged after it was prepared ------------------------------------------------------------


@pytest.fixture
def shard(data_dir: Path, tmp_path: Path) -> Path:
    """The one file of the split `train`, of a copy to damage; its data_dir is `tmp_path`."""
    shutil.copytree(data_dir / "sysu_mm01", tmp_path / "sysu_mm01")
    [path] = tmp_path.rglob("*-train.array_record-*")
    return path


def read_all(data_dir: Path) -> None:
    source = open_split(data_dir, "sysu_mm01", SIZE, "train")
    source.images(np.arange(len(source)))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut to its head": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("404 not found"),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_clear_line(shard: Path, tmp_path: Path, damage: str) -> None:
    read_all(tmp_path)
    DAMAGE[damage](shard)
    with pytest.raises(UserError) as caught:
        read_all(tmp_path)
    told = str(caught.value)
    assert told.startswith(f"{shard.parent}: image cam1/0001/0001.jpg is damaged (")
    assert told.endswith("); remove this folder and prepare the dataset again")
    assert "\n" not in told


def test_a_byte_of_a_stored_record_flipped(shard: Path, tmp_path: Path) -> None:
    """ArrayRecord has a checksum of its own, of what it has compressed."""
    content = bytearray(shard.read_bytes())
    content[4000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"image cam2/0001/0001\.jpg is damaged \(Corrupted "):
        read_all(tmp_path)


def test_a_byte_of_an_image_flipped(shard: Path, tmp_path: Path, data_dir: Path) -> None:
    """In a file that is sound in itself: only the checksum beside the image can tell."""
    records = array_record_module.ArrayRecordReader(str(shard)).read_all()
    shard.unlink()
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    for number, record in enumerate(records):
        if number == 7:
            example = tf_example_pb2.Example.FromString(record)
            pixels = bytearray(example.features.feature["image"].bytes_list.value[0])
            pixels[100] ^= 1
            example.features.feature["image"].bytes_list.value[0] = bytes(pixels)
            record = example.SerializeToString()
        writer.write(record)
    writer.close()
    source = open_split(tmp_path, "sysu_mm01", SIZE, "train")
    others = np.delete(np.arange(len(source)), 7)
    whole = open_split(data_dir, "sysu_mm01", SIZE, "train").images(others)
    np.testing.assert_array_equal(source.images(others), whole)
    told = f"{shard.parent}: image {source.names[7]} is damaged (its checksum differs); remove"
    with pytest.raises(UserError, match=re.escape(told)):
        source.images(np.array([3, 7]))
    # By its number in a subset, too.
    with pytest.raises(UserError, match=re.escape(told)):
        source.subset(np.array([9, 7])).images(np.array([1]))


def test_damage_reaches_whoever_reads_batches(shard: Path, tmp_path: Path) -> None:
    training, _ = training_split(make_config(tmp_path), seed=0)
    DAMAGE["cut in half"](shard)
    batches = training_batches(
        training, make_sampler(training), steps_per_epoch=9, first_step=0, last_step=9
    )
    with pytest.raises(UserError, match="is damaged"):
        list(batches)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_label_noise_is_exactly_the_share(data_dir: Path, share: float) -> None:
    clean, _ = training_split(make_config(data_dir), seed=3)
    noisy, _ = training_split(make_config(data_dir, label_noise=share), seed=3)
    changed = clean.identities != noisy.identities
    assert changed.sum() == round(share * len(clean))
    assert set(noisy.identities.tolist()) == set(clean.identities.tolist())
    assert (noisy.names, noisy.cameras.tolist()) == (clean.names, clean.cameras.tolist())
    for infrared in (False, True):  # no identity dies out, in either modality
        kept = clean.identities[~changed & (clean.infrared == infrared)]
        assert set(kept.tolist()) == set(clean.identities.tolist())
    again, _ = training_split(make_config(data_dir, label_noise=share), seed=3)
    np.testing.assert_array_equal(again.identities, noisy.identities)
    other, _ = training_split(make_config(data_dir, label_noise=share), seed=4)
    assert (other.identities != noisy.identities).any()


def test_label_noise_is_in_nothing_that_is_judged(data_dir: Path) -> None:
    def truth(source):
        return all(
            int(name.split("/")[1]) == identity
            for name, identity in zip(source.names, source.identities, strict=True)
        )

    noise = {"label_noise": 0.5}
    training, held_out = training_split(make_config(data_dir, train_on="train", **noise), seed=0)
    assert not truth(training)
    assert held_out is not None
    assert truth(held_out)
    training, held_out = training_split(
        make_config(data_dir, holdout_identities=2, **noise), seed=0
    )
    assert not truth(training)
    assert held_out is not None
    assert truth(held_out)
    assert not set(held_out.identities.tolist()) & set(training.identities.tolist())
    assert truth(evaluation_split(make_config(data_dir, **noise)))


def test_more_label_noise_than_there_can_be(data_dir: Path) -> None:
    with pytest.raises(UserError, match=r"data\.label_noise: 0\.99 of 72"):
        training_split(make_config(data_dir, label_noise=0.99), seed=0)
