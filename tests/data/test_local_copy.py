"""A prepared dataset in a bucket is read from a copy on this machine."""

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ddag_jax.data.loader import ImageSource, open_split
from ddag_jax.errors import UserError
from tests.buckets import Bucket

pytestmark = pytest.mark.slow  # renders people


@pytest.fixture(scope="module")
def dataset(bucket: Bucket, debug_data: Path) -> str:
    return bucket.put(debug_data, "prepared")


def opened(folder: str | Path, cache: Path | None = None) -> ImageSource:
    return open_split(folder, "sysu_mm01", (32, 16), "train", cache)


def downloads(bucket: Bucket) -> int:
    return sum("alt=media" in line and "prepared" in line for line in bucket.requests())


def test_it_is_the_dataset(dataset: str, debug_data: Path, tmp_path: Path) -> None:
    ours, theirs = opened(dataset, tmp_path), opened(debug_data)
    assert ours.folder.is_relative_to(tmp_path)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.names == theirs.names
    numbers = np.arange(len(theirs))
    np.testing.assert_array_equal(ours.images(numbers), theirs.images(numbers))


def test_it_is_copied_once(bucket: Bucket, dataset: str, tmp_path: Path) -> None:
    first = opened(dataset, tmp_path).folder
    before = downloads(bucket)
    assert opened(dataset, tmp_path).folder == first
    assert downloads(bucket) == before
    assert opened(dataset, tmp_path / "other").folder != first
    assert downloads(bucket) > before


def test_by_default_it_is_in_the_temporary_folder(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert opened(dataset).folder.parent == tmp_path / f"ddag_jax_data_{os.getuid()}"


def test_another_process_that_copies_is_waited_for(
    bucket: Bucket, dataset: str, tmp_path: Path
) -> None:
    folder = Path(opened(dataset, tmp_path).folder)
    whole = folder.rename(tmp_path / "whole")
    before = downloads(bucket)
    with ThreadPoolExecutor() as pool, open(tmp_path / f".{folder.name}.guard", "a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        waiting = pool.submit(opened, dataset, tmp_path)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        whole.rename(folder)
        fcntl.flock(guard, fcntl.LOCK_UN)
        assert Path(waiting.result(60).folder) == folder
    assert downloads(bucket) == before


def test_a_copy_that_lacks_a_file_is_replaced(dataset: str, tmp_path: Path) -> None:
    folder = Path(opened(dataset, tmp_path).folder)
    record = next(folder.glob("*train.array_record*"))
    content = record.read_bytes()
    for damage in (record.unlink, lambda: record.write_bytes(content[:-1])):
        damage()
        assert Path(opened(dataset, tmp_path).folder) == folder
        assert record.read_bytes() == content


def test_another_dataset_at_the_address_is_copied_anew(
    bucket: Bucket, debug_data: Path, tmp_path: Path
) -> None:
    dataset = bucket.put(debug_data, "changing")
    first = opened(dataset, tmp_path)
    info = next(name for name in bucket.names("changing") if name.endswith("/metadata.json"))
    text = bucket.read(f"changing/{info}")
    changed = text.replace(b'"notes": ', b'"notes" :', 1)  # of the same length
    bucket.write(f"changing/{info}", changed)
    second = opened(dataset, tmp_path)
    assert second.folder != first.folder
    assert (Path(second.folder) / "metadata.json").read_bytes() == changed != text


def test_it_is_not_there_or_cannot_be_copied(bucket: Bucket, dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gs://bucket/none/.*: no prepared dataset; run: python"):
        opened(bucket / "none", tmp_path)
    with pytest.raises(UserError, match=r"no prepared dataset \(there is one of 32x16 pixels\)"):
        open_split(dataset, "sysu_mm01", (64, 32), "train", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be written \(.*name another --data.cache"):
        opened(dataset, tmp_path / "file")
    assert not list(tmp_path.glob("*/*"))
