"""The pictures that the README shows, made anew from the demo's own run: `make gallery`.

Trains the digits of `lossacc demo` in a terminal, then photographs that terminal, TensorBoard and the report in
Chromium, and takes the figures that the run drew. Nothing is touched up: pictures are cut, their colours are counted
down to 256, which keeps them small, and paths are shortened to the folder that the command ran in.
"""

from __future__ import annotations

import io
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import driver  # noqa: E402  (found through the line before)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MAX_BYTES = 300_000
# Characters of a line of the terminal.
COLUMNS = 150
CONFIG = "digits"
# Name of a figure in the run's folder: name of the picture here.
FIGURES = {
    "lossacc": "digits",
    "lossacc_changes": "changes",
    "lossacc_reliability": "reliability",
    "lossacc_margin": "margin",
    "lossacc_classes": "classes",
    "lossacc_optimisation": "optimisation",
}
CURVES = "^lossacc/val/(nll|refinement_nll|accuracy|temperature)$"
# Without the fonts that rich would load from elsewhere.
SVG = """<svg viewBox="0 0 {width} {height}" width="{width}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
{styles}
</style>
<defs>{lines}</defs>
<rect fill="#15181d" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x}, 12)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def main() -> int:
    """Makes all pictures; 1 if one is too large."""
    path = driver.find_browser()
    if path is None:
        print(f"no browser: none of {', '.join(driver.NAMES)} is on the path", file=sys.stderr)
        return 1
    folder = ROOT / "docs"
    with tempfile.TemporaryDirectory() as place, driver.browser(path) as opened:
        log_dir, said = train(Path(place))
        take(opened, log_dir, said, folder)
    sizes = {picture.name: picture.stat().st_size for picture in pictures(folder)}
    for name, size in sizes.items():
        print(f"{size / 1000:6.0f} kB  {name}")
    return int(max(sizes.values()) > MAX_BYTES)


def pictures(folder: Path) -> list[Path]:
    """All pictures of a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".png", ".svg"))


def train(place: Path) -> tuple[Path, str]:
    """The demo's run: the folder of its logger, `<place>/runs/digits/version_0`, and what its terminal showed."""
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": CONFIG, "version": 0},
    }
    command = [sys.executable, "-m", "lightning_lossacc.cli", "fit", "--config", CONFIG]
    command += ["--trainer.enable_progress_bar=false", f"--trainer.logger={json.dumps([logger])}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    said = in_terminal(command, place, environment).replace(f"{place}/", "")
    return place / "runs" / CONFIG / "version_0", said


def in_terminal(command: list[str], place: Path, environment: dict[str, str]) -> str:
    """What a command writes to a terminal, with its colours; what it says on stderr is shown here.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    process = subprocess.Popen(command, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=theirs)
    os.close(theirs)
    parts = []
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                part = terminal.read(65536)
            except OSError:  # Linux's way to say that the other end was closed.
                break
            if not part:
                break
            parts.append(part)
    if process.wait() != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return b"".join(parts).decode().replace("\r\n", "\n")


def take(opened: Browser, log_dir: Path, said: str, folder: Path) -> None:
    """Every picture of a run.

    Args:
        opened: the browser.
        log_dir: of the run's TensorBoard logger.
        said: what the terminal showed.
        folder: where the pictures go.
    """
    (folder / "terminal.svg").write_text(terminal(f"$ lossacc fit --config {CONFIG}\n{said}"), encoding="utf-8")
    for figure, name in FIGURES.items():
        save((log_dir / "lossacc" / f"{figure}.png").read_bytes(), folder / f"{name}.png")
    page_of_report(opened, log_dir / "lossacc", folder)
    with driver.tensorboard(log_dir.parents[1]) as origin:
        for tab, (tags, (width, height), prepare) in TABS.items():
            address = driver.board_address(origin, tab, tags=tags)
            with driver.visit(opened, address, origin=origin, width=width, height=height) as visit:
                prepare(visit.page)
                save(visit.page.screenshot(), folder / f"tensorboard_{tab}.png")


def terminal(text: str) -> str:
    """A terminal's text with its colours as SVG."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text.rstrip()), highlight=False)
    return console.export_svg(theme=MONOKAI, code_format=SVG, unique_id="terminal")


def page_of_report(opened: Browser, files: Path, folder: Path) -> None:
    """The first screen of the report, light and dark."""
    for look in ("light", "dark"):
        address = (files / "report.html").as_uri()
        with driver.visit(opened, address, width=1100, height=1360, dark=look == "dark") as visit:
            save(visit.page.screenshot(), folder / f"report_{look}.png")


def _curves(page: Page) -> None:
    page.get_by_role("button", name="Toggle settings side pane").click()
    page.locator("scalar-card tb-data-table").nth(3).wait_for()
    page.wait_for_timeout(1500)


def _charts(page: Page) -> None:
    card = page.locator("tf-custom-scalar-margin-chart-card")
    card.locator(".main").wait_for()
    box = page.locator("tf-custom-scalar-multi-line-chart-card .main").nth(1).bounding_box()
    page.wait_for_timeout(1500)
    if box is not None:
        page.mouse.move(box["x"] + box["width"] - 3, box["y"] + 20)
    page.wait_for_timeout(1000)


def _histograms(page: Page) -> None:
    page.locator("tf-histogram-loader").nth(3).locator("svg").first.wait_for()
    page.wait_for_timeout(2000)


def _images(page: Page) -> None:
    page.locator("tf-image-loader img").nth(len(FIGURES) - 1).wait_for()
    page.wait_for_timeout(1500)


def _text(page: Page) -> None:
    page.locator("tf-text-loader pre").first.wait_for()
    page.wait_for_timeout(1000)


# Tab: which tags, size of the window in pixels, what a user does there.
TABS: dict[str, tuple[str, tuple[int, int], Callable[[Page], None]]] = {
    "timeseries": (CURVES, (1320, 1030), _curves),
    "custom_scalars": ("", (1500, 640), _charts),
    "histograms": ("", (1320, 700), _histograms),
    "images": ("lossacc", (1440, 1000), _images),
    "text": ("lossacc/events", (1440, 640), _text),
}


def save(png: bytes, path: Path) -> None:
    """A PNG file with at most 256 colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    # Not dithered: noise would be larger than what it hides.
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
