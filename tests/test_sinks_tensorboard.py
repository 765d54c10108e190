"""TensorBoard gets numbers, charts, histograms, figures, texts and the outcome, and the user's own layout and
hyperparameters stay: read back from the event files with TensorBoard's own accumulator and plugins."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.sinks import Reporter, find_sinks
from lightning_lossacc.sinks.layouts import CATEGORY, charts, newest_layout
from lightning_lossacc.sinks.tensorboard import _verbatim
from tests.made_up import MESSAGE, record, spread_record, tell_all
from tests.read_back import copies, tensorboard, texts


def logger_of(tmp_path, package=0, **options):
    return copies("TensorBoardLogger")[package](tmp_path, **options)


def reporter_of(logger, **options):
    return Reporter(find_sinks([logger], **options), warn=pytest.fail)


@pytest.mark.parametrize("prefix", ["", "net"])
@pytest.mark.parametrize("package", [0, 1], ids=["lightning", "pytorch_lightning"])
def test_numbers_texts_and_picture(tmp_path, package, prefix):
    logger = logger_of(tmp_path, package, prefix=prefix)
    tell_all(reporter_of(logger))
    board = tensorboard(logger.log_dir)
    start = f"{prefix}-" if prefix else ""

    def scalar(key):
        return [(item.step, item.value) for item in board.Scalars(f"{start}lossacc/{key}")]

    assert scalar("val/nll") == [(300, 0.5)] and scalar("val/events") == [(300, 1.0)]
    assert scalar("val/error_rate") == [(300, 0.25)]
    (image,) = board.Images(f"{start}lossacc")
    assert image.step == 300 and image.width == 701 and image.height > 400
    ((step, text),) = texts(board, f"{start}lossacc/events")
    assert step == 300 and "loss up, accuracy flat: over-confidence" in text
    assert text.endswith("\n".join(f"    {line}" for line in MESSAGE.splitlines()))
    ((step, text),) = texts(board, f"{start}lossacc/summary")
    assert step == 301 and text.startswith("    done\n    → <ok>\n\nEach report of each event:\n\n| epoch | step |")
    assert "| 2 | 300 | val | 0 | warning | open | loss up, accuracy flat: over-confidence | shown |" in text


def test_long_lines_of_an_event_are_folded():
    """Whatever its length, a message has no line that leaves the window, and no word of it is lost or broken."""
    long = "numbers " * 40 + "end\n\n  best by    NLL\n" + "x" * 90
    lines = _verbatim(long).splitlines()
    assert max(map(len, lines)) <= 104 and all(line.startswith("    ") for line in lines)
    assert [line[4:] for line in lines[-3:]] == ["", "  best by    NLL", "x" * 90]
    assert " ".join(" ".join(lines).split()) == " ".join(long.split())


def test_titles_of_charts_fit_their_cards():
    """A card of the page is 350 pixels wide, which is 42 letters of a title."""
    assert max(map(len, charts(str))) <= 42


# The HTML cleaner inside tensorboard warns about itself.
@pytest.mark.filterwarnings("ignore:html5lib's sanitizer:DeprecationWarning")
def test_messages_are_shown_as_they_are_and_events_as_a_table(tmp_path):
    from tensorboard.plugin_util import markdown_to_safe_html

    logger = logger_of(tmp_path)
    tell_all(reporter_of(logger))
    board = tensorboard(logger.log_dir)
    page = markdown_to_safe_html(texts(board, "lossacc/events")[0][1])
    shown = page.partition("<pre><code>")[2].partition("</code></pre>")[0]
    assert shown.strip() == MESSAGE.replace("<b>", "&lt;b&gt;")
    page = markdown_to_safe_html(texts(board, "lossacc/summary")[0][1])
    assert page.count("<tr>") == 2 and "<td>loss up, accuracy flat: over-confidence</td>" in page


def test_histograms_hold_every_row_in_its_bin(tmp_path):
    logger = logger_of(tmp_path)
    made = spread_record()
    reporter_of(logger).record(made, "lossacc/val/{}/dataloader_idx_1", 300)
    logger.experiment.flush()
    board = tensorboard(logger.log_dir)
    (margin,) = board.Histograms("lossacc/val/margin/dataloader_idx_1")
    value = margin.histogram_value
    assert margin.step == 300 and value.num == 100
    assert value.bucket == made.arrays["margin_histogram"]
    assert (
        value.bucket_limit[:-1] == margin_edges() and math.isfinite(value.max) and value.max == value.bucket_limit[-1]
    )
    assert value.min < -64
    (confidence,) = board.Histograms("lossacc/val/confidence/dataloader_idx_1")
    value = confidence.histogram_value
    assert value.bucket == [20, 0, 30, 0, 0, 0, 0, 50] and value.min == 7 / 15 and value.max == 1
    # From the middles of the bins: 20 rows at 7.5 / 15, 30 at 9.5 / 15, 50 at 14.5 / 15.
    assert value.sum == pytest.approx((20 * 7.5 + 30 * 9.5 + 50 * 14.5) / 15)


def test_records_without_rows_add_nothing(tmp_path):
    """A stage whose rows were all ignored has neither a histogram nor a quantile."""
    logger = logger_of(tmp_path)
    reporter = reporter_of(logger)
    empty = record(0, nll=math.nan)
    reporter.record(empty, "lossacc/val/{}", 1)
    reporter.scalars({"lossacc/val/nll": math.nan}, 1)
    logger.experiment.flush()
    tags = tensorboard(logger.log_dir).Tags()
    assert tags["histograms"] == [] and tags["scalars"] == ["lossacc/val/nll"]


def evaluations(reporter, first, last):
    for step in range(first, last):
        reporter.record(spread_record(step), "lossacc/val/{}", step)
        reporter.scalars({"lossacc/val/nll": 0.5}, step)


def charts_of(category):
    return {chart.title: list(chart.multiline.tag) or list(chart.margin.series) for chart in category.chart}


USERS = {"mine": {"two curves": ["Multiline", ["a", "b"]]}, "other": {"band": ["Margin", ["v", "l", "u"]]}}


@pytest.mark.parametrize("when", ["never", "before", "after", "both"])
def test_our_charts_stand_behind_the_users_layout(tmp_path, when):
    """Written before ours, after ours (found when the run closes), or at both times with a change."""
    logger = logger_of(tmp_path)
    reporter = reporter_of(logger)
    if when in ("before", "both"):
        logger.experiment.add_custom_scalars({"old": {}} | USERS if when == "both" else USERS)
    evaluations(reporter, 1, 4)
    titles = [category.title for category in newest_layout(Path(logger.log_dir)).category]
    users = {"before": ["mine", "other"], "both": ["old", "mine", "other"]}.get(when, [])
    assert titles == [*users, CATEGORY]
    if when in ("after", "both"):
        logger.experiment.add_custom_scalars(USERS)
    reporter.close()
    layout = newest_layout(Path(logger.log_dir))
    *users, ours = layout.category
    assert [category.title for category in users] == ([] if when == "never" else ["mine", "other"])
    assert ours.title == CATEGORY and len(ours.chart) == 3
    if users:
        assert charts_of(users[0]) == {"two curves": ["a", "b"]}
        ((series,),) = charts_of(users[1]).values()
        assert (series.value, series.lower, series.upper) == ("v", "l", "u")


def test_charts_are_written_once_and_a_resumed_run_changes_nothing(tmp_path):
    from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG

    for _ in range(2):
        logger = logger_of(tmp_path, version="one")
        reporter = reporter_of(logger)
        evaluations(reporter, 1, 20)
        reporter.close()
        logger.experiment.close()
    assert len(list(Path(logger.log_dir).glob("*tfevents*"))) == 2
    board = tensorboard(logger.log_dir)
    assert len(board.Tensors(CONFIG_SUMMARY_TAG)) == 1
    assert not [path for path in Path(logger.log_dir).iterdir() if path.is_dir()], "no extra run"


@pytest.mark.parametrize("prefix", ["", "net+1"])
def test_charts_find_what_was_logged(tmp_path, prefix):
    """Each pattern of each chart, as the plugin reads it, fits at least one logged scalar, and no other one."""
    import re

    logger = logger_of(tmp_path, prefix=prefix)
    reporter = reporter_of(logger)
    keys = ("nll", "refinement_nll", "calibration_nll", "accuracy")
    for suffix in ("", "/dataloader_idx_0", "/dataloader_idx_1"):
        for stage in ("train", "val"):
            reporter.record(spread_record(), f"lossacc/{stage}/{{}}{suffix}", 1)
            reporter.scalars({f"lossacc/{stage}/{key}{suffix}": 0.5 for key in keys}, 1)
    logger.log_metrics({"my/lossacc/val/nll": 1.0, "lossacc/val/nll_of_mine": 1.0}, 1)
    reporter.close()
    tags = tensorboard(logger.log_dir).Tags()["scalars"]
    (category,) = newest_layout(Path(logger.log_dir)).category
    start = f"{prefix}-" if prefix else ""
    fits = [[tag for tag in tags if re.match(pattern, tag)] for pattern in category.chart[0].multiline.tag]
    suffixes = ("", "/dataloader_idx_0", "/dataloader_idx_1")
    names = ["train/nll", "val/nll", "train/error_rate", "val/error_rate"]
    assert fits == [[f"{start}lossacc/{name}{suffix}" for suffix in suffixes] for name in names]
    for pattern in category.chart[1].multiline.tag:
        assert len([tag for tag in tags if re.match(pattern, tag)]) == 3
    (series,) = category.chart[2].margin.series
    assert {series.value, series.lower, series.upper} <= set(tags)
    board = tensorboard(logger.log_dir)
    low, middle, high = (board.Scalars(tag)[0].value for tag in (series.lower, series.value, series.upper))
    assert low < middle < high
