"""A message reaches the terminal whole: beside a live progress bar, in any encoding, and without
ever raising."""

from __future__ import annotations

import io
import os
import pty
import re
import sys

import pytest

from lightning_lossacc.sinks.terminal import printer_for, show
from tests.made_up import MESSAGE


def test_plain_text_without_a_terminal(capsys):
    assert show(MESSAGE)
    assert capsys.readouterr().out == MESSAGE + "\n"


@pytest.mark.parametrize(("level", "code"), [("warning", "33"), ("info", "36")])
def test_headline_is_coloured_on_a_terminal(monkeypatch, level, code):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert show("loss up [bold]\n  second [red]line", level=level)
        monkeypatch.undo()
        got = ""
        while got.count("\n") < 2:
            got += os.read(leader, 1000).decode()
    os.close(leader)
    assert got == f"\x1b[1;{code}mloss up [bold]\x1b[0m\r\n  second [red]line\r\n"


def test_control_characters_do_not_reach_the_terminal(capsys):
    show("class \x1b[2J\x07\u009b name\tx\ny")
    assert capsys.readouterr().out == "class [2J name\tx\ny\n"


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def broken_pipe():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w", buffering=1)


class Odd:
    """A stdout without isatty and encoding that raises at each write."""

    def write(self, text):
        raise RuntimeError("no")


@pytest.mark.parametrize("make", [closed, broken_pipe, Odd, lambda: None])
def test_unusable_stdout_loses_the_message_and_nothing_else(monkeypatch, make):
    stream = make()
    monkeypatch.setattr(sys, "stdout", stream)
    printed = show(MESSAGE)
    monkeypatch.undo()
    assert printed is False
    if isinstance(stream, io.TextIOWrapper):
        with pytest.raises(BrokenPipeError):
            stream.close()


def test_stdout_that_can_only_write_gets_the_text(monkeypatch):
    said = []
    plain = type("Plain", (), {"write": said.append, "flush": lambda self=None: None})
    monkeypatch.setattr(sys, "stdout", plain)
    assert show("text") and said == ["text", "\n"]


def test_signs_that_the_encoding_lacks_are_spelled_out(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert show("0.14 → 0.16 · ±1 … 好")
    assert stream.buffer.getvalue() == b"0.14 -> 0.16 - +-1 ... ?\n"


def test_given_printer_is_used_and_may_fail():
    said = []
    assert show("a\nb", said.append) and said == ["a\nb"]

    def fail(text):
        raise RuntimeError("no")

    assert show("a", fail) is False


def trainer_with(callback):
    from lightning.pytorch import Trainer

    return Trainer(
        callbacks=callback,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
    )


@pytest.mark.parametrize("twice", [False, True], ids=["", "tqdm loaded twice"])
def test_text_under_a_tqdm_bar_stands_on_its_own_lines(capsys, monkeypatch, twice):
    from lightning.pytorch.callbacks import TQDMProgressBar
    from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

    if twice:
        # As `lightning_sdk` does; the second one knows no bar of Lightning's.
        monkeypatch.setattr("tqdm.tqdm", type("tqdm", (), {"write": staticmethod(print)}))
    printer = printer_for(trainer_with(TQDMProgressBar()))
    bar = Tqdm(total=3, file=sys.stdout, ncols=40)
    bar.update(1)
    show("first\nsecond", printer)
    bar.close()
    show("after the last bar", printer)
    out = capsys.readouterr().out
    # The bar is wiped before the text and drawn again below it; one that counts as the second stands a line lower.
    assert re.search(r"\r {39,40}\r(\x1b\[A)?first\nsecond\n\n?\r", out)
    assert out.endswith("after the last bar\n")


def test_text_under_a_rich_bar_stands_above_it():
    from lightning.pytorch.callbacks import RichProgressBar
    from rich.console import Console
    from rich.progress import Progress

    printer = printer_for(trainer_with(RichProgressBar()))
    before = sys.stdout
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    with Progress(console=console, auto_refresh=False) as progress:
        progress.add_task("epoch", total=3)
        progress.refresh()
        assert sys.stdout is not before, "a live display takes stdout over"
        show("first\nsecond", printer)
    assert "\x1b[2Kfirst\n" in screen.getvalue() and "\x1b[2Ksecond\n" in screen.getvalue()


def test_printer_of_other_bars_and_of_none(capsys):
    from lightning.pytorch.callbacks import ProgressBar

    class Own(ProgressBar):
        def print(self, *args, **kwargs):
            print("own", *args)

    show("text", printer_for(trainer_with(Own())))
    show("plain", printer_for(object()))
    assert capsys.readouterr().out == "own text\nplain\n"


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar", None])
def test_events_of_a_training_stand_whole_in_a_log_file(tmp_path, capsys, bar):
    """Each line of each warning is a line of its own, at most eight of them, whatever bar runs into the same file."""
    from lightning.pytorch import callbacks, seed_everything

    from lightning_lossacc import LossAccuracyMonitor
    from tests.modules import Plain, loader, trainer

    seed_everything(3)
    watch = LossAccuracyMonitor(dirpath=False)
    bars = [getattr(callbacks, bar)()] if bar else []
    fit = trainer(tmp_path, watch, *bars, max_epochs=12, enable_progress_bar=bar is not None)
    fit.fit(Plain(drop=0.1), loader(), loader(seed=2))
    # A bar is wiped by going back to the line's beginning, and one line up if it is the second one.
    out = capsys.readouterr().out.replace("\x1b[A", "")
    lines = [line.split("\r")[-1].rstrip() for line in out.split("\n")]
    warned = [event.message.splitlines() for event in watch.events if event.level == "warning"]
    assert warned
    for message in warned:
        assert 1 <= len(message) <= 8
        start = lines.index(message[0])
        assert lines[start : start + len(message)] == message
