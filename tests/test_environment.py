"""An environment that is half there: one line says what was found and what to unset or give."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ddag_jax import parallel
from ddag_jax.cli import environment
from ddag_jax.errors import UserError

ROOT = Path(__file__).parents[1]
SLURM = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://127.0.0.1:34911",
}


def python(code: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose body is `code`."""
    code = f"from ddag_jax.cli.main import run\ndef main():\n {code}\nraise SystemExit(run(main))"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "stack trace" not in done.stderr
    return lines[0]


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["", " ", "1", "01"])
def test_one_process_is_alone(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel.jax.distributed, "initialize", None)  # must not be called
    parallel.join_processes()


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["two", "0", "-2", "2(x3)", "1.5"])
def test_a_malformed_number_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        parallel.join_processes()
    assert str(caught.value) == (
        f"{name}={value}: is not a number of processes; if this command runs alone, unset {name}"
    )


@pytest.mark.parametrize(
    "variables", [SLURM, OPEN_MPI], ids=lambda variables: next(iter(variables))
)
def test_leftover_variables_are_named(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a shell that was opened inside a step, or of Open MPI 5, which sets no address."""
    first, *others = variables
    monkeypatch.setenv(first, "2")
    with pytest.raises(UserError, match=f"{first}=2, but .* not set") as caught:
        parallel.join_processes()
    assert all(name in str(caught.value) for name in others)
    for name in others:
        for other in others:
            monkeypatch.setenv(other, variables[other])
        monkeypatch.setenv(name, "")
        with pytest.raises(UserError, match=f"but {name} is not set.*unset {first}; else give"):
            parallel.join_processes()


@pytest.mark.parametrize(
    ("variables", "wrong", "value"),
    [
        (SLURM, "SLURM_JOB_ID", "x"),
        (SLURM, "SLURM_PROCID", "5"),
        (SLURM, "SLURM_NTASKS", "many"),
        (OPEN_MPI, "OMPI_MCA_orte_hnp_uri", "nonsense"),
        (OPEN_MPI, "OMPI_COMM_WORLD_RANK", "-1"),
    ],
)
def test_what_jax_cannot_read_is_one_line(
    variables: dict[str, str], wrong: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, right in variables.items():
        monkeypatch.setenv(name, right)
    monkeypatch.setenv(wrong, value)
    # These tests have computed already, which jax would find first.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    with pytest.raises(UserError, match=rf"{next(iter(variables))}=2: cannot connect.*\(.+\)$"):
        parallel.join_processes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:8476", None, None), "give all three, or none"),
        ((None, 0, 2), "give all three, or none"),
        (("localhost:8476", 0, 0), "--processes 0: must be 1 or more"),
        (("localhost:8476", 2, 2), "of 2 processes they are 0 to 1"),
        (("localhost", 0, 2), "--coordinator localhost: give host and port"),
        (("localhost:", 0, 2), "--coordinator localhost:: give host and port"),
        (("localhost:http", 0, 2), "give host and port"),
        (("localhost:99999", 0, 2), "give host and port"),
        ((":8476", 0, 2), "give host and port"),
    ],
)
def test_options_that_are_given_halfway(
    given: tuple[str | None, int | None, int | None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parallel.join_processes(*given)


@pytest.mark.slow  # starts processes that wait
@pytest.mark.parametrize(
    ("arguments", "variables", "found"),
    [
        ("", SLURM | {"SLURM_JOB_ID": "3901"}, "SLURM_STEP_NUM_TASKS=2: cannot connect"),
        ("'localhost:9', 1, 2", {}, "--coordinator localhost:9, --process-id 1 of 2"),
    ],
)
def test_others_that_do_not_come_end_it_with_a_line(
    arguments: str, variables: dict[str, str], found: str
) -> None:
    """jaxlib aborts the process, with a stack trace of C++."""
    code = "from ddag_jax import parallel; parallel._PATIENCE = 2; parallel.join_processes"
    error = refused(python(f"{code}({arguments})", **variables))
    assert found in error
    assert "(no answer in 2 s)" in error


def test_a_tpu_that_knows_no_slice_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = types.SimpleNamespace(glob=lambda pattern: [Path("/dev", pattern.replace("*", "0"))])
    monkeypatch.setattr(parallel, "Path", lambda _: folder)
    monkeypatch.setattr(parallel.importlib.util, "find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    with pytest.raises(UserError, match=r"/dev/accel0, a TPU's: .*localhost:8476, 0 and 1"):
        parallel.join_processes()


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize("platform", ["cuda", "tpu", "abacus"])
def test_a_platform_without_a_device_is_one_line(platform: str, tmp_path: Path) -> None:
    code = "from ddag_jax.parallel import device_mesh; device_mesh()"
    # Not the tests' own libtpu: it would look for a TPU for a minute.
    hidden = "import sys; sys.modules['libtpu'] = None; "
    error = refused(python(hidden + code, JAX_PLATFORMS=platform))
    assert error.startswith(f"error: JAX_PLATFORMS={platform}: no such device can be used (")
    assert error.endswith("; unset it to compute on what there is, or set it to cpu")


def test_a_platform_that_nobody_named_and_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices() -> None:
        raise RuntimeError("Unable to initialize backend 'tpu': it is in use\n(more)")

    monkeypatch.setattr(parallel.jax, "devices", devices)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(UserError, match=r"^no device .* it is in use\); set JAX_PLATFORMS=cpu"):
        parallel.device_mesh()


@pytest.mark.slow  # starts processes
def test_training_without_the_device_leaves_no_folder(debug_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = (
        "from ddag_jax.cli.train import main; import sys; return main(['debug', '--workdir',"
        f" {str(run)!r}, '--data.dir', {str(debug_data)!r}])"
    )
    assert "JAX_PLATFORMS=cuda" in refused(python(code, JAX_PLATFORMS="cuda"))
    assert not run.exists()
    assert "SLURM_STEP_NUM_TASKS=nine" in refused(python(code, SLURM_STEP_NUM_TASKS="nine"))
    assert not run.exists()


@pytest.mark.slow  # starts a process
def test_a_picture_needs_no_device(debug_data: Path, tmp_path: Path) -> None:
    words = ["augmentations", str(debug_data), "--to", f"{tmp_path}/a.png"]
    words += ["--image-size", "32", "16", "--images", "1", "--draws", "1"]
    code = "from ddag_jax.cli.data import main; import sys; main(sys.argv[1:])"
    done = python(code, *words, JAX_PLATFORMS="cuda")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").exists()


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize(
    ("name", "value"), [("JAX_ENABLE_X64", "maybe"), ("JAX_DEFAULT_PRNG_IMPL", "dice")]
)
def test_a_variable_that_jax_cannot_read_is_named(name: str, value: str) -> None:
    code = "from ddag_jax.cli.environment import prepare; prepare()"
    error = refused(python(code, **{name: value}))
    assert value in error
    assert name.lower() in error.lower()
    assert "unset it" in error


# ------------------------------------------------------------------------------- the home folder


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_without_a_home_nothing_is_kept(
    no_cache: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "home", homeless)
    environment._keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    error = capsys.readouterr().err
    assert error.startswith("note: compiled programs are not kept for the next start (Could not")
    assert error.count("\n") == 1


def test_a_cache_that_is_named_needs_no_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    environment._keep_compiled()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment._keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "ddag_jax")
    assert capsys.readouterr().err == ""


def test_a_home_that_is_no_folder_is_a_note(
    no_cache: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "file")
    environment._keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert "note: compiled programs are not kept" in capsys.readouterr().err
