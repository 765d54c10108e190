"""The terminal: one message below or above a progress bar, never through it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from lightning_lossacc.diagnosis.event import Level

Printer = Callable[[str], object]

# Spelled out where the terminal's encoding lacks the sign (a Windows code page, `LANG=C`).
_PLAIN_SIGNS = str.maketrans({"→": "->", "·": "-", "…": "...", "±": "+-", "≥": ">=", "≤": "<="})
# All but tab and newline: a name from the user's data must not move the cursor.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show(text: str, printer: Printer | None = None, *, level: Level = "warning") -> bool:
    """Prints a message; its first line in colour where rich is installed and stdout is a terminal.

    Never raises for the sake of a message: a closed, broken or missing stdout only loses it. Signs
    that the terminal's encoding lacks are replaced.

    Args:
        text: what to say; control characters are taken out.
        printer: prints one string, see `printer_for`; `print` if None.
        level: a warning's headline is yellow, an info's is cyan.

    Returns:
        Whether the text was printed.
    """
    stream = sys.stdout
    if stream is None:
        return False
    try:
        text = _encodable(_CONTROL.sub("", text), getattr(stream, "encoding", None) or "utf-8")
        if getattr(stream, "isatty", bool)():
            text = _colored(text, "bold yellow" if level == "warning" else "bold cyan")
        (printer or _print)(text)
    except Exception:
        return False
    return True


def printer_for(trainer: Any) -> Printer:
    """What prints without garbling the Trainer's progress bar.

    Under a tqdm bar its `write` clears the bar, prints and draws it again; the callback's own
    `print` does the same but drops the text while no bar is active. A rich bar redirects stdout
    while it is live, so `print` comes out above it. Another bar prints by its own `print`, which is
    what Lightning asks of it.

    Args:
        trainer: a Trainer of either Lightning package; it is not kept.
    """
    bar = getattr(trainer, "progress_bar_callback", None)
    classes = {cls.__name__: cls for cls in type(bar).__mro__}
    if "TQDMProgressBar" in classes:
        # Lightning's own class knows its bars; `lightning_sdk` loads tqdm a second time, which knows none of them.
        write: Printer = sys.modules[classes["TQDMProgressBar"].__module__].Tqdm.write
        return write
    if bar is None or "RichProgressBar" in classes:
        return _print
    own: Printer = bar.print
    return own


def _print(text: str) -> None:
    # A pipe or a file would keep the text back until the run ends.
    print(text, flush=True)


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN_SIGNS).encode(encoding, "replace").decode(encoding)
    return text


def _colored(text: str, style: str) -> str:
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return text
    headline, newline, rest = text.partition("\n")
    console = Console(force_terminal=True, soft_wrap=True)
    with console.capture() as capture:
        console.print(Text(headline, style=style), end="")
    return capture.get() + newline + rest
