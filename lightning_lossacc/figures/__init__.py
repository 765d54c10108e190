"""Pictures of a run, one file a question; `FIGURES` names them all, `draw` draws one and `alt_text` says it in words.

The names are those under which loggers show them: `lossacc` (the one picture), `lossacc/changes`,
`lossacc/reliability`, `lossacc/margin`, `lossacc/classes`, `lossacc/optimisation`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures import changes, classes, loss_and_accuracy, margin, optimisation, reliability
from lightning_lossacc.figures.canvas import DOTS_PER_INCH, ThemeName, style
from lightning_lossacc.figures.canvas import narrow as narrow
from lightning_lossacc.figures.loss_and_accuracy import picture as picture
from lightning_lossacc.history import History

if TYPE_CHECKING:
    import numpy
    from matplotlib.figure import Figure


class Drawing(Protocol):
    """Draws one figure of one stage and loader; None where there is nothing to draw."""

    def __call__(
        self,
        history: History,
        events: Sequence[Event] = (),
        *,
        stage: str = "val",
        loader: int = 0,
        theme: ThemeName = "light",
    ) -> Figure | None: ...


class Wording(Protocol):
    """Says one figure in words, with its numbers."""

    def __call__(
        self, history: History, events: Sequence[Event] = (), *, stage: str = "val", loader: int = 0
    ) -> str: ...


_ROOMS = {
    "lossacc": loss_and_accuracy,
    "lossacc/changes": changes,
    "lossacc/reliability": reliability,
    "lossacc/margin": margin,
    "lossacc/classes": classes,
    "lossacc/optimisation": optimisation,
}
# By the name under which loggers show them, the one picture first.
FIGURES: dict[str, Drawing] = {name: room.draw for name, room in _ROOMS.items()}
ALT_TEXTS: dict[str, Wording] = {name: room.alt_text for name, room in _ROOMS.items()}


def draw(
    name: str,
    history: History,
    events: Sequence[Event] = (),
    *,
    stage: str = "val",
    loader: int = 0,
    theme: ThemeName = "light",
) -> Figure | None:
    """One figure by its name; None where there is nothing to draw.

    Raises:
        KeyError: if there is no such figure.
    """
    return FIGURES[name](history, events, stage=stage, loader=loader, theme=theme)


def alt_text(name: str, history: History, events: Sequence[Event] = (), *, stage: str = "val", loader: int = 0) -> str:
    """What a figure shows, in sentences with its numbers: for those who cannot see it.

    Raises:
        KeyError: if there is no such figure.
    """
    return ALT_TEXTS[name](history, events, stage=stage, loader=loader)


def save_picture(
    history: History,
    events: Sequence[Event],
    path: Path | str,
    *,
    stage: str = "val",
    loader: int = 0,
    theme: ThemeName = "light",
) -> Path:
    """Writes `picture` to a file and returns its path.

    Args:
        history, events, stage, loader, theme: see `picture`.
        path: the file; its suffix chooses the format (png, svg, pdf).

    Raises:
        OSError: if the file cannot be written.
        ValueError: if matplotlib does not know the format.
    """
    return save(picture(history, events, stage=stage, loader=loader, theme=theme), path)


def save(figure: Figure, path: Path | str) -> Path:
    """Writes a figure to a file and returns its path; errors as of `save_picture`."""
    with style():
        figure.savefig(path, dpi=DOTS_PER_INCH)
    return Path(path)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, for loggers that take bytes."""
    file = io.BytesIO()
    with style():
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def pixels(figure: Figure) -> numpy.ndarray:
    """The figure as uint8 of shape (height, width, 3): what image logs take without pyplot."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with style():
        canvas.draw()
    return numpy.asarray(canvas.buffer_rgba())[..., :3].copy()
