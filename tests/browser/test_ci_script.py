"""What CI runs installs browser and compiler where they are missing, as root or with sudo, or says that it cannot."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="a source distribution has no script for CI")


def machine(tmp_path: Path, user: int, commands: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], str]:
    """The script on a made-up machine that has these commands alone; what it said, and which commands it called."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    log.touch()
    for name in ("bash", "env", "dirname", "chmod", "cat"):
        (folder / name).symlink_to(shutil.which(name) or pytest.fail(f"no {name}"))
    made = {"id": f"echo {user}", "make": 'echo "make $* CI=$CI" >> "$LOG"'} | commands
    for name, body in made.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        [str(folder / "bash"), str(SCRIPT)],
        env={"PATH": str(folder), "LOG": str(log), "BIN": str(folder)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done, log.read_text(encoding="utf-8")


# Writes down its call and, asked to install, puts a browser and a compiler on the path.
APT = """echo "apt-get $*" >> "$LOG"
if [ "$1" = install ]; then for name in chromium g++; do
printf '#!/bin/bash\\necho Version 1' > "$BIN/$name"; chmod +x "$BIN/$name"; done; fi"""


@pytest.mark.parametrize("user", [0, 1000], ids=["root", "sudo"])
def test_browser_is_installed_and_required(tmp_path: Path, user: int) -> None:
    """A bare machine: update, install with fonts, then the tests, which may not skip; sudo only for who is not root."""
    commands = {"apt-get": APT}
    if user:
        commands["sudo"] = 'echo sudo >> "$LOG"; exec "$@"'
    done, log = machine(tmp_path, user, commands)
    assert done.returncode == 0, done.stderr
    calls = [line for line in log.splitlines() if line != "sudo"]
    assert calls[0] == "apt-get update"
    assert calls[1].startswith("apt-get install --yes") and {"chromium", "fonts-dejavu-core", "g++"} <= set(
        calls[1].split()
    )
    assert calls[2:] == ["make test CI=true"]
    assert log.count("sudo") == (2 if user else 0)


def test_browser_that_is_there_is_taken(tmp_path: Path) -> None:
    """Nothing is installed then, and no rights are asked for."""
    done, log = machine(tmp_path, 1000, {"chromium": "echo Chromium 1", "g++": "echo 12"})
    assert done.returncode == 0 and log == "make test CI=true\n"


@pytest.mark.parametrize(
    ("user", "commands", "said"),
    [
        (1000, {"apt-get": APT}, "needs root or sudo"),
        (0, {}, "no apt-get"),
        (0, {"apt-get": "exit 100"}, ""),
        (0, {"apt-get": "exit 0"}, "not on the path"),
    ],
    ids=["no rights", "no apt-get", "no network", "a package without a browser"],
)
def test_what_cannot_be_installed_fails(tmp_path: Path, user: int, commands: dict[str, str], said: str) -> None:
    """No test runs, and the status is not that of success."""
    done, log = machine(tmp_path, user, commands)
    assert done.returncode != 0 and said in done.stderr and "make" not in log
