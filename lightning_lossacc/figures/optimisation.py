"""How did the optimisation go? Learning rate, gradient norm, size of the updates, dead units: what was seen of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_lossacc.curves import Curves, finite, last
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures.canvas import (
    HEIGHT,
    THEMES,
    Theme,
    ThemeName,
    draw_line,
    sheet,
    span_of,
    stack,
    stage_name,
    style,
    write_ends,
    write_title,
)
from lightning_lossacc.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: its axis, and the keys of `Record.context` that it shows with their names.

    Attributes:
        label: of the axis, with its unit.
        lines: key and name; the first one is the thick line.
        percent: whether the values are shares.
    """

    label: str
    lines: tuple[tuple[str, str], ...]
    percent: bool = False


PANELS = (
    Panel("learning rate", (("learning_rate", "learning rate"),)),
    Panel("gradient norm", (("gradient_norm", "median"), ("gradient_norm_max", "largest"))),
    Panel("update ratio", (("update_ratio", "median"), ("update_ratio_max", "largest"))),
    Panel(
        "units (%)",
        (("dead_units", "dead, worst layer"), ("dead_units_total", "dead, all"), ("saturated_units", "saturated")),
        percent=True,
    ),
)
# A range over a larger factor is logarithmic.
DECADE = 20.0


def draw(
    history: History,
    events: Sequence[Event] = (),
    *,
    stage: str = "val",
    loader: int = 0,
    theme: ThemeName = "light",
) -> Figure | None:
    """One panel for each of learning rate, gradient norm, update over weight and dead units that was seen.

    Args and return value: see `lightning_lossacc.figures.draw`; None where nothing was watched.
    """
    curves, colors = Curves.of(history, stage, loader), THEMES[theme]
    shown = [part for part in PANELS if any(finite(curves.context(key)) for key, _ in part.lines)]
    if not shown:
        return None
    with style():
        figure = sheet(HEIGHT, colors)
        panels = stack(figure, colors, [1 / len(shown)] * len(shown), span_of(list(curves.x)))
        write_title(
            figure,
            colors,
            f"{stage_name(stage, loader)}: how the optimisation went",
            "sampled steps of the training before each evaluation",
        )
        for axes, part in zip(panels, shown, strict=True):
            _draw_panel(axes, curves, colors, part)
    return figure


def alt_text(history: History, events: Sequence[Event] = (), *, stage: str = "val", loader: int = 0) -> str:
    """First and last number of each line, in sentences."""
    curves = Curves.of(history, stage, loader)
    parts = []
    for part in PANELS:
        for key, name in part.lines:
            values = _values(curves, part, key)
            known = finite(values)
            if known:
                label = part.label if name == part.label else f"{part.label}, {name}"
                parts.append(f"{label}: first {known[0]:.3g}, last {known[-1]:.3g}, largest {max(known):.3g}.")
    return " ".join([f"{stage_name(stage, loader)}: the optimisation.", *parts]) if parts else ""


def _values(curves: Curves, part: Panel, key: str) -> list[float]:
    return [100 * value if part.percent else value for value in curves.context(key)]


def _draw_panel(axes: Axes, curves: Curves, colors: Theme, part: Panel) -> None:
    # Small and far out: the numbers of the axis may be long, and the panels are low.
    axes.set_ylabel(part.label, fontsize=8)
    axes.yaxis.set_label_coords(-0.145, 0.5)
    looks = ((colors.blue, "-", 1.8), (colors.vermilion, (0, (1, 1.2)), 1.3), (colors.green, (0, (5, 1.5)), 1.3))
    every: list[float] = []
    ends = []
    for (key, name), (color, dash, width) in zip(part.lines, looks, strict=False):
        values = _values(curves, part, key)
        end = last(values)
        if end is None:
            continue
        every += finite(values)
        # Some are known at few evaluations only: a line from one to the next shows them better than dots.
        known = [(x, value) for x, value in zip(curves.x, values, strict=True) if math.isfinite(value)]
        draw_line(axes, *map(list, zip(*known, strict=True)), color, linestyle=dash, linewidth=width)
        ends.append((values[end], f"{name} {values[end]:.3g}{' %' if part.percent else ''}", "", color))
    if not part.percent and min(every) > 0 and max(every) > DECADE * min(every):
        axes.set_yscale("log")
        return write_ends(axes, ends)
    # Few ticks have short numbers, which leave room for the name of the axis.
    axes.yaxis.get_major_locator().set_params(nbins=3)
    if part.percent:
        axes.set_ylim(-3, max(max(every), 20) * 1.15)
    elif max(every) == min(every):
        axes.set_ylim(min(0.0, 2 * every[0]), max(0.0, 2 * every[0]) or 1.0)
    write_ends(axes, ends)
