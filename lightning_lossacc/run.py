"""One run: what has been measured, found and said since it began, and what happens when an evaluation ends.

At the end of an evaluation every rank folds, pairs, decides and makes the keys available to monitors; rank zero writes.
The hooks of the callback only say when.
"""

from __future__ import annotations

import math
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_lossacc import closing, quantities
from lightning_lossacc.capture import Capture
from lightning_lossacc.diagnosis import Diagnosis, Event
from lightning_lossacc.history import History, Record
from lightning_lossacc.resume import (
    complete_history,
    free_directory,
    is_interrupted,
    load_history,
    load_train,
    pack,
    save_history,
    save_train,
    unpack,
)
from lightning_lossacc.sampling import expected_batches, samplings
from lightning_lossacc.sinks import FileSink, Reporter, Sink, find_sinks, tell
from lightning_lossacc.sinks.terminal import printer_for, show
from lightning_lossacc.stages import Settings, StageState, fold

SCHEMA = 1
PICTURE_SECONDS = 30.0
UNION = -1


class Run:
    """Accumulators, history, events and the places that they are reported to.

    Args:
        capture: where logits come from, for the words about it.
        settings: what the user asked for.
        accuracy_margin: see `Diagnosis`.
        log_all: whether all quantities are logged, or the core ones.
        dirpath: directory of the files, None for the Trainer's, False for none.
        on_event: called with each event.
        verbose: whether the terminal shows anything.
    """

    def __init__(
        self,
        capture: Capture,
        settings: Settings,
        accuracy_margin: float,
        log_all: bool,
        dirpath: str | Path | bool | None,
        on_event: Callable[[Event], Any] | None,
        verbose: bool,
    ) -> None:
        self.interrupted = False
        self.failed: set[str] = set()  # stages of which a hook failed before the evaluation's end
        self._capture = capture
        self._settings = settings
        self._accuracy_margin = accuracy_margin
        self._keys = tuple(quantities.KEYS) if log_all else quantities.CORE
        self._dirpath = dirpath
        self._on_event = on_event
        self._verbose = verbose
        self._trainer: weakref.ref[Trainer] | None = None  # whose loggers and directory are in use
        self._fit: weakref.ref[Trainer] | None = None  # whose training the history is about
        self._reporter = Reporter([])
        self._directory: Path | None = None
        self._last_picture = -math.inf
        self._said: set[str] = set()
        self._start_anew()

    def _start_anew(self) -> None:
        self.history = History()
        self.events: list[Event] = []
        self._diagnosis = Diagnosis(self._accuracy_margin)
        self._states: dict[tuple[str, int], StageState] = {}
        self._references: dict[str, dict[str, Any]] = {}
        self._train_state: dict[str, Any] | None = None
        self._directories: set[str] = set()  # where this history has been written to
        self._loaded = self._resumed = False
        self._said.clear()

    def __getstate__(self) -> dict[str, Any]:
        # Loggers and Trainers hold threads and files, which no copy can have.
        return {**vars(self), "_trainer": None, "_fit": None, "_reporter": Reporter([]), "_directory": None}

    def prepare(self, trainer: Trainer) -> None:
        """Finds the loggers and the directory of a Trainer; the fit of another Trainer starts a new history."""
        if trainer.state.fn == "fit" and _target(self._fit) is not trainer:
            if not self._loaded:
                self._start_anew()
            self._fit = weakref.ref(trainer)
        if _target(self._trainer) is trainer and not self._loaded:
            return
        self._trainer = weakref.ref(trainer)
        # Asking for the log directory broadcasts it, so every rank asks.
        log_dir = str(trainer.log_dir or trainer.default_root_dir)
        sinks: list[Sink] = []
        self._directory = None
        if trainer.is_global_zero and not trainer.fast_dev_run:
            if self._dirpath is not False:
                self._directory = self._choose_directory(log_dir)
            if self._directory is not None:
                # With several processes all must decide from the same numbers, and only one reads the file.
                if self._loaded and trainer.world_size == 1:
                    complete_history(self.history, self._directory / "history.jsonl")
                sinks.append(FileSink(self._directory, rank_zero_warn))
            sinks += find_sinks(trainer.loggers, self.events)
        self._reporter = Reporter(sinks, rank_zero_warn)
        self._loaded = False
        if trainer.world_size > 1:
            # Values are already summed over ranks, which Lightning cannot know when it reduces them, later.
            warnings.filterwarnings("ignore", message=r".*self\.log\('lossacc/.*sync_dist=True")

    def name(self, trainer: Trainer, stage: str) -> str:
        """Stage of the records: a validation outside of a fit is no new point of the run's curves."""
        return "validate" if stage == "val" and trainer.state.fn != "fit" else stage

    def state(self, stage: str, loader: int) -> StageState:
        """The accumulators of one stage and loader."""
        key = (stage, loader)
        if key not in self._states:
            self._states[key] = StageState(stage, loader, self._settings, grid=stage != "train")
        return self._states[key]

    def resume_train(self, trainer: Trainer) -> None:
        """Takes back the sums of a training epoch that was begun before the checkpoint."""
        if self._train_state is not None:
            device = trainer.strategy.root_device
            load_train(self.state("train", 0), self._train_state, device, trainer.is_global_zero)
            self._train_state = None

    def begin_evaluation(self, trainer: Trainer, stage: str) -> None:
        """Empties the accumulators of every loader of a stage and reads how its items are ordered."""
        self.prepare(trainer)
        name = self.name(trainer, stage)
        for loader, sampling in enumerate(samplings(trainer, stage)):
            self.state(name, loader).begin_evaluation(sampling, self._references.pop(f"{name}/{loader}", {}))

    def evaluate(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the evaluation of a stage: every rank folds, decides and logs; rank zero writes."""
        expected, name = expected_batches(trainer, stage), self.name(trainer, stage)
        states = [self.state(name, loader) for loader in range(len(expected))]
        for state, batches in zip(states, expected, strict=True):
            state.flush()
            state.complete = state.complete and batches in (state.batches, math.inf) and stage not in self.failed
        self.failed.discard(stage)
        # Ranks of one Trainer only: a process group may hold several independent ones.
        problem = fold(states, trainer.strategy.root_device) if trainer.world_size > 1 else None
        if problem is not None:
            self.warn_once(problem)
        records = [] if problem is not None else self._records(trainer, stage, states)
        self._log(trainer, pl_module, stage, records, len(states))
        for state in states:
            if problem is None:
                self._explain(state)
            state.clear()
        if name == "val":
            self._diagnose(trainer, [record for record in records if record.loader != UNION])
        elif trainer.state.fn != "fit":
            for record in records:
                self._say(trainer, closing.snapshot(record), level="info")

    def _records(self, trainer: Trainer, stage: str, states: list[StageState]) -> list[Record]:
        logged = _logged(trainer, stage)
        name = self.name(trainer, stage)
        records = []
        for state in states:
            if state.layout is None:
                continue
            values = state.values()
            paired = self._pair(trainer, state, values) if name == "val" else {}
            records.append(_record(trainer, name, state.loader, state.complete, values, state.arrays(), logged, paired))
            if stage != "train":
                self._say_opening(trainer, records[-1], state)
        active = [state for state in states if state.layout is not None]
        if len(active) > 1 and len({state.layout.fingerprint for state in active}) == 1:
            counts = torch.stack([state.counts for state in active]).sum(0)
            sums = torch.stack([state.sums for state in active]).sum(0)
            union = quantities.summary(counts, sums, active[0].layout)
            complete = all(state.complete for state in active)
            records.append(_record(trainer, name, UNION, complete, union, {}, logged, {}))
        for record in records:
            self.history.append(record)
            self._reporter.record(record)
        return records

    def _pair(self, trainer: Trainer, state: StageState, values: dict[str, float]) -> dict[str, dict[str, Any]]:
        """Compares with the kept evaluations, then keeps this one where it is the best so far."""
        probe = state.probe
        if probe is None or not state.complete or not math.isfinite(values["nll"]):
            return {}
        temperature, paired = values["temperature"], {}
        for name, sign in (("nll", 1), ("accuracy", -1)):
            compared = probe.compare(name, temperature)
            if compared is not None:
                paired[name] = compared
            earlier = [value for value in self.history.column(name, state.stage, state.loader) if math.isfinite(value)]
            is_best = all(sign * values[name] < sign * value for value in earlier)
            if is_best or name not in probe.references:
                probe.keep(name, trainer.current_epoch, trainer.global_step, temperature, values["nll"])
        return paired

    def _log(
        self, trainer: Trainer, pl_module: LightningModule, stage: str, records: list[Record], num_loaders: int
    ) -> None:
        scalars = {}
        for record in records:
            suffix = f"/dataloader_idx_{record.loader}" if num_loaders > 1 and record.loader != UNION else ""
            for key in self._keys:
                if key in record.values:
                    scalars[f"lossacc/{stage}/{key}{suffix}"] = record.values[key]
        if not scalars:
            return
        if trainer.barebones:
            trainer.callback_metrics.update({key: torch.tensor(value) for key, value in scalars.items()})
            return
        pl_module.log_dict(scalars, logger=False, on_step=False, on_epoch=True, add_dataloader_idx=False, batch_size=1)
        # Not through `self.log`: Lightning lets a logger's exception end the run, and this must not.
        self._reporter.scalars(scalars | {"epoch": float(trainer.current_epoch)}, _step(trainer))

    def _diagnose(self, trainer: Trainer, records: list[Record]) -> None:
        found = []
        for record in records:
            if record.complete:
                found += self._diagnosis.examine(self.history, record.stage, record.loader)
        for event in found:
            self.events.append(event)
            self._reporter.event(event, _step(trainer))
            if event.level == "warning":
                self._say(trainer, event.message)
            if self._on_event is not None:
                try:
                    self._on_event(event)
                except Exception as error:
                    self.warn_once(f"lossacc: `on_event` raised {type(error).__name__}: {error}", "on_event")
        if any(event.level == "warning" and event.status != "closed" for event in found):
            self._draw(trainer, at_end=False)

    def close(self, trainer: Trainer) -> None:
        """The closing summary and the last picture."""
        if self.history.streams():
            files = None if self._directory is None else str(self._directory)
            text = closing.closing(self.history, self.events, self._accuracy_margin, files)
            self._say(trainer, text, level="info")
            self._reporter.summary(text, _step(trainer))
            self._draw(trainer, at_end=True)
        self._reporter.close()

    def save(self) -> dict[str, Any]:
        """Primitives and tensors only: a ring of evaluations, open events, references, and sums of a begun epoch."""
        references = self._references | {
            f"{stage}/{loader}": state.references() for (stage, loader), state in self._states.items() if stage == "val"
        }
        trainer, train = _target(self._trainer), self._states.get(("train", 0))
        begun = self._train_state
        if trainer is not None and train is not None and begun is None:
            interrupted = self.interrupted or is_interrupted()
            begun = save_train(train, trainer.strategy.root_device, trainer.world_size, interrupted)
        return {
            "schema": SCHEMA,
            "history": save_history(self.history),
            "events": pack([event.to_json() for event in self.events]),
            "open": pack([self._diagnosis.state()]),
            "references": references,
            "train": begun,
            "directories": sorted(self._directories),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Takes a checkpoint's state; one of another version is ignored with one warning."""
        if saved.get("schema") != SCHEMA:
            self.warn_once("lossacc found a checkpoint of another version; its history starts anew.")
            return
        history, events = load_history(saved["history"]), [Event.from_json(line) for line in unpack(saved["events"])]
        self._start_anew()
        self.history, self.events = history, events
        self._diagnosis.load_state("".join(unpack(saved["open"])))
        self._references, self._train_state = saved["references"], saved["train"]
        self._directories = set(saved["directories"])
        self._loaded = self._resumed = True

    def _say(self, trainer: Trainer, text: str, level: Literal["info", "warning"] = "warning") -> None:
        if self._verbose and trainer.is_global_zero:
            show(text, printer_for(trainer), level=level)

    def _say_opening(self, trainer: Trainer, record: Record, state: StageState) -> None:
        key = f"opening {record.stage} {record.loader}"
        if key in self._said or record.num_rows == 0 or self._resumed:
            return
        self._said.add(key)
        source = self._capture.source((state.stage, state.loader)) or "another rank"
        self._say(
            trainer,
            closing.opening(record, source, state.unpaired),
            level="info",
        )

    def _explain(self, state: StageState) -> None:
        """One message where nothing, or not everything, could be counted."""
        if state.failure is not None:
            self.warn_once(f"lossacc could not count a batch of {state.stage}: {state.failure}", "failure")
        elif state.layout is None and state.batches:
            self.warn_once(self._capture.explanation((state.stage, state.loader)), "nothing")
        elif state.batches and not state.num_rows:
            excluded = ", ".join(f"{rows} {closing.EXCLUDED[name]}" for name, rows in state.excluded().items() if rows)
            self.warn_once(
                f"lossacc could count no row of {state.stage} loader {state.loader}: {excluded or 'none came'}.", "rows"
            )

    def warn_once(self, text: str, key: str | None = None) -> None:
        """Warns on rank zero; never raises, even if warnings are errors."""
        if (key or text) not in self._said:
            self._said.add(key or text)
            tell(rank_zero_warn, text)

    def _draw(self, trainer: Trainer, at_end: bool) -> None:
        now = time.monotonic()
        if not at_end and now - self._last_picture < PICTURE_SECONDS:
            return
        for stage, loader in self.history.streams():
            if stage == "val" and loader != UNION:
                name = "lossacc" if loader == 0 else f"lossacc/dataloader_idx_{loader}"
                self._reporter.picture(name, self.history, self.events, _step(trainer), stage=stage, loader=loader)
        self._last_picture = time.monotonic()

    def _choose_directory(self, log_dir: str) -> Path | None:
        """`lossacc` in the log directory, numbered if another run has written there; the same one on resume."""
        if isinstance(self._dirpath, str | Path):
            wanted = Path(self._dirpath).absolute()
        elif "://" in log_dir:
            self.warn_once(f"lossacc writes no files to {log_dir}; give `dirpath`, a local directory.")
            return None
        else:
            wanted = Path(log_dir).absolute() / "lossacc"
        chosen = free_directory(wanted, self._directories)
        self._directories.add(str(chosen))
        return chosen


def _record(
    trainer: Trainer,
    stage: str,
    loader: int,
    complete: bool,
    values: dict[str, float],
    arrays: dict[str, Any],
    logged: dict[str, float],
    paired: dict[str, dict[str, Any]],
) -> Record:
    return Record(
        stage=stage,
        loader=loader,
        epoch=trainer.current_epoch,
        global_step=trainer.global_step,
        time=time.time(),
        complete=complete,
        num_rows=int(values["num_rows"]),
        num_items=int(values["num_items"]),
        values=values,
        arrays=arrays,
        logged=logged,
        paired=paired,
    )


def _target(reference: weakref.ref[Trainer] | None) -> Trainer | None:
    return None if reference is None else reference()


def _logged(trainer: Trainer, stage: str) -> dict[str, float]:
    """The user's own loss and accuracy of this stage; read on every rank, since reading may reduce over ranks."""
    metrics = {key: value for key, value in trainer.callback_metrics.items() if not key.startswith("lossacc/")}
    mine = {
        key: float(value)
        for key, value in metrics.items()
        if ("loss" in key.lower() or "acc" in key.lower()) and value.numel() == 1
    }
    names = {"train": ("train",), "val": ("val", "eval", "dev"), "test": ("test",)}[stage]
    return {key: value for key, value in mine.items() if any(name in key.lower() for name in names)}


def _step(trainer: Trainer) -> int:
    """The step under which Lightning logs its own metrics, one lower than `global_step` at an epoch's last batch."""
    loop = trainer.fit_loop.epoch_loop
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))
