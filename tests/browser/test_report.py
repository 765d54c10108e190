"""The report in a browser without network: what a reader sees, hears, reaches by keyboard and prints.

Proved here, on the page that a real run left: it asks for nothing and complains of nothing, it is small, its first
screen tells the verdict, every word stands out from what is painted behind it (contrast of 4.5, WCAG 2 AA) in light,
dark and print, pictures say their numbers, headings and focus go in the order of the page, it fits a phone and comes
out on paper in full, and what users wrote stays text.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lightning_lossacc import cli
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.history import History
from tests.browser import driver
from tests.browser.conftest import Run
from tests.made_up import event, record

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MAX_BYTES = 500_000
MIN_CONTRAST = 4.5
# A phone, a small window, a large one.
WIDTHS = (380, 800, 1400)
WHITE = "rgb(255, 255, 255)"
SCRIPT = "document.title = 'owned'"
HOSTILE = f"""<script>{SCRIPT}</script><img src=x onerror="{SCRIPT}"><b id=owned>{{{{ 7*7 }}}}</b>"""


@pytest.fixture(scope="module")
def report(run: Run) -> str:
    """Address of the page that the run left."""
    return (run.files / "report.html").as_uri()


def unfold(page: Page) -> None:
    """Opens all that is folded."""
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")


@pytest.mark.parametrize("made", ["by the run", "by the command"])
def test_page_stands_alone(run: Run, opened: Browser, tmp_path: Path, made: str) -> None:
    """No request, no complaint, less than 500 kB; the event, its remedy, the best checkpoint and six figures in it."""
    path = run.files / "report.html"
    if made == "by the command":
        path = tmp_path / "report.html"
        assert cli.main(["report", str(run.files), "--output", str(path)]) == 0
    assert path.stat().st_size < MAX_BYTES
    with driver.visit(opened, path.as_uri()) as visit:
        text = visit.page.inner_text("body")
        figures = visit.page.locator(".wide svg")
        assert figures.count() == 6 and all(figure.is_visible() for figure in figures.all())
        assert visit.page.locator("script, link, iframe, object").count() == 0
        assert visit.requests == [] and visit.problems == []
    last, values = run.events[-1], run.history.column("nll", "val")
    assert "over-confidence" in text and f"epoch {last.epoch}" in text and last.remedies[0] in text
    assert f"{min(values):.4f}" in text and f"{values[-1]:.4f}" in text


def test_first_screen_tells_the_verdict(run: Run, report: str, opened: Browser) -> None:
    """What happened and what to do stands above everything else; the picture begins on the first screen."""
    with driver.visit(opened, report, width=1200, height=900) as visit:
        verdict = visit.page.locator(".verdict").first
        place, picture = verdict.bounding_box(), visit.page.locator("svg").first.bounding_box()
        told, table = verdict.inner_text(), visit.page.locator("table").first.inner_text()
    assert place is not None and place["y"] + place["height"] < 450
    assert picture is not None and picture["y"] < 500
    assert "Over-confidence" in told and "First thing to do" in told
    assert f"{run.last.values['nll']:.4f}" in table and f"{100 * run.last.values['accuracy']:.2f}" in table


@pytest.mark.parametrize("look", ["light", "dark", "print"])
def test_words_stand_out(report: str, opened: Browser, shots: Path, look: str) -> None:
    """Each word, also inside of pictures, has a contrast of 4.5 to what is painted behind it."""
    with driver.visit(opened, report, width=1200, dark=look != "light") as visit:
        page = visit.page
        if look == "print":
            page.emulate_media(media="print")
        page.screenshot(path=shots / f"report_{look}.png", full_page=True)
        unfold(page)
        found = driver.contrasts(page)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert len(found) > 300 and {"svg", "html"} == {place for _, _, place in found}
    assert [(text, round(ratio, 2)) for text, ratio, _ in found if ratio < MIN_CONTRAST] == []
    # Paper is white, also that of a dark reader.
    assert (paper == WHITE) == (look != "dark")


def test_pictures_say_their_numbers(run: Run, report: str, opened: Browser) -> None:
    """Whoever cannot see a picture hears what it is, and its caption with its numbers once, not as its name as well;
    the first one says NLL and accuracy, and no two say the same."""
    with driver.visit(opened, report) as visit:
        pictures = visit.page.locator("img, .wide [role=img]").all()
        names = [picture.get_attribute("aria-label") or "" for picture in pictures]
        captions = [f"#{picture.get_attribute('aria-describedby')}" for picture in pictures]
        told = [visit.page.locator(caption).inner_text() for caption in captions]
        unnamed = visit.page.locator("svg:not([role=img])").count()
    assert all(0 < len(name) < 120 and name in words != name for name, words in zip(names, told, strict=True))
    assert len(told) >= 5 and unnamed == 0
    assert all(len(re.findall(r"\d+\.\d+", words)) >= 3 for words in told) and len(set(told)) == len(told)
    assert f"{run.last.values['nll']:.4f}" in told[0] and f"{100 * run.last.values['accuracy']:.1f} %" in told[0]


def test_headings_are_an_outline(report: str, opened: Browser) -> None:
    """One heading of the first level, and no level is jumped over on the way down."""
    with driver.visit(opened, report) as visit:
        headings = visit.page.locator("h1, h2, h3, h4, h5, h6").evaluate_all(
            "found => found.map(one => [Number(one.tagName[1]), one.innerText.trim()])"
        )
        language = visit.page.get_attribute("html", "lang")
    levels = [level for level, _ in headings]
    assert levels[0] == 1 and levels.count(1) == 1 and len(levels) > 5
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(words for _, words in headings) and language == "en"


def test_keyboard_goes_down_the_page(report: str, opened: Browser) -> None:
    """Tab reaches everything that reacts, each once, from top to bottom, visibly; links lead to their places."""
    wanted = "a[href], summary, [tabindex], button, input, select"
    with driver.visit(opened, report, width=1200) as visit:
        page = visit.page
        page.evaluate(f"document.querySelectorAll({wanted!r}).forEach((one, place) => one.dataset.place = place)")
        total = page.locator(wanted).count()
        reached, tops = [], []
        for _ in range(total):
            page.keyboard.press("Tab")
            place, top, outline = page.evaluate(
                "(() => { const one = document.activeElement; return [Number(one.dataset.place),"
                " one.getBoundingClientRect().top + scrollY, parseFloat(getComputedStyle(one).outlineWidth)] })()"
            )
            assert outline >= 2, place
            reached.append(place)
            tops.append(top)
        links = page.locator("nav a").evaluate_all("found => found.map(one => one.getAttribute('href'))")
        targets = [page.locator(link).count() for link in links]
    assert total > 8 and reached == list(range(total))
    # The first one jumps over the navigation and shows itself only then.
    assert tops[1:] == sorted(tops[1:])
    assert len(links) >= 5 and targets == [1] * len(links)


def test_first_key_leads_to_the_verdict(report: str, opened: Browser) -> None:
    """Whoever reads with keys or ears need not go through the navigation."""
    with driver.visit(opened, report) as visit:
        visit.page.keyboard.press("Tab")
        box = visit.page.locator(":focus").bounding_box()
        assert box is not None and box["x"] >= 0 and visit.page.locator("nav :focus").count() == 0
        visit.page.keyboard.press("Enter")
        assert visit.page.url == f"{report}#verdict"


@pytest.mark.parametrize("width", WIDTHS)
def test_no_window_needs_to_be_scrolled_sideways(report: str, opened: Browser, shots: Path, width: int) -> None:
    """The page fits a phone as well; only tables scroll, in themselves."""
    with driver.visit(opened, report, width=width) as visit:
        unfold(visit.page)
        if width == min(WIDTHS):
            visit.page.screenshot(path=shots / "report_phone.png", full_page=True)
        # One of the two pictures, and its letters are legible in a window of this width; so are those of the others.
        assert visit.page.locator(".narrow svg").is_visible() == (width == min(WIDTHS))
        shown = [figure for figure in visit.page.locator("svg").all() if figure.is_visible()]
        assert len(shown) == 6
        letters = "f => f.querySelector('text').getBoundingClientRect().height"
        assert min(figure.evaluate(letters) for figure in shown) >= 8
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_comes_out_on_paper_in_full(report: str, opened: Browser, shots: Path) -> None:
    """A PDF of a few pages, without navigation, and no table is cut by a box that scrolls."""
    with driver.visit(opened, report, dark=True, width=800) as visit:
        page = visit.page
        pdf = page.pdf(path=shots / "report.pdf", format="A4")
        page.emulate_media(media="print")
        cut = page.locator(".long").evaluate_all("found => found.map(one => one.scrollHeight - one.clientHeight)")
        assert not page.locator("nav").is_visible() and cut and max(cut) <= 1
    assert pdf.startswith(b"%PDF") and b"%%EOF" in pdf[-1024:]
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20


def test_what_users_wrote_stays_text(opened: Browser, tmp_path: Path) -> None:
    """Names, messages and settings with HTML, scripts and templates in them are shown as they were written."""
    from lightning_lossacc.report import render

    told = event(
        300,
        causes=(Cause("over-confidence", 1.0, (HOSTILE,), (HOSTILE,)),),
        evidence={"nll": 0.5},
        message=HOSTILE,
        remedies=(HOSTILE,),
    )
    history = History(record(epoch, nll=0.5, accuracy=0.8) for epoch in range(4))
    path = tmp_path / "report.html"
    path.write_text(render(history, [told], title=HOSTILE, configuration={HOSTILE: HOSTILE}), encoding="utf-8")
    with driver.visit(opened, path.as_uri()) as visit:
        page: Page = visit.page
        unfold(page)
        assert page.locator("#owned, script, img").count() == 0
        assert page.title().count("<script>") == 1 and page.title() != "owned"
        assert page.inner_text("body").count("<b id=owned>{{ 7*7 }}</b>") >= 5
        assert visit.requests == [] and visit.problems == []
