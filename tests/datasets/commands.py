"""The data commands as a user calls them, for the tests of each dataset."""

import contextlib
import io
from pathlib import Path

from ddag_jax.cli.data import main
from ddag_jax.cli.main import run


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, the error line (progress bars left out)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(lambda: main([str(argument) for argument in arguments]))
    errors = [part for part in err.getvalue().split("\n") if "images/s" not in part]
    return code, out.getvalue(), "\n".join(errors).strip()


def call_prepare(dataset: str, source: Path, to: Path, *more: object) -> tuple[int, str, str]:
    """Prepares a folder at 32 x 16 pixels."""
    return call("prepare", dataset, "--from", source, "--to", to, "--image-size", 32, 16, *more)


def fails(dataset: str, source: Path, to: Path, *more: object) -> str:
    """What both commands say about a folder; prepare must leave nothing behind."""
    code, out, error = call("check", dataset, "--from", source, *more)
    assert code == 2
    assert out == ""
    assert error.startswith("error: ")
    assert call_prepare(dataset, source, to, *more) == (2, "", error)
    assert not to.exists() or to.is_file() or not list(to.iterdir())
    return error
