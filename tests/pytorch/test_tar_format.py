"""Files of PyTorch 0.1: read as PyTorch itself reads them, without running anything of theirs."""

import collections
import contextlib
import io
import os
import pickle
import random
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddag_jax.cli.convert import main
from ddag_jax.errors import UserError
from ddag_jax.pytorch.keys import torchvision_table
from ddag_jax.pytorch.reading import read_state_dict, read_state_dicts
from ddag_jax.runs.checkpoint import read_variables
from tests.pytorch.tar_writer import SYSTEM, write_tar

WHOLE = torch.arange(24.0).reshape(4, 6)
STATE = {
    "plain": torch.arange(6, dtype=torch.float64).reshape(2, 3),
    "whole": WHOLE,
    "every other column": WHOLE[1:, ::2],
    "transposed": WHOLE.t(),
    "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
    "counter": torch.tensor([7]),
    "bytes": torch.tensor([1, 255], dtype=torch.uint8),
}


def check(path: Path) -> dict[str, torch.Tensor]:
    """Read a file as we do and as PyTorch does where it trusts the file."""
    ours = read_state_dict(path)
    theirs = torch.load(path, weights_only=False)
    theirs = theirs.get("state_dict", theirs)
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype, key
        assert torch.equal(ours[key], value), key
    return ours


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_tensors_are_those_that_pytorch_reads(tmp_path: Path, kind: type) -> None:
    write_tar(tmp_path / "x.pth", kind(STATE))
    with pytest.raises(RuntimeError, match=r"legacy \.tar format"):
        torch.load(tmp_path / "x.pth", weights_only=True)
    ours = check(tmp_path / "x.pth")
    assert all(torch.equal(ours[key], value) for key, value in STATE.items())


def test_what_training_scripts_save_beside_them(tmp_path: Path) -> None:
    scores = [1.5, None, True, (1, 2), -(10**30), "text"]
    write_tar(
        tmp_path / "x.pth", {"epoch": 3, "arch": "resnet50", "state_dict": STATE, "scores": scores}
    )
    check(tmp_path / "x.pth")
    assert [one.place for one in read_state_dicts(tmp_path / "x.pth")] == ["state_dict"]


def number(value: int) -> bytes:
    content = pickle.encode_long(value)
    return b"\x8a" + bytes([len(content)]) + content


def tensor(key: int) -> bytes:
    return number(key) + b"Q"


def variable(key: int) -> bytes:
    """A Parameter with its tensor as argument, and three settings."""
    return b"ctorch.nn.parameter\nParameter\n" + tensor(key) + b"\x85R\x88\x89N\x87b"


def older_variable(key: int) -> bytes:
    """A Parameter without arguments, whose state has the tensor and four settings."""
    made = b"ctorch.nn.parameter\nParameter\n)\x81"
    return made + b"(" + tensor(key) + b"NN\x88\x89tb"


@pytest.mark.parametrize("value", [tensor, variable, older_variable])
def test_python_2_s_dictionaries_and_parameters(
    tmp_path: Path, value: Callable[[int], bytes]
) -> None:
    """Pairs in a list, byte strings, and parameters in the place of their tensors."""
    floats = {k: v for k, v in STATE.items() if v.is_floating_point()}
    state = STATE if value is tensor else floats
    names = list(state)

    def changed(written: bytes) -> bytes:
        keys = pickle_numbers(written)
        pairs = b"".join(
            b"](U" + bytes([len(name)]) + name.encode() + value(key) + b"ea"
            for name, key in zip(names, keys, strict=True)
        )
        return b"\x80\x02ccollections\nOrderedDict\n]" + pairs + b"\x85R}b."

    write_tar(tmp_path / "x.pth", state, change={"pickle": changed})
    ours = check(tmp_path / "x.pth")
    assert all(torch.equal(ours[key], one) for key, one in state.items())


def pickle_numbers(content: bytes) -> list[int]:
    """Return the persistent numbers of a pickle in their order."""
    found: list[int] = []

    class Reader(pickle.Unpickler):
        def persistent_load(self, number: int) -> None:
            found.append(number)

    Reader(io.BytesIO(content)).load()
    return found


class Trap:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_state_dicts(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("member", ["sys_info", "pickle", "tensors", "storages"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_member_that_would_run_code_is_refused(
    tmp_path: Path, member: str, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path, harm = tmp_path / "x.pth", tmp_path / "harm"
    trap = pickle.dumps(Trap(harm), protocol=protocol)
    write_tar(path, STATE, change={member: lambda content: trap + content})
    assert main(["torchvision", str(path), str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: refused")
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == [path]
    with contextlib.suppress(Exception):  # whatever PyTorch makes of it
        torch.load(path, weights_only=False)
    assert harm.exists() == (member != "sys_info")  # which it does not read: the trap works


@pytest.mark.parametrize("name", ["os system", "builtins eval", "torch load", "posix system"])
@pytest.mark.parametrize("instruction", [b"R", b"\x81"])
def test_names_are_compared_and_never_looked_up(
    tmp_path: Path, name: str, instruction: bytes
) -> None:
    called = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\nU\x01x\x85" + instruction + b"."
    write_tar(tmp_path / "x.pth", STATE, change={"pickle": lambda _: called})
    error = refused(tmp_path / "x.pth")
    assert f"GLOBAL {name}" in error
    assert "weights_only=False" in error  # how to save its tensors alone


def test_a_whole_model_says_how_to_save_its_tensors(tmp_path: Path) -> None:
    whole = b"\x80\x02(cmodels\nResNet\nU\x01fU\x01stQ)\x81."
    write_tar(tmp_path / "x.pth", STATE, change={"pickle": lambda _: whole})
    error = refused(tmp_path / "x.pth")
    assert "holds a whole model, not only its state_dict()" in error
    assert f"torch.load('{tmp_path / 'x.pth'}', 'cpu', weights_only=False)" in error


def entry(key: int, storage: int, *fields: int, axes: int = 1) -> bytes:
    content = pickle.dumps((key, storage, torch.FloatTensor), protocol=2)
    return content + struct.pack("<ii", axes, 0) + struct.pack(f"<{len(fields)}q", *fields)


def storage(length: int, numbers: bytes = bytes(16), views: Any = ()) -> bytes:
    content = pickle.dumps(1, protocol=2) + pickle.dumps((1, "cpu", torch.FloatStorage), protocol=2)
    content += struct.pack("<q", length) + numbers
    return content + pickle.dumps(list(views), protocol=2)


ONE = pickle.dumps(1, protocol=2)
FOUR = storage(4)


@pytest.mark.parametrize(
    ("storages", "tensors", "reason"),
    [
        (
            storage(50),
            ONE + entry(2, 1, 4, 1, 0),
            "storage of 50 numbers is longer than the file",
        ),
        (storage(2**61), ONE + entry(2, 1, 4, 1, 0), "longer than the file"),
        (storage(-4), ONE + entry(2, 1, 4, 1, 0), "longer than the file"),
        (storage(4, views=[(3, 1, 2, 3)]), ONE + entry(2, 3, 3, 1, 0), "a view reaches beyond"),
        (storage(4, views=[(3, 1, -1, 3)]), ONE + entry(2, 3, 3, 1, 0), "a view reaches beyond"),
        (storage(4, views=[(3, 9, 0, 1)]), ONE + entry(2, 3, 1, 1, 0), "refused"),
        (FOUR, ONE + entry(2, 1, 5, 1, 0), "a tensor reaches beyond its storage"),
        (FOUR, ONE + entry(2, 1, 4, 1, 1), "a tensor reaches beyond its storage"),
        (FOUR, ONE + entry(2, 1, 4, -1, 3), "a tensor reaches beyond its storage"),
        (FOUR, ONE + entry(2, 1, -4, 1, 0), "a tensor reaches beyond its storage"),
        (FOUR, ONE + entry(2, 1, 4, 1, -1), "a tensor reaches beyond its storage"),
        (FOUR, ONE + entry(2, 1, 2**40, 0, 0), "a tensor has more numbers than its storage"),
        (FOUR, ONE + entry(2, 7, 4, 1, 0), "refused"),
        (FOUR, ONE + entry(2, 1, 4, 1, 0, axes=-1), "a tensor of -1 axes"),
        (FOUR, ONE + entry(2, 1, 4, 1, 0, axes=2**30), "axes"),
        (FOUR, pickle.dumps(10**12, protocol=2) + entry(2, 1, 4, 1, 0), "refused"),
        (FOUR, pickle.dumps("1", protocol=2) + entry(2, 1, 4, 1, 0), "no number of entries"),
        (FOUR[:-20], ONE + entry(2, 1, 4, 1, 0), "refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_beyond_the_file_are_refused(
    tmp_path: Path, storages: bytes, tensors: bytes, reason: str
) -> None:
    saved = b"\x80\x02}U\x01wK\x02Qs."

    def write(storages: bytes, tensors: bytes) -> None:
        change = {"storages": storages, "tensors": tensors, "pickle": saved}
        write_tar(
            tmp_path / "x.pth",
            STATE,
            change={name: lambda _, content=content: content for name, content in change.items()},
        )

    write(FOUR, ONE + entry(2, 1, 4, 1, 0))
    assert torch.equal(read_state_dict(tmp_path / "x.pth")["w"], torch.zeros(4))
    write(storages, tensors)
    start = time.monotonic()
    assert reason in refused(tmp_path / "x.pth")
    assert time.monotonic() - start < 5


def nested_tuples(levels: int) -> bytes:
    """A key whose hash takes 2 ** levels additions."""
    twice = b"".join(b"q%ch%c\x86" % (i, i) for i in range(levels))
    return b"\x80\x02})" + twice + b"K\x01s."


def test_a_key_that_takes_for_ever_to_hash_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.pth", STATE, change={"pickle": lambda _: nested_tuples(60)})
    assert "a key that is neither text nor a number" in refused(tmp_path / "x.pth")


def rewrite(path: Path, change: Callable[[tarfile.TarInfo, bytes], bytes | None]) -> None:
    """Write a tar anew with changed entries; those that become None are left out."""
    content = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(path, "w:") as new:
        for member in old.getmembers():
            reading = old.extractfile(member)
            assert reading is not None
            changed = change(member, reading.read())
            if changed is not None:
                new.addfile(member, io.BytesIO(changed))


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "pipe"])
def test_a_member_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    types = {"link": b"2", "hard link": b"1", "folder": b"5", "pipe": b"6"}

    def change(member: tarfile.TarInfo, content: bytes) -> bytes:
        if member.name != "storages":
            return content
        member.type, member.linkname, member.size = types[kind], "/etc/passwd", 0
        return b""

    write_tar(tmp_path / "x.pth", STATE)
    rewrite(tmp_path / "x.pth", change)
    assert "its member storages is cut short, or no file" in refused(tmp_path / "x.pth")


def test_a_sparse_member_of_any_size_is_refused(tmp_path: Path) -> None:
    def change(member: tarfile.TarInfo, content: bytes) -> bytes:
        if member.name == "storages":
            member.pax_headers = {
                "GNU.sparse.major": "0",
                "GNU.sparse.minor": "1",
                "GNU.sparse.map": f"0,{len(content)}",
                "GNU.sparse.size": str(2**50),
            }
        return content

    write_tar(tmp_path / "x.pth", STATE)
    rewrite(tmp_path / "x.pth", change)
    assert "its member storages is cut short, or no file" in refused(tmp_path / "x.pth")


def test_another_tar_is_called_one(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.pth", STATE)
    rewrite(
        tmp_path / "x.pth", lambda member, content: content if member.name == "pickle" else None
    )
    assert "a tar archive of pickle; PyTorch's of 2016 has sys_info, storages, tensors" in refused(
        tmp_path / "x.pth"
    )


def test_another_machine_s_numbers_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.pth", STATE, system={**SYSTEM, "little_endian": False})
    assert "big-endian" in refused(tmp_path / "x.pth")


def test_damage_is_one_line(tmp_path: Path) -> None:
    """Every fifth length, and changes inside the members, which a tar has no checksum of."""
    path, draw = tmp_path / "x.pth", random.Random(0)
    small = {"w": torch.arange(3.0), "n": torch.tensor([2])}
    write_tar(path, small)
    whole = path.read_bytes()
    for length in range(600, len(whole), 97):
        path.write_bytes(whole[:length])
        read_or_refuse(path)

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(changed))
            match draw.randrange(3):
                case 0:
                    changed[at] = draw.randrange(256)
                case 1:
                    del changed[at : at + draw.randint(1, 9)]
                    changed = changed or bytearray(b".")
                case _:
                    changed[at:at] = draw.randbytes(draw.randint(1, 9))
        return bytes(changed)

    for _ in range(500):
        member = draw.choice(["pickle", "tensors", "storages", "sys_info"])
        write_tar(path, small, change={member: change})
        read_or_refuse(path)


def read_or_refuse(path: Path) -> None:
    start = time.monotonic()
    with contextlib.suppress(UserError):
        read_state_dicts(path)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("nested", [False, True])
def test_imagenet_s_weights_of_that_time_are_converted(
    tmp_path: Path, nested: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without counters of steps, which came later, and with the classes of ImageNet."""
    table = torchvision_table("resnet18")
    draw = np.random.default_rng(0)
    net = {
        key: torch.from_numpy(draw.standard_normal(shape, dtype=np.float32))
        for key, shape in table.shapes.items()
        if not key.endswith("tracked")
    }
    net |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    stored: Any = collections.OrderedDict(net)
    if nested:
        stored = {"arch": "resnet18", "state_dict": {f"module.{k}": v for k, v in net.items()}}
    write_tar(tmp_path / "old.pth", stored)
    torch.save(net, tmp_path / "new.pth")
    checksums = []
    for name in ("old", "new"):
        assert main(["torchvision", str(tmp_path / f"{name}.pth"), str(tmp_path / name)]) == 0
        checksums.append(capsys.readouterr().out.splitlines()[-1])
    assert checksums[0] == checksums[1]
    stem = read_variables(tmp_path / "old")["params"]["two_stream"]["visible"]["conv1"]["kernel"]
    assert np.array_equal(stem, net["conv1.weight"].numpy().transpose(2, 3, 1, 0))
