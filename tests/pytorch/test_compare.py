"""The comparison, against a small stand-in of the reference's shape: its names, its interface."""

import re
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ddag_jax.pytorch import side_by_side
from ddag_jax.pytorch.compare import main
from ddag_jax.pytorch.reference import load

STAND_IN = Path(__file__).parent / "stand_in"
SMALL = ("--image-size", "64", "32", "--batch", "3", "2")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(side_by_side, "_SECONDS", 0.0)
    monkeypatch.setattr(side_by_side, "_RUNS", 1)


def changed(folder, module, old, new):
    """A copy of the stand-in that computes something else."""
    shutil.copytree(STAND_IN, folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / f"{module}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return folder


def verdicts(printed):
    """{name: verdict} of the lines with a single array."""
    pattern = r"^[a-z ]+?\s{2,}(\S+)\s+\S+\s+\S+  (same|DIFFERS)$"
    return dict(re.findall(pattern, printed, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Noise in the layout of SYSU-MM01: three identities, two images each in both modalities."""
    folder = tmp_path_factory.mktemp("people")
    draw = np.random.default_rng(0)
    for camera in ("cam1", "cam3"):
        for identity in ("0004", "0005", "0009"):
            (folder / camera / identity).mkdir(parents=True)
            for name in ("0001.jpg", "0002.jpg"):
                pixels = draw.integers(0, 256, (40, 20, 3), np.uint8)
                PIL.Image.fromarray(pixels).save(folder / camera / identity / name)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of the stand-in as it initialises itself, for five classes."""
    net = {
        key: torch.from_numpy(array)
        for key, array in load("ddag", STAND_IN, None).state_dict().items()
    }
    for key in ("classifier.weight", "classifier1.weight", "classifier2.weight"):
        net[key] = net[key][:5]
    net["out_att.W"], net["out_att.a"] = net["out_att.W"][:, :5], net["out_att.a"][:10]
    path = tmp_path_factory.mktemp("weights") / "model.t"
    torch.save({"net": net}, path)
    return path


@pytest.mark.slow
def test_the_same_network_agrees_in_everything(weights, people, capsys, monkeypatch):
    monkeypatch.setattr("ddag_jax.pytorch.side_by_side._SECONDS", 0.0)
    command = ["--reference", str(STAND_IN), "--weights", str(weights), "--images", str(people)]
    assert main([*command, *SMALL]) == 0
    printed = capsys.readouterr().out
    found = verdicts(printed)
    assert set(found.values()) == {"same"}
    for name in ("visible/part", "infrared/global", "graph_log_probs", "triplet", "total"):
        assert name in found
    for key in ("wpa.gate", "attention_3.a", "base_resnet.base.layer4.2.conv3.weight"):
        assert key in found
    assert re.search(r"^gradient +largest .* 182 of 182 same$", printed, flags=re.MULTILINE)
    for what in ("training", "embedding"):
        theirs, ours, ratio = map(
            float,
            re.search(rf"^{what} +(\S+) +(\S+) +(\S+)$", printed, flags=re.MULTILINE).groups(),
        )
        assert ratio == pytest.approx(ours / theirs, rel=0.05)
    left = {"model_main", "loss", "resnet", "attention"} & set(sys.modules)
    assert not left, "imported under bare names that others may want"


@pytest.mark.slow
def test_another_network_is_found_out(weights, tmp_path, capsys, monkeypatch):
    """Attention that does not sum to one moves the part feature and nothing before it."""
    monkeypatch.setattr(side_by_side, "speeds", lambda *_: [])
    checkout = changed(
        tmp_path / "other", "attention", "(u.mT @ v).softmax(2)", "(u.mT @ v).sigmoid()"
    )
    assert main(["--reference", str(checkout), "--weights", str(weights), *SMALL]) == 1
    printed = capsys.readouterr()
    found = verdicts(printed.out)
    for name in ("visible/part", "infrared/part", "part_logits", "part", "total", "wpa.gate"):
        assert found[name] == "DIFFERS", name
    for name in ("visible/global", "pooled", "global_logits", "graph_log_probs", "attention_1.W"):
        assert found[name] == "same", name
    assert "exceed their bound" in printed.err


@pytest.mark.slow
def test_caj_agrees_in_everything(tmp_path, capsys, monkeypatch):
    """Non-local blocks, GeM, the squared triplet, three views; also from the folder around it."""
    monkeypatch.setattr(side_by_side, "speeds", lambda *_: [])
    code = tmp_path / "checkout" / "ICCV21_CAJ"
    shutil.copytree(STAND_IN.with_name("stand_in_agw"), code)
    shutil.copy(STAND_IN / "resnet.py", code)
    assert main(["--reference", str(code.parent), "--method", "caj", *SMALL]) == 0
    printed = capsys.readouterr().out
    found = verdicts(printed)
    assert set(found.values()) == {"same"}
    names = (
        "infrared/pooled",
        "visible/global",
        "triplet",
        "NL_3.2.theta.weight",
        "NL_2.0.W.1.bias",
    )
    assert set(names) < set(found)
    assert re.search(r"^gradient +largest .* (\d+) of \1 same$", printed, flags=re.MULTILINE)


def test_what_is_no_checkout_is_refused(tmp_path, capsys):
    assert main(["--reference", str(tmp_path)]) == 2
    assert "model_main.py" in capsys.readouterr().err


def test_too_few_people_are_refused(people, capsys):
    arguments = ["--reference", str(STAND_IN), "--images", str(people), "--batch", "4", "2"]
    assert main(arguments) == 2
    assert "3 identities have 2 images in each modality" in capsys.readouterr().err


def test_weights_of_another_network_are_refused(tmp_path, capsys):
    torch.save({"net": {"classifier.weight": torch.ones(5, 3)}}, tmp_path / "model.t")
    arguments = ["--reference", str(STAND_IN), "--weights", str(tmp_path / "model.t")]
    assert main(arguments) == 2
    assert "wpa.gate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 0.0], [0.0, 1e-30], False),
        ([1.0, 2.0], [1.0, 2.0 + 1e-8], False),
        ([1.0, 2.0], [1.0, np.nan], False),
        ([1.0, 2.0], [1.0], False),
    ],
)
def test_verdicts(theirs, ours, same):
    relative = side_by_side._relative(np.array(theirs), np.array(ours), floor=0.0)
    assert side_by_side.Difference("loss", "x", relative).same is same
