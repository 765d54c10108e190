"""The one picture: loss and accuracy by epoch, and the line that explains why they part.

Validation NLL and the NLL after one temperature (`refinement_nll`) share one axis. Where they part,
the gap is shaded and named: it is what one division of the logits by T would remove, so it is
confidence and not lost knowledge (temperature scaling: Guo, Pleiss, Sun, Weinberger, 2017).

Figures are made without pyplot: no window, no registry of figures, no choice of backend, and the
user's own style stays as it is. The colours are those of Okabe and Ito (2008), which colour-blind
readers can tell apart; the lines differ in dash as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lossacc.curves import (
    Curves,
    Mark,
    Range,
    best,
    finite,
    last,
    layout,
    marks_of,
    spread,
)
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import History

if TYPE_CHECKING:
    import numpy
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERMILION, BLUE, GREEN, ORANGE, SKY = "#D55E00", "#0072B2", "#009E73", "#E69F00", "#56B4E9"
# Okabe and Ito's reddish purple, darkened: the original is too pale for text on white.
PURPLE = "#A03A75"
INK, FAINT, PALE, GRID = "#222222", "#6E6E6E", "#B0B0B0", "#E6E6E6"
# What the shades look like at half strength on white.
PAPER = {ORANGE: "#F8DDA8", SKY: "#CBE6F7", PALE: "#E4E4E4"}

# Inches; every row of names adds to the height, so that no name ever covers a curve.
WIDTH, HEIGHT, NAME_ROW = 9.0, 5.9, 0.21
LEFT, RIGHT, BOTTOM, TITLE, BETWEEN = 0.72, 2.1, 0.55, 0.72, 0.14
PANEL = WIDTH - LEFT - RIGHT
LOSS_SHARE = 0.66
MAX_NAME_ROWS = 5
DOTS_PER_INCH = 100
# Inches; the mean letter of these names in bold DejaVu Sans of 8.5 points.
LETTER = 0.072

_STYLE = {
    "text.usetex": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "savefig.bbox": None,
    "savefig.facecolor": "white",
}


def picture(history: History, events: Sequence[Event] = (), *, stage: str = "val", loader: int = 0) -> Figure:
    """Loss and accuracy of one stage and loader over epochs, with events and best checkpoints.

    Upper panel: accuracy in percent. Lower panel: NLL in nats, the NLL after one temperature, and
    thin the training NLL where there is one. The gap is orange where a temperature above 1 closes
    it (over-confidence), blue where one below 1 does (under-confidence), and grey where the best
    one lies on the edge of the grid. A ring marks the best evaluation of each line. Each event is
    marked once, where it opened. An axis leaves out values that would flatten the rest and says so.
    Missing and non-finite values leave gaps in the lines; incomplete records are left out.

    Args:
        history: the measurements; a sentence stands in a panel that has nothing to draw.
        events: events of any stage and loader; the fitting ones are drawn, warnings first.
        stage: `"train"`, `"val"` or `"test"`.
        loader: index of the data loader; -1 for the union.

    Returns:
        A matplotlib figure, 900 pixels wide at its 100 dots an inch, unknown to pyplot.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = Curves.of(history, stage, loader)
    training = Curves.of(history, "train", 0) if stage != "train" else Curves()
    fitting = [event for event in events if (event.stage, event.loader) == (stage, loader)]
    wanted = marks_of(fitting, curves)
    x = [*curves.x, *training.x, *(mark[0] for mark in wanted)] or [0.0]
    air = 0.015 * (max(x) - min(x)) or 0.5
    span = (min(x) - air, max(x) + air)
    marks = layout(wanted, span, PANEL, RIGHT - 0.1, LETTER, MAX_NAME_ROWS)
    height = HEIGHT + NAME_ROW * max((mark.row + 1 for mark in marks), default=0)
    panels = HEIGHT - BOTTOM - TITLE - BETWEEN

    def box(bottom: float, share: float) -> tuple[float, float, float, float]:
        return LEFT / WIDTH, bottom / height, PANEL / WIDTH, share * panels / height

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, facecolor="white")
        FigureCanvasAgg(figure)
        lower = figure.add_axes(box(BOTTOM, LOSS_SHARE))
        middle = BOTTOM + LOSS_SHARE * panels + BETWEEN
        upper = figure.add_axes(box(middle, 1 - LOSS_SHARE), sharex=lower)
        _frame(upper, lower, span)
        _draw_title(figure, curves, stage, loader, len(wanted) - len(marks))
        _draw_accuracy(upper, curves)
        _draw_loss(lower, curves, training)
        _draw_marks(upper, lower, marks)
    return figure


def save_picture(
    history: History,
    events: Sequence[Event],
    path: Path | str,
    *,
    stage: str = "val",
    loader: int = 0,
) -> Path:
    """Writes `picture` to a file and returns its path.

    Args:
        history, events, stage, loader: see `picture`.
        path: the file; its suffix chooses the format (png, svg, pdf).

    Raises:
        OSError: if the file cannot be written.
        ValueError: if matplotlib does not know the format.
    """
    import matplotlib

    figure = picture(history, events, stage=stage, loader=loader)
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, dpi=DOTS_PER_INCH)
    return Path(path)


def pixels(figure: Figure) -> numpy.ndarray:
    """The figure as uint8 of shape (height, width, 3): what image logs take without pyplot."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return numpy.asarray(canvas.buffer_rgba())[..., :3].copy()


def _frame(upper: Axes, lower: Axes, span: tuple[float, float]) -> None:
    for axes in (upper, lower):
        axes.set_facecolor("white")
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(FAINT)
        axes.grid(True, color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, labelsize=9)
    lower.xaxis.get_major_locator().set_params(integer=True)
    upper.tick_params(labelbottom=False)
    upper.set_ylabel("accuracy (%)", color=INK)
    lower.set_ylabel("NLL (nats)", color=INK)
    lower.set_xlabel("epoch, counted from 0", color=INK)
    lower.set_xlim(*span)


def _draw_title(figure: Figure, curves: Curves, stage: str, loader: int, num_hidden: int) -> None:
    name = {"train": "Training", "val": "Validation", "test": "Test"}.get(stage, stage)
    where = "" if loader == 0 else ", all data loaders" if loader < 0 else f", data loader {loader}"
    height = figure.get_figheight()
    style: dict[str, Any] = {"va": "center", "parse_math": False}
    title = f"{name} loss and accuracy{where}"
    figure.text(LEFT / WIDTH, 1 - 0.25 / height, title, fontsize=13, weight="bold", color=INK, **style)
    if curves.records:
        newest, count = curves.records[-1], len(curves.records)
        text = f"{count} evaluation{'s' if count > 1 else ''}, "
        text += f"the last at epoch {newest.epoch} on {newest.num_rows} rows · ring: best"
        text += f" · left out for want of room: {num_hidden}" if num_hidden else ""
        figure.text(LEFT / WIDTH, 1 - 0.47 / height, text, color=FAINT, **style)


def _draw_accuracy(axes: Axes, curves: Curves) -> None:
    accuracy = [100 * value for value in curves.column("accuracy")]
    top, newest = best(accuracy, sign=-1), last(accuracy)
    if top is None or newest is None:
        return _write_missing(axes, "no accuracy was recorded")
    bottom, ceiling = Range.of_accuracy(accuracy).limits(0.15, 0.15)
    axes.set_ylim(bottom, min(ceiling, 101.0))
    _draw_line(axes, curves.x, accuracy, GREEN, linewidth=1.8)
    _draw_ring(axes, curves.x[top], accuracy[top], GREEN)
    ring = f"○ highest {accuracy[top]:.1f} %, epoch {curves.records[top].epoch}"
    _write_ends(axes, [(accuracy[newest], f"accuracy {accuracy[newest]:.1f} %", ring, GREEN)])
    worst = best(accuracy)
    if worst is not None and accuracy[worst] < bottom:
        epoch = curves.records[worst].epoch
        text = f"▼ accuracy down to {accuracy[worst]:.1f} % at epoch {epoch}, cut off"
        _write_cut(axes, text, GREEN, 0.09)


def _draw_loss(axes: Axes, curves: Curves, training: Curves) -> None:
    nll, refined = curves.column("nll"), curves.column("refinement_nll")
    trained = training.column("nll")
    if not finite(nll + refined + trained):
        return _write_missing(axes, "no complete evaluation with a finite NLL")
    shown = Range.of_loss(nll, refined, trained)
    if shown.log:
        axes.set_yscale("log")
        axes.set_ylabel("NLL (nats, logarithmic)", color=INK)
    # The air above the curves holds the name of the gap.
    bottom, top = axes.set_ylim(*shown.limits(0.08, 0.3))
    _draw_gap(axes, curves, nll, refined)
    ends = []
    for stream, values, name, color, style in (
        (training, trained, "training", FAINT, {"linewidth": 1.0, "linestyle": ":"}),
        (curves, refined, "after temperature", BLUE, {"linewidth": 2.0, "dashes": (5, 1.5)}),
        (curves, nll, "NLL", VERMILION, {"linewidth": 2.0}),
    ):
        least, newest = best(values), last(values)
        if least is None or newest is None:
            continue
        _draw_line(axes, stream.x, values, color, **style)
        ring = ""
        if stream is curves:
            _draw_ring(axes, stream.x[least], values[least], color)
            ring = f"○ lowest {_nats(values[least])}, epoch {stream.records[least].epoch}"
        arrow = " ▼" if values[newest] < bottom else " ▲" if values[newest] > top else ""
        ends.append((values[newest], f"{name} {_nats(values[newest])}{arrow}", ring, color))
    _write_ends(axes, ends)
    worst = best(nll, sign=-1)
    if worst is not None and nll[worst] > top:
        text = f"▲ NLL up to {nll[worst]:.3g} at epoch {curves.records[worst].epoch}, cut off"
        _write_cut(axes, text, VERMILION, 0.84)


def _draw_gap(axes: Axes, curves: Curves, nll: list[float], refined: list[float]) -> None:
    """Shades what one temperature removes, and names it by the last evaluation."""
    temperature = curves.column("temperature")
    known = [not math.isnan(a + b + c) for a, b, c in zip(nll, refined, temperature, strict=True)]
    if not any(known):
        return
    colors = [ORANGE if value >= 1 else SKY for value in temperature]
    # On the edge of the grid nobody knows how much a temperature would remove: no name, no colour.
    edge = curves.column("temperature_at_edge")
    colors = [PALE if at == 1 else color for at, color in zip(edge, colors, strict=True)]
    for color in (ORANGE, SKY, PALE):
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
    axes.annotate(
        _gap_name(curves, newest),
        (curves.x[target], middle),
        xytext=(0.985, 0.965),
        textcoords="axes fraction",
        ha="right",
        va="top",
        color=INK,
        fontsize=11,
        weight="bold",
        bbox={"boxstyle": "round,pad=0.3", "facecolor": PAPER[colors[newest]], "edgecolor": "none"},
        arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkB": 0, "relpos": (0.85, 0.0)},
        zorder=8,
    )


def _gap_name(curves: Curves, index: int) -> str:
    values = curves.records[index].values
    temperature, nll = values["temperature"], values["nll"]
    gap = nll - values["refinement_nll"]
    if values.get("temperature_at_edge") == 1:
        return f"{gap:.2g} nats or more: T at the edge of the grid"
    name = "over-confidence" if temperature >= 1 else "under-confidence"
    if gap < max(0.001, 0.01 * nll):
        return f"confidence fits: T = {temperature:.2f}"
    return f"{name}, {gap:.2g} nats: gone at T = {temperature:.2f}"


def _draw_marks(upper: Axes, lower: Axes, marks: list[Mark]) -> None:
    inch = DOTS_PER_INCH / upper.get_window_extent().height
    bridge = BETWEEN * DOTS_PER_INCH / lower.get_window_extent().height
    for mark in marks:
        color = PURPLE if mark.is_event else FAINT
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
            bbox={"boxstyle": "square,pad=0", "facecolor": "white", "edgecolor": "none"},
        )


def _draw_line(axes: Axes, x: Sequence[float], y: list[float], color: str, **style: Any) -> None:
    # A point between two gaps is invisible as a line, and few points should be seen as points.
    def is_lonely(index: int) -> bool:
        return not finite([*y[max(index - 1, 0) : index], *y[index + 1 : index + 2]])

    dots = [index for index in range(len(y)) if len(y) <= 40 or is_lonely(index)]
    axes.plot(x, y, color=color, marker="o", markersize=3.5, markevery=dots, **style)


def _draw_ring(axes: Axes, x: float, y: float, color: str) -> None:
    style = {"markerfacecolor": "white", "markeredgecolor": color, "markeredgewidth": 1.8}
    axes.plot([x], [y], marker="o", markersize=8, linestyle="none", zorder=6, **style)


def _write_ends(axes: Axes, ends: list[tuple[float, str, str, str]]) -> None:
    """Names beside the ends of the lines; (y, name, second line, color)."""
    line = 15.0 / axes.get_window_extent().height
    to_share = axes.transData + axes.transAxes.inverted()
    wished = [min(max(float(to_share.transform((0.0, y))[1]), 0.0), 1.0) for y, *_ in ends]
    order = sorted(range(len(ends)), key=wished.__getitem__)
    heights = [line * (2 if ends[index][2] else 1) for index in order]
    middles = spread([(wished[index], height) for index, height in zip(order, heights, strict=True)])
    for index, middle, height in zip(order, middles, heights, strict=True):
        _, name, second, color = ends[index]
        style: dict[str, Any] = {"transform": axes.transAxes, "color": color, "va": "center"}
        y = middle + (height - line) / 2
        axes.text(1.015, y, name, weight="bold", fontsize=9, **style)
        axes.text(1.015, y - line, second, fontsize=8.5, **style)


def _write_cut(axes: Axes, text: str, color: str, y: float) -> None:
    paper = {
        "boxstyle": "square,pad=0.15",
        "facecolor": "white",
        "edgecolor": "none",
        "alpha": 0.85,
    }
    style: dict[str, Any] = {"fontsize": 8.5, "va": "center", "bbox": paper, "zorder": 7}
    axes.text(0.012, y, text, transform=axes.transAxes, color=color, **style)


def _nats(value: float) -> str:
    return f"{value:.4f}" if 0.001 <= value < 100 else f"{value:.2g}"


def _write_missing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT)
    axes.set_yticks([])
