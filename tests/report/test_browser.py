"""The report in a real browser: headless Chromium opens it from the disk."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.report.conftest import Report

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    """The Chromium that CHROMIUM names, or the first that there is."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium found; install one (Debian: chromium), or name it by CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        # As root, as CI is, it has no sandbox to offer.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "sync_api.Browser", report: Report) -> Iterator["sync_api.Page"]:
    """The report, open; at the end nothing has gone wrong in it and nothing was fetched."""
    page = browser.new_page(viewport={"width": 1024, "height": 800})
    faults: list[str] = []
    page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url))
    address = (report.folder / "index.html").as_uri()
    page.goto(address)
    yield page
    assert [fault for fault in faults if fault != address and not fault.startswith("data:")] == []
    page.close()


def test_filters_show_what_they_say(page: "sync_api.Page", report: Report) -> None:
    search = report.data["searches"][0]
    people = report.data["images"]

    def who(number: int) -> int:
        identity: int = people[str(number)][0]
        return identity

    def shown(expected: list[dict]) -> None:
        assert page.locator("#count").inner_text() == (
            f"{len(expected)} of {len(search['queries'])} queries"
        )
        while page.locator("#more").is_visible():
            page.locator("#more").click()
        rows = page.locator(".row:visible")
        assert rows.count() == len(expected)
        assert [int(row.get_attribute("data-identity") or 0) for row in rows.all()] == [
            who(query["query"]) for query in expected
        ]

    queries = search["queries"]
    failures = [q for q in queries if who(q["found"][0]) != who(q["query"])]
    assert 0 < len(failures) < len(queries)
    assert page.locator(".row:visible").count() == min(12, len(queries))
    shown(queries)
    page.get_by_label("Failures only").check()
    shown(failures)
    page.get_by_label("Failures only").uncheck()
    page.get_by_label("Hardest identities only").check()
    shown([q for q in queries if who(q["query"]) in search["hardest"]])
    page.get_by_label("Hardest identities only").uncheck()
    page.locator("#camera").select_option("6")
    shown([q for q in queries if people[str(q["query"])][1] == 6])
    page.locator("#identity").select_option(str(who(failures[0]["query"])))
    shown(
        [
            q
            for q in queries
            if people[str(q["query"])][1] == 6 and who(q["query"]) == who(failures[0]["query"])
        ]
    )
    page.locator("#search").select_option("1")
    assert (
        page.locator("#count")
        .inner_text()
        .endswith(f"of {len(report.data['searches'][1]['queries'])} queries")
    )


def test_right_and_wrong_are_framed_and_marked(page: "sync_api.Page") -> None:
    for shot in page.locator(".row:visible .found .shot").all():
        right = "right" in (shot.get_attribute("class") or "")
        row = shot.locator("xpath=ancestor::li")
        assert right == (
            f"id {row.get_attribute('data-identity')}" in shot.inner_text().split("\n")
        )
        assert shot.locator("b").inner_text() == ("✓" if right else "✗")
        label = shot.get_attribute("aria-label") or ""
        assert label.startswith("right: " if right else "wrong: ")
    image = page.locator(".row:visible img").first
    assert image.evaluate("image => image.complete && image.naturalWidth > 0")


def test_an_identity_opens_by_keyboard_and_shows_its_images(
    page: "sync_api.Page", report: Report
) -> None:
    first = page.locator(".row .found button").first
    first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible()
    identity = page.locator("#person-title").inner_text().removeprefix("Identity ")
    person = report.data["people"][identity]
    assert dialog.locator("img").count() == len(person["images"])
    assert str(person["total"]) in page.locator("#person-count").inner_text()
    assert dialog.evaluate("dialog => [...dialog.querySelectorAll('img')].every(i => i.complete)")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert first.evaluate("button => button === document.activeElement")


@pytest.mark.parametrize("width", [400, 1024, 1920])
def test_nothing_overflows(page: "sync_api.Page", width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    beyond = page.evaluate(
        """width => [...document.querySelectorAll("body *")].filter((element) =>
          !element.closest(".wide, .skip, svg") && element.getBoundingClientRect().right > width
        ).map((element) => element.outerHTML.slice(0, 80))""",
        width,
    )
    assert beyond == []
    page.locator(".row .shot").first.click()
    box = page.get_by_role("dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast(page: "sync_api.Page", theme: str) -> None:
    """WCAG AA: 4.5 to 1 for text, on the nearest background that is not transparent."""
    page.emulate_media(color_scheme=theme)
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 50
    assert {text: ratio for text, ratio in ratios if ratio < 4.5} == {}


CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => channels(colour).slice(0, 3).map((value) => value / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((channels(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) =>
      node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("script, style")) continue;
    const inked = element.closest("svg") ? getComputedStyle(element).fill
      : getComputedStyle(element).color;
    const chart = element.closest("svg");  // whose data has colours of its own
    if (chart && getComputedStyle(chart).color !== inked) continue;
    const [one, two] = [light(inked), light(behind(element))].sort((a, b) => b - a);
    found.push([element.textContent.trim().slice(0, 40), (one + 0.05) / (two + 0.05)]);
  }
  return found;
}"""
