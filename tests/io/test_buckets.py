"""Files in a bucket, against a server on this machine (tests/bucket_server.py)."""

import os
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from ddag_jax.cli.data import main as data
from ddag_jax.cli.embed import main as embed
from ddag_jax.cli.search import main as search
from ddag_jax.errors import UserError
from ddag_jax.io.buckets import BucketError, Mirror, check_bucket, objects_below
from ddag_jax.io.files import (
    check_new_file,
    is_file,
    new_folder,
    on_disk,
    read_bytes,
    read_json,
    whole_file,
    write_text,
)
from ddag_jax.report import page
from ddag_jax.report.target import check_target
from ddag_jax.serving.embed import prune
from tests.buckets import Bucket


def test_reads_objects_of_bounded_size_only(bucket: Bucket) -> None:
    path = bucket / "files/one"
    write_text(path, '{"größe": 5}')
    assert read_bytes(path, 14) == '{"größe": 5}'.encode()
    assert read_json(path) == {"größe": 5}
    assert is_file(epath.Path(path))
    assert not is_file(epath.Path(bucket / "files"))
    with pytest.raises(ValueError, match="longer than 13 bytes"):
        read_bytes(path, 13)
    with pytest.raises(ValueError, match="is not a regular file"):
        read_bytes(bucket / "files", 5)
    with pytest.raises(FileNotFoundError, match="gs://bucket/files/absent: there is no such"):
        read_bytes(bucket / "files/absent", 5)


def test_what_another_process_wrote_is_seen(bucket: Bucket) -> None:
    folder = epath.Path(bucket / "seen")
    write_text(folder / "one", "1")
    assert [path.name for path in folder.iterdir()] == ["one"]
    address = f"{os.environ['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/bucket/o"
    for name in ("one", "two"):
        urllib.request.urlopen(f"{address}?uploadType=media&name=seen/{name}", data=b"23").close()
    assert [path.name for path in folder.iterdir()] == ["one", "two"]
    assert (folder / "two").exists()
    assert read_bytes(folder / "one", 9) == b"23"


def test_out_of_reach_is_not_absent(bucket: Bucket) -> None:
    path = epath.Path(bucket / "reach/file")
    write_text(path, "x")
    bucket.refuse(403)
    try:
        for ask in (path.exists, path.is_dir, lambda: is_file(path), lambda: read_bytes(path, 5)):
            with pytest.raises(BucketError, match="gs://bucket/reach/file: Forbidden"):
                ask()
        with pytest.raises(UserError, match=r"the bucket bucket cannot be used .*Forbidden"):
            check_bucket(path)
    finally:
        bucket.serve()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("existing", ["old", None])
def test_a_failure_keeps_an_existing_object(
    bucket: Bucket, error: type[BaseException], existing: str | None
) -> None:
    path = bucket / f"kept/{error.__name__}{existing}"
    if existing is not None:
        write_text(path, existing)

    def fail() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert epath.Path(path).exists() == (existing is not None)
    assert existing is None or read_bytes(path, 9) == existing.encode()


def fill(folder: str, *names: str, replace: bool = False) -> None:
    with new_folder(folder, replace=replace) as local:
        for name in names:
            (local / name).parent.mkdir(exist_ok=True)
            (local / name).write_text(name)
        assert not set(names) & objects_below(folder).keys()


def test_a_folder_appears_at_the_end(bucket: Bucket) -> None:
    folder = bucket / "made"
    fill(folder, "figures/one", "index")
    assert bucket.names("made") == ["figures/one", "index"]
    written = [line for line in bucket.requests() if "multipart" in line]
    with pytest.raises(UserError, match="gs://bucket/made exists: remove it or name another"):
        fill(folder, "other")
    assert [line for line in bucket.requests() if "multipart" in line] == written
    with new_folder(folder, replace=True) as local:
        (local / "two").write_text("2")
    assert bucket.names("made") == ["two"]


def test_a_folder_that_fails_leaves_the_old_one(bucket: Bucket) -> None:
    fill(bucket / "stays", "old")

    def fail() -> None:
        with new_folder(bucket / "stays", replace=True) as local:
            (local / "new").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert bucket.names("stays") == ["old"]


def test_a_file_is_copied_to_read_it(bucket: Bucket, tmp_path: Path) -> None:
    write_text(bucket / "copied/weights.pth", "content")
    with on_disk(bucket / "copied/weights.pth") as file:
        assert file.name == "weights.pth"
        assert file.read_text() == "content"
    assert not file.exists()
    with on_disk(tmp_path) as file:
        assert file == tmp_path
    assert tmp_path.exists()
    with (
        pytest.raises(UserError, match="copied/none: no such file"),
        on_disk(bucket / "copied/none"),
    ):
        pass


def test_targets_are_checked_before_any_work(bucket: Bucket) -> None:
    write_text(bucket / "there", "x")
    assert check_new_file(bucket / "new/file") == epath.Path("gs://bucket/new/file")
    with pytest.raises(UserError, match="gs://bucket/there: exists already"):
        check_new_file(bucket / "there")
    for check in (check_bucket, check_new_file, check_target, fill):
        with pytest.raises(UserError, match="gs://other/x: there is no bucket other"):
            check("gs://other/x")
    assert check_target(bucket / "report") == epath.Path("gs://bucket/report")
    write_text(bucket / "thesis/index.html", "<html>")
    with pytest.raises(UserError, match=r"holds index.html, which no report wrote"):
        check_target(bucket / "thesis")


def test_a_report_is_replaced_by_the_next(bucket: Bucket) -> None:
    one = page.Page("one", "p", False, [], [], {}, [], {}, [], [])
    assert page.write_page(bucket / "page", one) == epath.Path("gs://bucket/page/index.html")
    page.write_page(bucket / "page", one._replace(title="two"))
    assert "two" in read_bytes(bucket / "page/index.html", 10**7).decode()
    bucket.put(Path(__file__).parent, "page")
    with pytest.raises(UserError, match="which no report wrote"):
        page.write_page(bucket / "page", one)


def test_a_mirror_copies_what_changed(bucket: Bucket) -> None:
    mirror = Mirror(bucket / "mirror")
    (mirror.local / "log").write_text("1\n")
    (mirror.local / "below").mkdir()
    (mirror.local / "below" / "events").write_text("2")
    mirror.copy("log")
    assert bucket.names("mirror") == ["log"]
    mirror.copy()
    assert bucket.names("mirror") == ["below/events", "log"]
    before = len(bucket.requests())
    mirror.copy()
    assert len(bucket.requests()) == before
    with (mirror.local / "log").open("a") as file:
        file.write("3\n")
    mirror.copy()
    assert read_bytes(bucket / "mirror/log", 9) == b"1\n3\n"
    mirror.close()
    assert not mirror.local.exists()


@pytest.mark.parametrize(
    ("main", "words", "what"),
    [
        (embed, ["run", "images", "--to", "gs://bucket/x.npz"], "the file of features"),
        (embed, ["run", "gs://bucket/images", "--to", "x.npz"], "images to embed"),
        (
            search,
            ["run", "--gallery", "gs://bucket/x.npz", "--query", "q"],
            "a file of features to",
        ),
    ],
)
def test_what_needs_a_disk_says_so(
    main: Callable[[list[str]], int],
    words: list[str],
    what: str,
    bucket: Bucket,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{what}" in line
    assert "cannot be in a bucket; name a file or folder on a disk" in line


def test_what_else_needs_a_disk_says_so(bucket: Bucket) -> None:
    words = ["prepare", "sysu_mm01", "--from", "people", "--to", bucket / "data"]
    with pytest.raises(UserError, match="a dataset that is being prepared cannot be in a bucket"):
        data(words)
    with pytest.raises(UserError, match="a file of features to search cannot be in a bucket"):
        prune(bucket / "x.npz")
