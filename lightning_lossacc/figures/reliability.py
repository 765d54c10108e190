"""Do confidence and accuracy fit? The reliability diagram of the newest evaluation against the reference, with counts.

Rows in bins of confidence; a point below the diagonal is over-confident (Niculescu-Mizil and Caruana, 2005; Guo et al.,
2017). The lower panel shows how many rows stand behind each point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_lossacc.attribution import interval
from lightning_lossacc.curves import Curves, compared
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures.canvas import (
    BETWEEN,
    BOTTOM,
    HEIGHT,
    THEMES,
    TITLE,
    Theme,
    ThemeName,
    panel,
    sheet,
    stage_name,
    style,
    write_ends,
    write_title,
)
from lightning_lossacc.history import History, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARE = 0.68  # of the height for the diagram
ENOUGH = 10  # rows of a bin that a line may lead through


def draw(
    history: History,
    events: Sequence[Event] = (),
    *,
    stage: str = "val",
    loader: int = 0,
    theme: ThemeName = "light",
) -> Figure | None:
    """Accuracy over confidence by bin, now and at the reference, and the rows of each bin.

    Args and return value: see `lightning_lossacc.figures.draw`; None without reliability bins.
    """
    pair, colors = _measured(history, events, stage, loader), THEMES[theme]
    if pair is None:
        return None
    before, now = pair
    with style():
        figure = sheet(HEIGHT, colors)
        free = HEIGHT - BOTTOM - TITLE - BETWEEN
        lower = panel(figure, colors, BOTTOM, (1 - SHARE) * free)
        upper = panel(figure, colors, BOTTOM + (1 - SHARE) * free + BETWEEN, SHARE * free, sharex=lower)
        upper.tick_params(labelbottom=False)
        upper.set_ylabel("accuracy (%)")
        lower.set_ylabel("rows")
        lower.set_xlabel("confidence: largest probability (%), in bins")
        write_title(
            figure,
            colors,
            f"{stage_name(stage, loader)}: do confidence and accuracy fit?",
            f"epoch {now.epoch}{'' if before is None else f' against epoch {before.epoch}'} · "
            "below the dashes: over-confident · bars: 99 %",
        )
        _draw_bins(upper, lower, colors, before, now)
    return figure


def alt_text(history: History, events: Sequence[Event] = (), *, stage: str = "val", loader: int = 0) -> str:
    """Confidence, accuracy and calibration error, now and at the reference, in sentences."""
    pair = _measured(history, events, stage, loader)
    if pair is None:
        return ""
    parts = [f"{stage_name(stage, loader)}: reliability diagram."]
    parts += [_words(record) for record in (pair[1], pair[0]) if record is not None]
    return " ".join(parts)


def _measured(
    history: History, events: Sequence[Event], stage: str, loader: int
) -> tuple[Record | None, Record] | None:
    pair = compared(Curves.of(history, stage, loader), events, stage, loader)
    if pair is None or not _points(pair[1]):
        return None
    before = pair[0]
    return (before if before is not None and _points(before) else None), pair[1]


def _points(record: Record) -> list[tuple[float, float, float]]:
    """Confidence, accuracy and rows of the bins that hold any."""
    bins = record.arrays.get("reliability") or {}
    columns = [bins.get(key, []) for key in ("confidence", "accuracy", "rows")]
    return [point for point in zip(*columns, strict=False) if point[2] > 0 and math.isfinite(sum(point))]


def _words(record: Record) -> str:
    values = record.values
    sign = values.get("overconfidence", math.nan)
    return (
        f"Epoch {record.epoch}: mean confidence {100 * values.get('confidence', math.nan):.1f} %, accuracy "
        f"{100 * values.get('accuracy', math.nan):.1f} %, so {100 * sign:+.1f} points of over-confidence; expected "
        f"calibration error {100 * values.get('ece', math.nan):.1f} points over {record.num_rows} rows."
    )


def _draw_bins(upper: Axes, lower: Axes, colors: Theme, before: Record | None, now: Record) -> None:
    edges = now.arrays["reliability"]["edges"]
    shown = [point[0] for record in (before, now) if record is not None for point in _points(record)]
    low = max(0.0, 100 * (min(shown) - 1.5 * (edges[1] - edges[0])))
    lower.set_xlim(low, 101.5)
    upper.set_ylim(-4.0, 104.0)
    upper.plot([low, 100], [low, 100], color=colors.faint, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    ends = []
    if before is not None:
        _draw_points(upper, colors, before, colors.blue, is_now=False)
        starts, rows = _outline(before)
        lower.stairs(rows, starts, color=colors.blue, linewidth=1.4, linestyle=(0, (5, 1.5)), zorder=3)
        ends.append((97.0, f"epoch {before.epoch}", _summary(before), colors.blue))
    _draw_points(upper, colors, now, colors.vermilion, is_now=True)
    ends.insert(0, (60.0, f"epoch {now.epoch}", _summary(now), colors.vermilion))
    starts, rows = _outline(now)
    lower.stairs(rows, starts, color=colors.vermilion, fill=True, alpha=0.45)
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(0, 3 * max(rows))
    write_ends(upper, ends)
    write_ends(lower, [(1.0, f"{now.num_rows} rows", "logarithmic", colors.vermilion)])


def _draw_points(axes: Axes, colors: Theme, record: Record, color: str, is_now: bool) -> None:
    """Bins as points, larger with more rows; a line joins those that hold enough to mean something."""
    points = _points(record)
    solid = [(100 * confidence, 100 * accuracy) for confidence, accuracy, rows in points if rows >= ENOUGH]
    if solid:
        dash = "-" if is_now else (0, (5, 1.5))
        axes.plot(*zip(*solid, strict=True), color=color, linewidth=2.0 if is_now else 1.4, linestyle=dash)
    for confidence, accuracy, rows in points:
        if is_now:
            low, high = wilson(accuracy, rows)
            axes.vlines(100 * confidence, 100 * low, 100 * high, color=color, linewidth=1.2, alpha=0.6)
        axes.plot(
            [100 * confidence],
            [100 * accuracy],
            color=color,
            linestyle="none",
            marker="o" if is_now else "s",
            markersize=3 + 1.5 * math.log10(rows + 1),
            markerfacecolor=color if is_now else colors.paper,
            markeredgecolor=color,
            zorder=3,
        )


def wilson(share: float, rows: float) -> tuple[float, float]:
    """99 % interval of a share that was seen in so many independent rows (Wilson, 1927); never empty, within 0..1."""
    z = interval(0.0, 1.0)[1]
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _outline(record: Record) -> tuple[list[float], list[float]]:
    bins = record.arrays["reliability"]
    return [100 * edge for edge in bins["edges"]], [float(count) for count in bins["rows"]]


def _summary(record: Record) -> str:
    over, error = (100 * record.values.get(key, math.nan) for key in ("overconfidence", "ece"))
    return f"over by {over:+.1f} pp, ECE {error:.1f}"
