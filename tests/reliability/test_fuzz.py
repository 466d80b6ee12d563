"""Hostile input is refused: mutations of every reader's files, bombs, pipes; nothing unpickles."""

import ast
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from etils import epath

from ddag_jax.config import Config, DDAGConfig, from_dict, to_dict
from ddag_jax.datasets.images import read_image
from ddag_jax.datasets.rand_perm_cam import read_permutations
from ddag_jax.datasets.sysu_mm01 import SYSU_MM01
from ddag_jax.datasets.training_arrays import _load
from ddag_jax.errors import UserError
from ddag_jax.evaluation.stored_features import load_features
from tests.reliability import fuzz
from tests.test_architecture import sources


@pytest.mark.slow
def test_mutated_inputs_are_read_or_refused() -> None:
    counts, findings = fuzz.fuzz(800, seed=7)
    assert findings == []
    assert sum(count.total() for count in counts.values()) == 800
    assert len(counts) >= 14
    for name, count in counts.items():
        assert count["refused"], name  # the mutations bite


def a_finding(read: Callable[[Path, bytes], object]) -> list[str]:
    return [*fuzz._feed(fuzz.Reader([b""], read), b"", fuzz._WATCH)]


def test_what_must_not_happen_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(folder: Path, content: bytes) -> None:
        raise KeyError("a traceback")

    def write_outside(folder: Path, content: bytes) -> None:
        (tmp_path / "outside").write_bytes(content)

    def hang(folder: Path, content: bytes) -> None:
        threading.Event().wait(60)

    assert "KeyError: 'a traceback'" in a_finding(crash)[0]
    assert "outside" in a_finding(write_outside)[1]
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    before = fuzz.signal.signal(fuzz.signal.SIGALRM, fuzz._out_of_time)
    try:
        assert "TimeoutError" in a_finding(hang)[0]
    finally:
        fuzz.signal.signal(fuzz.signal.SIGALRM, before)


def png_of(width: int, height: int) -> bytes:
    """A few bytes that say to be an image of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(7072, 7072), (60_000, 1000), (100_000, 100_000), (2**31 - 1, 1)])
def test_an_image_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").write_bytes(png_of(*size))

    def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PIL.Image.Image, "load", decoded)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(UserError, match=r"pixels"):
        read_image(epath.Path(tmp_path / "x.png"), 8, 8)


READERS: dict[str, Callable[[Path], object]] = {
    "image": lambda path: read_image(epath.Path(path), 8, 8),
    "array": lambda path: _load(epath.Path(path)),
    "permutations": read_permutations,
    "features": lambda path: load_features(path, SYSU_MM01),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a regular file"):
        READERS[reader](path)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("training", "epochs", 2**40),
        ("training", "epochs", 2.5),
        ("training", "epochs", True),
        ("training", "mapping", "vmap"),
        ("model", "backbone", ["resnet50"]),
        ("optimizer", "learning_rate", float("inf")),
        ("optimizer", "learning_rate", float("nan")),
        ("optimizer", "drop_epochs", (1, "2")),
        ("data", "dir", "x" * 10_000),
        ("data", "dir", 7),
    ],
)
def test_a_configuration_has_bounds(section: str, field: str, value: object) -> None:
    stored = to_dict(Config())
    assert from_dict(stored, DDAGConfig) == (Config(), [])
    stored[section][field] = value
    with pytest.raises((ValueError, TypeError), match=f"{section}.{field}|not supported"):
        from_dict(stored, DDAGConfig)


def test_nothing_unpickles() -> None:
    """np.load and torch.load refuse to, and nothing else that could is called anywhere."""
    calls = 0
    for path, source in sources():
        if not path.startswith(("ddag_jax/", "configs/")) and "/" in path:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                loads = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
                assert not loads & {name.split(".")[0] for name in names}, path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in ("np.load", "numpy.load"):
                assert given.get("allow_pickle") == "False", f"{path}:{node.lineno}"
                calls += 1
            if called == "torch.load":
                assert given.get("weights_only") == "True", f"{path}:{node.lineno}"
                calls += 1
            assert called not in ("eval", "exec", "scipy.io.loadmat"), f"{path}:{node.lineno}"
            assert given.get("allow_pickle") != "True", f"{path}:{node.lineno}"
    assert calls >= 2


def test_a_name_without_end_is_refused_at_once(tmp_path: Path) -> None:
    """PyTorch alone takes ten seconds for 15,000 characters, growing with their square."""
    torch = pytest.importorskip("torch")
    from ddag_jax.pytorch.reading import read_state_dict

    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pth").read_bytes()
    assert b"FloatStorage" in content
    content = content.replace(b"FloatStorage", b"x" * 200_000)
    (tmp_path / "x.pth").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"a name of 200,0\d\d characters"):
        read_state_dict(tmp_path / "x.pth")
    assert time.monotonic() - start < 5


def test_an_array_that_would_unpickle_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "trapped"),)

    np.save(tmp_path / "x.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez(
        tmp_path / "x.npz",
        **{
            f"{side}_{column}": np.array([Trap()], object)
            for side in ("query", "gallery")
            for column in ("features", "ids", "cameras", "names")
        },
    )
    for read, name in (("array", "x.npy"), ("features", "x.npz")):
        with pytest.raises(UserError):
            READERS[read](tmp_path / name)
    assert not (tmp_path / "trapped").exists()
