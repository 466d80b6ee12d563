"""The contact sheet of a search: its content, its bounds, and what it looks like in a browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddag_jax.errors import UserError
from ddag_jax.report.thumbnails import BUDGET
from ddag_jax.serving import contact_sheet
from ddag_jax.serving.contact_sheet import ContactSheet, write_contact_sheet
from ddag_jax.serving.results import Hit, Result
from tests.browser import CONTRAST, opened

HOSTILE = """<script>alert("1")</script>'&amp;.png"""
LONG = "gallery/camera 1/a very long name of a file that no column has room for — Größe 0001.png"


def picture(file: str, modality: str) -> np.ndarray | None:
    if file == "missing.png":
        return None
    noise = np.random.default_rng(len(file)).integers(0, 256, (12, 6, 3), np.uint8)
    return np.kron(noise, np.ones((12, 12, 1), np.uint8))


def result(identity: str | None, *files: str) -> Result:
    hits = [
        Hit(rank, 0.9 - 0.1 * rank, file, None if rank == 4 else str(rank), "visible")
        for rank, file in enumerate(files, start=1)
    ]
    return Result("queries/asked.png", identity, "infrared", hits)


SHEET = ContactSheet(
    f"run {HOSTILE}",
    ["Tracklets are compared by their mean feature & more."],
    0.42,
    [
        result("1", "a/right.png", HOSTILE, LONG, "missing.png", *["b.png"] * 6),
        result(None, "a/right.png", "\udcff.png"),
        result("1"),
    ],
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sheet") / "search.html"
    write_contact_sheet(file, SHEET, picture)
    return file


def test_it_holds_the_results_and_nothing_from_elsewhere(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert "<script" not in text
    assert "3 queries, 1 with nobody known." in text
    assert "below the threshold 0.420" in text
    assert text.count('<li class="row"') == 3
    assert text.count("Nobody known<small>no similarity reaches 0.420") == 1
    assert re.findall(r'class="shot (\w+)"', text)[:6] == [
        "query", "right", "wrong", "wrong", "unknown", "wrong",
    ]  # fmt: skip
    assert text.count("no picture</span>") == 1
    assert "Go to" not in text  # a short page


def test_without_identities_and_threshold_nothing_is_right_or_wrong(tmp_path: Path) -> None:
    sheet = SHEET._replace(threshold=None, results=[result(None, "a.png", "b.png")])
    write_contact_sheet(tmp_path / "sheet.html", sheet, picture)
    body = (tmp_path / "sheet.html").read_text().partition("<body>")[2]
    assert "threshold" not in body
    assert "✓" not in body
    assert set(re.findall(r'class="shot (\w+)"', body)) == {"query", "unknown"}


def test_an_existing_file_is_kept(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        write_contact_sheet(file, SHEET, picture)
    assert file.read_bytes() == before


def test_its_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of queries and hits without pictures, by the budget with them."""
    many = SHEET._replace(results=[result("1", *["missing.png"] * 60)] * 300)
    write_contact_sheet(tmp_path / "many.html", many, lambda file, modality: None)
    text = (tmp_path / "many.html").read_text()
    assert "The first 200 are shown, 100 are left out." in text
    assert text.count('<li class="row"') == 200
    assert text.count("50 of 60 hits are shown.") == 200
    assert "Go to one of the 200 queries" in text
    for number in (1, 200):
        assert f'<a href="#query-{number}">queries/asked.png</a> ✓</li>' in text
        assert f'id="query-{number}"' in text
    assert len(text) < BUDGET

    each = len(contact_sheet._row(1, SHEET.results[0], None, picture)[0])
    monkeypatch.setattr(contact_sheet, "BUDGET", 3 * each)
    write_contact_sheet(
        tmp_path / "few.html", many._replace(results=SHEET.results[:1] * 9), picture
    )
    assert "The first 3 are shown, 6 are left out." in (tmp_path / "few.html").read_text()


# --- In a browser ----------------------------------------------------------------------------


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    with opened(browser, file) as page:
        yield page


@pytest.mark.slow
def test_names_are_text_and_signs_are_seen(page: Any) -> None:
    assert page.locator("h1").inner_text() == SHEET.title
    row = page.locator(".row").first
    assert row.locator("b").all_inner_texts()[:5] == ["?", "1 ✓", "2 ✗", "3 ✗", "4"]
    assert row.locator(".value").first.inner_text() == "0.800"
    assert row.locator(".file").nth(2).get_attribute("title") == HOSTILE
    pictures = "[...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    assert page.evaluate(pictures)


@pytest.mark.slow
def test_a_focused_name_shows_its_whole_path(page: Any) -> None:
    name = page.locator(".file").nth(3)
    cut = "(span) => span.scrollWidth > span.clientWidth"
    assert name.evaluate(cut)
    assert name.inner_text() == LONG.rpartition("/")[2]
    for _ in range(5):  # the link that skips to the content, then names
        page.keyboard.press("Tab")
    assert name.evaluate("(span) => span === document.activeElement")
    assert not name.evaluate(cut)
    assert name.inner_text() == LONG


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1024, 1920])
def test_nothing_overflows(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator(".file").nth(3).focus()
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast(page: Any, theme: str) -> None:
    page.emulate_media(color_scheme=theme)
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 30
    assert {text: ratio for text, ratio in ratios if ratio < 4.5} == {}
