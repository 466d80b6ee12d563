"""docs/deploy.md from beginning to end: from a folder of pictures to an exported model."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddag_jax.cli.data import main as data
from ddag_jax.cli.evaluate import main as evaluate
from ddag_jax.cli.train import main as train
from ddag_jax.serving.__main__ import main as serving
from ddag_jax.serving.export import read_metadata
from ddag_jax.serving.index import open_index
from tests.processes import ROOT

pytestmark = pytest.mark.slow  # trains and compiles a network

COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "-m ddag_jax.data": data,
    "train.py": train,
    "evaluate.py": evaluate,
    "-m ddag_jax.serving": serving,
}
TINY = (
    "--data.image-height 32 --data.image-width 16 --data.holdout-identities 3 --augment.padding 2"
    " --model.backbone resnet18 --model.width 8 --model.graph-heads 2 --model.graph-head-dim 8"
    " --training.epochs 1 --training.steps-per-epoch 2 --training.images-per-identity 2"
    " --evaluation.batch-size 32"
)


@pytest.fixture
def pictures(debug_data: Path, tmp_path: Path) -> Path:
    """The built-in people as plain folders."""
    tree, folder = debug_data.parent / "people", tmp_path / "pictures"
    for camera, modality in ((1, "visible"), (3, "infrared")):
        for who in (tree / f"cam{camera}").iterdir():
            shutil.copytree(who, folder / modality / f"person {who.name}")
    return folder


def test_the_commands_of_the_page(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "deploy.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    printed = {}
    for line in block.splitlines():
        text = line.replace("--init weights/resnet50", TINY)
        if "prepare" in line:
            text += " --image-size 32 16 --test-share 0.4"
        program = next(name for name in COMMANDS if text.startswith(f"python {name} "))
        assert not COMMANDS[program](shlex.split(text.removeprefix(f"python {program} "))), line
        printed[line.split()[3 if program.startswith("-m") else 1]] = capsys.readouterr().out

    assert "identities held out of training" in printed["evaluate.py"]
    queries = sorted(map(str, (pictures / "infrared").glob("*/*.jpg")))
    sheet = Path("found.html").read_text()
    for query in queries:
        assert f"{query} (infrared, identity {Path(query).parent.name})" in printed["search"]
        assert query in sheet
    assert sheet.count("data:image/jpeg;base64,") > len(queries)

    # The exported model answers the same as the file of features.
    snippet, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(snippet, names)
    index = open_index(tmp_path / "gallery.npz")
    ours = index.features["visible"]
    files = [str(tmp_path / str(file)) for file in names["files"]]  # type: ignore[attr-defined]
    assert [image.file for image in index.images] == files
    theirs = np.asarray(names["features"])
    assert np.linalg.norm(theirs - ours) / np.linalg.norm(ours) < 1e-5
    similarity = np.asarray(names["similarity"])
    np.testing.assert_allclose(similarity, ours @ ours.T, atol=1e-5)
    (record,) = (
        one["operating_points"]
        for one in json.loads(Path("runs/own/evaluation.json").read_text())
        if (one["feature"], one["direction"]) == ("part", "infrared_to_visible")
    )
    assert read_metadata("exported/infrared.onnx")["thresholds"] == record
    with pytest.raises(Exception, match=r"[Gg]ot invalid dimensions"):
        names["session"].run(None, {"images": np.zeros((1, 64, 32, 3), np.uint8)})  # type: ignore[attr-defined]
