"""The one picture: loss and accuracy by epoch, and the line that explains why they part.

Validation NLL and the NLL after one temperature (`refinement_nll`) share one axis. Where they part, the gap is shaded
and named: it is what one division of the logits by T would remove, so it is confidence and not lost knowledge
(temperature scaling: Guo, Pleiss, Sun, Weinberger, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_lossacc.curves import (
    Curves,
    Mark,
    Range,
    best,
    finite,
    last,
    layout,
    marks_of,
)
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures.canvas import (
    BETWEEN,
    BOTTOM,
    DOTS_PER_INCH,
    HEIGHT,
    MARK,
    NAME,
    PANEL,
    RIGHT,
    THEMES,
    TITLE,
    Theme,
    ThemeName,
    draw_line,
    over_epochs,
    panel,
    sheet,
    span_of,
    stage_name,
    style,
    write_ends,
    write_inside,
    write_missing,
    write_title,
)
from lightning_lossacc.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches; every row of names adds to the height, so that no name ever covers a curve.
NAME_ROW = 0.21
LOSS_SHARE = 0.66
MAX_NAME_ROWS = 5
# Inches; the mean letter of these names in bold DejaVu Sans of 8.5 points.
LETTER = 0.072
# Shades have no more corners than this: a panel is 552 pixels wide.
MAX_CORNERS = 400


def picture(
    history: History,
    events: Sequence[Event] = (),
    *,
    stage: str = "val",
    loader: int = 0,
    theme: ThemeName = "light",
) -> Figure:
    """Loss and accuracy of one stage and loader over epochs, with events and best checkpoints.

    Upper panel: accuracy in percent. Lower panel: NLL in nats, the NLL after one temperature, and thin the training NLL
    where there is one; of a log without an NLL the logged losses. The gap is orange where a temperature above 1 closes
    it (over-confidence), blue where one below 1 does (under-confidence), and grey where the best one lies on the edge
    of the grid. A ring marks the best evaluation of each line. Each event is marked once, where it opened. An axis
    leaves out values that would flatten the rest and says so. Missing and non-finite values leave gaps in the lines;
    incomplete records are left out.

    Args:
        history: the measurements; a sentence stands in a panel that has nothing to draw.
        events: events of any stage and loader; the fitting ones are drawn, warnings first.
        stage: `"train"`, `"val"` or `"test"`.
        loader: index of the data loader; -1 for the union.
        theme: `"light"` or `"dark"`.

    Returns:
        A matplotlib figure, 900 pixels wide at its 120 dots an inch, unknown to pyplot.
    """
    colors = THEMES[theme]
    curves, training = _curves(history, stage, loader)
    wanted = marks_of([event for event in events if (event.stage, event.loader) == (stage, loader)], curves)
    span = span_of([*curves.x, *training.x, *(mark[0] for mark in wanted)])
    marks = layout(wanted, span, PANEL, RIGHT - 0.1, LETTER, MAX_NAME_ROWS)
    panels = HEIGHT - BOTTOM - TITLE - BETWEEN
    with style():
        figure = sheet(HEIGHT + NAME_ROW * max((mark.row + 1 for mark in marks), default=0), colors)
        lower = panel(figure, colors, BOTTOM, LOSS_SHARE * panels)
        middle = BOTTOM + LOSS_SHARE * panels + BETWEEN
        upper = panel(figure, colors, middle, (1 - LOSS_SHARE) * panels, sharex=lower)
        over_epochs(lower, span)
        upper.tick_params(labelbottom=False)
        upper.set_ylabel("accuracy (%)")
        lower.set_ylabel("NLL (nats)")
        _draw_title(figure, colors, curves, stage, loader, len(wanted) - len(marks))
        _draw_accuracy(upper, colors, curves)
        _draw_loss(lower, colors, curves, training)
        _draw_marks(upper, lower, colors, marks)
    return figure


def draw(
    history: History,
    events: Sequence[Event] = (),
    *,
    stage: str = "val",
    loader: int = 0,
    theme: ThemeName = "light",
) -> Figure | None:
    """`picture`, or None if nothing was measured."""
    curves, _ = _curves(history, stage, loader)
    if not finite([*curves.loss()[1], *curves.accuracy()]):
        return None
    return picture(history, events, stage=stage, loader=loader, theme=theme)


def alt_text(history: History, events: Sequence[Event] = (), *, stage: str = "val", loader: int = 0) -> str:
    """What the picture shows, in sentences with its numbers."""
    curves, _ = _curves(history, stage, loader)
    name, losses = curves.loss()
    shares = curves.accuracy()
    parts = [f"{stage_name(stage, loader)} loss and accuracy over {len(curves.records)} evaluations."]
    lowest, newest = best(losses), last(losses)
    if lowest is not None and newest is not None:
        parts.append(
            f"{name}: lowest {nats(losses[lowest])} at epoch {curves.records[lowest].epoch}, "
            f"last {nats(losses[newest])} at epoch {curves.records[newest].epoch}."
        )
    refined = curves.column("refinement_nll")
    least, end = best(refined), last(refined)
    if least is not None and end is not None:
        parts.append(
            f"NLL after one temperature: lowest {nats(refined[least])} at epoch {curves.records[least].epoch}, "
            f"last {nats(refined[end])}. Gap of the last evaluation: {_gap_name(curves, end) or 'not known'}."
        )
    top, end = best(shares, sign=-1), last(shares)
    if top is not None and end is not None:
        parts.append(
            f"Accuracy: highest {100 * shares[top]:.1f} % at epoch {curves.records[top].epoch}, "
            f"last {100 * shares[end]:.1f} %."
        )
    own = [event for event in events if (event.stage, event.loader) == (stage, loader)]
    parts += [f"Marked: {text}." for _, text, is_event in marks_of(own, curves) if is_event]
    return " ".join(parts)


def nats(value: float) -> str:
    """A loss as it is written beside its line."""
    return f"{value:.4f}" if 0.001 <= value < 100 else f"{value:.2g}"


def _curves(history: History, stage: str, loader: int) -> tuple[Curves, Curves]:
    """The stage's own curves, and those of the training beside them."""
    return Curves.of(history, stage, loader), Curves.of(history, "train", 0) if stage != "train" else Curves()


def _draw_title(figure: Figure, theme: Theme, curves: Curves, stage: str, loader: int, num_hidden: int) -> None:
    text = ""
    if curves.records:
        newest, count = curves.records[-1], len(curves.records)
        text = f"{count} evaluation{'s' if count > 1 else ''}, the last at epoch {newest.epoch}"
        text += f" on {newest.num_rows} rows" if newest.num_rows else ""
        text += " · ring: best"
        text += f" · left out for want of room: {num_hidden}" if num_hidden else ""
    where = stage_name(stage, loader).partition(",")
    write_title(figure, theme, f"{where[0]} loss and accuracy{where[1]}{where[2]}", text)


def _draw_accuracy(axes: Axes, theme: Theme, curves: Curves) -> None:
    accuracy = [100 * value for value in curves.accuracy()]
    top, newest = best(accuracy, sign=-1), last(accuracy)
    if top is None or newest is None:
        return write_missing(axes, theme, "no accuracy was recorded")
    bottom, ceiling = Range.of_accuracy(accuracy).limits(0.15, 0.15)
    axes.set_ylim(bottom, min(ceiling, 101.0))
    draw_line(axes, curves.x, accuracy, theme.green, linewidth=1.8)
    _draw_ring(axes, theme, curves.x[top], accuracy[top], theme.green)
    ring = f"○ highest {accuracy[top]:.1f} %, epoch {curves.records[top].epoch}"
    write_ends(axes, [(accuracy[newest], f"accuracy {accuracy[newest]:.1f} %", ring, theme.green)])
    worst = best(accuracy)
    if worst is not None and accuracy[worst] < bottom:
        epoch = curves.records[worst].epoch
        text = f"▼ accuracy down to {accuracy[worst]:.1f} % at epoch {epoch}, cut off"
        write_inside(axes, theme, text, theme.green, y=0.09)


def _draw_loss(axes: Axes, theme: Theme, curves: Curves, training: Curves) -> None:
    name, nll = curves.loss()
    refined, trained = curves.column("refinement_nll"), training.loss()[1]
    if not finite(trained):
        # A log without training records may still tell what was logged beside each evaluation.
        training, trained = curves, curves.context("train_loss")
    if not finite(nll + refined + trained):
        return write_missing(axes, theme, "no complete evaluation with a finite NLL")
    unit = "nats" if name == "NLL" else "as logged"
    shown = Range.of_loss(nll, refined, trained)
    axes.set_ylabel(f"{name} ({unit}{', logarithmic' if shown.log else ''})")
    if shown.log:
        axes.set_yscale("log")
    # The air above the curves holds the name of the gap.
    bottom, top = axes.set_ylim(*shown.limits(0.08, 0.3))
    _draw_gap(axes, theme, curves)
    ends = []
    for stream, values, label, color, options in (
        (training, trained, "training", theme.faint, {"linewidth": 1.0, "linestyle": ":"}),
        (curves, refined, "after temperature", theme.blue, {"linewidth": 2.0, "dashes": (5, 1.5)}),
        (curves, nll, name, theme.vermilion, {"linewidth": 2.0}),
    ):
        least, newest = best(values), last(values)
        if least is None or newest is None:
            continue
        draw_line(axes, stream.x, values, color, **options)
        ring = ""
        if values is not trained:
            _draw_ring(axes, theme, stream.x[least], values[least], color)
            ring = f"○ lowest {nats(values[least])}, epoch {stream.records[least].epoch}"
        arrow = " ▼" if values[newest] < bottom else " ▲" if values[newest] > top else ""
        ends.append((values[newest], f"{label} {nats(values[newest])}{arrow}", ring, color))
    write_ends(axes, ends)
    worst = best(nll, sign=-1)
    if worst is not None and nll[worst] > top:
        text = f"▲ {name} up to {nll[worst]:.3g} at epoch {curves.records[worst].epoch}, cut off"
        write_inside(axes, theme, text, theme.vermilion, y=0.84)


def _draw_gap(axes: Axes, theme: Theme, curves: Curves) -> None:
    """Shades what one temperature removes, and names it by the last evaluation."""
    curves = curves.thinned(MAX_CORNERS)
    nll, refined = curves.column("nll"), curves.column("refinement_nll")
    temperature = curves.column("temperature")
    known = [not math.isnan(a + b + c) for a, b, c in zip(nll, refined, temperature, strict=True)]
    if not any(known):
        return
    colors = [theme.orange if value >= 1 else theme.sky for value in temperature]
    # On the edge of the grid nobody knows how much a temperature would remove: no name, no colour.
    edge = curves.column("temperature_at_edge")
    colors = [theme.pale if at == 1 else color for at, color in zip(edge, colors, strict=True)]
    for color in (theme.orange, theme.sky, theme.pale):
        where = [a and b == color for a, b in zip(known, colors, strict=True)]
        axes.fill_between(curves.x, refined, nll, where=where, color=color, alpha=0.5, linewidth=0)
    newest = max(index for index, value in enumerate(known) if value)
    if len(curves.x) == 1:
        axes.vlines(curves.x, refined, nll, color=colors[0], alpha=0.5, linewidth=8)
    # The arrow points into the gap some way before its end, where the gap still has this name.
    target, goal = newest, 0.12 * curves.x[0] + 0.88 * curves.x[newest]
    while target > 0 and curves.x[target] > goal:
        if not known[target - 1] or colors[target - 1] != colors[newest]:
            break
        target -= 1
    bottom, top = axes.get_ylim()
    ends = [min(max(value, bottom), top) for value in (nll[target], refined[target])]
    middle = math.sqrt(ends[0] * ends[1]) if axes.get_yscale() == "log" else sum(ends) / 2
    papers = {theme.orange: theme.orange_paper, theme.sky: theme.sky_paper, theme.pale: theme.pale_paper}
    axes.annotate(
        _gap_name(curves, newest),
        (curves.x[target], middle),
        xytext=(0.985, 0.965),
        textcoords="axes fraction",
        ha="right",
        va="top",
        color=theme.ink,
        fontsize=11,
        weight="bold",
        bbox={"boxstyle": "round,pad=0.3", "facecolor": papers[colors[newest]], "edgecolor": "none"},
        arrowprops={"arrowstyle": "-|>", "color": theme.ink, "shrinkB": 0, "relpos": (0.85, 0.0)},
        zorder=8,
    )


def _gap_name(curves: Curves, index: int) -> str:
    values = curves.records[index].values
    temperature, nll = values.get("temperature", math.nan), values.get("nll", math.nan)
    gap = nll - values.get("refinement_nll", math.nan)
    if not math.isfinite(temperature + gap):
        return ""
    if values.get("temperature_at_edge") == 1:
        return f"{gap:.2g} nats or more: T at the edge of the grid"
    name = "over-confidence" if temperature >= 1 else "under-confidence"
    if gap < max(0.001, 0.01 * nll):
        return f"confidence fits: T = {temperature:.2f}"
    return f"{name}, {gap:.2g} nats: gone at T = {temperature:.2f}"


def _draw_marks(upper: Axes, lower: Axes, theme: Theme, marks: list[Mark]) -> None:
    inch = DOTS_PER_INCH / upper.get_window_extent().height
    bridge = BETWEEN * DOTS_PER_INCH / lower.get_window_extent().height
    for mark in marks:
        color = theme.purple if mark.is_event else theme.faint
        top = 1 + (0.12 + NAME_ROW * mark.row) * inch
        for axes, end in ((upper, top), (lower, 1 + bridge)):
            axes.plot(
                [mark.x, mark.x],
                [0, end],
                transform=axes.get_xaxis_transform(),
                color=color,
                linewidth=1.2,
                linestyle="-" if mark.is_event else (0, (1, 2)),
                clip_on=False,
                zorder=1.5,
                gid=MARK,
            )
        upper.text(
            mark.x,
            top,
            f"{mark.text} " if mark.leftwards else f" {mark.text}",
            transform=upper.get_xaxis_transform(),
            ha="right" if mark.leftwards else "left",
            va="center",
            color=color,
            fontsize=8.5,
            weight="bold" if mark.is_event else "normal",
            parse_math=False,
            gid=NAME,
            bbox={"boxstyle": "square,pad=0", "facecolor": theme.paper, "edgecolor": "none"},
        )


def _draw_ring(axes: Axes, theme: Theme, x: float, y: float, color: str) -> None:
    options = {"markerfacecolor": theme.paper, "markeredgecolor": color, "markeredgewidth": 1.8}
    axes.plot([x], [y], marker="o", markersize=8, color=color, linestyle="none", zorder=6, **options)
