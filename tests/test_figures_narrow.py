"""The figures for places that show them 350 pixels wide: letters stay as large as in the wide ones, no text touches
another one or the edge, and no name of a line is lost."""

from __future__ import annotations

import pytest

from lightning_lossacc.figures import FIGURES, draw, narrow, pixels
from lightning_lossacc.figures.canvas import NARROW
from tests.test_figures_gallery import EVENTS, HISTORIES, RUN, assert_readable, has, texts

SHOWN = 350  # pixels


@pytest.mark.parametrize("kind", HISTORIES)
@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_inside_the_figure_and_free_of_others(name, kind):
    """On every kind of run, and no letter is lower than 9 of the 350 pixels' own."""
    figure = draw(name, HISTORIES[kind], EVENTS)
    if figure is None:
        assert kind in ("one evaluation", "two evaluations", "broken")
        return
    narrow(figure)
    assert_readable(figure)
    drawn = [text for axes in figure.axes for text in (*axes.texts, *axes.get_xticklabels(), axes.xaxis.label)]
    sizes = [text.get_fontsize() * SHOWN / NARROW / 72 for text in (*drawn, *figure.texts) if text.get_text()]
    assert min(sizes) > 9


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_that_a_figure_names_is_lost(name):
    """What stood beside the lines stands above them; only the numbers at bars, which the axis tells, are left out."""
    wide, small = draw(name, RUN, EVENTS), narrow(draw(name, RUN, EVENTS))
    told = " ".join(" ".join(texts(small)).replace("\u00a0", " ").split())
    kept = [text for text in texts(wide) if name != "lossacc/classes" or not text.startswith(("+", "-"))]
    assert len(kept) >= 2 and [text for text in kept if text not in told] == []
    labels = {axes.get_ylabel().removesuffix(" (%)") for axes in wide.axes}
    assert all(label in told for label in labels)


def test_pixels_are_twice_as_many_as_are_shown():
    """Half as wide in inches, and as many pixels as sharp screens show on 350."""
    figure = draw("lossacc", RUN, EVENTS)
    wide = pixels(figure)
    small = pixels(narrow(figure))
    assert small.shape[1] == 701 and wide.shape[1] == 900 and small.shape[0] > small.shape[1]


def test_marks_end_at_the_panel():
    """Their names stand elsewhere: a line that goes on would cross what stands above."""
    figure = narrow(draw("lossacc", RUN, EVENTS))
    assert has(figure, "reference · epoch 8")
    ends = [max(line.get_ydata()) for axes in figure.axes for line in axes.lines if line.get_gid() == "mark"]
    assert len(ends) == 4 and set(ends) == {1}
