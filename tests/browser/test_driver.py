"""The driver keeps its word: nothing is reached but what is meant, complaints are heard, and a missing browser is told.

Without this a page with a request, an error or a pale text would pass every other test.
"""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import driver

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Another server on this machine, which no page is allowed to ask."""
    server = http.server.ThreadingHTTPServer((driver.HERE, 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{driver.HERE}:{server.server_port}/"
    server.shutdown()
    server.server_close()


def page_of(tmp_path: Path, body: str) -> str:
    """A page on the disk, its address."""
    path = tmp_path / "page.html"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{body}", encoding="utf-8")
    return path.as_uri()


def test_requests_are_stopped_and_written_down(opened: Browser, tmp_path: Path, elsewhere: str) -> None:
    """Pictures, scripts and fetches: names, addresses, this machine's other servers and other files."""
    wanted = ["http://example.com/a.png", "http://192.0.2.1/b.js", f"{elsewhere}c", (tmp_path / "d.png").as_uri()]
    body = (
        f"<img src='{wanted[0]}'><script src='{wanted[1]}'></script>"
        f"<script>fetch('{wanted[2]}', {{mode: 'no-cors'}}).catch(() => 0)</script><img src='{wanted[3]}'>"
    )
    with driver.visit(opened, page_of(tmp_path, body)) as visit:
        visit.page.wait_for_load_state("networkidle")
        assert sorted(visit.requests) == sorted(wanted)
        assert visit.page.evaluate("Array.from(document.images).every(one => one.naturalWidth === 0)")


def test_addresses_do_not_resolve(opened: Browser) -> None:
    """What passes the first barrier stands before the second one: no name and no address but this machine's."""
    context = opened.new_context()
    page = context.new_page()
    for address in ("http://example.com/", "http://192.0.2.1/", "https://localhost.example/"):
        with pytest.raises(Exception, match="ERR_NAME_NOT_RESOLVED"):
            page.goto(address)
    context.close()


def test_complaints_are_heard(opened: Browser, tmp_path: Path) -> None:
    """Warnings, errors and what scripts raise; other notes of a page are not complaints."""
    body = "<script>console.log('note'); console.warn('careful'); console.error('bad'); throw Error('worse')</script>"
    with driver.visit(opened, page_of(tmp_path, body)) as visit:
        visit.page.wait_for_load_state("networkidle")
        assert visit.problems == ["warning: careful", "error: bad", "raised: worse"]


def test_contrast_is_that_of_the_painted_page(opened: Browser, tmp_path: Path) -> None:
    """Known pairs: black on white 21, #767676 on white 4.54, the same at half opacity, and text on a drawn shape."""
    body = (
        "<style>body { background: #fff; color: #000; font: 20px sans-serif }</style><p>black</p>"
        "<p style='color: #767676'>grey</p><p style='color: #767676; opacity: .5'>pale</p>"
        "<p style='color: #fff; visibility: hidden'>unseen</p>"
        "<svg width=200 height=60><rect width=200 height=60 fill='#000'/><text y=40 x=9 fill='#fff'>drawn</text></svg>"
    )
    with driver.visit(opened, page_of(tmp_path, body)) as visit:
        found = {text: (round(ratio, 2), place) for text, ratio, place in driver.contrasts(visit.page)}
    assert found == {
        "black": (21.0, "html"),
        "grey": (4.54, "html"),
        "pale": (1.93, "html"),
        "drawn": (21.0, "svg"),
    }


def test_words_are_read_through_shadows(opened: Browser, tmp_path: Path) -> None:
    """What an element shows: with shadow roots and slots, without what is hidden."""
    body = (
        "<div id=host>slotted</div><script>document.getElementById('host').attachShadow({mode: 'open'}).innerHTML ="
        " '<b>inside</b> <slot></slot> <i style=\"display: none\">hidden</i>'</script>"
    )
    with driver.visit(opened, page_of(tmp_path, body)) as visit:
        assert driver.seen(visit.page.locator("#host")) == "inside slotted"


@pytest.mark.parametrize(
    ("service", "told"), [("true", "1 error"), ("1", "1 error"), ("", "1 skipped"), ("false", "1 skipped")]
)
def test_missing_browser_is_an_error_under_ci_alone(service: str, told: str) -> None:
    """Without a browser a developer's tests are skipped for one clear reason, and those of CI fail with it."""
    chosen = f"{Path(__file__).relative_to(ROOT)}::{test_words_are_read_through_shadows.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", chosen],
        cwd=ROOT,
        env={"PATH": "", "CI": service, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told in done.stdout.splitlines()[-1] and "apt-get install chromium" in done.stdout
    assert done.returncode == (1 if "error" in told else 0)


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after a minute, but at once and with its own words."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="Expected TensorBoard to start"), driver.tensorboard(tmp_path):
        pass
