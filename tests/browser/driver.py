"""Pages as a user sees them: Debian's Chromium, driven by Playwright, and a TensorBoard server of our own.

No browser is downloaded, and no page reaches anything but the one origin it is given: names and addresses other than
127.0.0.1 do not resolve, and what is asked for elsewhere is stopped and written down.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Seconds; a busy machine with two cores takes up to 12 for TensorBoard's first page.
PATIENCE = 40
HERE = "127.0.0.1"
# TensorBoard's own: it bundles one library twice and looks for colours of text columns.
BOARD_NOISE = re.compile(r"Three\.js|cannot process domain type|paper-[\w-]+ is deprecated")


def find_browser() -> str | None:
    """Path of Chromium or Chrome, None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def is_required() -> bool:
    """Whether a missing browser is an error: under CI, as every such service says by the variable `CI`."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


@contextmanager
def browser(path: str) -> Iterator[Browser]:
    """A browser without a window that resolves no address but this machine's."""
    from playwright.sync_api import sync_playwright

    closed = f"--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE {HERE}"
    with sync_playwright() as playwright:
        # Drawn by the processor: a machine without a screen has no other way that looks the same everywhere.
        opened = playwright.chromium.launch(executable_path=path, args=[closed, "--force-color-profile=srgb"])
        try:
            yield opened
        finally:
            opened.close()


@dataclass(slots=True)
class Visit:
    """One page and what went on behind it.

    Attributes:
        page: the page.
        problems: warnings and errors of its console, and what its scripts raised.
        requests: addresses outside `origin` that were asked for, and stopped.
    """

    page: Page
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def visit(
    opened: Browser,
    address: str,
    *,
    origin: str = "",
    width: int = 1400,
    height: int = 1000,
    dark: bool = False,
    scale: float = 1.0,
) -> Iterator[Visit]:
    """Opens an address in a fresh profile.

    Args:
        opened: the browser.
        address: what is typed into its address line.
        origin: prefix of the addresses that it may ask for; without one it is offline, and only `address` is read.
        width: of the window, CSS pixels.
        height: of the window, CSS pixels.
        dark: whether the user prefers dark pages.
        scale: pixels of a screenshot for each CSS pixel.
    """
    context = opened.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        device_scale_factor=scale,
        locale="en-GB",
        timezone_id="UTC",
        offline=not origin,
    )
    context.set_default_timeout(1000 * PATIENCE)
    found = Visit(context.new_page())

    def decide(route: Any) -> None:
        url = route.request.url
        if url == address or (origin and url.startswith(origin)):
            route.continue_()
        else:
            found.requests.append(url)
            route.abort()

    def hear(message: Any) -> None:
        if message.type in ("error", "warning") and not BOARD_NOISE.search(message.text):
            found.problems.append(f"{message.type}: {message.text}")

    try:
        context.route(re.compile("^(?!data:|blob:)"), decide)
        found.page.on("console", hear)
        found.page.on("pageerror", lambda error: found.problems.append(f"raised: {error}"))
        found.page.goto(address)
        yield found
    finally:
        context.close()


@contextmanager
def tensorboard(log_dir: Path) -> Iterator[str]:
    """A TensorBoard server that has read everything below a folder; its origin, `http://127.0.0.1:<port>/`.

    Raises:
        RuntimeError: if it ends or says nothing for a minute; the message holds what it wrote.
    """
    # From the folder above, since the pages show the path as it was given.
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", log_dir.name, "--host", HERE, "--port", "0"]
    # Read by Python, once, and said so: a page that is opened before shows no data and looks again after 30 s.
    command += ["--load_fast=false", "--reload_interval=0", "--verbosity=0"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=log_dir.parent, stdout=subprocess.DEVNULL, stderr=log)
        try:
            yield _origin(process, log)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _origin(process: subprocess.Popen[bytes], log: Any) -> str:
    end = time.monotonic() + PATIENCE
    while True:
        log.seek(0)
        said = log.read()
        address = re.search(rf"http://{re.escape(HERE)}:\d+/", said)
        if address and "done reloading" in said:
            return address[0]
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"Expected TensorBoard to start, but got: {said[-2000:]}")
        time.sleep(0.1)


def board_address(origin: str, tab: str, *, tags: str = "", dark: bool = False) -> str:
    """Address of a tab of TensorBoard with unsmoothed curves.

    Args:
        origin: of the server.
        tab: `timeseries`, `scalars`, `custom_scalars`, `histograms`, `distributions`, `images`, `text` or `hparams`.
        tags: regular expression of the tags to show.
        dark: TensorBoard's own switch.
    """
    from urllib.parse import quote

    query = f"?darkMode={str(dark).lower()}&smoothing=0&runColorGroup=run"
    if tab == "timeseries":
        return f"{origin}{query}&tagFilter={quote(tags, safe='')}#{tab}"
    # The older tabs read their settings behind the number sign.
    return f"{origin}{query}#{tab}&_smoothingWeight=0&tagFilter={quote(tags, safe='')}"


# What an element shows, through shadow roots and slots, which `innerText` leaves out.
_SEEN = """(root) => {
  const found = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) { if (node.data.trim()) found.push(node.data); return; }
    if (node instanceof Element) {
      if (['STYLE', 'SCRIPT', 'TEMPLATE', 'TITLE'].includes(node.tagName.toUpperCase())) return;
      const style = getComputedStyle(node);
      if (style.display === 'none' || style.visibility === 'hidden') return;
    }
    const slotted = node.tagName === 'SLOT' ? node.assignedNodes() : [];
    (slotted.length ? slotted : (node.shadowRoot ?? node).childNodes).forEach(walk);
  };
  walk(root);
  return found.join(' ').replace(/\\s+/g, ' ').trim();
}"""


def seen(place: Locator) -> str:
    """The words that an element shows, with single spaces."""
    return place.evaluate(_SEEN)


# Every visible text with its colour and place in the page; then all text is made invisible.
_TEXTS = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.data.trim()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    const style = getComputedStyle(node.parentElement);
    if (!box.width || !box.height || style.visibility === 'hidden') continue;
    // A column that scrolls cuts off what lies outside of it.
    const cut = node.parentElement.closest('.scroll, pre')?.getBoundingClientRect();
    if (cut && (box.bottom > cut.bottom || box.right > cut.right)) continue;
    let opacity = 1;
    for (let one = node.parentElement; one; one = one.parentElement) opacity *= getComputedStyle(one).opacity;
    const drawn = node.parentElement.closest('svg') ? 'svg' : 'html';
    const color = drawn === 'svg' ? style.fill : style.color;
    found.push([node.data.trim(), color, opacity, drawn, box.left + scrollX, box.top + scrollY, box.width, box.height]);
  }
  const hide = document.createElement('style');
  hide.textContent = '* { color: transparent !important; text-decoration-color: transparent !important; }'
    + ' svg text, svg text * { fill: transparent !important; } ::marker { color: transparent !important; }';
  document.head.append(hide);
  return found;
}"""


def contrasts(page: Page) -> list[tuple[str, float, str]]:
    """Contrast of every visible text to what is painted behind it, by WCAG 2: 1 for none, 21 for black on white.

    What lies behind is photographed without the texts, and the colour that most of the text's box has is taken. The
    page stays without texts.

    Returns:
        One (text, contrast, `html` or `svg`) each.
    """
    import io

    import numpy
    from matplotlib.image import imread

    texts = page.evaluate(_TEXTS)
    picture = imread(io.BytesIO(page.screenshot(full_page=True)), format="png")[..., :3]
    found = []
    for text, color, opacity, place, left, top, width, height in texts:
        box = picture[max(int(top), 0) : int(top + height) + 1, max(int(left), 0) : int(left + width) + 1]
        if not box.size:
            continue
        shades, counts = numpy.unique(box.reshape(-1, 3), axis=0, return_counts=True)
        behind = shades[counts.argmax()]
        numbers = [float(number) for number in re.findall(r"[\d.]+", color)]
        share = opacity * (numbers[3] if len(numbers) > 3 else 1.0)
        front = share * numpy.array(numbers[:3]) / 255 + (1 - share) * behind
        found.append((text, float(_contrast(_luminance(front), _luminance(behind))), place))
    return found


def _luminance(color: Any) -> float:
    """Relative luminance of an sRGB colour in [0, 1] (WCAG 2.2)."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
