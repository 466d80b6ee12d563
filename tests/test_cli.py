"""The command line: configurations by name, fields by option, one line for a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from ddag_jax.cli.options import override
from ddag_jax.cli.train import main as train
from ddag_jax.config import Config
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(
    str(path.relative_to(ROOT / "configs").with_suffix(""))
    for path in (ROOT / "configs").rglob("*.py")
)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_configuration_loads_by_name_and_by_path(name: str) -> None:
    config = load_config(name)
    assert isinstance(config, Config)
    assert load_config(f"configs/{name}.py") == config
    assert load_config(str(ROOT / "configs" / f"{name}.py")) == config


def test_the_rows_of_table_1_differ_in_their_branches_only() -> None:
    rows = {name: load_config(f"ablations/{name}") for name in ("b", "b_p", "b_g", "b_p_g")}
    branches = {
        name: (row.model.part_attention, row.model.graph_attention) for name, row in rows.items()
    }
    assert branches == {
        "b": (False, False),
        "b_p": (True, False),
        "b_g": (False, True),
        "b_p_g": (True, True),
    }
    assert rows["b_p_g"] == load_config("sysu_mm01")


def test_sysu_mm01_is_the_published_setting() -> None:
    assert load_config("sysu_mm01") == Config()


def test_fields_are_overridden() -> None:
    config = override(
        Config(),
        [
            *("--optimizer.learning-rate", "0.05"),
            *("--model.graph_attention", "False"),
            *("--optimizer.drop-epochs", "3", "4"),
            *("--loss.graph-weight", "0.5"),
            "--training.seed=7",
        ],
        "train.py",
    )
    assert config.optimizer.learning_rate == 0.05
    assert config.model.graph_attention is False
    assert config.optimizer.drop_epochs == (3, 4)
    assert config.loss.graph_weight == 0.5
    assert config.training.seed == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer.lerning-rate", "1"], "did you mean --optimizer.learning-rate?"),
        (["--model.graph_haeds", "1"], "did you mean --model.graph-heads?"),
        (["--zzz", "1"], "--help"),
        (["--optimizer.learning-rate", "fast"], "--optimizer.learning-rate"),
        (["--model.backbone", "vgg"], "resnet50"),
        (["--data.image-height", "5"], "at least 32 x 16"),
        (["--optimizer.drop-epochs", "5", "4"], "must rise"),
    ],
)
def test_a_mistyped_option_is_one_line_that_names_it(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        override(Config(), arguments, "train.py")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "optimizer: optimizer" not in str(caught.value)


def test_an_unknown_configuration_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no such configuration.*demo.*sysu_mm01"):
        load_config("configs/demmo.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "get_config"),
        ("def get_config(): return 3", "must return"),
        ("def get_config(:", "invalid syntax"),
        ("from ddag_jax.config import *\ndef get_config(): return ModelConfig(parts=0)", "parts"),
        ("from ddag_jax.config import *\ndef get_config(): return ModelConfig(part=0)", "part"),
        ("raise KeyError('oh')", "KeyError: 'oh'"),
    ],
)
def test_a_broken_configuration_file_is_named(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_script_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "train.py", "configs/debug.py", "--workdir", str(tmp_path / "run")),
            *("--data.dir", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--resume" in printed
    assert "--overwrite" in printed
