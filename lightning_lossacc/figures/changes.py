"""Where did the change of the loss come from, evaluation by evaluation? By rows, and by one temperature.

Only paired numbers: each evaluation against the one with the lowest NLL before it, row by row (`probe.py`). The groups
add up to the change, and so do what one temperature removes and the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_lossacc.attribution import FLIPS, interval
from lightning_lossacc.curves import Curves, best, finite, last, plain
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures.canvas import (
    HEIGHT,
    THEMES,
    Theme,
    ThemeName,
    draw_line,
    mark_reference,
    sheet,
    span_of,
    stack,
    stage_name,
    style,
    write_ends,
    write_inside,
    write_title,
)
from lightning_lossacc.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE = "nll"  # the kept evaluation with the lowest NLL
MAX_EVALUATIONS = 400
# Evaluations after the last reference that are enough to choose the range of the axis by.
ENOUGH = 5
_FLIPS = "flips"


def draw(
    history: History,
    events: Sequence[Event] = (),
    *,
    stage: str = "val",
    loader: int = 0,
    theme: ThemeName = "light",
) -> Figure | None:
    """Change of the NLL by groups of rows (upper panel), and by one temperature with a 99 % interval (lower panel).

    Args and return value: see `lightning_lossacc.figures.draw`; None without paired evaluations.
    """
    curves, colors = _paired(history, stage, loader), THEMES[theme]
    if not curves.records:
        return None
    newest = _pair(curves, -1)
    with style():
        figure = sheet(HEIGHT, colors)
        upper, lower = stack(figure, colors, (0.55, 0.45), span_of(list(curves.x)))
        write_title(
            figure,
            colors,
            f"{stage_name(stage, loader)}: where the change of the NLL came from",
            f"row by row against the lowest NLL before, now that of epoch {newest['reference_epoch']} · "
            f"{newest['items']} items",
        )
        for axes in (upper, lower):
            axes.set_ylabel("NLL change (nats)")
            axes.axhline(0, color=colors.faint, linewidth=1)
            mark_reference(axes, colors, curves.place(newest["reference_epoch"], newest["reference_step"]))
        parts = _by_group(curves)
        total = _column(curves, "nll_change")
        shown = _recent(curves)
        _limits(upper, shown, [total, *parts.values()])
        _lines(upper, curves, colors, parts, total)
        rest, errors = _column(curves, "refinement_change"), _column(curves, "refinement_change_error")
        _draw_temperature(lower, curves, colors, (total, rest, errors), shown)
    return figure


def alt_text(history: History, events: Sequence[Event] = (), *, stage: str = "val", loader: int = 0) -> str:
    """The parts of the newest evaluation's change, in sentences."""
    curves = _paired(history, stage, loader)
    if not curves.records:
        return ""
    newest = _pair(curves, -1)
    text = (
        f"{stage_name(stage, loader)}: at epoch {curves.records[-1].epoch} the NLL had changed by "
        f"{newest['nll_change']:+.4f} nats against epoch {newest['reference_epoch']}. By rows: "
    )
    text += ", ".join(f"{plain(name)} {values[-1]:+.4f}" for name, values in _by_group(curves).items()) + "."
    if "refinement_change" in newest:
        rest = newest["refinement_change"]
        low, high = interval(rest, newest.get("refinement_change_error", math.nan))
        text += (
            f" By one temperature: {newest['nll_change'] - rest:+.4f} are gone with it, {rest:+.4f} stay "
            f"(99 % {low:+.4f} to {high:+.4f})."
        )
    return text


def _paired(history: History, stage: str, loader: int) -> Curves:
    """The evaluations that were compared with an earlier one, row by row."""
    curves = Curves.of(history, stage, loader)
    known = [index for index, record in enumerate(curves.records) if record.paired.get(REFERENCE, {}).get("groups")]
    found = Curves(tuple(curves.records[index] for index in known), tuple(curves.x[index] for index in known))
    return found.thinned(MAX_EVALUATIONS)


def _pair(curves: Curves, index: int) -> dict[str, Any]:
    return curves.records[index].paired[REFERENCE]


def _column(curves: Curves, key: str) -> list[float]:
    return [float(_pair(curves, index).get(key, math.nan)) for index in range(len(curves.records))]


def _by_group(curves: Curves) -> dict[str, list[float]]:
    """Change by group, those of the newest evaluation; flips each way are one line."""
    names = [group["name"] for group in _pair(curves, -1)["groups"]]
    found = {name: [math.nan] * len(curves.records) for name in names if name not in FLIPS}
    found |= {_FLIPS: [math.nan] * len(curves.records)} if FLIPS[0] in names else {}
    for index in range(len(curves.records)):
        changes = {group["name"]: float(group["change"]) for group in _pair(curves, index)["groups"]}
        changes[_FLIPS] = sum(changes.get(name, 0.0) for name in FLIPS)
        for name, values in found.items():
            values[index] = changes.get(name, math.nan)
    return found


def _recent(curves: Curves) -> list[int]:
    """Evaluations that choose the range: those with the newest reference, if there are enough, else all."""
    step = _pair(curves, -1)["reference_step"]
    recent = [index for index in range(len(curves.records)) if _pair(curves, index)["reference_step"] == step]
    return recent if len(recent) >= ENOUGH else list(range(len(curves.records)))


def _limits(axes: Axes, shown: list[int], series: Sequence[Sequence[float]]) -> None:
    values = finite([values[index] for values in series for index in shown]) or [0.0]
    low, high = min(0.0, *values), max(0.0, *values)
    air = 0.12 * (high - low) or 0.01
    axes.set_ylim(low - air, high + air)


def _lines(axes: Axes, curves: Curves, colors: Theme, parts: dict[str, list[float]], total: list[float]) -> None:
    styles = {
        "wrong both times": (colors.vermilion, "-"),
        "right both times": (colors.blue, (0, (5, 1.5))),
        _FLIPS: (colors.green, (0, (1, 1.2))),
        "items with fewer right rows": (colors.vermilion, "-"),
        "items with more right rows": (colors.blue, (0, (5, 1.5))),
        "items with as many right rows": (colors.green, (0, (1, 1.2))),
    }
    groups = {group["name"]: group for group in _pair(curves, -1)["groups"]}
    unit = "rows" if _FLIPS in parts else "items"
    ends = []
    for name, values in parts.items():
        color, dash = styles.get(name, (colors.faint, "-"))
        draw_line(axes, curves.x, values, color, linewidth=1.8, linestyle=dash)
        items = sum(groups[flip]["items"] for flip in FLIPS) if name == _FLIPS else groups[name]["items"]
        ends.append((values[-1], f"{plain(name)} {values[-1]:+.4f}", f"{items} {unit}", color))
    draw_line(axes, curves.x, total, colors.ink, linewidth=1.2)
    ends.append((total[-1], f"together {total[-1]:+.4f}", "", colors.ink))
    write_ends(axes, ends)
    lowest = best(total)
    if lowest is not None and total[lowest] < axes.get_ylim()[0]:
        text = f"▼ {total[lowest]:+.3g} at epoch {curves.records[lowest].epoch}, cut off"
        write_inside(axes, colors, text, colors.ink, y=0.08)


def _draw_temperature(
    axes: Axes, curves: Curves, colors: Theme, parts: tuple[list[float], list[float], list[float]], shown: list[int]
) -> None:
    total, rest, errors = parts
    end = last(rest)
    if end is None:
        draw_line(axes, curves.x, total, colors.ink, linewidth=1.2)
        return write_inside(axes, colors, "the NLL after one temperature was not measured", colors.faint)
    low, high = zip(*(interval(change, error) for change, error in zip(rest, errors, strict=True)), strict=True)
    _limits(axes, shown, [total, rest, low, high])
    axes.fill_between(curves.x, rest, total, color=colors.orange, alpha=0.5, linewidth=0)
    axes.fill_between(curves.x, low, high, color=colors.sky, alpha=0.5, linewidth=0)
    draw_line(axes, curves.x, rest, colors.blue, linewidth=1.8, dashes=(5, 1.5))
    draw_line(axes, curves.x, total, colors.ink, linewidth=1.2)
    band = f"99 %: {low[end]:+.4f} … {high[end]:+.4f}" if math.isfinite(low[end]) else ""
    write_ends(
        axes,
        [
            (rest[end], f"rest {rest[end]:+.4f}", band, colors.blue),
            (total[-1], f"together {total[-1]:+.4f}", "", colors.ink),
            (
                (total[end] + rest[end]) / 2,
                f"temperature {total[end] - rest[end]:+.4f}",
                "what one T removes: the shade",
                colors.vermilion,
            ),
        ],
    )
