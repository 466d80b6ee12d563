"""The command line: configurations by name, fields by option, one line for a mistake."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ddag_jax.experiments.__main__ as experiments
from ddag_jax.cli import convert as convert_module
from ddag_jax.cli import data as data_module
from ddag_jax.cli import evaluate as evaluate_module
from ddag_jax.cli import train as train_module
from ddag_jax.cli.options import override, parse, parse_with_config
from ddag_jax.config import Config, DDAGConfig, EvaluationConfig
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
            *("--model.graph-weight", "0.5"),
            "--training.seed=7",
        ],
        "train.py",
    )
    assert config.optimizer.learning_rate == 0.05
    assert config.model.graph_attention is False
    assert config.optimizer.drop_epochs == (3, 4)
    assert config.model.graph_weight == 0.5
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
        ("from ddag_jax.config import *\ndef get_config(): return DDAGConfig(parts=0)", "parts"),
        ("from ddag_jax.config import *\ndef get_config(): return DDAGConfig(part=0)", "part"),
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


def documented() -> list[tuple[str, str]]:
    """Every command line that README and docs show: (program, its arguments)."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            for match in re.finditer(
                r"(?<!`)python (\w+\.py|-m ddag_jax\.(?:data|experiments)) +([^#`]*)",
                line,
            ):
                program, words = match.groups()
                words = words.replace("$trial", "1").replace("DATASET", "sysu_mm01")
                if words.count("'") % 2:  # the end of a command that is quoted as a whole
                    words = words.replace("'", "")
                if "..." not in words and program != "test_ddag.py":  # the authors' own
                    found.append((program.removeprefix("-m ddag_jax."), words.strip()))
    return found


@pytest.mark.parametrize(("program", "words"), documented())
def test_a_documented_command_line_is_understood(program: str, words: str) -> None:
    arguments = shlex.split(words)
    match program:
        case "train.py":
            parse_with_config(train_module.Options, by_name, arguments, program)
        case "experiments":
            parse_with_config(experiments.Options, by_dataset, arguments, program)
        case "evaluate.py":
            parse(evaluate_module.Options, arguments, program)
        case "convert_weights.py":
            parse(convert_module.CONVERSIONS, arguments, program)
        case "data":
            parse(data_module.COMMANDS, arguments, program)


def by_name(options: train_module.Options) -> Config:
    if options.config.startswith("my_"):  # a file of the reader's; test_extending.py runs those
        return Config()
    return load_config(options.config)


def by_dataset(options: experiments.Options) -> Config:
    return load_config(options.dataset)


def test_the_documented_command_lines_are_found() -> None:
    programs = [program for program, _ in documented()]
    assert set(programs) == {
        *("train.py", "evaluate.py", "convert_weights.py", "data", "experiments")
    }
    assert len(programs) > 40


def test_evaluation_s_fields_need_no_section(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run_a", "--shots", "multi", "--flip", "--batch_size=13", "run_b"]
    with pytest.raises(UserError, match="run_b: unexpected argument"):
        parse(evaluate_module.Options, words, "evaluate.py")
    options = parse(evaluate_module.Options, ["run_b", *words[:-1]], "evaluate.py")
    assert options.runs == ("run_b", "run_a")
    assert options.evaluation == EvaluationConfig(shots="multi", flip=True, batch_size=13)
    with pytest.raises(UserError, match=r"--evaluation.trials: .* did you mean --trials\?"):
        parse(evaluate_module.Options, ["run", "--evaluation.trials", "3"], "evaluate.py")


def test_the_fields_of_loss_keep_their_old_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--loss.margin", "0.5", "--loss.graph-weight", "None", "--loss.graph_reduction", "sum"]
    config = override(Config(model=DDAGConfig(graph_weight=0.1)), words, "train.py")
    assert config.model == DDAGConfig(margin=0.5, graph_weight=None, graph_reduction="sum")
    assert capsys.readouterr().err.splitlines() == [
        "note: --loss.margin is now --model.margin",
        "note: --loss.graph-reduction is now --model.graph-reduction",
        "note: --loss.graph-weight is now --model.graph-weight",
    ]
    with pytest.raises(UserError, match=r"model.margin: must be 0 or more"):
        override(Config(), ["--loss.margin", "-1"], "train.py")


@dataclasses.dataclass(frozen=True)
class MyConfig:
    """A method of a user's own."""

    my_field: int = 1
    """What mine is about."""
    names: tuple[str, ...] = ()

    def build(self, classes: int, axis_name: str | None) -> None:
        """Return nothing: never trained."""


def test_the_fields_of_ones_own_method_are_options() -> None:
    words = ["--model.my-field", "3", "--model.names", "a", "b", "--training.seed", "1"]
    config = override(Config(model=MyConfig()), words, "train.py")
    assert config.model == MyConfig(3, ("a", "b"))
    assert config.training.seed == 1
    with pytest.raises(UserError, match=r"did you mean --model.my-field\?"):
        override(Config(model=MyConfig()), ["--model.my_feild", "3"], "train.py")
    with pytest.raises(UserError, match=r"--loss.margin: no such option"):
        override(Config(model=MyConfig()), ["--loss.margin", "3"], "train.py")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("train.py --help", ["--resume", "--model.graph-heads", "Attention heads (L).", "0.1"]),
        ("train.py debug --help", ["--overwrite", "--model.graph-heads", "(default: 2)"]),
        ("evaluate.py --help", ["--report", "--shots", "--coordinator"]),
        ("convert_weights.py reference --help", ["--image-size", "288 144"]),
        ("-m ddag_jax.experiments --help", ["--dry-run", "table1", "--optimizer.momentum"]),
        ("evaluate.py --shot multi", ["error: --shot: no such option; did you mean --shots?"]),
        ("train.py demo", ["error: --workdir: missing"]),
        ("convert_weights.py reference --image-size 288", ["error: "]),
    ],
)
def test_help_and_errors_do_not_wait_for_jax(command: str, shown: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not re.search(r"\| +jax$", done.stderr, re.MULTILINE)
    assert done.returncode == (0 if "--help" in command else 2)
    for text in shown:
        assert text in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["--dir=~/x"], ["--dir", "~/x"], ["--dir=~"]])
def test_a_tilde_is_the_home_folder(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind = and in quotes too, where no shell expands it."""
    monkeypatch.setenv("HOME", "/home/me")
    options = dataclasses.make_dataclass("Options", [("dir", str)])
    assert parse(options, arguments, "program").dir.startswith("/home/me")
    config = override(Config(), ["--data.dir=~/data"], "train.py")
    assert config.data.dir == "/home/me/data"
    assert override(Config(), ["--data.dir=a~/b"], "train.py").data.dir == "a~/b"


# ------------------------------------------------------------------------------------ the output


def in_process(code: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command whose main is `main`."""
    code = f"from ddag_jax.cli.main import run\n{code}\nraise SystemExit(run(main))"
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        **options,
    )  # fmt: skip


def test_a_reader_that_ends_early_is_no_error() -> None:
    """As with `| head`."""
    process = in_process("def main():\n for i in range(10**6): print(i)")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_never_fails_for_its_encoding(encoding: str) -> None:
    code = "def main():\n print('a → b'); import sys; print('✓ é', file=sys.stderr)"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    process = in_process(code, env=environment, encoding=encoding)
    out, err = process.communicate()
    assert (process.returncode, out) == (0, "a \\u2192 b\n")
    assert err == ("\\u2713 \\xe9\n" if encoding == "ascii" else "\\u2713 é\n")


def test_sigterm_ends_a_command_as_an_exception_does() -> None:
    process = in_process("""
import signal, os
def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        print("tidied")
""")
    out, err = process.communicate()
    assert (process.returncode, out, err) == (143, "tidied\n", "")
