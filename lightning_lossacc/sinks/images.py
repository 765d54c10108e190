"""A figure as an image: drawn once, handed to every sink as pixels and as a PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures import alt_text, draw, narrow, pixels
from lightning_lossacc.figures.canvas import DOTS_PER_INCH
from lightning_lossacc.history import History

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True)
class Image:
    """One drawn figure.

    Attributes:
        name: the name under which loggers show it, such as `"lossacc/changes"`.
        caption: what it shows, in sentences with its numbers.
        pixels: uint8 of shape (height, width, 3), 900 wide.
        figure: what they were taken from.
    """

    name: str
    caption: str
    pixels: numpy.ndarray
    figure: Any

    @property
    def file_name(self) -> str:
        """`lossacc_changes.png`, for places without folders."""
        return self.name.replace("/", "_") + ".png"

    @cached_property
    def narrow_pixels(self) -> numpy.ndarray:
        """The figure for a place that shows it 350 pixels wide: uint8 of shape (height, 701, 3)."""
        return pixels(narrow(self.figure))

    @cached_property
    def png(self) -> bytes:
        """The image as a PNG file."""
        from matplotlib.image import imsave

        file = io.BytesIO()
        imsave(file, self.pixels, format="png", origin="upper", dpi=DOTS_PER_INCH)
        return file.getvalue()


def image(
    figure_name: str, history: History, events: Sequence[Event], *, stage: str = "val", loader: int = 0
) -> Image | None:
    """Draws a figure of `FIGURES`; None where it has nothing to show. Beyond loader 0 the name ends with the loader."""
    figure = draw(figure_name, history, events, stage=stage, loader=loader)
    if figure is None:
        return None
    caption = alt_text(figure_name, history, events, stage=stage, loader=loader)
    name = figure_name if loader == 0 else f"{figure_name}/dataloader_idx_{loader}"
    return Image(name, caption, pixels(figure), figure)
