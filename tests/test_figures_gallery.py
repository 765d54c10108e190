"""Every figure shows the numbers of the records, in both themes, says them in words, and stays readable on every kind
of run; where there is nothing to show there is no figure."""

from __future__ import annotations

import math
import random
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.stats import binomtest

from lightning_lossacc.curves import Curves, compared, envelope
from lightning_lossacc.figures import FIGURES, alt_text, draw, pixels, png
from lightning_lossacc.figures.canvas import DARK, LIGHT, THEMES, Theme
from lightning_lossacc.figures.margin import _quantile
from lightning_lossacc.figures.reliability import wilson
from lightning_lossacc.history import History, Record
from tests.made_up import event, record
from tests.made_up_run import REFERENCE, ROWS, full_record, full_run, histogram

RUN = full_run()
EVENTS = [event(2100, num_rows=ROWS)]


def texts(figure):
    drawn = [text for axes in figure.axes for text in axes.texts] + list(figure.texts)
    return [text.get_text().strip() for text in drawn if text.get_text().strip()]


def has(figure, part):
    return any(part in text for text in texts(figure))


def line(axes, y_end):
    """The line that ends at a value."""
    (found,) = [one for one in axes.lines if len(one.get_ydata()) > 2 and abs(one.get_ydata()[-1] - y_end) < 1e-9]
    return found


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_in_both_themes_and_said_in_words(name, theme):
    """900 pixels on the theme's paper, and a text that holds numbers."""
    image = pixels(draw(name, RUN, EVENTS, theme=theme))
    paper = tuple(int(THEMES[theme].paper[place : place + 2], 16) for place in (1, 3, 5))
    assert image.shape[1] == 900 and tuple(image[2, 2]) == paper
    # Not a blank sheet.
    assert (image != image[2, 2]).any(axis=2).mean() > 0.01
    assert len(re.findall(r"\d", alt_text(name, RUN, EVENTS))) > 5


@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_without_its_numbers(name):
    """None instead of an empty sheet, and no words about it."""
    nothing = [History(), History([record(0, complete=False, nll=0.5)])]
    nothing += [] if name == "lossacc" else [History([record(0, nll=0.5, accuracy=0.8), record(1, nll=0.4)])]
    for history in nothing:
        assert draw(name, history) is None
        assert name == "lossacc" or alt_text(name, history) == ""


def test_unknown_figure_is_a_key_error():
    with pytest.raises(KeyError):
        draw("lossacc/nothing", RUN)


def broken_run():
    """A run whose values are missing, infinite or of a single class now and then."""
    made = History()
    for one in full_run(12):
        odd = {"nll": math.nan, "refinement_nll": math.inf, "temperature": math.nan, "accuracy": math.nan}
        made.append(replace(one, values=one.values | odd) if one.epoch in (0, 5, 11) else one)
    return made


HISTORIES = {
    "run": RUN,
    "one evaluation": full_run(1),
    "two evaluations": full_run(2),
    "still falling": full_run(REFERENCE + 1),
    "300 epochs": full_run(300),
    "broken": broken_run(),
    "huge": History(replace(one, epoch=10**7 + one.epoch) for one in RUN),
}


@pytest.mark.parametrize("kind", HISTORIES)
@pytest.mark.parametrize("name", [name for name in FIGURES if name != "lossacc"])
def test_every_text_is_inside_the_figure_and_free_of_others(name, kind):
    """Names, labels of the axes and titles are readable on every kind of run."""
    figure = draw(name, HISTORIES[kind], EVENTS)
    if figure is None:
        assert kind in ("one evaluation", "two evaluations", "broken")
        return
    assert_readable(figure)


def assert_readable(figure):
    """No text of a figure touches another one or the edge."""
    pixels(figure)
    width, height = figure.canvas.get_width_height()
    renderer = figure.canvas.get_renderer()
    drawn = [text for axes in figure.axes for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label)]
    drawn = [text for text in (*drawn, *figure.texts) if text.get_text().strip() and text.get_visible()]
    for axes in figure.axes:
        low, high = sorted(axes.get_ylim())
        inside = [place for place, value in enumerate(axes.get_yticks()) if low <= value <= high]
        labels = axes.get_yticklabels()
        drawn += [labels[place] for place in inside if axes.yaxis.get_tick_params().get("labelleft", True)]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in drawn if text.get_text()]
    for text, box in boxes:
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text
    for place, (text, box) in enumerate(boxes):
        for other, foreign in boxes[place + 1 :]:
            apart = box.x1 <= foreign.x0 + 1 or foreign.x1 <= box.x0 + 1
            assert apart or box.y1 <= foreign.y0 + 2 or foreign.y1 <= box.y0 + 2, f"{text!r} touches {other!r}"


def contrast(one, other):
    """Contrast of two colours, 1 to 21 (WCAG 2)."""

    def luminance(color):
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_of_texts_have_a_contrast_of_four_and_a_half(theme):
    for name in ("ink", "faint", "vermilion", "blue", "green", "purple"):
        assert contrast(getattr(theme, name), theme.paper) >= 4.5, name
    for name in ("orange_paper", "sky_paper", "pale_paper"):
        assert contrast(theme.ink, getattr(theme, name)) >= 4.5, name


def test_colours_of_a_theme_differ_so_that_a_page_can_exchange_them():
    for theme in (LIGHT, DARK):
        colors = [getattr(theme, field.name).lower() for field in fields(Theme)]
        assert len(set(colors)) == len(colors)


def test_changes_show_groups_and_temperature_of_each_evaluation():
    """The lines are the paired numbers, flips together, and the names give rows and the interval."""
    figure = draw("lossacc/changes", RUN)
    upper, lower = figure.axes[1], figure.axes[0]
    total = [one.paired["nll"]["nll_change"] for one in RUN.series() if one.paired]
    wrong = line(upper, 1.4 * total[-1])
    assert list(wrong.get_ydata()) == pytest.approx([1.4 * change for change in total])
    assert list(line(upper, 0.1 * total[-1]).get_ydata()) == pytest.approx([0.1 * change for change in total])
    assert list(line(lower, 0.1 * total[-1]).get_ydata()) == pytest.approx([0.1 * change for change in total])
    assert has(figure, "wrong both times +0.1736") and has(figure, "80 rows") and has(figure, "20 rows")
    assert has(figure, "flips +0.0124") and has(figure, "together +0.1240")
    assert has(figure, "rest +0.0124") and has(figure, "99 %: +0.0098 … +0.0150") and has(figure, "temperature +0.1116")
    assert has(figure, "now that of epoch 8")
    words = alt_text("lossacc/changes", RUN)
    assert "+0.1240 nats against epoch 8" in words and "+0.0124 stay" in words


def test_changes_leave_out_the_fall_before_the_reference_and_say_so():
    figure = draw("lossacc/changes", RUN)
    assert figure.axes[1].get_ylim()[0] > -0.1 and has(figure, "▼ -0.1 at epoch 1, cut off")


def test_changes_of_items_with_several_rows_have_their_own_groups():
    groups = [
        {"name": name, "items": items, "higher": 1, "change": change}
        for name, items, change in (
            ("items with more right rows", 5, -0.1),
            ("items with fewer right rows", 6, 0.3),
            ("items with as many right rows", 7, 0.0),
        )
    ]
    found = History(
        replace(one, paired={"nll": one.paired["nll"] | {"groups": groups, "nll_change": 0.2}})
        for one in RUN.series()
        if one.paired
    )
    figure = draw("lossacc/changes", found)
    assert has(figure, "items with fewer right rows +0.3000") and has(figure, "6 items")
    assert not has(figure, "flips")


def test_changes_without_a_temperature_show_the_rows_alone():
    keys = ("refinement_change", "refinement_change_error")
    pairs = ((one, {key: value for key, value in one.paired["nll"].items() if key not in keys}) for one in paired())
    figure = draw("lossacc/changes", History(replace(one, paired={"nll": pair}) for one, pair in pairs))
    assert has(figure, "the NLL after one temperature was not measured")


def paired():
    return [one for one in RUN.series() if one.paired]


def test_reliability_shows_bins_of_now_and_of_the_reference():
    figure = draw("lossacc/reliability", RUN)
    upper = figure.axes[1]
    bins = RUN.series()[-1].arrays["reliability"]
    shown = {(line.get_xdata()[0], line.get_ydata()[0]) for line in upper.lines if len(line.get_xdata()) == 1}
    for confidence, accuracy, rows in zip(bins["confidence"], bins["accuracy"], bins["rows"], strict=True):
        assert ((100 * confidence, 100 * accuracy) in shown) == (rows > 0)
    assert has(figure, "epoch 39 against epoch 8")
    assert has(figure, "over by +4.1 pp, ECE 4.6") and has(figure, "over by +1.0 pp, ECE 1.5")
    assert "Epoch 39" in alt_text("lossacc/reliability", RUN) and "over 1000 rows" in alt_text(
        "lossacc/reliability", RUN
    )


def test_line_of_the_reliability_leads_through_bins_of_many_rows_only():
    one = full_record(0)
    bins = one.arrays["reliability"] | {"rows": [0, 0, 9, 9, *one.arrays["reliability"]["rows"][4:]]}
    figure = draw("lossacc/reliability", History([replace(one, arrays={"reliability": bins})]))
    assert max(len(line.get_xdata()) for line in figure.axes[1].lines) == sum(rows >= 10 for rows in bins["rows"]) == 11


@pytest.mark.parametrize(("right", "rows"), [(0, 1), (1, 1), (7, 10), (999, 1000), (500, 1000)])
def test_wilson_interval_is_that_of_scipy(right, rows):
    expected = binomtest(right, rows).proportion_ci(0.99, method="wilson")
    assert wilson(right / rows, rows) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_margin_quantiles_are_those_of_the_rows():
    """Within a bin's width of numpy's, and the same for logits of any scale."""
    draws = random.Random(0)
    margins = [draws.gauss(3, 4) for _ in range(2000)]
    for scale in (1.0, 3.0):
        rows = [scale * margin for margin in margins]
        found = full_record(0, arrays={"margin_histogram": histogram(rows)}, values={"temperature": 2.0 * scale})
        for share in (0.05, 0.25, 0.5, 0.75, 0.95):
            expected = float(np.quantile(margins, share)) / 2.0
            assert _quantile(found, share) == pytest.approx(expected, abs=0.05 * (1 + abs(expected)))


def test_margin_names_its_quantiles_and_both_histograms():
    figure = draw("lossacc/margin", RUN)
    assert has(figure, "50 % below 3.98") and has(figure, "95 % below 8.11")
    assert figure.axes[1].get_xlabel() == "rows: epoch 39,\ndotted 8"
    assert "Epoch 39, quantiles: 5 % 0.05" in alt_text("lossacc/margin", RUN)


def test_margins_beyond_the_limits_count_at_the_limit():
    found = full_record(0, arrays={"margin_histogram": [5, *[0] * 128, 5]}, values={"temperature": 2.0})
    assert (_quantile(found, 0.05), _quantile(found, 0.95)) == (-32.0, 32.0)


def test_classes_show_recall_before_and_now_and_parts_that_add_up():
    figure = draw("lossacc/classes", RUN)
    left, right = figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    changes = {name: bar.get_width() for name, bar in zip(names, right.patches, strict=True)}
    before, now = (RUN.series()[epoch].arrays["classes"]["nll"] for epoch in (REFERENCE, 39))
    assert sum(changes.values()) == pytest.approx((sum(now) - sum(before)) / 10)
    assert changes["class 7 (100 rows)"] == pytest.approx((now[7] - before[7]) / 10)
    assert names[-1] == "class 7 (100 rows)", "what costs most stands on top"
    dots = [line for line in left.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == 9]
    assert list(dots[0].get_xdata()) == pytest.approx([90 - 0.3 * REFERENCE, 90 - 0.3 * 39])
    words = alt_text("lossacc/classes", RUN)
    assert "Recall rose in 1 and fell in 1 of 10" in words and "class 7: recall 87.6 → 78.3 %" in words


def test_of_many_classes_those_that_moved_most_are_shown():
    def many(epoch):
        table = {"class": [*range(64), -1], "rows": [10.0] * 65, "correct": [5.0] * 65, "nll": [0.5] * 65}
        table["correct"][40] += epoch
        return full_record(epoch, arrays={"classes": table})

    figure = draw("lossacc/classes", History(many(epoch) for epoch in (8, 9)))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 14 and "class 40 (10 rows)" in names and "class -1 (10 rows)" not in names
    assert has(figure, "the 14 of 64 that moved most")


def test_optimisation_shows_what_was_watched_and_nothing_else():
    figure = draw("lossacc/optimisation", RUN)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert sorted(labels) == ["gradient norm", "learning rate", "units (%)", "update ratio"]
    rate = next(axes for axes in figure.axes if "rate" in axes.get_ylabel())
    assert rate.get_yscale() == "log" and has(figure, "dead, worst layer 10 %")
    assert list(rate.lines[0].get_ydata()) == pytest.approx([0.1 * 0.9**epoch for epoch in range(40)])
    few = History(replace(one, context={"learning_rate": 0.1}) for one in RUN.series())
    assert [axes.get_ylabel() for axes in draw("lossacc/optimisation", few).axes] == ["learning rate"]


def test_logged_losses_are_drawn_and_never_called_nll():
    """A log without logits gets the picture with its own words."""
    rows = [(0.9 - 0.1 * epoch if epoch < 5 else 0.5 + 0.05 * epoch, 0.6 + 0.01 * epoch) for epoch in range(12)]
    history = History(
        Record(
            "val", 0, epoch, epoch, 0.0, True, 0, 0, {}, {}, {"loss": loss, "accuracy": share}, {}, {"train_loss": 0.3}
        )
        for epoch, (loss, share) in enumerate(rows)
    )
    figure = draw("lossacc", history)
    assert has(figure, "loss 1.0500") and has(figure, "accuracy 71.0 %") and has(figure, "training 0.3000")
    assert not has(figure, "NLL") and "NLL" not in alt_text("lossacc", history)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (as logged)", "accuracy (%)"]
    assert [name for name in FIGURES if draw(name, history) is not None] == ["lossacc"]


def test_mark_has_the_latest_name_at_the_epoch_in_which_the_event_opened():
    reports = [event(1500, cause="mixed", id="a"), event(2100, cause="over-confidence", id="a", status="revised")]
    figure = draw("lossacc", RUN, reports)
    assert has(figure, "epoch 14 · loss up, accuracy flat: over-confidence") and not has(figure, "mixed")


def test_newest_evaluation_is_compared_with_the_reference_of_the_event():
    curves = Curves.of(RUN, "val", 0)
    one = event(2100, reference_epoch=3, reference_step=400)

    def reference(*events):
        before, now = compared(curves, events, "val", 0)
        assert now is curves.records[-1]
        return before.epoch

    assert reference(one) == 3
    assert reference() == reference(replace(one, status="closed")) == reference(replace(one, stage="test")) == 8
    falling = Curves.of(full_run(5), "val", 0)
    assert compared(falling, [], "val", 0)[0].epoch == 0, "the newest is the best: the first one"
    assert compared(Curves.of(full_run(1), "val", 0), [], "val", 0)[0] is None
    assert compared(Curves(), [], "val", 0) is None


def test_envelope_keeps_extremes_ends_and_gaps():
    draws = random.Random(1)
    values = [draws.random() for _ in range(5000)]
    values[777], values[3333], values[4000] = 9.0, -9.0, math.nan
    kept = envelope(values, 500)
    assert {0, 777, 3333, 4000, 4999} <= set(kept) and kept == sorted(kept) and 300 < len(kept) <= 500
    assert envelope(values[:500], 500) == list(range(500))


def test_png_is_a_file_of_the_whole_figure():
    figure = draw("lossacc", RUN)
    data = png(figure)
    assert data.startswith(b"\x89PNG") and int.from_bytes(data[16:20], "big") == 900


def test_figures_leave_pyplot_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    for name in FIGURES:
        pixels(draw(name, RUN))
    assert dict(matplotlib.rcParams) == before
