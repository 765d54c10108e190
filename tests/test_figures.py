"""The picture says what the numbers say, stays readable on every kind of run, and leaves the global
state of matplotlib alone: the gap and its name, rings on the best evaluations, events where they
opened, axes that cut off what would flatten the rest, no text outside or on top of other text."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import same_color

from lightning_lossacc.curves import Curves, Range, event_words, layout, spread
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.figures import picture, pixels, save_picture
from lightning_lossacc.figures.canvas import LIGHT
from lightning_lossacc.history import History
from tests.made_up import event, record


def run(num_epochs=40, train=True):
    """A run as on digits: NLL has its minimum at epoch 8 and rises, the refined NLL stays flat."""
    history = History()
    for epoch in range(num_epochs):
        start = 2.0 * math.exp(-epoch)
        refined = 0.15 + 0.9 * start
        temperature = 0.84 + 0.02 * epoch
        values = {
            "nll": 0.15 + start + 0.0008 * abs(epoch - 8),
            "refinement_nll": refined,
            "temperature": temperature,
            "temperature_at_edge": 0.0,
            "accuracy": 0.95 - 0.4 * start,
        }
        history.append(record(epoch, 100 * (epoch + 1), **values))
        if train:
            history.append(record(epoch, 100 * (epoch + 1), stage="train", nll=0.3 / (epoch + 1)))
    return history


def texts(figure):
    axes_texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    return [text.strip() for text in axes_texts + [text.get_text() for text in figure.texts] if text]


def panels(figure):
    lower, upper = figure.axes
    return upper, lower


def has(figure, part):
    return any(part in text for text in texts(figure))


def test_picture_names_the_gap_events_reference_and_best_checkpoints():
    figure = picture(run(), [event()])
    upper, lower = panels(figure)
    assert lower.get_xlabel() == "epoch, counted from 0"
    assert lower.get_ylabel() == "NLL (nats)" and upper.get_ylabel() == "accuracy (%)"
    assert has(figure, "Validation loss and accuracy")
    assert has(figure, "40 evaluations, the last at epoch 39 on 1535 rows")
    assert has(figure, "over-confidence, 0.025 nats: gone at T = 1.62")
    assert has(figure, "epoch 20 · loss up, accuracy flat: over-confidence")
    assert has(figure, "reference · epoch 8")
    assert has(figure, "NLL 0.1748") and has(figure, "after temperature 0.1500")
    assert has(figure, "training 0.0075") and has(figure, "accuracy 95.0 %")
    values = [r.values for r in run().series()]
    lowest = min(range(40), key=lambda index: values[index]["nll"])
    assert has(figure, f"○ lowest {values[lowest]['nll']:.4f}, epoch {lowest}")
    rings = [(line.get_xdata()[0], line.get_ydata()[0]) for line in lower.lines if line.get_markersize() == 8]
    assert (lowest, pytest.approx(values[lowest]["nll"])) in rings and len(rings) == 2


# One temperature on each side of 1, a gap too small to name, and the edge of the grid, where nobody
# knows how much a temperature would remove, so that no cause may be named.
@pytest.mark.parametrize(
    ("nll", "temperature", "edge", "words", "color"),
    [
        (0.70, 1.5, 0.0, "over-confidence, 0.2 nats: gone at T = 1.50", LIGHT.orange),
        (0.70, 0.4, 0.0, "under-confidence, 0.2 nats: gone at T = 0.40", LIGHT.sky),
        (0.501, 1.02, 0.0, "confidence fits: T = 1.02", LIGHT.orange),
        (0.70, 8.0, 1.0, "0.2 nats or more: T at the edge of the grid", LIGHT.pale),
        (0.70, 0.25, 1.0, "0.2 nats or more: T at the edge of the grid", LIGHT.pale),
    ],
)
def test_gap_has_the_name_and_colour_of_its_temperature(nll, temperature, edge, words, color):
    values = {"nll": nll, "refinement_nll": 0.5, "temperature": temperature, "accuracy": 0.8}
    history = History(record(e, e, temperature_at_edge=edge, **values) for e in range(5))
    figure = picture(history)
    assert words in texts(figure)
    assert edge == 0 or not has(figure, "confidence")
    filled = [
        shade.get_facecolor()[0]
        for shade in panels(figure)[1].collections
        if isinstance(shade, PolyCollection) and shade.get_paths()
    ]
    assert len(filled) == 1 and same_color(filled[0][:3], matplotlib.colors.to_rgb(color))


def test_gap_changes_colour_where_the_temperature_crosses_one():
    shades = panels(picture(run()))[1].collections
    spans = {
        tuple(shade.get_facecolor()[0][:3]): shade.get_paths()[0].vertices[:, 0]
        for shade in shades
        if shade.get_paths()
    }
    under, over = (spans[matplotlib.colors.to_rgb(color)] for color in (LIGHT.sky, LIGHT.orange))
    # T = 0.84 + 0.02 epoch passes 1 at epoch 8.
    assert (under.min(), under.max(), over.min(), over.max()) == (0, 7, 8, 39)


def test_nothing_to_draw_is_said():
    assert has(picture(History()), "no complete evaluation with a finite NLL")
    history = History([record(0, 1, accuracy=0.5), record(1, 2, complete=False, nll=1.0)])
    figure = picture(history)
    assert has(figure, "no complete evaluation") and has(figure, "accuracy 50.0 %")
    figure = picture(History([record(0, 1, nll=0.7)]))
    assert has(figure, "no accuracy was recorded") and has(figure, "NLL 0.7000")
    assert not has(figure, "T =") and not has(figure, "temperature")


def broken(**changes):
    """`run()` with some values of validation records replaced: {epoch: {key: value}}."""
    made = History()
    for r in run():
        change = changes.get(f"at_{r.epoch}", {}) if r.stage == "val" else {}
        made.append(replace(r, values={**r.values, **change}))
    return made


NAN = {"nll": math.nan, "refinement_nll": math.nan, "accuracy": math.nan, "temperature": math.nan}
# Kinds of history that real runs leave behind; each must come out readable.
HISTORIES = {
    "run": run(),
    "one record": History([record(0, 1, nll=0.7, refinement_nll=0.5, temperature=0.4, accuracy=0.5)]),
    "two records": run(2),
    "without training": run(train=False),
    "training only": History(r for r in run() if r.stage == "train"),
    "600 epochs": run(600),
    "three NaN": broken(at_3=NAN, at_30=NAN, at_39=NAN),
    "all NaN": History(record(e, e, **NAN) for e in range(5)),
    "infinite": broken(at_39={"nll": math.inf}),
    "blow-up": broken(at_38={"nll": 1e7}, at_39={"nll": 1.7e308}),
    "tiny": History(record(e, e, nll=1e-30 * (e + 1), accuracy=1.0) for e in range(9)),
    "zero": History(record(e, e, nll=0.0, refinement_nll=0.0, temperature=1.0) for e in range(9)),
    "constant": History(record(e, e, nll=0.693, accuracy=0.95) for e in range(9)),
    "falling over decades": History(record(e, e, nll=10.0 ** (1 - e / 4)) for e in range(20)),
    "unknown steps": History(record(e, -1, nll=0.5, accuracy=0.5) for e in range(9)),
}
MANY = [event(100 * (e + 1)) for e in range(1, 38, 3)]


@pytest.mark.parametrize("events", [(), MANY], ids=["quiet", "many"])
@pytest.mark.parametrize("name", HISTORIES)
def test_every_text_is_inside_the_figure_and_free_of_others(name, events):
    figure = picture(HISTORIES[name], events)
    assert pixels(figure).shape[1:] == (900, 3)
    width, height = figure.canvas.get_width_height()
    renderer = figure.canvas.get_renderer()
    drawn = [t for axes in figure.axes for t in axes.texts] + figure.texts
    boxes = {t.get_text(): t.get_window_extent(renderer) for t in drawn if t.get_text().strip()}
    for text, box in boxes.items():
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text
    # The name of the gap has an arrow, which its extent includes.
    apart = {t: b for t, b in boxes.items() if "nats:" not in t and "nats or" not in t}
    for text, box in apart.items():
        for other, foreign in apart.items():
            clear = box.x1 <= foreign.x0 + 1 or foreign.x1 <= box.x0 + 1
            clear = clear or box.y1 <= foreign.y0 + 2 or foreign.y1 <= box.y0 + 2
            assert text == other or clear, f"{text!r} touches {other!r}"


def test_axis_cuts_off_the_start_and_says_so_and_keeps_the_rise():
    figure = picture(run(train=False))
    bottom, top = panels(figure)[1].get_ylim()
    assert bottom < 0.15 and 0.1748 < top < 0.5
    assert has(figure, "▲ NLL up to 2.16 at epoch 0, cut off")
    assert has(figure, "▼ accuracy down to 15.0 % at epoch 0, cut off")
    short = picture(History(record(e, e, nll=2.3 - 0.4 * e) for e in range(5)))
    assert panels(short)[1].get_ylim()[1] > 2.3 and not has(short, "cut off")


def test_axis_keeps_a_late_rise_and_cuts_a_blow_up():
    flat = [0.5] * 95
    assert Range.of_loss(flat + [0.6] * 5, [], []).high == 0.6
    assert Range.of_loss([0.5, *flat[1:], 1e6], [], []).high < 0.6
    assert Range.of_loss([1.0, 0.4, 0.5, 0.9], [], []) == Range(0.4, 1.0)
    assert Range.of_loss([2.3 - 0.1 * step for step in range(20)], [], []).high == 2.3


def test_training_loss_may_double_the_axis_and_no_more():
    assert Range.of_loss([0.6, 0.8], [], [0.5]).low == 0.5
    assert Range.of_loss([0.6, 0.8], [], [0.1]).low == 0.6
    assert Range.of_loss([0.5, 1.0], [], [0.01]) == Range(0.01, 1.0)
    figure = picture(run())
    assert has(figure, "training 0.0075 ▼")


def test_range_over_decades_is_logarithmic():
    assert Range.of_loss([10.0, 1.0, 0.1, 0.01], [], []) == Range(0.01, 10.0, log=True)
    axes = panels(picture(HISTORIES["falling over decades"]))[1]
    assert axes.get_yscale() == "log" and axes.get_ylabel() == "NLL (nats, logarithmic)"


def test_flat_accuracy_looks_flat():
    noise = [95.0 + 0.2 * (-1) ** e for e in range(20)]
    low, high = Range.of_accuracy(noise).limits(0, 0)
    assert high - low == pytest.approx(4.0)
    low, high = Range.of_loss([0.1405, 0.1406], [], []).limits(0, 0)
    assert high - low == pytest.approx(0.01406)


def test_accuracy_axis_ends_at_100_percent():
    figure = picture(History(record(e, accuracy=0.2 + 0.1 * e) for e in range(9)))
    assert 100 < panels(figure)[0].get_ylim()[1] <= 101


def test_point_between_two_gaps_is_marked():
    history = History(record(e, nll=math.nan if e in (20, 22) else 0.5 + 0.01 * e) for e in range(50))
    (line,) = [line for line in panels(picture(history))[1].lines if len(line.get_xdata()) == 50]
    assert list(line.get_markevery()) == [21]


def test_single_gap_is_a_bar():
    (bar,) = panels(picture(HISTORIES["one record"]))[1].collections[-1:]
    assert isinstance(bar, LineCollection)
    assert bar.get_segments()[0][:, 1].tolist() == [0.5, 0.7]


def test_training_stage_stands_alone():
    figure = picture(run(), stage="train")
    assert has(figure, "Training loss and accuracy") and has(figure, "NLL 0.0075")
    assert not has(figure, "training 0.0075")


def test_evaluations_within_an_epoch_stand_at_equal_distances():
    steps = [(epoch, 40 * epoch + 10 * part) for epoch in range(3) for part in range(4)]
    history = History(record(*step, nll=1.0) for step in steps[:-2])
    x = Curves.of(history, "val", 0).x
    assert x == (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
    assert Curves.of(history, "val", 0).place(1, 60) == 1.5
    assert Curves.of(history, "val", 0).place(7, 1) == 7.0


def test_resumed_run_counts_the_later_evaluation():
    records = [record(e, e, nll=float(e)) for e in (0, 1, 2)] + [record(1, 1, nll=9.0)]
    assert Curves.of(History(records), "val", 0).column("nll") == [0.0, 9.0, 2.0]


def test_events_of_other_streams_are_left_out_and_each_is_drawn_once():
    events = [
        event(),
        event(2200, stage="test"),
        event(2300, loader=1),
        event(status="doubled", epoch=30, global_step=3100),
        event(status="closed", epoch=35, global_step=3600),
    ]
    names = [text for text in texts(picture(run(), events)) if "loss up" in text]
    assert names == ["epoch 20 to 35 · loss up, accuracy flat: over-confidence"]


def test_names_without_room_are_counted_and_warnings_come_first():
    events = [event(id=str(index), level="info") for index in range(9)]
    events.append(event(2200, "spike", "unknown"))
    figure = picture(run(), events)
    assert has(figure, "spike: unknown")
    assert has(figure, "left out for want of room: 6")


def test_name_with_dollar_signs_is_not_mathematics():
    figure = picture(run(), [event(causes=(Cause("class $\\no$", 1.0),))])
    pixels(figure)
    assert has(figure, "class $\\no$")


def test_event_words():
    assert event_words(event(1, "loss-up-accuracy-not-down", "mixed")) == "loss up, accuracy not down: mixed"
    assert event_words(event(1, "non-finite", "blow-up")) == "non-finite: blow-up"
    assert event_words(event(1, "accuracy-stuck", causes=())) == "accuracy stuck"


def test_layout_uses_the_lowest_free_row():
    marks = [(0.0, "a" * 20, True), (1.0, "b", True), (9.0, "c", True), (9.9, "d" * 40, False)]
    placed = layout(marks, (0.0, 10.0), width=6.0, margin=1.0, letter=0.1, max_rows=2)
    assert [(mark.text[0], mark.row, mark.leftwards) for mark in placed] == [
        ("a", 0, False),
        ("b", 1, False),
        ("c", 0, False),
        ("d", 1, True),
    ]
    assert len(layout([(5.0, "a", True)] * 3, (0.0, 10.0), 6.0, 1.0, 0.1, max_rows=2)) == 2


def test_spread_pushes_labels_apart_within_the_axis():
    assert spread([(0.5, 0.1), (0.5, 0.1)]) == pytest.approx([0.5, 0.6])
    assert spread([(1.0, 0.2), (1.0, 0.2)]) == pytest.approx([0.7, 0.9])
    assert spread([(0.0, 0.2)]) == pytest.approx([0.1])
    assert spread([]) == []


def test_stage_and_loader_choose_the_stream():
    history = History([record(0, 1, "test", 1, nll=0.3), record(0, 1, "val", -1, nll=0.4)])
    figure = picture(history, stage="test", loader=1)
    assert has(figure, "Test loss and accuracy, data loader 1") and has(figure, "NLL 0.3000")
    assert has(picture(history, loader=-1), "Validation loss and accuracy, all data loaders")


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_save_picture_writes_what_the_suffix_says(tmp_path, suffix, start):
    path = save_picture(run(), [event()], tmp_path / f"lossacc.{suffix}")
    assert path == tmp_path / f"lossacc.{suffix}" and path.read_bytes().startswith(start)


def test_save_picture_raises_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        save_picture(run(), [], tmp_path / "file" / "lossacc.png")


def test_users_style_neither_changes_nor_is_changed():
    plain = pixels(picture(run(), [event()]))
    style = {
        "text.usetex": True,
        "font.family": "monospace",
        "axes.facecolor": "black",
        "font.size": 30,
    }
    with matplotlib.rc_context(style):
        before = dict(matplotlib.rcParams)
        styled = pixels(picture(run(), [event()]))
        assert dict(matplotlib.rcParams) == before
    assert np.array_equal(plain, styled)


def test_import_is_light_and_drawing_needs_no_pyplot(tmp_path):
    program = """
import sys
import lightning_lossacc.figures, lightning_lossacc.sinks, lightning_lossacc.sinks.terminal
loggers = {"wandb", "tensorboard", "mlflow", "rich", "tqdm"}
heavy = {"matplotlib", "torch", "lightning", "pytorch_lightning"} | loggers
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from lightning_lossacc.history import History, Record
values = {"nll": 0.5, "accuracy": 0.5}
history = History(Record("val", 0, e, e, 0.0, True, 9, 9, values) for e in range(3))
lightning_lossacc.figures.pixels(lightning_lossacc.figures.picture(history))
lightning_lossacc.figures.save_picture(history, [], sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
"""
    path = str(tmp_path / "lossacc.png")
    ended = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
