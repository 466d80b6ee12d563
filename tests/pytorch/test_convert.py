"""Weight conversion: exact, safe to read, all or nothing."""

import argparse
import dataclasses
import gzip
import os
import pickle
import re
import resource
import subprocess
import sys
import types
import zipfile

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from etils import epath

from ddag_jax.cli import evaluate
from ddag_jax.cli.convert import main
from ddag_jax.config import BaselineConfig, Config, DDAGConfig
from ddag_jax.errors import UserError
from ddag_jax.methods.build import build_method
from ddag_jax.methods.ddag.method import DDAG
from ddag_jax.parallel import device_mesh, replicated_shapes
from ddag_jax.pytorch.convert import _write_checkpoint as write_checkpoint
from ddag_jax.pytorch.keys import (
    Dimensions,
    agw_table,
    reference_table,
    to_variables,
    torchvision_table,
)
from ddag_jax.pytorch.reading import read_state_dict
from ddag_jax.runs.checkpoint import (
    Meta,
    read_meta,
    read_variables,
    restore_backbone,
    restore_variables,
    save_weights,
)

REFERENCE = reference_table(Dimensions(classes=6, parts=4, heads=3, head_dim=8))
FIGURES = {"epoch": 12, "cmc": np.linspace(0, 1, 20), "mAP": np.float64(0.25)}


def filled(table, keys):
    """Small random numbers under `keys`; everywhere else one stored zero, spread by strides."""
    draw = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(shape, generator=draw)
        if key in keys
        else torch.zeros((), dtype=torch.float32 if shape else torch.int64).expand(shape)
        for key, shape in table.shapes.items()
    }


def assert_identical(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype == np.float32
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A checkpoint of the reference, and ours made of it by the command."""
    folder = tmp_path_factory.mktemp("reference")
    net = filled(REFERENCE, set(REFERENCE.mapped))
    torch.save({"net": net, **FIGURES}, folder / "model.t")
    command = [
        "reference",
        str(folder / "model.t"),
        str(folder / "ours"),
        "--image-size",
        "64",
        "32",
    ]
    assert main(command) == 0
    return types.SimpleNamespace(net=net, file=folder / "model.t", ours=folder / "ours")


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """ImageNet weights and the checkpoint made of them, both for a ResNet-18."""
    folder = tmp_path_factory.mktemp("resnet18")
    table = torchvision_table("resnet18")
    tensors = filled(table, set(table.mapped))
    tensors |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(tensors, folder / "resnet18.pth")
    assert main(["torchvision", str(folder / "resnet18.pth"), str(folder / "ours")]) == 0
    return types.SimpleNamespace(
        net=tensors, table=table, file=folder / "resnet18.pth", ours=folder / "ours"
    )


def test_reference_to_ours_is_exact_and_complete(reference):
    """The very call by which evaluate.py reads it, into the network that its meta describes."""
    meta = read_meta(reference.ours)
    assert meta.classes == 6
    model = meta.config.model
    assert (model.parts, model.graph_heads, model.graph_head_dim) == (4, 3, 8)
    assert (meta.config.data.image_height, meta.config.data.image_width) == (64, 32)
    method = build_method(model, meta.classes)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), (64, 32)))
    one_device = device_mesh(jax.devices()[:1])
    restored = restore_variables(reference.ours, replicated_shapes(shapes, one_device))
    arrays = {key: tensor.numpy() for key, tensor in reference.net.items()}
    assert_identical(restored, to_variables(arrays, REFERENCE.mappings))


@pytest.mark.slow
def test_round_trip_is_exact(reference, tmp_path, capsys):
    back = tmp_path / "back.t"
    assert main(["to-reference", str(reference.ours), str(back)]) == 0
    printed = capsys.readouterr().out
    file = torch.load(back, weights_only=True)  # as today's PyTorch reads by default
    assert list(file) == ["net", "epoch", "cmc", "mAP"]
    net = file["net"]
    assert {key: tuple(value.shape) for key, value in net.items()} == REFERENCE.shapes
    for key, value in net.items():
        assert value.dtype == (torch.int64 if key.endswith("tracked") else torch.float32), key
        wanted = reference.net[key] if key in REFERENCE.mapped else torch.zeros_like(value)
        assert torch.equal(value, wanted), key
    assert f"keys written  {len(net)}" in printed
    again = tmp_path / "again"
    assert main(["reference", str(back), str(again)]) == 0
    assert_identical(read_variables(again), read_variables(reference.ours))
    # The checksum is of our variables, so both directions print the same one.
    assert printed.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]


AGW = {"pooling": "gem", "triplet": "weighted"}


@pytest.mark.slow  # files of three whole ResNet-50
@pytest.mark.parametrize(
    ("non_local", "expected"),
    [
        ("one", BaselineConfig(non_local="one", **AGW)),
        ("half", BaselineConfig(non_local="half", **AGW)),  # as the paper has it
        ("none", BaselineConfig()),
    ],
)
def test_agw_to_ours_and_back_is_exact(non_local, expected, tmp_path, capsys):
    """What its code holds: five blocks of one channel, or none; never half the channels."""
    table = agw_table(6, non_local)
    net = filled(table, set(table.mapped))
    torch.save({"net": net, "mINP": np.float64(0.5), **FIGURES}, tmp_path / "model.t")
    command = ["agw", str(tmp_path / "model.t"), str(tmp_path / "ours"), "--image-size", "64", "32"]
    assert main(command) == 0
    checksum = capsys.readouterr().out.splitlines()[-1]
    meta = read_meta(tmp_path / "ours")
    assert (meta.config.model, meta.classes, meta.config.data.image_height) == (expected, 6, 64)
    method = build_method(expected, 6)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), (64, 32)))
    one_device = device_mesh(jax.devices()[:1])
    restored = restore_variables(tmp_path / "ours", replicated_shapes(shapes, one_device))
    arrays = {key: tensor.numpy() for key, tensor in net.items()}
    assert_identical(restored, to_variables(arrays, table.mappings))

    back = tmp_path / "back.t"
    if non_local == "half":
        assert main(["to-agw", str(tmp_path / "ours"), str(back)]) == 2
        assert "model.non_local is half, there always one" in capsys.readouterr().err
        return
    assert main(["to-agw", str(tmp_path / "ours"), str(back)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == checksum
    file = torch.load(back, weights_only=True)
    assert list(file) == ["net", "epoch", "cmc", "mAP", "mINP"]
    assert {key: tuple(value.shape) for key, value in file["net"].items()} == table.shapes
    for key, value in file["net"].items():
        wanted = net[key] if key in table.mapped else torch.zeros_like(value)
        assert torch.equal(value, wanted), key


@pytest.mark.slow  # files of three whole ResNet-50
@pytest.mark.parametrize(
    ("table", "kind", "right"),
    [
        (REFERENCE, "agw", "reference"),
        (REFERENCE, "torchvision", "reference"),
        (agw_table(6), "reference", "agw"),
        (agw_table(6, "none"), "torchvision", "agw"),
        (torchvision_table("resnet18"), "agw", "torchvision"),
        (torchvision_table("resnet50"), "reference", "torchvision"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_another_method_names_its_subcommand(table, kind, right, tmp_path, capsys):
    torch.save({"net": filled(table, set())}, tmp_path / "model.t")
    assert main([kind, str(tmp_path / "model.t"), str(tmp_path / "ours")]) == 2
    assert capsys.readouterr().err.endswith(f"convert_weights.py {right}\n")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("model", "command", "reason"),
    [
        (DDAGConfig(), "to-agw", "its method is ddag; use convert_weights.py to-reference"),
        (BaselineConfig(), "to-reference", "its method is baseline; use convert_weights.py to-agw"),
        (DDAGConfig(pooling="gem"), "to-reference", "model.pooling is gem, there always mean"),
        (BaselineConfig(pooling="gem"), "to-agw", "model.non_local is none, there always one"),
        (
            BaselineConfig(pooling="gem-learnable", non_local="one"),
            "to-agw",
            "model.pooling is gem-learnable, there always gem",
        ),
    ],
)
def test_a_network_that_their_code_has_not_is_refused(model, command, reason, tmp_path, capsys):
    save_weights(tmp_path / "ours", {"params": {}}, Meta(Config(model=model), 5).to_json())
    assert main([command, str(tmp_path / "ours"), str(tmp_path / "model.t")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "model.t").exists()


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_torchvision_fills_both_stems_and_the_stages(backbone, request, tmp_path, capsys):
    if backbone == "resnet18":
        made = request.getfixturevalue("resnet18")
        net, table, ours = made.net, made.table, made.ours
    else:
        table = torchvision_table(backbone)
        net, ours = filled(table, set(table.mapped)), tmp_path / "ours"
        safetensors.torch.save_file(
            {f"module.{key}": tensor.contiguous() for key, tensor in net.items()},
            tmp_path / "resnet50.safetensors",
        )
        assert main(["torchvision", str(tmp_path / "resnet50.safetensors"), str(ours)]) == 0
        assert "keys read     318" in capsys.readouterr().out
    method = DDAG(DDAGConfig(backbone=backbone, graph_head_dim=4), classes=3)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), (32, 16)))
    restored = restore_backbone(ours, types.SimpleNamespace(**shapes))
    arrays = {key: tensor.numpy() for key, tensor in net.items()}
    for collection, trees in to_variables(arrays, table.mappings).items():
        for stream in ("visible", "infrared", "shared"):
            ours_of_it = restored[collection]["two_stream"][stream]
            assert_identical(ours_of_it, trees["two_stream"][stream])
        assert list(restored[collection]) == ["two_stream"]


def test_a_backbone_is_not_evaluated(resnet18, capsys):
    assert evaluate.main([str(resnet18.ours)]) == 2
    assert "holds a resnet18 backbone without heads" in capsys.readouterr().err


def test_the_table_says_what_became_of_every_key(resnet18, tmp_path, capsys):
    assert main(["torchvision", str(resnet18.file), str(tmp_path / "ours")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{resnet18.file} -> {tmp_path / 'ours'}"
    figures = dict(line.split(maxsplit=1) for line in lines[1:-1])
    assert figures["keys"] == "read     122"
    assert figures["mapped"] == "100"
    assert figures["ignored"] == "22"
    assert figures["2"] == "ImageNet's classes"
    one = sum(
        value.numel()
        for key, value in resnet18.net.items()
        if key in resnet18.table.mapped and "running" not in key
    )
    stem = 64 * 3 * 7 * 7 + 2 * 64
    assert figures["parameters"].startswith(f"{one + stem:,} and ")
    assert len(lines[-1].split()[1]) == 64


@pytest.mark.parametrize("enclosing", [None, "net", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_are_found(tmp_path, enclosing, prefix):
    tensors = {"a.weight": torch.arange(3.0), "b.num_batches_tracked": torch.tensor(2)}
    stored = {prefix + key: value for key, value in tensors.items()}
    torch.save({enclosing: stored, "epoch": 3} if enclosing else stored, tmp_path / "x.pth")
    read = read_state_dict(tmp_path / "x.pth")
    assert list(read) == list(tensors)
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


HEAD = {"head.fc.weight": torch.ones(3, 4), "criterion.centers": torch.ones(2)}


def put(net, place, prefix, beside=None):
    """The state dict as someone's script wrapped it."""
    stored = {prefix + key: value for key, value in net.items()} | (beside or {})
    for name in reversed(place.split(".") if place else []):
        stored = {"epoch": 3, name: stored}
    return stored


@pytest.mark.parametrize(
    ("place", "prefix", "beside", "taken"),
    [
        ("", "module.", {}, "the file, keys without module."),
        ("", "module.module.", {}, "the file, keys without module.module."),
        ("", "model.", {}, "the file, keys without model."),
        ("", "backbone.", HEAD, "the file, keys without backbone."),
        ("weights", "", {}, "weights"),
        ("model_state_dict", "module.encoder.", {}, "model_state_dict, keys without"),
        ("checkpoint.params", "encoder_q.", HEAD, "checkpoint.params, keys without encoder_q."),
    ],
)
def test_wrappers_and_prefixes_are_removed_and_named(
    resnet18, tmp_path, capsys, place, prefix, beside, taken
):
    torch.save(put(resnet18.net, place, prefix, beside), tmp_path / "x.pth")
    assert main(["torchvision", str(tmp_path / "x.pth"), str(tmp_path / "ours")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"taken from    {taken}")
    assert f"keys read     {122 + len(beside)}" in lines
    outside = [line for line in lines if "without the prefix" in line]
    assert outside == ([f"  2           without the prefix {prefix}"] if beside else [])
    assert_identical(read_variables(tmp_path / "ours"), read_variables(resnet18.ours))


def test_a_prefix_of_the_authors_networks_is_removed(reference, tmp_path, capsys):
    stored = put(reference.net, "ema.model", "module.net.")
    torch.save(stored, tmp_path / "x.t")
    command = ["reference", str(tmp_path / "x.t"), str(tmp_path / "ours")]
    assert main([*command, "--image-size", "64", "32"]) == 0
    assert "taken from    ema.model, keys without module.net." in capsys.readouterr().out
    assert_identical(read_variables(tmp_path / "ours"), read_variables(reference.ours))
    # Its parts are whole ResNet-50 below prefixes; still it is no ImageNet ResNet.
    assert main(["torchvision", str(tmp_path / "x.t"), str(tmp_path / "imagenet")]) == 2
    assert "is a network of DDAG" in capsys.readouterr().err


def test_of_several_state_dicts_the_usual_one_is_taken(resnet18, tmp_path, capsys):
    other = {key: value + 1 for key, value in resnet18.net.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    stored = {"ema": other, "optimizer": optimizer, "state_dict": resnet18.net}
    torch.save(stored, tmp_path / "x.pth")
    assert main(["torchvision", str(tmp_path / "x.pth"), str(tmp_path / "ours")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["taken from    state_dict", "  left        ema, which fits as well"]
    assert_identical(read_variables(tmp_path / "ours"), read_variables(resnet18.ours))


def test_what_fits_is_taken_rather_than_what_has_a_usual_name(resnet18, tmp_path, capsys):
    stored = {"model": {"layer1.0.weight": torch.ones(2)}, "teacher": resnet18.net}
    torch.save(stored, tmp_path / "x.pth")
    assert main(["torchvision", str(tmp_path / "x.pth"), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "taken from    teacher"


def test_two_networks_below_prefixes_are_refused(resnet18, tmp_path, capsys):
    stored = put(resnet18.net, "", "encoder_q.") | put(resnet18.net, "", "encoder_k.")
    torch.save(stored, tmp_path / "x.pth")
    assert main(["torchvision", str(tmp_path / "x.pth"), str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert "several such networks, under encoder_q. and under encoder_k." in error
    assert not (tmp_path / "ours").exists()


def test_a_prefix_is_kept_where_the_rest_does_not_fit(resnet18, tmp_path, capsys):
    net = dict(resnet18.net)
    del net["layer4.1.bn2.weight"]
    torch.save(put(net, "model", "backbone."), tmp_path / "x.pth")
    assert main(["torchvision", str(tmp_path / "x.pth"), str(tmp_path / "ours")]) == 2
    head, listed = faults(capsys)
    assert "1 keys differ in model, keys without backbone., nothing was written" in head
    assert listed == [["missing", "layer4.1.bn2.weight"]]


def test_the_options_of_a_command_line_are_no_reason_to_refuse(resnet18, tmp_path):
    options = argparse.Namespace(lr=0.1, dataset="sysu", gpu=None)
    torch.save({"args": options, "state_dict": resnet18.net}, tmp_path / "x.pth")
    assert list(read_state_dict(tmp_path / "x.pth")) == list(resnet18.net)


@pytest.mark.parametrize("form", ["module", "TorchScript"])
def test_a_whole_model_says_how_to_save_its_tensors(tmp_path, form):
    """The advice is followed."""
    path, model = tmp_path / "x.pth", torch.nn.Sequential(torch.nn.Linear(2, 3))
    if form == "module":
        torch.save(model, path)
    else:
        torch.jit.script(model).save(path)
    with pytest.raises(UserError, match="refused") as caught:
        read_state_dict(path)
    (command,) = re.findall(r'python -c "(.*)"$', str(caught.value))
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    assert list(read_state_dict(tmp_path / "tensors.pth")) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        # A time in it would give the test another name in each process of a parallel run.
        (gzip.compress(pickle.dumps([1]), mtime=0), "compressed by gzip"),
        (b"\n<!DOCTYPE html><html><title>Google Drive</title>", "a web page"),
    ],
)
def test_what_a_download_left_is_called_so(tmp_path, content, reason):
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=reason):
            read_state_dict(tmp_path / name)


OF_REGDB = reference_table(Dimensions(classes=206, parts=2, heads=1, head_dim=4))


@pytest.fixture(scope="module")
def of_regdb(tmp_path_factory):
    path = tmp_path_factory.mktemp("regdb") / "model.t"
    torch.save({"net": filled(OF_REGDB, set()), **FIGURES}, path)
    return path


@pytest.mark.slow  # converts whole networks
@pytest.mark.parametrize(
    ("options", "data", "notes"),
    [
        ("", ("regdb", 1, 288, 144), ["as many training identities", "another trial tests on"]),
        ("--trial 3 --image-size 64 32", ("regdb", 3, 64, 32), ["as many training identities"]),
        ("--dataset regdb --trial 10", ("regdb", 10, 288, 144), []),
        (
            "--dataset sysu_mm01",
            ("sysu_mm01", 1, 288, 144),
            ["has 206 classes, and SYSU-MM01 395 or 296 training identities"],
        ),
        ("--dataset folder", ("folder", 1, 288, 144), []),
    ],
)
def test_what_a_file_does_not_say_is_said_or_noted(
    of_regdb, tmp_path, capsys, options, data, notes
):
    command = ["reference", str(of_regdb), str(tmp_path / "ours"), *options.split()]
    assert main(command) == 0
    printed = capsys.readouterr()
    stored = read_meta(tmp_path / "ours").config.data
    assert (stored.dataset, stored.trial, stored.image_height, stored.image_width) == data
    lines = printed.err.splitlines()
    assert len(lines) == len(notes)
    for line, note in zip(lines, notes, strict=True):
        assert line.startswith(f"note: {of_regdb}: ")
        assert note in line
    trial = f"trial {data[1]}, " if data[0] == "regdb" else ""
    said = f"stored as     {data[0]}, {trial}images of {data[2]} x {data[3]} pixels, 206 classes"
    assert said in printed.out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--dataset sysu_mm01 --trial 2", "only datasets of several published splits have trials"),
        ("--dataset regdb --trial 11", "data.trial: 11 is not among the trials of RegDB"),
        ("--trial 0", "data.trial: 0 must be at least 1"),
        ("--dataset reg", "reg: not a published dataset"),
        ("--image-size 8 8", "is too small"),
    ],
)
def test_what_no_dataset_is_is_refused(of_regdb, tmp_path, capsys, options, reason):
    command = ["reference", str(of_regdb), str(tmp_path / "ours"), *options.split()]
    assert main(command) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_a_number_of_classes_of_no_dataset_is_noted(reference, tmp_path, capsys):
    command = ["reference", str(reference.file), str(tmp_path / "ours")]
    assert main(command) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert "sysu_mm01 is stored, but of the published datasets none has 6 training" in note


def test_a_dataset_of_ones_own_is_that_of_a_configuration(reference, tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text("""
from ddag_jax import Config, DataConfig, Dataset
MINE = Dataset(name="mine", title="Mine", folder="my folder", inspect=lambda folder: ([], []))
def get_config():
    return Config(data=DataConfig(dataset=MINE))
""")
    command = ["reference", str(reference.file), str(tmp_path / "ours"), "--dataset", str(own)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "stored as     mine, images of 288 x 144 pixels, 6 classes" in printed.out


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_numpy_figures_are_read_under_both_names(tmp_path, module, zipped):
    whole = {"net": {"w": torch.ones(2)}, **FIGURES, "more": np.float32(1), "n": np.int64(1)}
    written, path = tmp_path / "written.t", tmp_path / "renamed.t"
    torch.save(whole, written, _use_new_zipfile_serialization=zipped)

    def rename(content):
        return content.replace(b"numpy.core", module).replace(b"numpy._core", module)

    if zipped:
        with zipfile.ZipFile(written) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, rename(old.read(name)))
    else:
        path.write_bytes(rename(written.read_bytes()))
    assert module in path.read_bytes()
    assert torch.equal(read_state_dict(path)["w"], torch.ones(2))


class Hostile:
    """Makes a folder when unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["zip", "before PyTorch 1.6", "plain pickle", "safetensors"])
def test_a_hostile_file_is_refused_and_does_nothing(tmp_path, capsys, form):
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.t")
    whole = {"net": {"w": torch.ones(2)}, "cmc": Hostile(tmp_path / "harm")}
    if form in ("plain pickle", "safetensors"):
        path.write_bytes(pickle.dumps(whole, protocol=2))
    else:
        torch.save(whole, path, _use_new_zipfile_serialization=form == "zip")
    assert main(["reference", str(path), str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: refused")
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "refused"),
        (b"PK\x03\x04 cut short", "refused"),
        (b"\x80\x02}.", "refused"),
        (None, "no such file"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, capsys, content, reason):
    path = tmp_path / "model.t"
    if content is not None:
        path.write_bytes(content)
    assert main(["torchvision", str(path), str(tmp_path / "ours")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("stored", [{}, [torch.ones(1)], {"net": {"w": 1.0}}, {1: torch.ones(1)}])
def test_what_is_no_state_dict_is_refused(tmp_path, stored):
    torch.save(stored, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"no state dict|not tensors by name"):
        read_state_dict(tmp_path / "x.pth")


def faults(capsys):
    lines = capsys.readouterr().err.splitlines()
    return lines[0], [line.split(maxsplit=1) for line in lines[1:]]


def test_all_that_does_not_fit_is_listed_at_once(tmp_path, capsys):
    net = filled(REFERENCE, set())
    del net["wpa.fc1.0.weight"], net["wpa.fc2.bias"], net["attention_1.W"], net["attention_1.a"]
    net["extra.weight"] = torch.ones(1)
    net["out_att.a"] = torch.ones(3, 1)
    net["classifier1.weight"] = torch.ones(2, 2)  # ignored, but of the reference it is not
    net["wpa.gate"] = torch.ones(4, dtype=torch.float64) / 3
    net["bottleneck.weight"] = torch.full((2048,), torch.nan)
    net["bottleneck.bias"] = torch.ones(2048)
    torch.save({"net": net}, tmp_path / "model.t")
    assert main(["reference", str(tmp_path / "model.t"), str(tmp_path / "ours")]) == 2
    head, listed = faults(capsys)
    assert "2 heads of 8" in head
    kinds = {}
    for kind, text in listed:
        kinds.setdefault(kind, set()).add(text.split(":")[0])
    assert kinds == {
        "missing": {"wpa.fc1.0.weight", "wpa.fc2.bias", "attention_1.W", "attention_1.a"},
        "unexpected": {"extra.weight", "attention_2.W", "attention_2.a"},
        "misshapen": {"out_att.W", "out_att.a", "classifier1.weight"},
        "mistyped": {"wpa.gate", "bottleneck.weight"},
        "not": {"zero    bottleneck.bias"},
    }
    assert f"{len(listed)} keys differ" in head
    assert not (tmp_path / "ours").exists()


def test_missing_keys_that_are_not_used_do_not_matter(tmp_path, capsys):
    """Files of PyTorch before 0.4.1 count no steps."""
    table = torchvision_table("resnet18")
    net = filled(table, set())
    net = {key: value for key, value in net.items() if not key.endswith("tracked")}
    net["conv1.weight"] = torch.full((64, 3, 7, 7), 1.5, dtype=torch.float16)
    torch.save(net, tmp_path / "x.pth")
    assert main(["torchvision", str(tmp_path / "x.pth"), str(tmp_path / "ours")]) == 0
    kernel = read_variables(tmp_path / "ours")["params"]["two_stream"]["infrared"]["conv1"][
        "kernel"
    ]
    assert kernel.dtype == np.float32
    assert np.all(kernel == 1.5)


def test_another_network_of_the_same_kind_is_refused(tmp_path, capsys):
    """Half the width has all the names; the wrong kind of file has none."""
    table = torchvision_table("resnet18")
    net = {
        key: torch.zeros([n if n == 3 or n == 7 else n // 2 for n in shape])
        for key, shape in table.shapes.items()
    }
    torch.save(net, tmp_path / "x.pth")
    assert main(["torchvision", str(tmp_path / "x.pth"), str(tmp_path / "ours")]) == 2
    _, listed = faults(capsys)
    assert {kind for kind, _ in listed} == {"misshapen"}
    assert "conv1.weight: (32, 3, 7, 7) instead of (64, 3, 7, 7)" in [text for _, text in listed]


def test_an_existing_checkpoint_stays_unless_overwritten(resnet18, tmp_path, capsys):
    output = tmp_path / "ours"
    save_weights(output, {"params": {"old": np.zeros(1)}}, {"backbone": "resnet18"})
    assert main(["torchvision", str(resnet18.file), str(output)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["torchvision", str(tmp_path / "none.pth"), str(output), "--overwrite"]) == 2
    assert list(read_variables(output)["params"]) == ["old"]
    assert main(["torchvision", str(resnet18.file), str(output), "--overwrite"]) == 0
    assert list(read_variables(output)["params"]) == ["two_stream"]
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("inside", ["thesis.txt", "checkpoints", "meta progress"])
def test_overwrite_replaces_nothing_but_a_conversion(resnet18, tmp_path, capsys, inside):
    for name in inside.split():
        (tmp_path / "mine" / name).mkdir(parents=True)
    command = ["torchvision", str(resnet18.file), str(tmp_path / "mine"), "--overwrite"]
    assert main(command) == 2
    assert "is not the output of an earlier conversion" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "mine").iterdir()} == set(inside.split())


def test_an_interrupted_writing_leaves_the_old_one(resnet18, tmp_path, monkeypatch, capsys):
    output = tmp_path / "ours"
    save_weights(output, {"params": {"old": np.zeros(1)}}, {"backbone": "resnet18"})

    def interrupted(folder, variables, meta):
        folder.mkdir()
        raise OSError("no space left")

    monkeypatch.setattr("ddag_jax.pytorch.convert.save_weights", interrupted)
    assert main(["torchvision", str(resnet18.file), str(output), "--overwrite"]) == 2
    assert f"{output}: cannot be written (no space left)" in capsys.readouterr().err
    assert list(read_variables(output)["params"]) == ["old"]
    assert list(tmp_path.iterdir()) == [output]


def test_both_ends_may_be_in_a_bucket(resnet18, bucket, capsys):
    """A checkpoint there is replaced by --overwrite, and by nothing else."""
    bucket.write("weights/resnet18.pth", resnet18.file.read_bytes())
    command = ["torchvision", bucket / "weights/resnet18.pth", bucket / "weights/ours"]
    assert main(command) == 0
    assert_identical(read_variables(bucket / "weights/ours"), read_variables(resnet18.ours))
    before = bucket.names("weights/ours")
    assert "commit_success.txt" in before
    capsys.readouterr()
    assert main(command) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert main(["torchvision", bucket / "none.pth", *command[2:], "--overwrite"]) == 2
    assert "gs://bucket/none.pth: no such file" in capsys.readouterr().err
    assert bucket.names("weights/ours") == before
    save_weights(bucket / "small", {"params": {"old": np.zeros(1)}}, {"backbone": "resnet18"})
    write_checkpoint(epath.Path(bucket / "small"), {"params": {"new": np.ones(2)}}, {})
    assert read_variables(bucket / "small")["params"]["new"].tolist() == [1, 1]
    assert main(["to-reference", bucket / "small", bucket / "weights/resnet18.pth"]) == 2
    assert "weights/resnet18.pth: exists already; replace it with" in capsys.readouterr().err


def test_ours_in_a_bucket_becomes_the_reference_s_there(reference, bucket, tmp_path):
    ours = bucket.put(reference.ours, "of_reference")
    assert main(["to-reference", ours, bucket / "back/model.t"]) == 0
    (file,) = bucket.fetch("back", tmp_path / "back").iterdir()
    found = torch.load(file, weights_only=True)["net"]
    assert main(["to-reference", str(reference.ours), str(tmp_path / "on_disk.t")]) == 0
    expected = torch.load(tmp_path / "on_disk.t", weights_only=True)["net"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_an_existing_file_stays_unless_overwritten(reference, tmp_path, capsys):
    output = tmp_path / "model.t"
    output.write_text("mine")
    assert main(["to-reference", str(reference.ours), str(output)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["to-reference", str(tmp_path), str(output), "--overwrite"]) == 2
    assert output.read_text() == "mine"
    assert main(["to-reference", str(reference.ours), str(tmp_path), "--overwrite"]) == 2
    assert list(tmp_path.iterdir()) == [output]


REFUSED = {
    "backbone": "resnet18",
    "width": 32,
    "part_attention": False,
    "part_aggregation": "average",
    "part_residual": "plain",
    "part_neck": False,
    "graph_attention": False,
    "graph_neighbours": 1,
}


@pytest.mark.parametrize("fields", [*([field] for field in REFUSED), list(REFUSED)], ids="-".join)
def test_what_the_reference_cannot_hold_is_refused_by_name(tmp_path, capsys, fields):
    model = DDAGConfig(**{field: REFUSED[field] for field in fields})
    save_weights(tmp_path / "ours", {"params": {}}, Meta(Config(model=model), 5).to_json())
    assert main(["to-reference", str(tmp_path / "ours"), str(tmp_path / "model.t")]) == 2
    error = capsys.readouterr().err
    for field in REFUSED:
        assert (f"model.{field} is {REFUSED[field]}" in error) == (field in fields)
    assert not (tmp_path / "model.t").exists()


def test_a_checkpoint_of_other_variables_than_it_says_is_refused(reference, tmp_path, capsys):
    meta = read_meta(reference.ours)
    more = dataclasses.replace(meta.config.model, graph_head_dim=9)
    meta = dataclasses.replace(meta, config=dataclasses.replace(meta.config, model=more))
    some = read_variables(reference.ours)
    some["params"] = {"cgsa": some["params"]["cgsa"]}
    save_weights(tmp_path / "ours", some, meta.to_json())
    assert main(["to-reference", str(tmp_path / "ours"), str(tmp_path / "model.t")]) == 2
    error = capsys.readouterr().err
    assert "attention_2.W" in error
    assert "classifier.weight" in error
    assert "attention_3" not in error


def test_a_checkpoint_below_a_folder_with_brackets_is_read(resnet18, tmp_path):
    """In which orbax found nothing: see io/storable.py."""
    output = tmp_path / "weights [1]*" / "ours"
    assert main(["torchvision", str(resnet18.file), str(output)]) == 0
    jax.tree.map(
        np.testing.assert_array_equal, read_variables(output), read_variables(resnet18.ours)
    )


def test_a_folder_that_cannot_hold_checkpoints_is_refused(resnet18, tmp_path, capsys):
    assert main(["torchvision", str(resnet18.file), str(tmp_path / "a\\b" / "ours")]) == 2
    assert "has a backslash" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["torchvision", "to-reference"])
def test_a_disk_that_is_full_is_one_line(resnet18, reference, tmp_path, capsys, command):
    source = resnet18.file if command == "torchvision" else reference.ours
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert main([command, str(source), str(tmp_path / "ours")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {tmp_path / 'ours'}: cannot be written (")
    assert list(tmp_path.iterdir()) == []
