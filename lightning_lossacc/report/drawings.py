"""A figure inside a page: SVG without ids, namespaces and fonts of its own, whose colours follow the page's theme.

The figure is drawn once, in light colours; each colour then becomes a CSS variable, so that dark pages and print need
no second drawing.
"""

from __future__ import annotations

import io
import re
from dataclasses import asdict, fields
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from lightning_lossacc.figures.canvas import DARK, LIGHT, Theme, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_DROPPED = {"metadata", "style", "title"}
# Digits after the point; a hundredth of a point is a hundredth of a pixel.
_DIGITS = 2
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_SPACES = re.compile(r"\s+")
# Verdana has the same widths as DejaVu Sans, where that is not installed.
_STYLE = "stroke-linejoin: round; stroke-linecap: butt; font-family: 'DejaVu Sans', Verdana, sans-serif"


def variables(theme: Theme) -> str:
    """The colours of a theme as CSS declarations."""
    return " ".join(f"--{name.replace('_', '-')}: {color};" for name, color in asdict(theme).items())


LIGHT_VARIABLES, DARK_VARIABLES = variables(LIGHT), variables(DARK)


def inline(figure: Figure, identity: str, name: str, caption: str) -> str:
    """A light figure as an SVG element for an HTML page; its texts are escaped.

    Args:
        figure: drawn with the light theme.
        identity: unique within the page, of letters, digits and dashes.
        name: read out in place of the picture.
        caption: id of the element that describes it.
    """
    import matplotlib

    file = io.BytesIO()
    # Names of clipping paths and markers come from this salt: equal pages for equal runs, unique within one page.
    with style(), matplotlib.rc_context({"svg.hashsalt": identity}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(file.getvalue())
    _clean(root, identity)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": name,
        "aria-describedby": caption,
        "style": _STYLE,
    }
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, identity: str) -> None:
    element.tag = _local(element.tag)
    for child in list(element):
        if _local(child.tag) in _DROPPED:
            element.remove(child)
        else:
            _clean(child, identity)
    # Groups are named alike in every figure, and nothing refers to them.
    if element.tag == "g":
        element.attrib.pop("id", None)
    for name in list(element.attrib):
        value = element.attrib.pop(name)
        local = _local(name)
        if local == "style":
            value = _recoloured(value)
        elif local == "d":
            value = _SPACES.sub(" ", value.strip())
        elif local == "transform" and value.startswith("rotate(-0 "):
            continue
        elif local == "id":
            value = f"{identity}-{value}"
        elif local == "href":
            value = value.replace("#", f"#{identity}-")
        elif local == "clip-path":
            value = value.replace("url(#", f"url(#{identity}-")
        element.attrib[local] = _NUMBER.sub(_rounded, value) if local not in ("id", "href", "clip-path") else value
    _share_style(element)
    # Line ends between elements only add to the size; text stands inside of its own elements.
    if element.text is not None and not element.text.strip():
        element.text = None
    element.tail = None if element.tag != "tspan" else element.tail


def _share_style(element: ElementTree.Element) -> None:
    """Markers of one line take their style from their group: a page of dots would be twice as long."""
    markers = [child for child in element if child.tag == "use"]
    styles = {child.attrib.get("style", "") for child in markers}
    if element.tag == "g" and len(markers) > 1 and len(styles) == 1 and "style" not in element.attrib:
        element.attrib["style"] = styles.pop()
        for child in markers:
            child.attrib.pop("style", None)


def _recoloured(css: str) -> str:
    css = _FAMILY.sub("", css)
    for field in fields(Theme):
        css = css.replace(getattr(LIGHT, field.name).lower(), f"var(--{field.name.replace('_', '-')})")
    return css


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.{_DIGITS}f}".rstrip("0").rstrip(".")
