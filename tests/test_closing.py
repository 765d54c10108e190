"""The closing text counts events as every other place does, lists them, and says where which files are."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from lightning_lossacc.closing import MAX_NOTES, closing
from lightning_lossacc.history import History
from tests.made_up import event, record
from tests.made_up_run import full_run

RUN = full_run(12)


def told(events, files=None, **options):
    return closing(RUN, events, 0.01, files, **options).splitlines()


def test_events_are_counted_once_and_each_is_listed():
    """A warning that doubled is one; a note that has gone is a note all the same."""
    opened = event(300)
    note = replace(opened, id="note", level="info", status="closed", epoch=6)
    lines = told([note, opened, replace(opened, status="doubled", epoch=9)])
    assert lines[0].endswith(" · 1 warning, 1 note")
    assert lines[1].startswith("  over-confidence · val · doubled at epoch 9 · ")
    assert lines[2].startswith("  note: over-confidence · val · closed at epoch 6 · ")
    assert told([])[0].endswith(" · no warning")


def test_many_notes_are_counted_and_not_all_listed():
    notes = [replace(event(300), id=str(number), level="info") for number in range(MAX_NOTES + 3)]
    lines = told(notes)
    assert lines[0].endswith(f" · no warning, {MAX_NOTES + 3} notes")
    assert sum(line.startswith("  note: ") for line in lines) == MAX_NOTES and "  and 3 more notes" in lines


@pytest.mark.parametrize(
    ("options", "events", "names"),
    [
        ({}, [], "history.jsonl, lossacc.png"),
        ({"report": True}, [], "report.html, history.jsonl, lossacc.png"),
        ({"report": True}, [event(300)], "report.html, history.jsonl, events.jsonl, lossacc.png"),
    ],
)
def test_files_are_named(options, events, names):
    assert told(events, "runs/lossacc", **options)[-1] == f"files: runs/lossacc ({names})"


def test_path_is_seen_from_the_working_folder(tmp_path, monkeypatch):
    """Where that is shorter; whoever works elsewhere gets the whole path."""
    monkeypatch.chdir(tmp_path)
    assert told([], str(tmp_path / "runs" / "lossacc"))[-1].startswith(f"files: {os.path.join('runs', 'lossacc')} (")
    assert told([], "/lossacc")[-1].startswith("files: /lossacc (")


def test_what_cannot_be_told_is_not_given_a_band():
    """Few evaluations of a steep start count as jitter: a band of 100 pp and more says nothing."""
    steep = History(
        record(epoch, nll=2.0 / (1 + epoch), accuracy=[0.1, 0.2, 0.9][min(epoch, 2)], overconfidence=0.0)
        for epoch in range(9)
    )
    assert "accuracy moved too much, or for too few evaluations" in closing(steep, [], 0.01, None)


def test_a_run_without_one_finite_loss_lists_its_events():
    lost = closing(History(), [event(name="non-finite", cause="blow-up")], 0.01, None)
    assert "nothing can be said" in lost and "blow-up" in lost.splitlines()[1]
