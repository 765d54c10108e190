"""The README's pictures: they are there, small and shown, and `make gallery` makes exactly these from a run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from tests.browser import driver
from tests.browser.conftest import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The gallery opens a terminal, which Windows has not.
pytest.importorskip("termios")
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gallery = _script()


def test_readme_shows_every_picture() -> None:
    """What stands in docs/ is shown, what is shown stands there, in words as well, and nothing is large."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = {path: words for words, path in re.findall(r"!\[([^\]]*)\]\(docs/([\w.]+)\)", text)}
    for tag in re.findall(r"<img [^>]*>", text):
        shown[re.search(r'src="docs/([\w.]+)"', tag)[1]] = re.search(r'alt="([^"]*)"', tag)[1]
    others = re.findall(r'srcset="docs/([\w.]+)"', text)
    sizes = {path.name: path.stat().st_size for path in gallery.pictures(DOCS)}
    assert set(shown) | set(others) == set(sizes)
    assert all(len(words.split()) >= 3 for words in shown.values())
    assert max(sizes.values()) < gallery.MAX_BYTES


def test_readme_quotes_the_terminal() -> None:
    """The event and the closing table of the README's first screen stand in the terminal's picture, line by line."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    event, closing = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)[:2]
    shown = lines_of(DOCS / "terminal.svg")
    quoted = event.splitlines() + closing.splitlines()
    assert len(quoted) > 10
    assert [line for line in quoted if line.strip() not in shown] == []


def lines_of(picture: Path) -> list[str]:
    """The lines of a terminal's picture; parts of a line in different colours stand on one height."""
    found: dict[str, str] = {}
    for part in ElementTree.fromstring(picture.read_bytes()).iter("{http://www.w3.org/2000/svg}text"):
        height = part.attrib["y"]
        found[height] = found.get(height, "") + "".join(part.itertext()).replace("\xa0", " ")
    return [line.strip() for line in found.values()]


def test_gallery_makes_these_pictures(run: Run, opened: Browser, tmp_path: Path) -> None:
    """Of any run of the demo; each is an image of some content."""
    from matplotlib.image import imread

    gallery.take(opened, run.log_dir, "said", tmp_path)
    made = gallery.pictures(tmp_path)
    # Other scripts may have put more there.
    assert len(made) == 3 + len(gallery.FIGURES) + len(gallery.TABS)
    assert {path.name for path in made} <= {path.name for path in gallery.pictures(DOCS)}
    for path in made:
        assert path.stat().st_size < gallery.MAX_BYTES
        if path.suffix == ".png":
            picture = imread(path)
            assert min(picture.shape[:2]) > 300 and picture.std() > 0.05, path.name


def test_terminal_stands_alone(opened: Browser, tmp_path: Path) -> None:
    """Words and colours of a terminal, without a font from elsewhere; signs of markup are text."""
    path = tmp_path / "terminal.svg"
    path.write_text(gallery.terminal("\x1b[1;33mhead <b>\x1b[0m\nNLL 0.1 → 0.2 & more"), encoding="utf-8")
    assert lines_of(path) == ["head <b>", "NLL 0.1 → 0.2 & more"]
    assert "url(http" not in path.read_text(encoding="utf-8")
    with driver.visit(opened, path.as_uri()) as visit:
        colors = visit.page.locator("text").evaluate_all("found => found.map(one => getComputedStyle(one).fill)")
        assert len(set(colors)) == 2 and visit.requests == [] and visit.problems == []


def test_terminal_is_a_real_one(tmp_path: Path) -> None:
    """A command sees a terminal of that width, in that folder; a failure is told."""
    code = "import os, sys; print(sys.stdout.isatty(), os.get_terminal_size().columns, os.getcwd(), os.environ['A'])"
    said = gallery.in_terminal([sys.executable, "-c", code], tmp_path, {"A": "b"})
    assert said == f"True {gallery.COLUMNS} {tmp_path} b\n"
    with pytest.raises(subprocess.CalledProcessError):
        gallery.in_terminal([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, {})
