"""What of an event's reports is worth a place in the terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_lossacc.diagnosis.event import Cause, Event
from lightning_lossacc.voice import Voice
from tests.made_up import event


def heard(monkeypatch: pytest.MonkeyPatch, *reports: Event) -> list[str]:
    """Messages that are shown, of reports in this order."""
    found: list[str] = []
    voice = Voice(None, True, False, False, {})

    def say(trainer: Any, text: str, level: str = "warning") -> None:
        found.append(text)

    monkeypatch.setattr(voice, "say", say)
    for report in reports:
        voice.say_event(None, report)  # type: ignore[arg-type]
    return found


def test_other_words_for_an_accuracy_that_has_not_fallen_are_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cause or a fall of accuracy is shown once; `flat` after `undecided` stays in the files."""
    opened = event(name="loss-up-accuracy-undecided", message="opened")
    flat = replace(opened, event="loss-up-accuracy-flat", status="revised", message="flat")
    fallen = replace(opened, event="loss-up-accuracy-down", status="revised", message="fallen")
    other = replace(flat, causes=(Cause("overfitting", 0.9, ("why",)),), message="other")
    doubled = replace(flat, status="doubled", message="doubled")
    not_down = replace(flat, event="loss-up-accuracy-not-down", message="not down")
    assert heard(monkeypatch, opened, flat, not_down) == ["opened"]
    assert heard(monkeypatch, opened, fallen, flat) == ["opened", "fallen", "flat"]
    assert heard(monkeypatch, opened, other, replace(other, message="again")) == ["opened", "other"]
    assert heard(monkeypatch, opened, doubled, flat) == ["opened", "doubled"]


def test_a_note_that_became_a_warning_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes are not told, so that nothing was heard of it before."""
    assert heard(monkeypatch, event(status="revised", message="louder")) == ["louder"]
