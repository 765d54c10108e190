"""Which files and folders below a path are training logs, each run once."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_lossacc.readers.text import PACKED, unpacked

Format = Literal["history", "trainer_state", "tensorboard", "table", "json", "json-lines"]

# Our own folder inside the folder of a run.
OWN_FOLDER = "lossacc"

# Of several logs of one run in one folder the one that says most is read.
PREFERENCE: tuple[Format, ...] = ("history", "trainer_state", "table", "json-lines", "json", "tensorboard")
# Files with these names are logs of the run whose folder they stand in; any other name is a run of its own.
RUN_FILES: dict[str, Format] = {
    "history.jsonl": "history",
    "trainer_state.json": "trainer_state",
    "metrics.csv": "table",
}
# Written by us or by others beside a log, never a log of a run.
NO_LOGS = {
    "events.jsonl",
    "lossacc_events.csv",
    "wandb-summary.json",
    "wandb-metadata.json",
    "config.json",
    "package.json",
    "hparams.json",
}
SKIPPED_FOLDERS = {".git", "__pycache__", "node_modules", ".venv", "venv", "site-packages", ".ipynb_checkpoints"}
# Sub-folders of one run, by the part of the data that they are about (Keras' TensorBoard callback, estimators).
SUB_RUNS = {"train", "training", "val", "valid", "validation", "eval", "evaluation", "test", "dev"}
_EVENTS = "tfevents"
# SummaryWriter.add_hparams writes the last values of a run once more, in a folder named by the time.
_HPARAMS = re.compile(r"\d{9,11}\.\d+")
NOTHING = "no such file or folder"


@dataclass(frozen=True, slots=True)
class Source:
    """One log that was found.

    Attributes:
        name: how its runs are called: the path as the user will recognise it.
        format: how it is read.
        path: the file, or the folder of a TensorBoard run.
        folders: TensorBoard alone: folders whose files belong together, each with the prefix of its tags.
        certain: False for a file that may well be something else than a log; then nothing is said if it is.
    """

    name: str
    format: Format
    path: Path
    folders: tuple[tuple[str, Path], ...] = ()
    certain: bool = True


def find_sources(paths: Iterable[str | Path]) -> tuple[list[Source], list[tuple[str, str]]]:
    """All logs below the given files and folders, in order of their names, and what is not there: (path, why)."""
    found: dict[Path, Source] = {}
    missing: list[tuple[str, str]] = []
    for given in paths:
        path = Path(given)
        if path.is_file():
            source = _file(path, given=True)
            found.setdefault(path.resolve(), source)
        elif path.is_dir():
            before = len(found)
            for source in _folder(path):
                found.setdefault(source.path.resolve(), source)
            if len(found) == before and not any(path.resolve() in known.parents for known in found):
                missing.append((str(given), "no training log in this folder"))
        else:
            is_stream = str(given) == "-" or path.exists()
            missing.append((str(given), "no stream can be read; write it to a file" if is_stream else NOTHING))
    return list(found.values()), missing


def _file(path: Path, given: bool = False) -> Source:
    plain = unpacked(path)
    name, suffix = plain.name.lower(), plain.suffix.lower()
    if _EVENTS in name:
        return Source(str(path), "tensorboard", path, (("", path),))
    if path.name.lower() in RUN_FILES:
        return Source(str(path), RUN_FILES[name], path)
    if suffix in (".jsonl", ".ndjson") or (suffix in (".log", ".txt") and _first_line(path).startswith(b"{")):
        return Source(str(path), "json-lines", path, certain=given)
    if suffix == ".json":
        return Source(str(path), "json", path, certain=given)
    return Source(str(path), "table", path, certain=True)


def _folder(root: Path) -> list[Source]:
    sources: list[Source] = []
    event_folders: dict[Path, list[str]] = {}
    for place, folders, files in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        folder = Path(place)
        if any(_EVENTS in name for name in files):
            event_folders[folder] = sorted(files)
        sources += [_file(folder / name) for name in sorted(files) if _may_be_log(folder / name)]
    sources = _latest_states(sources)
    taken = {_run_folder(source.path) for source in sources if source.path.name.lower() in RUN_FILES}
    # Hugging Face's Trainer writes the same numbers to `runs/` beside its checkpoints.
    for source in sources:
        if source.format == "trainer_state":
            parent = source.path.parent
            taken |= {parent, parent.parent} if _is_checkpoint(parent) else {parent}
    sources += _event_runs(event_folders, taken)
    kept = _one_a_folder(sources)
    return sorted(kept, key=lambda source: _natural(source.name))


def _run_folder(path: Path) -> Path:
    """The folder of the run that a log belongs to."""
    return path.parent.parent if path.parent.name == OWN_FOLDER else path.parent


def _may_be_log(path: Path) -> bool:
    plain = unpacked(path)
    name, suffix = plain.name.lower(), plain.suffix.lower()
    if name in NO_LOGS or name.startswith("."):
        return False
    if suffix in (".csv", ".tsv", ".jsonl", ".json", ".ndjson"):
        return True
    if suffix in (".log", ".txt"):
        # Keras' own example calls its CSV `training.log`; others write JSON lines to `log.txt`.
        first = _first_line(path).lower()
        if first.startswith(b"{"):
            return b"loss" in first
        return b"epoch" in first and b"loss" in first and any(sign in first for sign in (b",", b"\t", b";"))
    return False


def _first_line(path: Path) -> bytes:
    """The beginning of a file's first line; empty if there is no such file."""
    opened = gzip.open if path.suffix.lower() == PACKED else open
    try:
        with opened(path, "rb") as file:
            return file.readline(500).lstrip()
    except (OSError, EOFError, zlib.error):
        return b""


def _is_checkpoint(folder: Path) -> bool:
    return re.fullmatch(r"checkpoint-\d+", folder.name) is not None


def _latest_states(sources: list[Source]) -> list[Source]:
    """Of the `trainer_state.json` files of one run only the newest: each checkpoint repeats what came before."""
    newest: dict[Path, Source] = {}
    for source in sources:
        if source.format != "trainer_state":
            continue
        folder = source.path.parent
        run = folder.parent if _is_checkpoint(folder) else folder
        known = newest.get(run)
        if known is None or _state_rank(source.path) > _state_rank(known.path):
            newest[run] = source
    return [source for source in sources if source.format != "trainer_state" or source in newest.values()]


def _state_rank(path: Path) -> float:
    folder = path.parent
    return float(folder.name.removeprefix("checkpoint-")) if _is_checkpoint(folder) else float("inf")


def _event_runs(folders: dict[Path, list[str]], taken: set[Path]) -> list[Source]:
    """TensorBoard folders, those of one run together: `train/` and `validation/`, and what `add_scalars` wrote."""
    groups: dict[Path, list[tuple[str, Path]]] = {}
    for folder in sorted(folders):
        parent = folder.parent
        if folder.name.lower() in SUB_RUNS:
            groups.setdefault(parent, []).append((folder.name, folder))
        elif parent in folders and "_" in folder.name:
            # add_scalars("Loss", {"val": …}) writes the tag Loss into the folder Loss_val.
            groups.setdefault(parent, []).append((folder.name.rpartition("_")[2], folder))
        elif (folder.name == OWN_FOLDER or _HPARAMS.fullmatch(folder.name)) and (parent in folders or parent in taken):
            continue
        else:
            groups.setdefault(folder, []).append(("", folder))
    found = []
    for run, parts in groups.items():
        if run in taken or (run.parent.name == "runs" and run.parent.parent in taken):
            continue
        found.append(Source(str(run), "tensorboard", run, tuple(parts)))
    return found


def _one_a_folder(sources: list[Source]) -> list[Source]:
    """Of several logs of one run in one folder the one that says most."""
    best: dict[Path, Source] = {}
    kept: list[Source] = []
    for source in sources:
        if source.path.name.lower() not in RUN_FILES:
            kept.append(source)
            continue
        folder = _run_folder(source.path)
        known = best.get(folder)
        if known is None or PREFERENCE.index(source.format) < PREFERENCE.index(known.format):
            best[folder] = source
    return kept + list(best.values())


def _natural(name: str) -> list[tuple[int, int | str]]:
    """version_2 before version_10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name)]
