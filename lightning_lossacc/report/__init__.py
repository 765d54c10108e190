"""One HTML file about a run that stands alone: no network, no scripts, no fonts of its own, light, dark and on paper.

`content` says what stands in it, `drawings` puts figures into it, `page.html` and `page.css` say how it looks. Every
text is escaped by the template; only our own drawings are not, and their texts are escaped when they are made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lossacc.curves import plain
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures import FIGURES, alt_text, draw
from lightning_lossacc.history import History
from lightning_lossacc.report.content import Content, Stream, content
from lightning_lossacc.report.drawings import DARK_VARIABLES, LIGHT_VARIABLES, inline

if TYPE_CHECKING:
    from jinja2 import Template

FILE_NAME = "report.html"
PICTURE = "lossacc"
# Characters of all drawings together: the page stays below 500 kB.
BUDGET = 300_000


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure of the page: SVG that is safe as it is, and its caption, which is its alternative text as well."""

    svg: Any
    caption: str


def render(
    history: History,
    events: Sequence[Event] = (),
    *,
    title: str = "",
    configuration: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    finished: bool = True,
) -> str:
    """The report as a page.

    Without matplotlib it has no figures and says so.

    Args:
        history, events: of one run.
        title: name of the run.
        configuration: settings, in plain values.
        notes: further sentences about the log.
        finished: False while the run goes on.
    """
    notes = list(notes)
    can_draw = find_spec("matplotlib") is not None
    if not can_draw:
        notes.append("Figures are missing: matplotlib was not installed where this report was made.")
    page = content(history, events, title, configuration, notes)
    wanted = [(PICTURE, stream) for stream in page.streams]
    wanted += [(name, stream) for stream in page.streams[:1] for name in FIGURES if name != PICTURE]
    drawn = _within_budget(_drawing(name, history, events, stream) if can_draw else None for name, stream in wanted)
    html = _template().render(
        page=page,
        pictures=drawn[: len(page.streams)],
        drawings=[drawing for drawing in drawn[len(page.streams) :] if drawing is not None],
        css=_css(),
        state=_state(history, page, finished),
        version=_version(),
    )
    return plain(html)


def write(
    path: Path | str,
    history: History,
    events: Sequence[Event] = (),
    **options: Any,
) -> Path:
    """Writes the report in place of the one before, whole or not at all, and returns its path.

    Args:
        path: the file; its folder is made.
        history, events, options: see `render`.

    Raises:
        OSError: if the file cannot be written; the one before stays.
    """
    path = Path(path)
    page = render(history, events, **options).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".draft_{path.name}")
    try:
        draft.write_bytes(page)
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    return path


def _within_budget(drawings: Iterable[Drawing | None]) -> list[Drawing | None]:
    """The first ones that fit; in place of each other one its caption alone."""
    left, kept = BUDGET, []
    for drawing in drawings:
        fits = drawing is None or len(drawing.svg) <= left
        left -= len(drawing.svg) if fits and drawing is not None else 0
        kept.append(drawing if fits else Drawing("", f"{drawing.caption} (Left out, to keep this page small.)"))
    return kept


def _drawing(name: str, history: History, events: Sequence[Event], stream: Stream) -> Drawing | None:
    """One figure; in place of one that fails the reason, so that the rest of the page is not lost."""
    from markupsafe import Markup

    place = {"stage": stream.stage, "loader": stream.loader}
    try:
        figure = draw(name, history, events, **place)
        if figure is None:
            return None
        words = alt_text(name, history, events, **place)
        identity = f"{name}-{stream.stage}-{stream.loader}".replace("/", "-")
        return Drawing(Markup(inline(figure, identity, words)), words)
    except Exception as error:
        return Drawing("", f"The figure {name} could not be drawn: {type(error).__name__}: {error}.")


def _state(history: History, page: Content, finished: bool) -> str:
    evaluations, events = sum(record.stage != "train" for record in history), len(page.events) + page.hidden_events
    text = f"{evaluations} evaluation{'' if evaluations == 1 else 's'}, {events} event{'' if events == 1 else 's'}"
    return f"{text}." if finished else f"The run goes on, or ended without a last word. So far: {text}."


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _with_code
    return environment.get_template("page.html")


def _with_code(text: str) -> Any:
    """Escaped text, where what stands between two backticks is marked as code."""
    from markupsafe import Markup, escape

    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return escape(text)
    marked = (
        Markup("<code>{}</code>").format(piece) if place % 2 else escape(piece) for place, piece in enumerate(pieces)
    )
    return Markup("").join(marked)


@cache
def _css() -> Any:
    from markupsafe import Markup

    text = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return Markup(text.replace("@LIGHT@", LIGHT_VARIABLES).replace("@DARK@", DARK_VARIABLES))


@cache
def _version() -> str:
    try:
        return version("lightning-lossacc")
    except PackageNotFoundError:
        return ""
