"""MLflow: figures, table of events, summary and report as artifacts; verdict and settings as tags and parameters."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from lightning_lossacc.curves import event_words
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.sinks.event_table import COLUMNS
from lightning_lossacc.sinks.generic import GenericSink
from lightning_lossacc.sinks.images import Image

FOLDER = "lossacc"
TABLE = f"{FOLDER}/events.json"
# Which artifacts MLflow's pages show as tables.
TABLES = "mlflow.loggedArtifacts"
DESCRIPTION = "mlflow.note.content"


class MLFlowSink(GenericSink):
    """An `MLFlowLogger` of either Lightning package, whose `experiment` is a client that needs the run's id."""

    shows_figures: ClassVar[bool] = True

    def start(self, config: dict[str, Any]) -> None:
        """Adds the settings to the parameters; those that the run has already stay, since MLflow refuses a change."""
        known = self._client.get_run(self._run).data.params
        for key, value in config.items():
            if f"lossacc.{key}" not in known:
                self._client.log_param(self._run, f"lossacc.{key}", value)

    def event(self, event: Event, step: int) -> None:
        """Logs the count, the table `lossacc/events.json` and the tags `lossacc.events` and `lossacc.last_event`."""
        super().event(event, step)
        # The client's own `log_table` needs pandas, and reads the store for each row.
        self._client.log_dict(self._run, {"columns": COLUMNS, "data": self.table.rows}, TABLE)
        tables = json.loads(self._client.get_run(self._run).data.tags.get(TABLES, "[]"))
        if {"path": TABLE, "type": "table"} not in tables:
            self._client.set_tag(self._run, TABLES, json.dumps([*tables, {"path": TABLE, "type": "table"}]))
        self._tag("events", self.total_opened)
        self._tag("last_event", event_words(event))

    def figure(self, image: Image, step: int) -> None:
        """Puts the figure in the place of the one before."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / image.file_name
            path.write_bytes(image.png)
            self._client.log_artifact(self._run, str(path), FOLDER)

    def summary(self, text: str, step: int) -> None:
        """Logs `lossacc/summary.txt`, and the same as the run's description where the user gave none."""
        self._client.log_text(self._run, text, f"{FOLDER}/summary.txt")
        description = self._client.get_run(self._run).data.tags.get(DESCRIPTION, "")
        if not description or description.startswith("    lossacc"):
            indented = "\n".join(f"    {line}" for line in text.splitlines())
            self._client.set_tag(self._run, DESCRIPTION, indented)

    def outcome(self, outcome: dict[str, float | str], step: int) -> None:
        """Adds the verdict as tags `lossacc.<key>`."""
        for key, value in outcome.items():
            self._tag(key, f"{value:.6g}" if isinstance(value, float) else value)

    def report(self, path: Path, step: int) -> None:
        """Puts the report in the place of the one before."""
        self._client.log_artifact(self._run, str(path), FOLDER)

    @property
    def _client(self) -> Any:
        return self.logger.experiment

    @property
    def _run(self) -> str:
        return str(self.logger.run_id)

    def _tag(self, key: str, value: Any) -> None:
        self._client.set_tag(self._run, f"lossacc.{key}", value)
