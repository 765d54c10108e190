"""How sure are the answers, apart from their scale? The distribution of margin / temperature over the epochs.

Margin = logit of the true class - largest other logit; below 0 the row is wrong. Divided by the best temperature of the
same evaluation, so that it widens only where answers get better and not where logits merely grow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_lossacc.curves import Curves, compared, finite
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures.canvas import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    THEMES,
    TITLE,
    WIDTH,
    Theme,
    ThemeName,
    draw_line,
    mark_reference,
    over_epochs,
    panel,
    sheet,
    span_of,
    stage_name,
    style,
    write_ends,
    write_title,
)
from lightning_lossacc.history import History, Record
from lightning_lossacc.margin_bins import MARGIN_BINS, MARGIN_LIMIT, margin_edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_EVALUATIONS = 300
SIDE = 1.1  # inches of the histogram beside the bands
GAP = 0.15


def draw(
    history: History,
    events: Sequence[Event] = (),
    *,
    stage: str = "val",
    loader: int = 0,
    theme: ThemeName = "light",
) -> Figure | None:
    """Bands of 5, 25, 50, 75 and 95 % of the rows over epochs; beside them the newest histogram and the reference's.

    Args and return value: see `lightning_lossacc.figures.draw`; None without a margin histogram and a temperature.
    """
    curves, colors = _measured(history, stage, loader), THEMES[theme]
    if not curves.records:
        return None
    before, now = compared(curves, events, stage, loader)
    columns = _quantiles(curves)
    with style():
        figure = sheet(HEIGHT, colors)
        height = HEIGHT - BOTTOM - TITLE
        wide = WIDTH - LEFT - RIGHT - SIDE - GAP
        axes = panel(figure, colors, BOTTOM, height, width=wide)
        side = panel(figure, colors, BOTTOM, height, left=LEFT + wide + GAP, width=SIDE, sharey=axes)
        side.tick_params(labelleft=False)
        over_epochs(axes, span_of(list(curves.x)))
        axes.set_ylabel("margin / temperature (fine near 0)")
        axes.set_yscale("asinh", linear_width=1.0)
        write_title(
            figure,
            colors,
            f"{stage_name(stage, loader)}: how sure are the answers, whatever their scale?",
            f"target logit - largest other logit, over T · {now.num_rows} rows · below 0 a row is wrong",
        )
        _draw_bands(axes, curves, colors, columns)
        mark = None if before is None else curves.place(before.epoch, before.global_step)
        if mark is not None:
            mark_reference(axes, colors, mark)
        _draw_histograms(side, colors, before, now)
        values = finite([value for column in columns.values() for value in column])
        reach = max(abs(value) for value in values)
        ticks = [tick for tick in (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50) if abs(tick) <= 1.6 * reach + 1]
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.set_ylim(1.3 * min(values) - 0.3, 1.3 * max(values) + 0.3)
        write_ends(
            side,
            [
                (columns[share][-1], f"{100 * share:.0f} % below {columns[share][-1]:.2f}", "", colors.ink)
                for share in SHARES
            ],
        )
    return figure


def alt_text(history: History, events: Sequence[Event] = (), *, stage: str = "val", loader: int = 0) -> str:
    """The quantiles of the newest evaluation and of the reference, in sentences."""
    curves = _measured(history, stage, loader)
    if not curves.records:
        return ""
    before, now = compared(curves, events, stage, loader)
    parts = [f"{stage_name(stage, loader)}: margin over temperature; below 0 a row is wrong."]
    for record in (now, before):
        if record is not None:
            listed = ", ".join(f"{100 * share:.0f} % {_quantile(record, share):.2f}" for share in SHARES)
            parts.append(f"Epoch {record.epoch}, quantiles: {listed}.")
    return " ".join(parts)


def _measured(history: History, stage: str, loader: int) -> Curves:
    curves = Curves.of(history, stage, loader)
    known = [index for index, record in enumerate(curves.records) if _is_known(record)]
    found = Curves(tuple(curves.records[index] for index in known), tuple(curves.x[index] for index in known))
    return found.thinned(MAX_EVALUATIONS)


def _is_known(record: Record) -> bool:
    histogram = record.arrays.get("margin_histogram") or []
    temperature = record.values.get("temperature", math.nan)
    return len(histogram) == MARGIN_BINS + 2 and sum(histogram) > 0 and temperature > 0


def _quantiles(curves: Curves) -> dict[float, list[float]]:
    return {share: [_quantile(record, share) for record in curves.records] for share in SHARES}


def _quantile(record: Record, share: float) -> float:
    """Quantile of margin / temperature, linear within its bin; rows beyond the limits count at the limit."""
    histogram, temperature = record.arrays["margin_histogram"], record.values["temperature"]
    edges = [-MARGIN_LIMIT, *margin_edges(), MARGIN_LIMIT]
    wanted = share * sum(histogram)
    below = 0.0
    for index, rows in enumerate(histogram):
        if rows and below + rows >= wanted:
            return (edges[index] + (edges[index + 1] - edges[index]) * (wanted - below) / rows) / temperature
        below += rows
    return MARGIN_LIMIT / temperature


def _draw_bands(axes: Axes, curves: Curves, colors: Theme, columns: dict[float, list[float]]) -> None:
    axes.axhline(0, color=colors.vermilion, linewidth=1.2)
    for low, high, alpha in ((0.05, 0.95, 0.3), (0.25, 0.75, 0.5)):
        axes.fill_between(curves.x, columns[low], columns[high], color=colors.sky, alpha=alpha, linewidth=0)
    draw_line(axes, curves.x, columns[0.5], colors.blue, linewidth=2.0)
    for share in (0.05, 0.25, 0.75, 0.95):
        draw_line(axes, curves.x, columns[share], colors.blue, linewidth=0.8, linestyle=(0, (2, 1.5)))


def _draw_histograms(axes: Axes, colors: Theme, before: Record | None, now: Record) -> None:
    """Share of the rows by unit of the axis, so that bins of different width can be compared."""
    axes.axhline(0, color=colors.vermilion, linewidth=1.2)
    for record, options in (
        (now, {"color": colors.sky, "fill": True, "alpha": 0.6}),
        (before, {"color": colors.faint, "fill": False, "linewidth": 1.2, "linestyle": (0, (2, 1.5))}),
    ):
        if record is None:
            continue
        edges = [edge / record.values["temperature"] for edge in margin_edges()]
        rows = [float(count) for count in record.arrays["margin_histogram"][1:-1]]
        lengths = [math.asinh(high) - math.asinh(low) for low, high in itertools.pairwise(edges)]
        total = sum(rows) or 1.0
        density = [count / total / length for count, length in zip(rows, lengths, strict=True)]
        axes.stairs(density, edges, orientation="horizontal", **options)
    axes.set_xticks([])
    axes.set_xlabel(f"rows: epoch {now.epoch}" + ("" if before is None else f",\ndotted {before.epoch}"))
