"""Which classes gained and which lost? Recall by class at the reference and now, and their part of the loss change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_lossacc.curves import Curves, compared
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures.canvas import (
    BOTTOM,
    HEIGHT,
    LEFT,
    NUMBER,
    THEMES,
    TITLE,
    WIDTH,
    Theme,
    ThemeName,
    panel,
    sheet,
    stage_name,
    style,
    write_title,
)
from lightning_lossacc.history import History, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES = 14
NAMES = 0.95  # inches for the names of the classes
GAP = 0.3


@dataclass(frozen=True, slots=True)
class ClassChange:
    """One class in both evaluations.

    Attributes:
        label: index of the class.
        rows: rows of the newest evaluation.
        before, now: recall in [0, 1].
        part: part of the change of the NLL over all rows, nats; exact where the shares of the classes stay.
    """

    label: int
    rows: int
    before: float
    now: float
    part: float


def draw(
    history: History,
    events: Sequence[Event] = (),
    *,
    stage: str = "val",
    loader: int = 0,
    theme: ThemeName = "light",
) -> Figure | None:
    """Recall at the reference (ring) and now (dot), and the part of the NLL change, of the classes that moved most.

    Args and return value: see `lightning_lossacc.figures.draw`; None without two class tables.
    """
    found, colors = _changes(history, events, stage, loader), THEMES[theme]
    if found is None:
        return None
    before, now, every = found
    shown = sorted(sorted(every, key=_size)[-MAX_CLASSES:], key=lambda change: change.part)
    with style():
        figure = sheet(HEIGHT, colors)
        height, width = HEIGHT - BOTTOM - TITLE, (WIDTH - LEFT - NAMES - GAP - 0.35) / 2
        left = panel(figure, colors, BOTTOM, height, left=LEFT + NAMES, width=width)
        right = panel(figure, colors, BOTTOM, height, left=LEFT + NAMES + width + GAP, width=width, sharey=left)
        right.tick_params(labelleft=False)
        left.xaxis.get_major_locator().set_params(nbins=5)
        right.xaxis.get_major_locator().set_params(nbins=4)
        hidden = f" · the {len(shown)} of {len(every)} that moved most" if len(shown) < len(every) else ""
        write_title(
            figure,
            colors,
            f"{stage_name(stage, loader)}: classes that gained and lost",
            f"epoch {before.epoch} (ring) → {now.epoch} (dot){hidden}",
        )
        left.set_yticks(range(len(shown)), [f"class {change.label} ({change.rows} rows)" for change in shown])
        left.set_ylim(-0.7, len(shown) - 0.3)
        _draw_recall(left, colors, shown)
        _draw_parts(right, colors, shown)
    return figure


def alt_text(history: History, events: Sequence[Event] = (), *, stage: str = "val", loader: int = 0) -> str:
    """The classes with the largest changes, in sentences."""
    found = _changes(history, events, stage, loader)
    if found is None:
        return ""
    before, now, every = found
    listed = "; ".join(
        f"class {change.label}: recall {100 * change.before:.1f} → {100 * change.now:.1f} %, NLL {change.part:+.4f}"
        for change in sorted(every, key=_size, reverse=True)[:6]
    )
    gained = sum(change.now > change.before for change in every)
    lost = sum(change.now < change.before for change in every)
    return (
        f"{stage_name(stage, loader)}: classes from epoch {before.epoch} to {now.epoch}. Recall rose in {gained} and "
        f"fell in {lost} of {len(every)}. Largest changes: {listed}."
    )


def _size(change: ClassChange) -> float:
    # Nats of loss and shares of recall are of about the same size where both matter.
    return max(abs(change.part), abs(change.now - change.before) * 0.1)


def _changes(
    history: History, events: Sequence[Event], stage: str, loader: int
) -> tuple[Record, Record, list[ClassChange]] | None:
    pair = compared(Curves.of(history, stage, loader), events, stage, loader)
    if pair is None or pair[0] is None:
        return None
    before, now = (_table(record) for record in pair)
    total = [sum(rows for rows, _, _ in table.values()) for table in (before, now)]
    both = [label for label in now if label in before and label >= 0 and now[label][0] and before[label][0]]
    if len(both) < 2:
        return None
    found = []
    for label in both:
        (old_rows, old_right, old_nll), (rows, right, nll) = before[label], now[label]
        part = rows * nll / total[1] - old_rows * old_nll / total[0]
        found.append(ClassChange(label, round(rows), old_right / old_rows, right / rows, part))
    return pair[0], pair[1], [change for change in found if math.isfinite(change.part)]


def _table(record: Record) -> dict[int, tuple[float, float, float]]:
    """Rows, right rows and mean NLL by class."""
    table = record.arrays.get("classes") or {}
    columns = [table.get(key, []) for key in ("class", "rows", "correct", "nll")]
    return {int(label): (rows, right, nll) for label, rows, right, nll in zip(*columns, strict=False)}


def _draw_recall(axes: Axes, colors: Theme, shown: list[ClassChange]) -> None:
    axes.set_xlabel("recall (%)")
    for place, change in enumerate(shown):
        color = colors.vermilion if change.now < change.before else colors.blue
        ends = [100 * change.before, 100 * change.now]
        axes.plot(ends, [place, place], color=color, linewidth=2.5, zorder=2)
        for x, fill in ((ends[0], colors.paper), (ends[1], color)):
            options = {"marker": "o", "markersize": 7, "markerfacecolor": fill, "linestyle": "none", "zorder": 3}
            axes.plot([x], [place], color=color, **options)
    low = 100 * min(min(change.before, change.now) for change in shown)
    axes.set_xlim(max(low - 4, -2), 102)


def _draw_parts(axes: Axes, colors: Theme, shown: list[ClassChange]) -> None:
    axes.set_xlabel("part of the NLL change (nats)")
    axes.axvline(0, color=colors.faint, linewidth=1)
    parts = [change.part for change in shown]
    axes.barh(
        range(len(shown)), parts, height=0.55, color=[colors.vermilion if part > 0 else colors.blue for part in parts]
    )
    reach = max(map(abs, parts)) or 0.01
    axes.set_xlim(min(0, *parts) - 0.42 * reach, max(0, *parts) + 0.42 * reach)
    for place, part in enumerate(parts):
        side = "left" if part >= 0 else "right"
        text = f" {part:+.4f}" if part >= 0 else f"{part:+.4f} "
        axes.text(part, place, text, ha=side, va="center", fontsize=8.5, color=colors.ink, gid=NUMBER)
