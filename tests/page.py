"""A page as a strict reader sees it: every element closed, every reference within the page, every figure named."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


@dataclass(slots=True)
class Element:
    """One element: its name, attributes, and the text inside of it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    inside: tuple[str, ...] = ()


@dataclass(slots=True)
class Page:
    """What was read.

    Attributes:
        elements: in order.
        problems: what a strict reader minds.
    """

    elements: list[Element] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def all(self, *tags: str) -> list[Element]:
        """Elements by name."""
        return [element for element in self.elements if element.tag in tags]

    @property
    def text(self) -> str:
        """Everything that is read out, but the style."""
        return "\n".join(element.text for element in self.elements if element.tag not in ("style", "title"))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self.open: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            self.page.problems.append(f"<{tag}> has an attribute twice: {names}")
        inside = tuple(element.tag for element in self.open)
        element = Element(tag, {name: value or "" for name, value in attrs}, inside=inside)
        self.page.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1].tag != tag:
            self.page.problems.append(f"</{tag}> closes {self.open[-1].tag if self.open else 'nothing'}")
            return
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open[-1:]:
            element.text += data


def read(html: str) -> Page:
    """Reads a page and notes what is wrong with it."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    page = reader.page
    page.problems += [f"<{element.tag}> is not closed" for element in reader.open]
    identities = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    page.problems += [f"id {name!r} stands {count} times" for name, count in Counter(identities).items() if count > 1]
    for element in page.elements:
        for name in ("href", "src", "xlink:href"):
            target = element.attributes.get(name)
            if target is not None and target.removeprefix("#") not in identities:
                page.problems.append(f"<{element.tag}> points to {target!r}")
        for name in (name for name in element.attributes if name.startswith("on")):
            page.problems.append(f"<{element.tag}> has a script in {name}")
        clip = element.attributes.get("clip-path", "url(#)")[5:-1]
        if clip and clip not in identities:
            page.problems.append(f"<{element.tag}> is clipped by {clip!r}")
    return page
