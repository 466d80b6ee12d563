"""Open a page that the package wrote in a real browser, and measure its contrast."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """Open a file; at the end nothing has gone wrong in it and nothing was fetched."""
    page = browser.new_page(viewport={"width": 1024, "height": 800})
    faults: list[str] = []
    page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url))
    address = file.as_uri()
    page.goto(address)
    yield page
    assert [fault for fault in faults if fault != address and not fault.startswith("data:")] == []
    page.close()


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
