"""TensorBoard in a browser: what a user finds on each tab after a run with an event.

Proved here, on the pages themselves: curves and charts carry the tags and end at the numbers of the history; histograms
count its rows; the text tab holds each event and the closing table, word by word; every figure is there, pixel by
pixel; hyperparameters hold the verdict; the user's own charts stay; and no tab asks for anything outside the server.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.image import imread

from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.sinks.images import image
from tests.browser import driver
from tests.browser.conftest import OWN_CATEGORY, OWN_CHART, Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CORE = ("accuracy", "balanced_accuracy", "calibration_nll", "nll", "overconfidence", "refinement_nll", "temperature")


@contextmanager
def tab(opened: Browser, board: str, name: str, shot: Path, *, tags: str = "", height: int = 1000) -> Iterator[Page]:
    """A tab of TensorBoard, photographed at the end; it has asked for nothing elsewhere and complained of nothing."""
    address = driver.board_address(board, name, tags=tags)
    with driver.visit(opened, address, origin=board, height=height) as visit:
        yield visit.page
        visit.page.screenshot(path=shot)
        assert visit.requests == [] and visit.problems == []


def words(text: str) -> str:
    """A text with single spaces, as a browser shows it."""
    return " ".join(text.split())


def table_number(value: float) -> str:
    """A number as TensorBoard's tables show it: four decimals."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


def test_curves_end_at_the_numbers_of_the_history(run: Run, board: str, opened: Browser, shots: Path) -> None:
    """Time series: each core quantity has a card, and its table shows the last value of the history and its step."""
    wanted = {f"lossacc/val/{key}": run.last.values[key] for key in CORE}
    # Only these: cards are drawn when they come into view, and a page holds twelve.
    tags = f"^lossacc/val/({'|'.join(CORE)})$"
    with tab(opened, board, "timeseries", shots / "timeseries.png", tags=tags, height=2000) as page:
        shown = {}
        for tag in wanted:
            card = page.locator("scalar-card").filter(has=page.locator(f"[title='{tag}']"))
            card.get_by_text("version_0").wait_for()
            shown[tag] = driver.seen(card.locator("tb-data-table"))
    # The logger counts from 0, the Trainer's steps from 1.
    step = f"{run.last.global_step - 1:,}"
    for tag, value in wanted.items():
        assert f"version_0 {table_number(value)} {step} " in shown[tag], tag


def test_scalars_answer_the_mouse(run: Run, board: str, opened: Browser, shots: Path) -> None:
    """Scalars: at the right end of the loss curve the mouse shows the last NLL, which stands above its minimum."""
    values = run.history.column("nll", "val")
    assert values[-1] > min(values) + 0.02
    with tab(opened, board, "scalars", shots / "scalars.png", tags="lossacc/val/nll$") as page:
        card = page.locator("tf-scalar-card").first
        plot = card.locator(".main")
        card.get_by_text("lossacc/val/nll").wait_for()
        card.get_by_text("400", exact=True).wait_for()
        box = plot.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
        told = page.locator("vz-line-chart-tooltip").first
        told.get_by_text("Smoothed").wait_for()
        assert f"version_0 {table_number(values[-1])} {table_number(values[-1])} " in driver.seen(told)


def test_images_hold_every_figure(run: Run, board: str, opened: Browser, shots: Path) -> None:
    """Images: each figure that the monitor wrote beside the logs is drawn, at the last step, pixel by pixel, in the
    form for cards of 350 pixels."""
    names = [path.stem.replace("_", "/") for path in run.files.glob("*.png")]
    wanted = {name: image(name, run.history, run.events).narrow_pixels / 255 for name in names}
    assert "lossacc" in wanted and len(wanted) >= 5
    with tab(opened, board, "images", shots / "images.png", height=1700) as page:
        cards = page.locator("tf-image-loader")
        cards.nth(len(wanted) - 1).locator("img").wait_for()
        found = {}
        for card in cards.all():
            shown = card.locator("img")
            page.wait_for_function("image => image.complete && image.naturalWidth", arg=shown.element_handle())
            box = shown.bounding_box()
            assert box is not None and 300 <= box["width"] <= 400
            words_of_card = driver.seen(card)
            assert f"version_0 step {run.last.global_step} " in words_of_card
            answer = page.request.get(f"{board}{shown.get_attribute('src')}")
            found[words_of_card.partition(" ")[0]] = imread(io.BytesIO(answer.body()), format="png")[..., :3]
    assert set(found) == set(wanted)
    assert all(np.allclose(picture, wanted[tag], atol=1e-3) for tag, picture in found.items())


def test_text_says_each_event_and_the_end(run: Run, board: str, opened: Browser, shots: Path) -> None:
    """Text: every report of every event stands there word by word, newest first, and so does the closing table."""
    closing = (run.files / "summary.txt").read_text(encoding="utf-8")
    with tab(opened, board, "text", shots / "text.png", tags="lossacc", height=1400) as page:
        page.get_by_text("lossacc/summary/text_summary").first.wait_for()
        page.locator("tf-text-loader pre").last.wait_for()
        events, summary = (
            driver.seen(page.locator("tf-text-loader").filter(has_text=f"lossacc/{name}/text_summary").first)
            for name in ("events", "summary")
        )
        ends = page.locator("tf-text-loader pre").evaluate_all("f => f.map(e => e.getBoundingClientRect().right)")
        assert ends and all(right <= 1400 for right in ends)
    reported = [words(event.message) for event in run.events]
    assert len(reported) >= 2 and all(message in events for message in reported)
    places = [events.index(message) for message in reported]
    assert places == sorted(places, reverse=True)
    assert words(closing) in summary


def test_custom_scalars_tell_the_story_beside_the_users_own(run: Run, board: str, opened: Browser, shots: Path) -> None:
    """Custom scalars: the user's category stays; our charts name their curves and end at the numbers of the history."""
    values = run.last.values
    with tab(opened, board, "custom_scalars", shots / "custom_scalars.png") as page:
        page.get_by_text(OWN_CATEGORY).wait_for()
        told = {
            kind: [ends_of(page, card) for card in page.locator(f"tf-custom-scalar-{kind}-chart-card").all()]
            for kind in ("multi-line", "margin")
        }
    titles = [title for found in told.values() for title, _ in found]
    assert titles[0] == OWN_CHART and len(titles) == 4
    assert all(any(word in title for title in titles[1:]) for word in ("error rate", "calibration", "margin"))
    lines = " ".join(ends for _, ends in told["multi-line"])
    wanted = {key: values[key] for key in ("nll", "refinement_nll", "calibration_nll")}
    for key, value in (wanted | {"error_rate": 1 - values["accuracy"]}).items():
        found = re.search(rf"lossacc/val/{key} \(version_0\) (\S+) ", lines)
        assert found and float(found[1]) == pytest.approx(value, abs=6e-5), key
    assert re.search(r"lossacc/train/nll \(version_0\) \S+ ", lines)
    # Value, lower and upper margin: TensorBoard's own columns.
    (_, ends) = told["margin"][0]
    middle, lower, upper = map(float, re.search(r"\(version_0\) (\S+) (\S+) (\S+) ", ends).groups())
    assert lower == pytest.approx(values["margin_p05"], abs=6e-4) and lower < middle < upper


def ends_of(page: Page, card: Locator) -> tuple[str, str]:
    """Title of a chart, and what the mouse is told at the right end of its curves."""
    card.scroll_into_view_if_needed()
    card.get_by_text("400", exact=True).wait_for()
    box = card.locator(".main").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    told = page.locator("vz-line-chart-tooltip[style*='opacity: 1']")
    told.get_by_text("Value").wait_for()
    title, ends = driver.seen(card.locator("tf-card-heading")), driver.seen(told)
    page.mouse.move(1, 1)
    told.wait_for(state="detached")
    return title, ends


def test_histograms_count_the_rows(run: Run, board: str, opened: Browser, shots: Path) -> None:
    """Histograms: at three margins of a late step stand as many rows as the history counted there."""
    with tab(opened, board, "histograms", shots / "histograms.png") as page:
        for name in ("train/confidence", "train/margin", "val/confidence", "val/margin"):
            page.locator("tf-histogram-loader").get_by_text(f"lossacc/{name}").wait_for()
        card = page.locator("tf-histogram-loader").filter(has_text="lossacc/val/margin")
        card.get_by_text("400", exact=True).first.wait_for()
        box = card.locator("vz-histogram-timeseries").bounding_box()
        assert box is not None
        told = []
        for place in (0.4, 0.55, 0.7):
            page.mouse.move(box["x"] + place * box["width"], box["y"] + 0.85 * box["height"])
            card.locator(".label text").first.wait_for()
            margin, step = card.locator(".label text").all_text_contents()[:2]
            told.append((float(margin), int(step), float(card.locator(".hover-closest text").text_content() or "nan")))
    edges = margin_edges()
    rows = {record.global_step - 1: record.arrays["margin_histogram"][1:-1] for record in run.history.series()}
    filled = [index for counts in rows.values() for index, count in enumerate(counts) if count]
    # TensorBoard draws 30 bins of equal width over all steps.
    width = (edges[max(filled) + 1] - edges[min(filled)]) / 30
    for margin, step, shown in told:
        around = [rows_within(edges, rows[step], margin + shift * width, width) for shift in (-1, -0.5, 0, 0.5)]
        assert 0.9 * min(around) <= shown <= 1.1 * max(around) and max(around) > 2, margin
    assert len({shown for _, _, shown in told}) == 3


def rows_within(edges: list[float], rows: list[float], low: float, width: float) -> float:
    """Rows between `low` and `low + width`, those of a bin spread evenly over it."""
    return sum(
        count * max(0.0, min(right, low + width) - max(left, low)) / (right - left)
        for left, right, count in zip(edges, edges[1:], rows, strict=False)
    )


def test_hyperparameters_hold_the_verdict(run: Run, board: str, opened: Browser, shots: Path) -> None:
    """Hyperparameters: a run without its own has the verdict and the last numbers in its row, to sort runs by."""
    with tab(opened, board, "hparams", shots / "hparams.png") as page:
        page.get_by_text("lossacc/final/last_nll").first.wait_for()
        page.get_by_text("lossacc/verdict").first.wait_for()
        table = page.locator("tf-hparams-table-view")
        table.get_by_text("version_0").first.wait_for()
        told = driver.seen(table)
    values = run.last.values
    assert "over-confidence: loss up, accuracy flat" in told
    # Five digits, as TensorBoard shows them.
    assert all(f"{values[key]:#.5g}" in told for key in ("nll", "accuracy", "refinement_nll"))
