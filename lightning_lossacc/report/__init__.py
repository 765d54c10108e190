"""One HTML file about a run that stands alone: no network, no scripts, no fonts of its own, light, dark and on paper.

`content` says what stands in it, `drawings` puts figures into it, `page.html` and `page.css` say how it looks. Every
text is escaped by the template; only our own drawings are not, and their texts are escaped when they are made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lossacc.curves import plain
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures import FIGURES, alt_text, draw, narrow
from lightning_lossacc.history import History
from lightning_lossacc.report.content import Content, Stream, content
from lightning_lossacc.report.drawings import DARK_VARIABLES, LIGHT_VARIABLES, inline

if TYPE_CHECKING:
    from jinja2 import Template

FILE_NAME = "report.html"
PICTURE = "lossacc"
# Characters of all drawings together: the page stays below 500 kB.
BUDGET = 300_000
# A call, with calls among its arguments, or a setting such as `weight_decay=0.05`: what remedies hold without marks.
_CALL = r"[A-Za-z_][\w.]*\w\((?:[^()\n]|\([^()\n]*\))*\)"
_CODE = re.compile(rf"((?<![\w.]){_CALL}|(?<![\w.])[a-z]\w*=(?:\"[^\"\n]*\"|[\w.]*\w))")
# Behind these signs.
_BREAKS = re.compile(r"(?<=[(,=/])(?=[^\s)])")


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure of the page.

    Attributes:
        svg: safe as it is; empty where there is none.
        narrow: the one picture again, for windows that have no room for it, such as that of a phone; else empty.
        caption: what it shows, in sentences with its numbers.
        identity: of the caption, which describes the drawing; unique within the page.
    """

    svg: Any
    caption: str
    identity: str = ""
    narrow: Any = ""


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
    """The first ones that fit; in place of each other one its caption alone. Narrow ones take what is left."""
    left, kept = BUDGET, []
    for drawing in drawings:
        fits = drawing is None or len(drawing.svg) <= left
        left -= len(drawing.svg) if fits and drawing is not None else 0
        kept.append(drawing if fits else Drawing("", f"{drawing.caption} (Left out, to keep this page small.)"))
    for place, drawing in enumerate(kept):
        if drawing is not None and len(drawing.narrow) > left:
            kept[place] = replace(drawing, narrow="")
        elif drawing is not None:
            left -= len(drawing.narrow)
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
        label, caption = words.partition(". ")[0], f"{identity}-caption"
        svg = inline(figure, identity, label, caption)
        # The others would make the page twice as large: on a phone they are moved sideways.
        small = inline(narrow(figure), f"{identity}-narrow", label, caption) if name == PICTURE else ""
        return Drawing(Markup(svg), words, caption, Markup(small))
    except Exception as error:
        return Drawing("", f"The figure {name} could not be drawn: {type(error).__name__}: {error}.")


def _state(history: History, page: Content, finished: bool) -> str:
    evaluations = sum(record.stage != "train" for record in history)
    text = f"{evaluations} evaluation{'' if evaluations == 1 else 's'}, {page.counts}"
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
    """Escaped text, where code is marked: calls, settings, and what stands between two backticks."""
    from markupsafe import Markup, escape

    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        pieces = [text]
    marked = [
        _code(part) if is_code else escape(part)
        for place, piece in enumerate(pieces)
        for is_code, part in ([(True, piece)] if place % 2 else _parts(piece))
    ]
    return Markup("").join(marked)


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """Whether it is code, and the text, piece by piece."""
    for place, piece in enumerate(_CODE.split(text)):
        if piece:
            yield place % 2 == 1, piece


def _code(text: str) -> Any:
    """Code that breaks where a reader would break it: a narrow page has no room for a whole call."""
    from markupsafe import Markup, escape

    pieces = (escape(piece) for piece in _BREAKS.split(text))
    return Markup("<code>{}</code>").format(Markup("<wbr>").join(pieces))


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
