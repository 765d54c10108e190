"""The words of a report: code is marked as code, and events are counted as everywhere else."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lightning_lossacc import report
from lightning_lossacc.curves import event_counts
from tests.page import read
from tests.test_report import EVENT, EVENTS, page


@pytest.mark.parametrize(
    ("remedy", "code"),
    [
        ('loss (1.5, or less): Stop(monitor="a/b"), then g.h(x(1), y=2)', ['Stop(monitor="a/b")', "g.h(x(1), y=2)"]),
        ("label_smoothing=0.0 (or half of it)", ["label_smoothing=0.0"]),
        ("`a b (c` and T = 1.5 (b)", ["a b (c"]),
        ("nothing (of it) a = 3, f(x", []),
    ],
)
def test_code_in_remedies_is_marked_and_breaks_at_its_signs(remedy, code):
    """With backticks or without; between them no letter is added, and a line ends behind a sign, not in a word."""
    html = report._with_code(remedy)
    found = read(f"<p>{html}</p>")
    assert [element.text for element in found.all("code")] == code and not found.problems
    text = re.sub("<[^>]*>", "", html.unescape())
    assert text == remedy.replace("`", "")
    assert all(before[-1] in "(,=/" for before in html.split("<wbr>")[:-1])


def test_events_are_counted_in_the_same_words_everywhere():
    """Each event once, however often it was reported; what only informs is a note."""
    note = replace(EVENT, id="other", level="info")
    found = page(events=[note, *EVENTS])
    assert event_counts([note, *EVENTS]) == "1 warning, 1 note" and event_counts([]) == "no warning"
    assert event_counts([note, replace(note, id="third")]) == "no warning, 2 notes"
    assert "evaluations, 1 warning, 1 note." in found.text
    assert "Events (1 warning, 1 note)" in found.text and "val · note · opened at epoch 20" in found.text
    assert "Events (1 warning)" in page().text
