"""A run's evaluation and its report, made once for all tests of the page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Report(NamedTuple):
    """What the command left."""

    run: Path
    folder: Path
    html: str
    data: dict[str, Any]
    """The ranked lists, as the page's script reads them."""


@pytest.fixture(scope="session")
def evaluate() -> Callable[..., int]:
    from ddag_jax.cli.evaluate import main

    return lambda *words: main([str(word) for word in words])


@pytest.fixture(scope="session")
def report(
    tmp_path_factory: pytest.TempPathFactory,
    finished_ddag: Path,
    evaluate: Callable[..., int],
) -> Report:
    """Of a finished run of `debug`."""
    import shutil

    run = tmp_path_factory.mktemp("report") / "run <b>&amp;"  # a name that HTML must not read
    shutil.copytree(finished_ddag, run)
    folder = run / "report"
    assert evaluate(run, "--report", folder) == 0
    html = (folder / "index.html").read_text(encoding="utf-8")
    start = html.index('<script id="data" type="application/json">')
    data = html[html.index(">", start) + 1 : html.index("</script>", start)]
    return Report(run, folder, html, json.loads(data))
