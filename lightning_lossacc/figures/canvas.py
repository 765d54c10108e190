"""What do all figures share? Colours for light and dark, one size, frames, titles, names at the ends of lines.

Figures are made without pyplot: no window, no registry of figures, no choice of backend, and the user's own style stays
as it is. The colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart, on white as much
darker, and on black as much lighter, as text needs for a contrast of 4.5; lines differ in dash as well.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_lossacc.curves import envelope, finite, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

ThemeName = Literal["light", "dark"]

# Inches; the same for every figure, so that they stand below each other in one page.
WIDTH, HEIGHT = 7.5, 5.1
LEFT, RIGHT, BOTTOM, TITLE, BETWEEN = 0.8, 2.1, 0.55, 0.72, 0.14
PANEL = WIDTH - LEFT - RIGHT
# 900 pixels wide: what image panels of loggers show without scaling it up.
DOTS_PER_INCH = 120
# A line has no more points than this: its panel is 552 pixels wide.
MAX_POINTS = 1000
LINE = 0.15  # inches from one line of text to the next
# Inches of a narrow figure, and of the air around it: 350 pixels wide, letters of 9 points are 11 pixels high. It is
# drawn twice as fine, for screens of many pixels.
NARROW, EDGE = 3.75, 0.1
NARROW_DOTS_PER_INCH = 187
# Height of a panel in a narrow figure, as a share of that in the wide one.
LOWERED = 0.6
# Inches; the mean letter of DejaVu Sans for each point of its size, and that of its bold face.
LETTER, BOLD_LETTER = 0.0075, 0.0084
SMALLEST = 7.5  # points: 9 pixels
NARROWEST = 1.3  # inches; a panel below it has room for two numbers on its axis
# Texts that stand above their panel in a narrow figure: (name, what follows it in the same line); vertical lines whose
# upper ends are the names of marks. Numbers at bars give way there, since the axis tells them.
NAME, MORE, MARK, NUMBER = "name", "more", "mark", "number"

_STYLE = {
    "text.usetex": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "savefig.bbox": None,
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "savefig.facecolor": "auto",
    # Text stays text in SVG: it can be searched, selected and read out.
    "svg.fonttype": "none",
}


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours by what they are used for; no two fields of one theme hold the same colour.

    Attributes:
        paper, ink, faint, pale, grid: background, text, secondary text, disabled, lines of the grid.
        vermilion, blue, green, purple: lines and text; the loss, what one temperature leaves, accuracy, events.
        orange, sky: shades of over- and of under-confidence.
        orange_paper, sky_paper, pale_paper: papers behind text on these shades.
    """

    paper: str
    ink: str
    faint: str
    pale: str
    grid: str
    vermilion: str
    blue: str
    green: str
    purple: str
    orange: str
    sky: str
    orange_paper: str
    sky_paper: str
    pale_paper: str


LIGHT = Theme(
    paper="#FFFFFF",
    ink="#222222",
    faint="#666666",
    pale="#B0B0B0",
    grid="#E6E6E6",
    vermilion="#C25400",
    blue="#0072B2",
    green="#008560",
    purple="#A03A75",
    orange="#E69F00",
    sky="#56B4E9",
    orange_paper="#F8DDA8",
    sky_paper="#CBE6F7",
    pale_paper="#E4E4E4",
)
DARK = Theme(
    paper="#14171C",
    ink="#EDEDED",
    faint="#A9AFB8",
    pale="#7A808A",
    grid="#2C3139",
    vermilion="#FF9A57",
    blue="#6FBEFF",
    green="#3CD0A0",
    purple="#F09CCB",
    orange="#B87F00",
    sky="#2F7FB0",
    orange_paper="#59420C",
    sky_paper="#1D4257",
    pale_paper="#3A3F47",
)
THEMES: dict[ThemeName, Theme] = {"light": LIGHT, "dark": DARK}


@contextmanager
def style() -> Iterator[None]:
    """The style of all figures while they are made and saved; the user's comes back afterwards.

    Names of users may hold signs that the font lacks: they are boxes, and no warning is given about them.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def sheet(height: float, theme: Theme) -> Figure:
    """An empty figure, 7.5 inches wide, with a canvas of its own and unknown to pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    return figure


def panel(
    figure: Figure, theme: Theme, bottom: float, height: float, left: float = LEFT, width: float = PANEL, **options: Any
) -> Axes:
    """Axes at a place in inches, framed.

    Args:
        figure, theme: where and in which colours.
        bottom, height, left, width: inches.
        options: of `Figure.add_axes`, such as `sharex`.
    """
    whole = figure.get_figheight()
    axes = figure.add_axes((left / WIDTH, bottom / whole, width / WIDTH, height / whole), **options)
    axes.set_facecolor(theme.paper)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)
    axes.grid(True, color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=theme.ink, labelsize=9)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    return axes


def stack(figure: Figure, theme: Theme, shares: Sequence[float], span: tuple[float, float]) -> list[Axes]:
    """Panels over one axis of epochs, from top to bottom; their shares of the height add up to 1."""
    free = HEIGHT - BOTTOM - TITLE - BETWEEN * (len(shares) - 1)
    panels: list[Axes] = []
    bottom = BOTTOM
    for share in reversed(shares):
        panels.insert(0, panel(figure, theme, bottom, share * free, **({"sharex": panels[-1]} if panels else {})))
        bottom += share * free + BETWEEN
    over_epochs(panels[-1], span)
    for axes in panels[:-1]:
        axes.tick_params(labelbottom=False)
    return panels


def over_epochs(axes: Axes, span: tuple[float, float]) -> None:
    """The axis of epochs below a panel."""
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch, counted from 0")
    axes.set_xlim(*span)


def span_of(x: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis of epochs, with air; of no epoch as of one."""
    x = x or [0.0]
    air = 0.015 * (max(x) - min(x)) or 0.5
    return min(x) - air, max(x) + air


def write_title(figure: Figure, theme: Theme, title: str, subtitle: str) -> None:
    """Title and the faint line below it."""
    height = figure.get_figheight()
    common: dict[str, Any] = {"va": "center", "parse_math": False}
    figure.text(LEFT / WIDTH, 1 - 0.25 / height, title, fontsize=13, weight="bold", color=theme.ink, **common)
    if subtitle:
        figure.text(LEFT / WIDTH, 1 - 0.47 / height, subtitle, color=theme.faint, **common)


def stage_name(stage: str, loader: int) -> str:
    """ "Validation", "Test, data loader 1" … at the beginning of a title."""
    name = {"train": "Training", "val": "Validation", "test": "Test"}.get(stage, stage)
    where = "" if loader == 0 else ", all data loaders" if loader < 0 else f", data loader {loader}"
    return f"{name}{where}"


def draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], color: str, **options: Any) -> None:
    """A line with gaps where y is not finite; few points, and those between two gaps, are marked."""
    kept = envelope(y, MAX_POINTS)
    x, y = [x[index] for index in kept], [y[index] for index in kept]

    # A point between two gaps is invisible as a line, and few points should be seen as points.
    def is_lonely(index: int) -> bool:
        return not finite([*y[max(index - 1, 0) : index], *y[index + 1 : index + 2]])

    dots = [index for index in range(len(y)) if len(y) <= 40 or is_lonely(index)]
    axes.plot(x, y, **{"color": color, "marker": "o", "markersize": 3.5, "markevery": dots, **options})


def write_ends(axes: Axes, ends: Sequence[tuple[float, str, str, str]]) -> None:
    """Names beside the ends of the lines; (y, name, second line, color)."""
    line = LINE * DOTS_PER_INCH / axes.get_window_extent().height
    to_share = axes.transData + axes.transAxes.inverted()
    wished = [min(max(float(to_share.transform((axes.get_xlim()[0], y))[1]), 0.0), 1.0) for y, *_ in ends]
    order = sorted(range(len(ends)), key=wished.__getitem__)
    heights = [line * (2 if ends[index][2] else 1) for index in order]
    middles = spread([(wished[index], height) for index, height in zip(order, heights, strict=True)])
    for index, middle, height in zip(order, middles, heights, strict=True):
        _, name, second, color = ends[index]
        common: dict[str, Any] = {"transform": axes.transAxes, "color": color, "va": "center", "parse_math": False}
        y = middle + (height - line) / 2
        axes.text(1.015, y, name, weight="bold", fontsize=9, gid=NAME, **common)
        if second:
            axes.text(1.015, y - line, second, fontsize=8.5, gid=MORE, **common)


def write_inside(axes: Axes, theme: Theme, text: str, color: str, x: float = 0.012, y: float = 0.93) -> None:
    """A short text on the panel, on paper so that lines do not cross it; x and y are shares of the panel."""
    paper = {"boxstyle": "square,pad=0.15", "facecolor": theme.paper, "edgecolor": "none", "alpha": 0.85}
    common: dict[str, Any] = {"fontsize": 8.5, "va": "center", "bbox": paper, "zorder": 7, "parse_math": False}
    axes.text(x, y, text, transform=axes.transAxes, color=color, gid=NAME, **common)


def write_missing(axes: Axes, theme: Theme, text: str) -> None:
    """Why a panel is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=theme.faint)
    axes.set_yticks([])


def mark_reference(axes: Axes, theme: Theme, x: float) -> None:
    """The dotted line of the reference evaluation."""
    axes.axvline(x, color=theme.faint, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1.5)


def narrow(figure: Figure) -> Figure:
    """The same figure, half as wide and with letters as large as before: for places that show 350 pixels of width.

    Names that stood beside their lines stand above the panel, in the colours of the lines, and so does the name of the
    axis of y. The figure itself is changed and given back.
    """
    # By height; panels of one height stand beside each other.
    rows: dict[float, list[Axes]] = {}
    for axes in figure.axes:
        rows.setdefault(-round(axes.get_position().y1, 3), []).append(axes)
    with style():
        titles = [
            _folded(text, NARROW - 2 * EDGE, 10.5 if text.get_weight() == "bold" else 8.5) for text in figure.texts
        ]
        heights = {key: LOWERED * row[0].get_window_extent().height / figure.dpi for key, row in rows.items()}
        headers = {key: [line for axes in row for line in _header(axes)] for key, row in rows.items()}
        left = max(_reach(row[0], "y") for row in rows.values()) + EDGE
        widths = {key: _shares(row, NARROW - left - 1.5 * EDGE) for key, row in rows.items()}
        for key, row in rows.items():
            for axes, (_, width) in zip(row, widths[key], strict=True):
                _fold_inside(axes, width)
        bottom = max(_reach(axes, "x") for axes in rows[max(rows)]) + EDGE
        whole = EDGE + sum(titles) + sum(heights.values()) + 1.5 * BETWEEN * len(rows) + bottom
        whole += LINE * sum(map(len, headers.values()))
        figure.set_size_inches(NARROW, whole)
        figure.set_dpi(NARROW_DOTS_PER_INCH)
        y = whole - EDGE
        for text, height in zip(list(figure.texts), titles, strict=True):
            text.set(x=EDGE / NARROW, y=y / whole, va="top")
            y -= height
        for key, row in sorted(rows.items()):
            y -= BETWEEN
            for name, more, color, weight in headers[key]:
                common: dict[str, Any] = {"y": y / whole, "color": color, "va": "top", "parse_math": False}
                figure.text(x=EDGE / NARROW, s=name, weight=weight, fontsize=8.5, **common)
                figure.text(x=1 - EDGE / NARROW, s=more, ha="right", fontsize=8.5, **common)
                y -= LINE
            y -= BETWEEN / 2 + heights[key]
            for axes, (start, width) in zip(row, widths[key], strict=True):
                axes.set_position(((left + start) / NARROW, y / whole, width / NARROW, heights[key] / whole))
    return figure


def _reach(axes: Axes, side: Literal["x", "y"]) -> float:
    """Inches that the ticks and the label of an axis need beside the panel."""
    inside = axes.get_window_extent()
    box = getattr(axes, f"{side}axis").get_tightbbox()
    if box is None:
        return 0.0
    return float(inside.x0 - box.x0 if side == "y" else inside.y0 - box.y0) / axes.figure.dpi


def _shares(row: Sequence[Axes], width: float) -> list[tuple[float, float]]:
    """Where panels beside each other begin, and their widths, inches; as in the wide figure, but closer."""
    gap = 1.5 * BETWEEN
    wide = [axes.get_position().width for axes in row]
    free = width - gap * (len(row) - 1)
    widths = [free * share / sum(wide) for share in wide]
    return [(sum(widths[:place]) + gap * place, own) for place, own in enumerate(widths)]


def _header(axes: Axes) -> list[tuple[str, str, str, str]]:
    """Names that stand above the panel from now on: name, what follows it, colour and weight of each line."""
    for line in axes.lines:
        if line.get_gid() == MARK:
            line.set_ydata([0, 1])
    found: list[tuple[str, str, str, str]] = []
    pairs: list[list[Text]] = []
    for text in axes.texts:
        if text.get_gid() == NAME:
            pairs.append([text])
        elif text.get_gid() == MORE:
            pairs[-1].append(text)
    # As they stood, from top to bottom.
    for pair in sorted(pairs, key=lambda pair: -pair[0].get_position()[1]):
        name, color, weight = pair[0].get_text().strip(), pair[0].get_color(), pair[0].get_weight()
        more = pair[1].get_text() if len(pair) > 1 else ""
        room, letter = (NARROW - 2 * EDGE) / 8.5, BOLD_LETTER if weight == "bold" else LETTER
        if len(name) * letter + (len(more) + 1) * LETTER <= room:
            found.append((name, more, color, weight))
        else:
            parts = textwrap.wrap(name, int(room / letter), break_on_hyphens=False)
            found += [(part, "", color, weight) for part in parts]
            found += [("", more, color, weight)] if more else []
        for text in pair:
            text.remove()
    label = axes.yaxis.label
    if label.get_text() and not any(name.startswith(label.get_text().removesuffix(" (%)")) for name, *_ in found):
        found.insert(0, (label.get_text(), "", label.get_color(), "normal"))
    label.set_text("")
    return found


def _fold_inside(axes: Axes, width: float) -> None:
    """Folds the texts of a panel, and the names of its axes, to its width in inches."""
    for text in list(axes.texts):
        if text.get_gid() == NUMBER:
            text.remove()
            continue
        # Rather a little smaller than on two lines, which would hide what lies behind.
        fitting = 0.95 * width / (max(len(text.get_text()), 1) * _letter(text))
        _folded(text, 0.95 * width, min(text.get_fontsize(), max(fitting, SMALLEST), 9))
    _folded(axes.xaxis.label, width, 9)
    if width < NARROWEST:
        axes.xaxis.get_major_locator().set_params(nbins=1)


def _letter(text: Text) -> float:
    """Inches of a mean letter, for each point of its size."""
    return BOLD_LETTER if text.get_weight() == "bold" else LETTER


def _folded(text: Text, width: float, size: float) -> float:
    """Folds a text to a width in inches, at a size in points; its height in inches."""
    # What follows a sign of equality stays with it.
    words = text.get_text().replace(" = ", "\u00a0=\u00a0")
    lines = textwrap.wrap(words, max(int(width / (size * _letter(text)) + 0.01), 8), break_on_hyphens=False)
    text.set(text="\n".join(lines), fontsize=size)
    # 1.2 is the space from line to line, in sizes; a little air follows the last one.
    return (1.2 * len(lines) + 0.3) * size / 72
