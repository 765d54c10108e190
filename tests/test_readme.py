"""The README says what the code does: its Python runs, and its tables, numbers and tree agree with package and results.

`PYTHONPATH=. python tests/test_readme.py` puts the tables of events and causes, and the numbers of the benchmarks, into
the README anew.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from lightning_lossacc import callback, cli, quantities
from lightning_lossacc.diagnosis import catalogue
from lightning_lossacc.remedies import REMEDIES
from lightning_lossacc.scan import VERDICTS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
HEADINGS = (
    "What it finds",
    "Why it matters",
    "Evidence it needs",
    "What to do",
    "When it is wrong",
    "Reference",
)


def _script(name: str) -> ModuleType:
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


readme_numbers = _script("readme_numbers")
readme_cost = _script("readme_cost")


def cost(results: Path = readme_cost.RESULTS) -> str:
    """The section on cost as the results have it."""
    return readme_cost.markdown(readme_numbers.source, readme_numbers.table, results)


def event_rows() -> list[list[str]]:
    """Table of events as the catalogue has it."""
    return [
        [f"`{event}`" + (" (info)" if event in catalogue.INFO_EVENTS else ""), text]
        for event, text in catalogue.EVENTS.items()
    ]


def cause_rows() -> list[list[str]]:
    """Table of causes as the catalogue and the remedies have it: heading, cause, what happens, first remedy."""
    found = []
    for heading, rules in catalogue.HEADINGS.items():
        for rule in rules:
            cause = rule.__name__.replace("_", "-")
            remedy = REMEDIES[cause][0].__name__.replace("_", " ")
            info = " (info)" if cause in catalogue.INFO_CAUSES else ""
            found.append([heading, f"`{cause}`{info}", catalogue.summary_of(cause), remedy])
    return found


def rows(heading: str, text: str = TEXT) -> list[list[str]]:
    """Cells of the table whose header row starts with `heading`."""
    table = re.search(rf"^\| {heading} .*\n\|[-| ]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    assert table, heading
    return [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in table[1].splitlines()]


def with_rows(text: str, heading: str, cells: Sequence[Sequence[str]]) -> str:
    """A text with other rows in the table whose header row starts with `heading`."""
    lines = "".join(f"| {' | '.join(row)} |\n" for row in cells)
    pattern = rf"(^\| {heading} .*\n\|[-| ]+\n)(?:\|.*\n)*"
    return re.sub(pattern, lambda found: found[1] + lines, text, count=1, flags=re.MULTILINE)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))
def test_python_runs(code: str) -> None:
    """Every Python example runs as it stands."""
    exec(compile(code, "README.md", "exec"), {})


def test_quantities_agree() -> None:
    """The table of quantities is that of `KEYS`, row by row; the logged ones are bold."""
    wanted = [
        [f"**`{key}`**" if key in quantities.CORE else f"`{key}`", item.range, item.better, item.meaning]
        for key, item in quantities.KEYS.items()
    ]
    assert rows("key") == [[cell.replace("|", "\\|") for cell in row] for row in wanted]


def test_events_agree() -> None:
    """The table of events is that of the catalogue, row by row."""
    assert rows("event") == event_rows()


def test_causes_agree() -> None:
    """The table of causes is that of catalogue and remedies, row by row, and each cause is documented like a rule."""
    assert rows("heading") == cause_rows()
    assert {row[1].split("`")[1] for row in rows("heading")} == set(catalogue.RULES)
    for cause, rule in catalogue.RULES.items():
        sections = (inspect.getdoc(rule) or "").partition("\n\n")[2]
        documented = re.findall(r"^([A-Z][\w ]+):", sections, flags=re.MULTILINE)
        assert tuple(documented) == HEADINGS, cause
        assert catalogue.summary_of(cause) in catalogue.explain(cause)


def test_numbers_are_those_of_the_results() -> None:
    """What stands between the markers is what the script makes of the committed results."""
    assert readme_numbers.inserted(TEXT, readme_numbers.markdown()) == TEXT, "run python tests/test_readme.py"


def test_cost_is_that_of_the_results() -> None:
    """What stands in the section on cost is what the script makes of the committed results."""
    found = readme_numbers.inserted(TEXT, cost(), readme_cost.BEGIN, readme_cost.END)
    assert found == TEXT, "run python tests/test_readme.py"


def test_cost_says_what_no_gpu_has_measured(tmp_path: Path) -> None:
    """Without a result file of a GPU the section says so and shows no time of one; with one it shows that."""
    assert "Still to be measured on a GPU" in cost(tmp_path)
    stamp = {"table": "run", "processor": "P", "cores": 2, "load": 0.5, "python": "3", "gpu": "G"}
    quantiles = {"median": 12.0, "p20": 11.0, "p80": 13.0, "repeats": 9}
    lines = [
        stamp,
        {"table": "loss", "where": "8x10 float32", "provider": "ours", **quantiles},
        {"table": "target", "target": "T", "where": "8x10 float32", "limit": 0.35, **quantiles, "verdict": "missed"},
    ]
    (tmp_path / "gpu_loss.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    text = cost(tmp_path)
    assert "| 8x10 float32 | ours | 12 (11 … 13) |" in text
    assert "| T | 8x10 float32 | 0.35 | 12 | missed |" in text
    assert "loss and gradient, against" not in text
    assert "training steps of Lightning" in text


def test_numbers_say_what_falls_short(tmp_path: Path) -> None:
    """Each part names the bar that is missed, its interval and the machine; a file that is missing is left out."""
    stamp = {
        "table": "run",
        "processor": "P",
        "cores": 2,
        "load": 0.5,
        "python": "3",
        "commit": "abcdef0123",
        "dirty": True,
    }
    counts = {"runs": 20, "shown": 20, "abstained": 4, "abstention": 0.2, "right": 14, "half right": 0, "wrong": 2}
    counts |= {"precision": 0.875, "low": 0.617, "high": 0.984, "warnings": 30, "true warnings": 27}
    planted = [
        stamp,
        {"table": "cause", "name": "leakage", **counts},
        {"table": "program", "name": "images-conv", **counts},
        {"table": "all", "name": "all", **counts},
        {"table": "confusion", "planted": "leakage", "named": {"leakage": 14, "(none)": 4, "prior-shift": 2}},
        {"table": "corrected", "name": "all", "note": "two runs by another truth", **counts},
        {"table": "earlier", "name": "all", "commit": "1234567890", **counts},
    ]
    alarm = {"table": "alarms", "alarms": 3, "runs": 100, "share": 0.03, "low": 0.006, "high": 0.085}
    healthy = [
        stamp,
        {"table": "counts", "runs": 120, "healthy": 100},
        {"rule": "lossacc", **alarm},
        {"rule": "UP4", **alarm},
        {"table": "causes", "warning": "oscillation: unknown", "runs": 3},
    ]
    regret = {"table": "regret", "group": "all", "runs": 9, "mean": 0.01, "low": 0.001, "high": 0.02, "share": 0.25}
    regret |= {"share low": 0.1, "share high": 0.4}
    checkpoints = [stamp] + [
        {**regret, "best": best, "regret": quantity}
        for best in ("loss", "accuracy", "refined loss")
        for quantity in ("nll", "tempered_nll", "accuracy")
    ]
    assert readme_numbers.markdown(tmp_path) == ""
    found = {"planted": planted, "healthy": healthy, "checkpoints": checkpoints}
    for name, lines in found.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    parts = readme_numbers.markdown(tmp_path)
    text = " ".join(parts.split())
    assert "abstained in 20 %, and of the 16 verdicts given 87.5 % (61.7 … 98.4) are right" in text
    assert "Below it: leakage 87.5 %. Silent too often: leakage 20 %." in text
    assert (
        "definitions of then: 87.5 % (61.7 … 98.4) of the verdicts right and 20 % abstained, 20 runs (commit 1234567)"
        in text
    )
    assert "| leakage | 20 | 4 | 14 | 0 | 2 | 87.5 % (61.7 … 98.4) | prior-shift 2 |" in text
    assert "A warning stood in 3 % (0.6 … 8.5) of them**; the bar of 1 % is missed" in text
    assert "Warnings, in runs: oscillation: unknown 3." in text and "UP4 3 %" in text
    assert "In 25 % (10 … 40) of 9 runs the checkpoint with the lowest validation loss" in text
    assert "| all (9) | refined loss | 1.00 (0.10 … 2.00) | 25 % | 0.0100 (0.0010 … 0.0200) |" in text
    assert parts.count("P, 2 cores, load 0.5 · Python 3 · commit abcdef0 and changes") == 3
    assert max(len(line) for line in parts.splitlines() if not line.startswith(("|", "<"))) <= readme_numbers.WIDTH


def test_markers_are_needed() -> None:
    """Numbers are put between the markers alone, and never into a text without them."""
    begin, end = readme_numbers.BEGIN, readme_numbers.END
    assert readme_numbers.inserted(f"a{begin}old{end}z", "new") == f"a{begin}\n\nnew\n\n{end}z"
    for text in ("", begin, f"{end}{begin}", f"{begin}{end}{begin}"):
        with pytest.raises(ValueError, match="hold"):
            readme_numbers.inserted(text, "new")


def test_commands_are_real() -> None:
    """Commands and options of `lossacc` that the README shows exist, and the verdicts are those of the scan."""
    parser = cli._parser()
    commands = next(action.choices for action in parser._actions if action.dest == "command")
    shown = re.findall(r"^\$? ?lossacc (\w+)", TEXT, flags=re.MULTILINE) + re.findall(r"`lossacc (\w+)", TEXT)
    assert {"scan", "analyze", "explain", "fit", "demo"} <= set(shown) <= set(commands)
    known = set(commands["scan"]._option_string_actions)
    section = re.search(r"^## On logs that exist\n(.*?)^## ", TEXT, flags=re.MULTILINE | re.DOTALL)[1]
    assert set(re.findall(r"`(--[\w-]+)", section)) <= known
    assert all(f"`{verdict}`" in section for verdict in VERDICTS)


def test_every_config_is_listed() -> None:
    """The table of experiments names every configuration."""
    assert {row[0].strip("`") for row in rows("config")} == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_tree_names_every_file() -> None:
    """The tree names every file of the package."""
    tree = re.search(r"```text\nlightning_lossacc/\n(.*?)```", TEXT, flags=re.DOTALL)[1]
    named = re.findall(r"^ +([\w/]+\.py)", tree, flags=re.MULTILINE)
    package = ROOT / "lightning_lossacc"
    assert len(named) == len(set(named))
    assert set(named) == {str(path.relative_to(package)) for path in package.rglob("*.py")}


def test_pictures_exist_and_arguments_are_real() -> None:
    """Pictures are there, and so are the arguments of the monitor that are named."""
    for path in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (ROOT / path).is_file(), path
    arguments = re.findall(r"LossAccuracyMonitor\((\w+)=", TEXT) + re.findall(r"`(\w+)=(?:\w*)`", TEXT)
    arguments = [
        name for name in arguments if name not in ("backend", "LOSSACC", "LOSSACC_COMPILE", "auto_insert_metric_name")
    ]
    assert {"train_probe", "watch", "alert", "report", "dirpath"} <= set(arguments)
    assert set(arguments) <= set(callback.LossAccuracyMonitor.__init__.__annotations__)


def test_nothing_is_left_to_fill_in() -> None:
    """No placeholder is left."""
    assert not [word for word in ("{{", "TODO", "PLACE") if word in TEXT]


def write() -> None:
    """Tables and numbers into the README."""
    text = with_rows(TEXT, "event", event_rows())
    text = with_rows(text, "heading", cause_rows())
    text = readme_numbers.inserted(text, readme_numbers.markdown())
    README.write_text(readme_numbers.inserted(text, cost(), readme_cost.BEGIN, readme_cost.END), encoding="utf-8")


if __name__ == "__main__":
    write()
