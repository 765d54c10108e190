"""The README says what the code does: its Python runs, and its tables and tree agree with the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_lossacc import callback, quantities
from lightning_lossacc.diagnosis import confidence, generalisation
from lightning_lossacc.diagnosis.engine import INFO_CAUSES
from lightning_lossacc.diagnosis.message import WORDS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))
def test_python_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def rows(heading: str) -> list[list[str]]:
    """Cells of the table whose header row starts with `heading`."""
    table = re.search(rf"^\| {heading} .*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, flags=re.MULTILINE)
    assert table, heading
    return [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in table[1].splitlines()]


def test_quantities_agree() -> None:
    wanted = [
        [f"**`{key}`**" if key in quantities.CORE else f"`{key}`", item.range, item.better, item.meaning]
        for key, item in quantities.KEYS.items()
    ]
    assert rows("key") == [[cell.replace("|", "\\|") for cell in row] for row in wanted]


def test_events_and_causes_agree() -> None:
    assert [row[0].strip("`") for row in rows("event")] == list(WORDS)
    rules = {
        name.replace("_", "-")
        for module in (confidence, generalisation)
        for name, function in vars(module).items()
        if getattr(function, "__module__", None) == module.__name__
        and not name.startswith("_")
        and "What it finds:" in (function.__doc__ or "")
    }
    assert {row[0] for row in rows("cause")} == rules | {"unknown"}
    assert set(INFO_CAUSES) <= rules


def test_every_config_is_listed() -> None:
    assert {row[0].strip("`") for row in rows("config")} == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_tree_names_every_file() -> None:
    tree = re.search(r"```text\nlightning_lossacc/\n(.*?)```", TEXT, flags=re.DOTALL)[1]
    named = set(re.findall(r"^ +([\w/]+\.py)", tree, flags=re.MULTILINE))
    package = ROOT / "lightning_lossacc"
    assert named == {str(path.relative_to(package)) for path in package.rglob("*.py")}


def test_pictures_exist_and_arguments_are_real() -> None:
    for path in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (ROOT / path).is_file(), path
    for argument in re.findall(r"LossAccuracyMonitor\((\w+)=", TEXT):
        assert argument in callback.LossAccuracyMonitor.__init__.__annotations__


def test_nothing_is_left_to_fill_in() -> None:
    assert not [word for word in ("{{", "TODO", "PLACE") if word in TEXT]
