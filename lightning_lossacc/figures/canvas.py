"""What do all figures share? Colours for light and dark, one size, frames, titles, names at the ends of lines.

Figures are made without pyplot: no window, no registry of figures, no choice of backend, and the user's own style stays
as it is. The colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart, on white as much
darker, and on black as much lighter, as text needs for a contrast of 4.5; lines differ in dash as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_lossacc.curves import envelope, finite, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

_STYLE = {
    "text.usetex": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "savefig.bbox": None,
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
        axes.text(1.015, y, name, weight="bold", fontsize=9, **common)
        if second:
            axes.text(1.015, y - line, second, fontsize=8.5, **common)


def write_inside(axes: Axes, theme: Theme, text: str, color: str, x: float = 0.012, y: float = 0.93) -> None:
    """A short text on the panel, on paper so that lines do not cross it; x and y are shares of the panel."""
    paper = {"boxstyle": "square,pad=0.15", "facecolor": theme.paper, "edgecolor": "none", "alpha": 0.85}
    common: dict[str, Any] = {"fontsize": 8.5, "va": "center", "bbox": paper, "zorder": 7, "parse_math": False}
    axes.text(x, y, text, transform=axes.transAxes, color=color, **common)


def write_missing(axes: Axes, theme: Theme, text: str) -> None:
    """Why a panel is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=theme.faint)
    axes.set_yticks([])


def mark_reference(axes: Axes, theme: Theme, x: float) -> None:
    """The dotted line of the reference evaluation."""
    axes.axvline(x, color=theme.faint, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1.5)
