"""The page that `evaluate.py --report` writes: its content, its bounds, what it never touches.

The last tests open it in a real browser, headless Chromium, from the disk.
"""

import base64
import dataclasses
import html
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddag_jax.config import EvaluationConfig
from ddag_jax.data.loader import evaluation_split
from ddag_jax.datasets.regdb import REGDB
from ddag_jax.errors import UserError
from ddag_jax.evaluation.protocols import Images, score, searches
from ddag_jax.report import figures
from ddag_jax.report.contents import QUERIES, EvaluatedRun, cmc_curves, page_contents
from ddag_jax.report.page import LIMIT, Page, render, write_page
from ddag_jax.report.target import check_target
from ddag_jax.runs.checkpoint import find_checkpoint, read_meta
from tests.browser import CONTRAST, opened
from tests.models import tiny
from tests.models.tiny import HEIGHT, WIDTH
from tests.report.conftest import Report

pytestmark = pytest.mark.slow  # trains and compiles a network


@pytest.fixture(scope="module")
def baseline() -> EvaluatedRun:
    """A network without attention and without a log, evaluated both ways on RegDB's layout."""
    random = np.random.default_rng(0)
    identities = np.repeat(np.arange(1, 21), 8)
    infrared = np.tile([False, True], 80)
    names = [f"{number:04d}.bmp" for number in range(160)]
    images = Images(identities, 1 + infrared, infrared, names)
    settings = EvaluationConfig()
    found = searches(REGDB, images, settings)

    def features(noise: float) -> np.ndarray:
        rows = np.eye(64)[identities] + random.normal(0, noise, (160, 64))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    trained, untrained = features(0.25), features(0.4)
    method = tiny.method(part_attention=False, graph_attention=False)
    pixels = random.integers(0, 256, (160, HEIGHT, WIDTH, 3), np.uint8)
    return EvaluatedRun(
        title="baseline",
        images=images,
        read_images=lambda numbers: pixels[numbers],
        searches=found,
        features={"global": trained},
        evaluated={"global": trained},
        reported="global",
        reported_feature=trained,
        untrained={"global": untrained},
        records=score({"global": trained}, images, found, REGDB, settings, split=1),
        untrained_records=score({"global": untrained}, images, found, REGDB, settings, split=1),
        operating_points={"global": None},
        reranked=False,
        method=method,
        variables=tiny.random_variables(method),
        batch=(8, 4),
        log=[],
    )


@pytest.fixture(scope="module")
def baseline_page(baseline: EvaluatedRun) -> Page:
    return page_contents(baseline)


CHARTS = {
    "cmc_all", "cmc_indoor", "embedding_map", "similarities", "part_attention_infrared",
    "part_attention_visible", "part_weights", "graph_attention", "losses", "learning_rate",
    "graph_weight", "rank1", "mAP",
}  # fmt: skip


def alt(report: Report, name: str) -> str:
    """What a chart says to who cannot see it."""
    found = re.search(rf'<figure id="{name}">.*?aria-label="([^"]*)"', report.html, re.DOTALL)
    assert found
    return html.unescape(found[1])


def test_every_chart_is_on_the_page_and_a_file(report: Report) -> None:
    on_page = set(re.findall(r'<figure id="(\w+)">', report.html))
    assert on_page == CHARTS | {f"example_{n}" for n in range(1, 7)}
    files = {path.name for path in (report.folder / "figures").iterdir()}
    assert files == {f"{name}.svg" for name in on_page}
    for svg in (report.folder / "figures").iterdir():
        assert svg.read_text().startswith("<svg")
    assert (report.run / "ranked_lists.png").exists()


def test_nothing_comes_from_elsewhere_and_the_page_is_small(report: Report) -> None:
    assert "://" not in report.html
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", report.html)
    assert "@import" not in report.html
    assert (report.folder / "index.html").stat().st_size < LIMIT == 15_000_000
    assert "currentColor" in report.html  # charts follow the theme
    identifiers = re.findall(r'\sid="([^"]+)"', report.html)
    assert len(identifiers) == len(set(identifiers))
    for reference in re.findall(r"""(?:href="|url\()#([\w-]+)""", report.html):
        assert reference in identifiers


def test_names_are_text(report: Report) -> None:
    assert "<b>" not in report.html.partition("<script>")[0]
    assert "run &lt;b&gt;&amp;amp;, checkpoint" in report.html


def test_the_thresholds_are_the_evaluations(report: Report, baseline_page: Page) -> None:
    records = json.loads((report.run / "evaluation.json").read_text())
    for record in records:
        found = record["operating_points"]
        assert found["images"] == "held-out"
        for name, point in found["points"].items():
            row = f'<th scope="row">{record["feature"]}, {name}</th><td>'
            row += "too few pairs" if point is None else f"{point['threshold']:.4f}"
            assert row in report.html
    assert "identities held out of training" in report.html
    assert "no thresholds" in render(baseline_page)


def test_the_table_and_the_curves_are_the_evaluations(report: Report) -> None:
    trained = json.loads((report.run / "evaluation.json").read_text())
    untrained = json.loads((report.run / "evaluation_untrained.json").read_text())
    for records in (trained, untrained):
        for record in records:
            for figure in ("rank1", "rank20", "mAP", "mINP"):
                cell = f"<td>{record[figure]:.2f} <small>± {record[figure + '_std']:.2f}</small>"
                assert cell in report.html
    for mode in ("all", "indoor"):
        said = alt(report, f"cmc_{mode}")
        for prefix, records in (("", trained), ("untrained ", untrained)):
            for record in records:
                if record["mode"] == mode:
                    who = re.escape(f" {prefix}{record['feature']} ")
                    ends = re.search(rf"[:;]{who}([\d.]+) % to ([\d.]+) %", said)
                    assert ends
                    assert float(ends[1]) == pytest.approx(record["rank1"], abs=0.06)
                    assert float(ends[2]) == pytest.approx(record["rank20"], abs=0.06)


def test_cmc_points_are_the_evaluators(baseline: EvaluatedRun) -> None:
    """At each rank that the table has, in both directions."""
    for search in baseline.searches:
        curves = cmc_curves(baseline, search)
        assert list(curves) == ["global", "untrained global"]
        for name, records in (
            ("global", baseline.records),
            ("untrained global", baseline.untrained_records),
        ):
            (record,) = [r for r in records if r["direction"] == search.direction]
            assert 5 < record["rank1"] < record["rank5"] < 100
            for rank in (1, 5, 10, 20):
                assert 100 * curves[name][rank - 1] == pytest.approx(record[f"rank{rank}"])


def test_ranked_lists_hold_what_they_say(report: Report, debug_data: Path) -> None:
    config = read_meta(find_checkpoint(report.run)).config
    data = dataclasses.replace(config.data, dir=str(debug_data))
    source = evaluation_split(data)
    lists = report.data
    assert [search["label"] for search in lists["searches"]] == ["all-search", "indoor-search"]
    assert 0 < sum(len(search["queries"]) for search in lists["searches"]) <= QUERIES
    for search in lists["searches"]:
        asked = {lists["images"][str(query["query"])][0] for query in search["queries"]}
        assert set(search["hardest"]) <= asked
        for query in search["queries"]:
            assert lists["images"][str(query["query"])][2] == "infrared"
            assert query["similarity"] == sorted(query["similarity"], reverse=True)
            assert 0 < len(query["found"]) == len(query["similarity"]) <= 10
            shown = [lists["images"][str(number)] for number in query["found"]]
            assert {modality for _, _, modality, _ in shown} == {"visible"}
    for number, (identity, camera, modality, jpeg) in lists["images"].items():
        place = int(number)
        assert (identity, camera) == (source.identities[place], source.cameras[place])
        assert (modality == "infrared") == source.infrared[place]
        picture = Image.open(io.BytesIO(base64.b64decode(jpeg)))
        original = source.images(np.array([place]))[0].astype(float)
        assert np.abs(np.asarray(picture) - original).mean() < 25
    for identity, person in lists["people"].items():
        assert person["total"] == (source.identities == int(identity)).sum()
        assert person["images"]
        for number in person["images"]:
            assert lists["images"][str(number)][0] == int(identity)


def test_the_network_s_attention_is_in_the_text_alternatives(report: Report) -> None:
    weights = [float(w) for w in re.findall(r"part \d (\d\.\d+)", alt(report, "part_weights"))]
    assert len(weights) == 2
    assert sum(weights) == pytest.approx(1, abs=2e-3)
    rows = re.findall(r"part \d: ([\d., ]+)", alt(report, "part_attention_visible"))
    assert len(rows) == 2
    for row in rows:
        values = [float(value) for value in row.strip(" .,").split(", ")]
        assert sum(values) == pytest.approx(1, abs=0.02)


def test_a_report_is_replaced_and_nothing_else_is(
    report: Report,
    tmp_path: Path,
    evaluate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(report.folder, tmp_path / "report"))
    assert check_target(folder) == folder
    (folder / "figures" / "mine.svg").write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "index.html").write_text("<html>mine</html>")
    a_file = tmp_path / "file"
    a_file.write_text("mine")
    for target, message in (
        (folder, "holds figures/mine.svg, which no report wrote"),
        (foreign, "holds index.html, which no report wrote"),
        (a_file, "is not a folder"),
        (tmp_path / "no" / "where", "its folder does not exist"),
    ):
        before = sorted(tmp_path.rglob("*"))
        assert evaluate(report.run, "--report", target) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --report")
        assert error.count("\n") == 1
        assert message in error
        assert sorted(tmp_path.rglob("*")) == before
    assert a_file.read_text() == "mine"


def test_an_earlier_report_makes_room(tmp_path: Path, baseline_page: Page) -> None:
    page = baseline_page
    empty = tmp_path / "report"
    empty.mkdir()
    index = write_page(empty, page)
    first = index.read_text(encoding="utf-8")
    assert write_page(empty, page._replace(title="another", attention=[])) == index
    assert "<title>another" in index.read_text(encoding="utf-8")
    assert not (empty / "figures" / "example_1.svg").exists()
    write_page(empty, page)
    assert index.read_text(encoding="utf-8") == first
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert {path.name for path in empty.iterdir()} == {"index.html", "figures"}


def test_a_failure_leaves_the_earlier_report(
    tmp_path: Path, baseline_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = baseline_page
    index = write_page(tmp_path / "report", page)
    before = index.read_text(encoding="utf-8")

    def full(_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures.Figure, "standalone", full)
    with pytest.raises(UserError, match="cannot be written"):
        write_page(tmp_path / "report", page._replace(title="another"))
    assert index.read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_what_has_no_report_is_refused(
    report: Report,
    tmp_path: Path,
    evaluate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, message in (
        (["--features", "x.npz"], "stored features have no network"),
        ([report.run, find_checkpoint(report.run)], "are of one run"),
    ):
        assert evaluate(*words, "--report", tmp_path / "report") == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_both_directions_of_a_baseline_without_a_log(tmp_path: Path, baseline_page: Page) -> None:
    index = write_page(tmp_path / "report", baseline_page)
    names = {path.stem for path in (tmp_path / "report" / "figures").iterdir()}
    assert names == {
        "cmc_visible_to_infrared", "cmc_infrared_to_visible", "embedding_map", "similarities",
        *(f"example_{n}" for n in range(1, 7)),
    }  # fmt: skip
    assert "no log of its training" in index.read_text(encoding="utf-8")


def test_a_chart_is_named_and_follows_the_theme() -> None:
    chart = figures.curves("a", 'A "title"', "unit", {"one": ([0.0, 1.0], [2.0, 3.0])})
    for svg in (chart.inline(), chart.standalone()):
        assert "currentColor" in svg
        assert "#010203" not in svg
    assert 'aria-label="A &quot;title&quot; over the epochs: one from 2 to 3."' in chart.inline()
    assert "xmlns" not in chart.inline()
    assert chart == figures.curves("a", 'A "title"', "unit", {"one": ([0.0, 1.0], [2.0, 3.0])})


# --- In a browser ----------------------------------------------------------------------------


@pytest.fixture
def page(browser: Any, report: Report) -> Iterator[Any]:
    """The report, open; at the end nothing has gone wrong in it and nothing was fetched."""
    with opened(browser, report.folder / "index.html") as page:
        yield page


def test_filters_show_what_they_say(page: Any, report: Report) -> None:
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


def test_right_and_wrong_are_framed_and_marked(page: Any) -> None:
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


def test_an_identity_opens_by_keyboard_and_shows_its_images(page: Any, report: Report) -> None:
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
def test_nothing_overflows(page: Any, width: int) -> None:
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
def test_text_has_enough_contrast(page: Any, theme: str) -> None:
    """WCAG AA: 4.5 to 1 for text, on the nearest background that is not transparent."""
    page.emulate_media(color_scheme=theme)
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 50
    assert {text: ratio for text, ratio in ratios if ratio < 4.5} == {}
