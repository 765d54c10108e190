"""The run's own directory: `history.jsonl`, `events.jsonl`, the picture and the last summary."""

from __future__ import annotations

import errno
import json
import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import Record
from lightning_lossacc.sinks.images import Image

# Lines kept for each file while it cannot be written.
MAX_WAITING = 2000


class FileSink:
    """Appends lines as they come, so that a killed run has lost nothing that was said.

    A line that cannot be written (full disk, no permission, no directory) waits in memory, at most
    2000 for each file, and is written before the next one. The first failure gives one warning. A
    line that a crash or a full disk cut off is removed before the next is appended. A directory
    that is deleted in mid run is made again.

    Args:
        dirpath: directory; made when the first line is written.
        warn: takes the one warning.

    Attributes:
        history_path: the records, see `History.read`.
        events_path: the events, one JSON object a line.
        has_warned: whether the directory could not be written to.
    """

    name = "files"
    shows_figures: ClassVar[bool] = True

    def __init__(self, dirpath: Path | str, warn: Callable[[str], None] = warnings.warn) -> None:
        self.dirpath = Path(dirpath)
        self.history_path = self.dirpath / "history.jsonl"
        self.events_path = self.dirpath / "events.jsonl"
        self._files = {path: _Lines(path) for path in (self.history_path, self.events_path)}
        self._warn = warn
        self.has_warned = False

    @property
    def num_waiting(self) -> int:
        """Lines that could not be written yet."""
        return sum(len(lines.waiting) for lines in self._files.values())

    def start(self, config: dict[str, Any]) -> None:
        """Nothing: the report holds the configuration."""

    def carry_on(self, records: Iterable[Record], events: Iterable[Event]) -> None:
        """Writes what a resumed run brought along, unless its directory holds a history already."""
        if os.path.exists(self.history_path):
            return
        self._files[self.history_path].waiting.extend(record.to_json() for record in records)
        self._files[self.events_path].waiting.extend(event.to_json() for event in events)
        if self.num_waiting:
            self._flush()

    def record(self, record: Record, key: str, step: int) -> None:
        """Appends a record to `history.jsonl`."""
        self._append(self.history_path, record.to_json())

    def event(self, event: Event, step: int) -> None:
        """Appends an event to `events.jsonl`."""
        self._append(self.events_path, event.to_json())

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Nothing: `record` writes every number."""

    def figure(self, image: Image, step: int) -> None:
        """Writes `<name>.png`, slashes as underscores, in place of the one before."""
        self._replace(image.file_name, image.png)

    def summary(self, text: str, step: int) -> None:
        """Writes `summary.txt` in place of the one before."""
        self._replace("summary.txt", f"{text}\n".encode())

    def outcome(self, outcome: dict[str, float | str], step: int) -> None:
        """Nothing: it follows from the records and events."""

    def report(self, path: Path, step: int) -> None:
        """Nothing: it is one of the files."""

    def close(self) -> None:
        """Tries once more to write the lines that wait."""
        self._flush()

    def _append(self, path: Path, line: str) -> None:
        self._files[path].waiting.append(line)
        self._flush()

    def _flush(self) -> None:
        try:
            for lines in self._files.values():
                lines.flush()
        except OSError as error:
            self._report(error)

    def _replace(self, file_name: str, content: bytes) -> None:
        draft = self.dirpath / f".draft_{file_name}"
        try:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content)
            os.replace(draft, self.dirpath / file_name)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            self._report(error)

    def _report(self, error: OSError) -> None:
        if self.has_warned:
            return
        self.has_warned = True
        tell(
            self._warn,
            f"lossacc could not write to {self.dirpath}: {error}; training goes on, "
            f"the last {MAX_WAITING} lines of each file wait in memory",
        )


class _Lines:
    """One file of lines and the lines that wait for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: deque[str] = deque(maxlen=MAX_WAITING)
        self._is_whole = False

    def flush(self) -> None:
        if not self.waiting:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that a full disk is met line by line and no line is written twice.
        with open(self.path, "a+b", buffering=0) as file:
            if not self._is_whole:
                _mend(file)
            while self.waiting:
                data = f"{self.waiting[0]}\n".encode()
                self._is_whole = False
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                self._is_whole = True
                self.waiting.popleft()


def _mend(file: FileIO) -> None:
    """Removes a last line that was cut off, or ends it if only its end is missing."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    tail = file.read(end).rpartition(b"\n")[2] if end else b""
    if not tail:
        return
    try:
        json.loads(tail)
    except ValueError:
        file.truncate(end - len(tail))
    else:
        file.write(b"\n")


def tell(warn: Callable[[str], None], message: str) -> None:
    """Warns, and writes to the log instead if warnings are errors: they must not end a training."""
    try:
        warn(message)
    except Exception:
        logging.getLogger("lightning_lossacc").warning(message)
