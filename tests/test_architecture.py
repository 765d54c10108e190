"""The rooms hold: who may import whom, how long a file may be, what is public, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_lossacc

ROOT = Path(lightning_lossacc.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
STDLIB = set(sys.stdlib_module_names)

# room: (rooms of ours, packages from outside) that are imported at all, at top level or inside functions; no more and
# no less, so that the table shows what depends on what.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "margin_bins": (set(), set()),
    "sums": ({"margin_bins"}, {"torch"}),
    "kernels.chunks": ({"sums"}, {"torch"}),
    "kernels.reference": ({"kernels.chunks", "margin_bins", "sums"}, {"torch"}),
    "buffer": (set(), {"torch"}),
    "kernels.plan": ({"sums"}, set()),
    "kernels.tally": (set(), {"triton"}),
    "kernels.rowwise": ({"kernels.gradient", "kernels.tally"}, {"triton"}),
    "kernels.lanewise": ({"kernels.gradient", "kernels.tally"}, {"triton"}),
    "kernels.gradient": ({"kernels.tally"}, {"triton"}),
    "kernels.occupancy": (set(), {"torch", "triton"}),
    "kernels.launch": (
        {
            "kernels.lanewise",
            "kernels.occupancy",
            "kernels.plan",
            "kernels.rowwise",
            "margin_bins",
            "sums",
        },
        {"torch", "triton"},
    ),
    "kernels.launch_gradient": ({"kernels.gradient", "kernels.launch", "kernels.occupancy"}, {"torch", "triton"}),
    "kernels.native": (set(), {"torch"}),
    "kernels.compiled": ({"kernels.native", "kernels.plan", "margin_bins", "sums"}, {"torch"}),
    "kernels.compiled_loss": ({"kernels.native"}, {"torch"}),
    "kernels.backend": (
        {"kernels.compiled", "kernels.compiled_loss", "kernels.native", "kernels.plan", "sums"},
        {"torch"},
    ),
    "kernels.library": ({"sums"}, {"torch"}),
    "kernels": (
        {
            "kernels.backend",
            "kernels.compiled",
            "kernels.compiled_loss",
            "kernels.launch",
            "kernels.launch_gradient",
            "kernels.library",
            "kernels.loss_reference",
            "kernels.reference",
            "sums",
        },
        {"torch"},
    ),
    "refinement": ({"sums"}, {"torch"}),
    "quantities": ({"margin_bins", "refinement", "sums"}, {"torch"}),
    "metrics": ({"kernels", "margin_bins", "quantities", "refinement", "sums"}, {"torch", "torchmetrics"}),
    "analyze": (
        {
            "attribution",
            "floors",
            "history",
            "kernels",
            "looks",
            "probe",
            "quantities",
            "refinement",
            "sums",
        },
        {"numpy", "torch"},
    ),
    "fits": (set(), {"torch"}),
    "matches": (set(), {"torch"}),
    "probe": ({"fits", "kernels", "matches", "refinement", "sums"}, {"torch"}),
    "kernels.loss_reference": ({"kernels.chunks"}, {"torch"}),
    "loss_checks": ({"metrics"}, {"torch"}),
    "loss_autograd": ({"kernels", "kernels.loss_reference", "loss_calls", "metrics"}, {"torch"}),
    "loss": ({"kernels", "loss_autograd", "loss_calls", "loss_checks", "metrics"}, {"torch"}),
    "loss_calls": (set(), {"torch"}),
    "capture": ({"loss_calls"}, {"torch"}),
    "units": (set(), {"torch"}),
    "activations": ({"units"}, {"torch"}),
    "normalisation": (set(), {"torch"}),
    "modes": (set(), {"torch"}),
    "readings": (set(), {"torch"}),
    "watchers": ({"activations", "modes", "normalisation", "readings", "training", "units"}, {"torch"}),
    "history": (set(), set()),
    "trends.noise": (set(), {"numpy"}),
    "trends.shift": (set(), set()),
    "trends.climb": ({"trends.noise", "trends.shift"}, {"numpy"}),
    "trends.jump": ({"trends.noise", "trends.shift"}, {"numpy"}),
    "trends.rise": ({"trends.climb", "trends.jump", "trends.noise", "trends.shift"}, {"numpy"}),
    "trends.levels": ({"trends.noise"}, {"numpy"}),
    "trends.shapes": ({"trends.noise"}, {"numpy"}),
    "trends": ({"trends.levels", "trends.noise", "trends.rise", "trends.shapes", "trends.shift"}, set()),
    "floors": (set(), set()),
    "renaming": (set(), set()),
    "attribution": ({"history"}, set()),
    "diagnosis.event": ({"history"}, set()),
    "diagnosis.evidence": ({"attribution", "floors", "history", "trends"}, set()),
    "diagnosis.confidence": ({"diagnosis.data", "diagnosis.event", "diagnosis.evidence", "floors"}, set()),
    "diagnosis.steps": ({"diagnosis.evidence"}, set()),
    "diagnosis.sets": ({"diagnosis.data", "diagnosis.event", "diagnosis.evidence"}, set()),
    "diagnosis.generalisation": (
        {
            "diagnosis.event",
            "diagnosis.evidence",
            "diagnosis.confidence",
            "diagnosis.data",
            "diagnosis.sets",
            "floors",
        },
        set(),
    ),
    "diagnosis.data": ({"attribution", "diagnosis.event", "diagnosis.evidence", "history", "renaming"}, set()),
    "diagnosis.dead": ({"diagnosis.data", "history"}, set()),
    "diagnosis.optimisation": (
        {"diagnosis.data", "diagnosis.dead", "diagnosis.event", "diagnosis.evidence", "diagnosis.steps", "floors"},
        set(),
    ),
    "diagnosis.measurement": ({"diagnosis.data", "diagnosis.event", "diagnosis.evidence", "floors", "history"}, set()),
    "diagnosis.catalogue": (
        {
            "diagnosis.confidence",
            "diagnosis.data",
            "diagnosis.event",
            "diagnosis.evidence",
            "diagnosis.generalisation",
            "diagnosis.measurement",
            "diagnosis.optimisation",
            "diagnosis.sets",
        },
        set(),
    ),
    "diagnosis.changes": (
        {"attribution", "diagnosis.event", "diagnosis.evidence", "floors", "history", "trends"},
        set(),
    ),
    "diagnosis.movement": ({"diagnosis.changes", "diagnosis.event", "trends"}, set()),
    "diagnosis.states": (
        {
            "diagnosis.changes",
            "diagnosis.confidence",
            "diagnosis.data",
            "diagnosis.dead",
            "diagnosis.event",
            "diagnosis.evidence",
            "floors",
            "diagnosis.measurement",
            "diagnosis.optimisation",
            "diagnosis.sets",
            "history",
        },
        set(),
    ),
    "diagnosis.message": ({"attribution", "diagnosis.event", "diagnosis.evidence", "history"}, set()),
    "diagnosis.engine": (
        {
            "attribution",
            "diagnosis.catalogue",
            "diagnosis.changes",
            "diagnosis.event",
            "diagnosis.evidence",
            "diagnosis.message",
            "diagnosis.movement",
            "diagnosis.states",
            "history",
            "outlook",
            "remedies",
            "trends",
        },
        set(),
    ),
    "diagnosis": ({"diagnosis.engine", "diagnosis.event"}, set()),
    "advice": (set(), set()),
    "advice.measured": ({"history"}, set()),
    "advice.confidence": ({"advice.measured"}, set()),
    "advice.data": ({"advice.measured", "floors", "renaming"}, set()),
    "advice.generalisation": ({"advice.measured", "history"}, set()),
    "advice.measurement": ({"advice.measured", "attribution", "floors"}, set()),
    "advice.optimisation": ({"advice.measured"}, set()),
    "remedies": (
        {
            "advice.confidence",
            "advice.data",
            "advice.generalisation",
            "advice.measured",
            "advice.measurement",
            "advice.optimisation",
            "history",
        },
        set(),
    ),
    "curves": ({"diagnosis.event", "history"}, set()),
    "figures.canvas": ({"curves"}, {"matplotlib"}),
    "figures.loss_and_accuracy": ({"curves", "diagnosis.event", "figures.canvas", "history"}, {"matplotlib"}),
    "figures.changes": ({"attribution", "curves", "diagnosis.event", "figures.canvas", "history"}, {"matplotlib"}),
    "figures.reliability": ({"attribution", "curves", "diagnosis.event", "figures.canvas", "history"}, {"matplotlib"}),
    "figures.margin": ({"curves", "diagnosis.event", "figures.canvas", "history", "margin_bins"}, {"matplotlib"}),
    "figures.classes": ({"curves", "diagnosis.event", "figures.canvas", "history"}, {"matplotlib"}),
    "figures.optimisation": ({"curves", "diagnosis.event", "figures.canvas", "history"}, {"matplotlib"}),
    "figures": (
        {
            "diagnosis.event",
            "figures.canvas",
            "figures.changes",
            "figures.classes",
            "figures.loss_and_accuracy",
            "figures.margin",
            "figures.optimisation",
            "figures.reliability",
            "history",
        },
        {"matplotlib", "numpy"},
    ),
    "report.references": (set(), set()),
    "report.tables": ({"curves", "diagnosis.event", "history"}, set()),
    "report.drawings": ({"figures.canvas"}, {"matplotlib"}),
    "report.content": (
        {
            "attribution",
            "curves",
            "diagnosis.catalogue",
            "diagnosis.event",
            "diagnosis.message",
            "history",
            "report.references",
            "report.tables",
        },
        set(),
    ),
    "report": (
        {"curves", "diagnosis.event", "figures", "history", "report.content", "report.drawings"},
        {"jinja2", "markupsafe"},
    ),
    "report.rebuild": ({"diagnosis.event", "readers", "report", "scan"}, set()),
    "sinks.report": ({"diagnosis.event", "history", "report", "sinks.images"}, set()),
    "closing": (
        {"attribution", "curves", "diagnosis.changes", "diagnosis.event", "diagnosis.message", "history", "trends"},
        set(),
    ),
    "sinks.images": ({"diagnosis.event", "figures", "figures.canvas", "history"}, {"matplotlib", "numpy"}),
    "sinks.distributions": ({"history", "margin_bins"}, set()),
    "sinks.event_table": ({"curves", "diagnosis.event"}, set()),
    "sinks.outcome": ({"curves", "diagnosis.event", "history"}, set()),
    "sinks.layouts": (set(), {"tensorboard", "torch"}),
    "sinks.files": ({"diagnosis.event", "history", "sinks.images"}, set()),
    "sinks.generic": ({"diagnosis.event", "history", "sinks.event_table", "sinks.images"}, set()),
    "sinks.tensorboard": (
        {
            "curves",
            "diagnosis.event",
            "history",
            "sinks.distributions",
            "sinks.generic",
            "sinks.hyperparameters",
            "sinks.images",
            "sinks.layouts",
        },
        set(),
    ),
    "sinks.hyperparameters": ({"sinks.layouts", "sinks.outcome"}, {"lightning", "torch"}),
    "sinks.wandb": (
        {
            "curves",
            "diagnosis.event",
            "history",
            "sinks.distributions",
            "sinks.event_table",
            "sinks.generic",
            "sinks.images",
        },
        {"wandb"},
    ),
    "sinks.mlflow": ({"curves", "diagnosis.event", "sinks.event_table", "sinks.generic", "sinks.images"}, set()),
    "sinks.comet": (
        {"curves", "diagnosis.event", "history", "sinks.distributions", "sinks.generic", "sinks.images"},
        {"comet_ml"},
    ),
    "sinks.litlogger": ({"curves", "diagnosis.event", "sinks.generic", "sinks.images"}, {"litlogger"}),
    "sinks.csv": ({"diagnosis.event", "sinks.generic"}, set()),
    "sinks.terminal": ({"diagnosis.event"}, {"rich"}),
    "sinks.reporter": (
        {"diagnosis.event", "figures", "history", "sinks.files", "sinks.images", "sinks.report"},
        set(),
    ),
    "sinks": (
        {
            "diagnosis.event",
            "sinks.comet",
            "sinks.csv",
            "sinks.files",
            "sinks.generic",
            "sinks.litlogger",
            "sinks.mlflow",
            "sinks.reporter",
            "sinks.tensorboard",
            "sinks.wandb",
        },
        set(),
    ),
    "sampling": (set(), {"torch"}),
    "looks": (set(), {"torch"}),
    "stages": (
        {
            "buffer",
            "capture",
            "kernels",
            "looks",
            "loss_calls",
            "probe",
            "quantities",
            "refinement",
            "sampling",
            "sums",
        },
        {"torch"},
    ),
    "ranks": ({"stages"}, {"torch"}),
    "training": ({"modes", "stages"}, {"torch"}),
    "memory": ({"probe"}, {"torch"}),
    "train_probe": ({"capture", "probe", "sampling", "stages", "sums"}, {"lightning", "numpy", "torch"}),
    "records": ({"history", "probe", "quantities", "stages"}, {"lightning", "torch"}),
    "train_rows": ({"history", "memory", "records", "stages", "train_probe"}, {"lightning"}),
    "resume": ({"history", "ranks", "stages", "sums"}, {"torch"}),
    "voice": (
        {
            "capture",
            "closing",
            "curves",
            "diagnosis",
            "history",
            "records",
            "resume",
            "sinks",
            "sinks.outcome",
            "sinks.report",
            "sinks.terminal",
            "stages",
            "train_probe",
        },
        {"lightning", "torch"},
    ),
    "run": (
        {
            "capture",
            "closing",
            "diagnosis",
            "history",
            "quantities",
            "ranks",
            "records",
            "resume",
            "sampling",
            "stages",
            "train_probe",
            "train_rows",
            "training",
            "voice",
            "watchers",
        },
        {"lightning", "torch"},
    ),
    "callback": (
        {"capture", "diagnosis", "diagnosis.engine", "figures", "history", "run", "stages", "train_probe", "watchers"},
        {"lightning", "matplotlib", "torch"},
    ),
    "forecast": ({"history", "trends"}, {"numpy"}),
    "outlook": ({"floors", "forecast", "history", "margin_bins", "trends"}, set()),
    "temperature": ({"attribution", "kernels", "sums"}, {"torch"}),
    "scaling": (
        {"callback", "capture", "ranks", "sampling", "stages", "temperature"},
        {"lightning", "torch"},
    ),
    "demo": (set(), {"lightning", "sklearn", "torch", "torchmetrics"}),
    "readers.columns": (set(), set()),
    "readers.units": ({"readers.columns"}, set()),
    "readers.epochs": ({"readers.columns"}, set()),
    "readers.tables": ({"history", "readers.columns", "readers.epochs", "readers.units"}, set()),
    "readers.text": ({"readers.tables"}, set()),
    "readers.exports": ({"readers.tables"}, set()),
    "readers.files": ({"readers.columns", "readers.tables", "readers.text"}, set()),
    "readers.tensorboard": ({"readers.tables"}, set()),
    "readers.discovery": ({"readers.text"}, set()),
    "readers": (
        {
            "history",
            "readers.columns",
            "readers.discovery",
            "readers.exports",
            "readers.files",
            "readers.tables",
            "readers.tensorboard",
            "readers.text",
        },
        set(),
    ),
    "rises": ({"trends"}, set()),
    "stuck": ({"floors"}, set()),
    "verdict": ({"floors", "rises", "stuck", "trends"}, set()),
    "scan": (
        {
            "diagnosis.catalogue",
            "diagnosis.changes",
            "diagnosis.engine",
            "diagnosis.event",
            "diagnosis.message",
            "history",
            "readers",
            "remedies",
            "stuck",
            "verdict",
            "workers",
        },
        set(),
    ),
    "__main__": ({"cli"}, set()),
    "workers": (set(), set()),
    "scan_text": ({"diagnosis.event", "readers", "scan"}, set()),
    "cli": (
        {"analyze", "demo", "diagnosis.catalogue", "metrics", "readers", "report.rebuild", "scan", "scan_text"},
        {"lightning", "rich", "torch", "wandb"},
    ),
    "": ({"callback", "diagnosis", "history", "loss", "metrics", "scaling"}, set()),
}
# Loaded only where they are needed: importing the package must cost nothing that the user does not use.
LAZY = {
    "matplotlib",
    "jinja2",
    "triton",
    "wandb",
    "tensorboard",
    "mlflow",
    "comet_ml",
    "litlogger",
    "rich",
    "sklearn",
    "jsonargparse",
    "tqdm",
}
FORBIDDEN_NAMES = {"utils", "common", "helpers", "base", "core", "types", "misc"}


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative import"
            assert all(alias.name != "*" for alias in node.names), "star import"
            if node.module.startswith("lightning_lossacc"):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    place = ROOT.joinpath(*inner.split(".")[1:])
                    is_room = place.with_suffix(".py").exists() or place.is_dir()
                    found.add(inner if is_room else node.module)
            else:
                found.add(node.module)
    return found


def ours(names: set[str]) -> set[str]:
    return {
        name.removeprefix("lightning_lossacc").lstrip(".") for name in names if name.startswith("lightning_lossacc")
    }


@pytest.mark.parametrize("path", FILES, ids=room)
def test_imports_follow_the_table(path: Path) -> None:
    name = room(path)
    assert name in ROOMS, f"{name} is not in the table of rooms"
    found = imports(ast.parse(path.read_text()))
    allowed, outside = ROOMS[name]
    foreign = {item.split(".")[0] for item in found if not item.startswith("lightning_lossacc")} - STDLIB
    assert not (ours(found) - allowed) | (foreign - outside), "not in the table"
    assert not (allowed - ours(found)) | (outside - foreign), "stands in the table, but is not imported"


TRITON_NAMES = ("gradient", "lanewise", "launch", "launch_gradient", "occupancy", "rowwise", "tally")
TRITON_ROOMS = {f"kernels.{name}" for name in TRITON_NAMES}


@pytest.mark.parametrize("path", FILES, ids=room)
def test_nothing_heavy_at_top_level(path: Path) -> None:
    body = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    top = {name.split(".")[0] for node in body for name in imports(node)}
    # Kernels are decorated by triton; the door imports them when it launches one.
    assert not top & (LAZY - {"triton"} if room(path) in TRITON_ROOMS else LAZY)


def test_table_has_no_cycle_and_no_stale_room() -> None:
    assert set(ROOMS) == {room(path) for path in FILES}
    done: set[str] = set()
    while len(done) < len(ROOMS):
        ready = {name for name, (needs, _) in ROOMS.items() if name not in done and needs <= done}
        assert ready, f"import cycle among {sorted(set(ROOMS) - done)}"
        done |= ready


@pytest.mark.parametrize("path", FILES, ids=room)
def test_files_are_short_and_named_by_question(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert not set(path.relative_to(ROOT).with_suffix("").parts) & FORBIDDEN_NAMES
    assert ast.get_docstring(ast.parse(path.read_text())), "a file says which question it answers"


@pytest.mark.parametrize("name", ["kernels/reference.py", "kernels/__init__.py", "metrics.py", "probe.py"])
def test_updates_do_not_read_the_device(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text())
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        if function.name not in (
            "row_statistics",
            "row_values",
            "item_values",
            "canonical",
            "update",
            "_multiclass",
            "_binary",
        ):
            continue
        called = {
            node.func.attr
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not called & {"item", "cpu", "tolist", "numpy", "nonzero", "unique"}, function.name


def test_public_surface() -> None:
    assert len(lightning_lossacc.__all__) <= 12
    assert {name for name in dir(lightning_lossacc) if not name.startswith("_")} == set(lightning_lossacc.__all__)
    for name in lightning_lossacc.__all__:
        assert getattr(lightning_lossacc, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lightning_lossacc.nothing


def test_import_is_light_and_silent() -> None:
    """Neither the package nor the rooms of plain numbers, which `lossacc scan` and `explain` need, wait for torch."""
    code = (
        "import sys, lightning_lossacc\n"
        "from lightning_lossacc import History, Event\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'triton', 'wandb', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import lightning_lossacc.diagnosis.catalogue, lightning_lossacc.readers, lightning_lossacc.scan_text\n"
        "import lightning_lossacc.outlook, lightning_lossacc.remedies, lightning_lossacc.scan\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'pandas', 'wandb', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == done.stderr == "", done.stderr
