"""One run: what has been measured, found and said since it began, and what happens when an evaluation ends.

At the end of an evaluation every rank folds, pairs, decides and makes the keys available to monitors; rank zero writes.
The hooks of the callback only say when.
"""

from __future__ import annotations

import functools
import math
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_lossacc import closing, quantities, records, training
from lightning_lossacc.capture import IGNORE_INDEX, Capture, User
from lightning_lossacc.diagnosis import Diagnosis, Event
from lightning_lossacc.history import History, Record
from lightning_lossacc.ranks import fold
from lightning_lossacc.records import UNION
from lightning_lossacc.resume import (
    complete_history,
    drop_abandoned,
    is_interrupted,
    load_history,
    load_train,
    pack,
    save_history,
    save_train,
    unpack,
)
from lightning_lossacc.sampling import Sampling, expected_batches, samplings, train_sampling
from lightning_lossacc.stages import Settings, StageState, precompile
from lightning_lossacc.train_probe import BATCH_SIZE, TrainProbe, is_sharded
from lightning_lossacc.train_rows import TrainRows
from lightning_lossacc.voice import Voice, step_of
from lightning_lossacc.watchers import Watcher

SCHEMA = 2
BEST = {"nll": 1, "accuracy": -1}


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
        alert: whether loggers that can send a message to people when a warning opens.
        report: whether `report.html` is written beside the other files.
        config: settings of the monitor, in plain values, for the loggers.
        watcher: numbers of activations, gradients and updates, or None.
        train_probe: fixed training rows that are evaluated with each validation, or None.
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
        alert: bool = False,
        report: bool = True,
        config: dict[str, Any] | None = None,
        watcher: Watcher | None = None,
        train_probe: TrainProbe | None = None,
    ) -> None:
        self.interrupted = False
        self.failed: set[str] = set()  # stages of which a hook failed before the evaluation's end
        self._capture = capture
        self._settings = settings
        self._accuracy_margin = accuracy_margin
        self._keys = tuple(quantities.KEYS) if log_all else quantities.CORE
        self._on_event = on_event
        self._voice = Voice(dirpath, verbose, alert, report, config)
        self.watcher = watcher
        self._train_probe = train_probe
        self._probed: Any = None  # data set of the training loader whose rows are probed
        self._first_step = 0  # optimizer steps that other runs had made before this fit
        self._trainer: weakref.ref[Trainer] | None = None  # whose loggers and directory are in use
        self._fit: weakref.ref[Trainer] | None = None  # whose training the history is about
        self._start_anew()

    def probe_training_rows(self, loader: Any, user: User | None) -> None:
        """Evaluates the rows of a training loader with each validation; one sentence if it is no single loader."""
        if self.train_rows is not None and getattr(loader, "dataset", None) is self._probed:
            return
        if not isinstance(loader, DataLoader):
            self.warn_once(
                "lossacc: Expected one DataLoader of training rows with `train_probe=True`, but got "
                f"{type(loader).__name__}; give a data set."
            )
            return
        in_order = DataLoader(loader.dataset, loader.batch_size or BATCH_SIZE, collate_fn=loader.collate_fn)
        self._probed, self._train_probe = loader.dataset, TrainProbe(in_order, self._settings.probe_items, user)
        self.train_rows = TrainRows(self._train_probe, self._settings)
        if self._saved_rows is not None:
            self.train_rows.load(self._saved_rows)

    def _start_anew(self) -> None:
        self.history = History()
        self.events: list[Event] = []
        self._diagnosis = Diagnosis(self._accuracy_margin)
        self._states: dict[tuple[str, int], StageState] = {}
        self._references: dict[str, dict[str, Any]] = {}
        self._train_state: dict[str, Any] | None = None
        self._saved_rows: Any = None  # of a checkpoint, until the training loader is there
        self.train_rows = None if self._train_probe is None else TrainRows(self._train_probe, self._settings)
        self._shown: dict[str, Any] = {}  # the user's own numbers as they stood at the last evaluation
        self._loaded = self._resumed = False
        self._voice.forget()

    def __getstate__(self) -> dict[str, Any]:
        # Trainers hold threads and files, which no copy can have.
        return {**vars(self), "_trainer": None, "_fit": None}

    def prepare(self, trainer: Trainer) -> None:
        """Finds the loggers and the directory of a Trainer; the fit of another Trainer starts a new history."""
        begins = trainer.state.fn == "fit" and _target(self._fit) is not trainer
        if begins:
            # A validation before the fit has written to this run's own directory.
            own = self._voice.directories if _target(self._trainer) is trainer else set()
            if not self._loaded:
                self._start_anew()
            self._voice.directories |= own
            self._fit = weakref.ref(trainer)
            self._first_step = trainer.global_step
        if _target(self._trainer) is trainer and not self._loaded and not begins:
            return
        self._trainer = weakref.ref(trainer)
        self._voice.find_places(trainer, self.events, lambda: (self.history, self.events))
        if self._loaded and self._voice.directory is not None:
            path = self._voice.directory / "history.jsonl"
            # With several processes all must decide from the same numbers, and only one reads the file.
            if trainer.world_size == 1:
                complete_history(self.history, path)
            drop_abandoned(self.history, path)
        self._loaded = False
        if trainer.world_size > 1:
            # Values are already summed over ranks, which Lightning cannot know when it reduces them, later.
            warnings.filterwarnings("ignore", message=r".*self\.log\('lossacc/.*sync_dist=True")

    def announce(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before Lightning logs hyperparameters: our verdict is to stand beside them."""
        self._attempt("a place beside the hyperparameters", lambda: self._voice.announce(trainer, pl_module))

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

    def look_at_optimizers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says which trainable parameters no optimizer has; shards of them are other tensors."""
        text = None if is_sharded(trainer) else training.left_out(pl_module, trainer.optimizers)
        if text is not None:
            self._voice.say(trainer, text, level="info")

    def begin_train(self, trainer: Trainer) -> None:
        """Empties the sums of the training epoch."""
        state = self.state("train", 0)
        state.clear()
        try:
            state.sampling = train_sampling(trainer)
        except Exception as error:
            # Rows are counted all the same; only those of one item are taken for several items.
            state.sampling = Sampling(reason=f"{type(error).__name__}: {error}")

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
        train = self._copy_of_train() if name == "val" else None
        rows = self.train_rows if name == "val" else None
        beside = [] if train is None else [train]
        if rows is not None:
            ignored = None if train is None or train.layout is None else train.layout.ignore_index
            beside.append(rows.evaluate(trainer, pl_module, IGNORE_INDEX if ignored is None else ignored))
        watched = {}
        if name == "val" and self.watcher is not None:
            watched = self._attempt("what the watchers saw", self.watcher.values) or {}
        problem = None
        # Ranks of one Trainer only: a process group may hold several independent ones.
        if trainer.world_size > 1:
            device = trainer.strategy.root_device
            shared = training.to_vector(watched, device, trainer.is_global_zero)
            problem = fold(states, device, beside, shared)
            watched = training.from_vector(shared)
        if watched:  # every rank knows what the Trainer was told
            watched |= training.clipping(trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        found: list[Record] = []
        if problem is not None:
            self._voice.warn_once(problem)
        else:
            if rows is not None and any(state.layout is not None for state in states):
                record = self._attempt("the training rows", lambda: rows.record(trainer, self.history))
                found += [] if record is None else self._keep([record])
            found += self._records(trainer, stage, states, train, rows, watched)
        self._voice.publish(trainer, pl_module, stage, found, len(states), self._keys)
        for state in states:
            if problem is None:
                self._voice.explain(state, self._capture)
            state.clear()
        if rows is not None:
            for note in rows.notes:
                self.warn_once(note)
            rows.state.clear()
        if trainer.state.fn != "fit":
            for record in found:
                self._voice.say(trainer, closing.snapshot(record), level="info")
        if name != "train":
            self._diagnose(trainer, [record for record in found if record.stage == name and record.loader != UNION])

    def precompile(self, trainer: Trainer) -> None:
        """Has the kernels made before the first step, where the number of classes was given."""
        device, precision = trainer.strategy.root_device, str(trainer.precision)
        self._attempt("kernels made ahead", lambda: precompile(self._settings, precision, device))

    def _copy_of_train(self) -> StageState:
        """The training epoch so far, in sums of its own."""
        state = self.state("train", 0).copy()
        state.complete = state.complete and "train" not in self.failed
        return state

    def _attempt(self, what: str, make: Callable[[], Any]) -> Any:
        """What an addition to the records gives; None with one warning if it fails, so that the rest is not lost."""
        try:
            return make()
        except Exception as error:
            self.warn_once(f"lossacc lacks {what}: {type(error).__name__}: {error}", what)
            return None

    def _records(
        self,
        trainer: Trainer,
        stage: str,
        states: list[StageState],
        train: StageState | None,
        rows: TrainRows | None,
        watched: dict[str, float],
    ) -> list[Record]:
        """The records of the loaders of a stage, and of their union."""
        (logged, late), name = records.logged(trainer, stage, self._shown), self.name(trainer, stage)
        context, train_classes = ({}, []) if train is None else training.measured(train)
        context |= watched
        found = []
        for state in states:
            if state.layout is None:
                continue
            for before in self.history.series(name, state.loader, complete=False)[-1:]:
                before.logged.update(late)
            values, arrays = state.values(), state.arrays()
            paired, own = {}, {}
            if name == "val":
                own = context | {"num_classes": float(state.layout.num_classes)} | self._steps(trainer, state.loader)
                arrays |= {"train_classes": train_classes} if train_classes else {}
                logits = functools.partial(records.probed, state, None if rows is None else rows.state)
                arrays |= self._attempt("what the logits tell", logits) or {}
                paired, kept = records.pair(trainer, state, values, self.history, BEST)
                if state.loader == 0 and "nll" in kept and rows is not None:
                    rows.keep(trainer)
            found.append(
                records.make(
                    trainer, name, state.loader, state.complete, values, arrays, logged, paired=paired, context=own
                )
            )
            if stage != "train" and not self._resumed:
                source = self._capture.source((state.stage, state.loader))
                self._voice.say_opening(trainer, found[-1], state, source)
        together = records.union(states)
        if together is not None:
            complete, values = together
            found.append(records.make(trainer, name, UNION, complete, values, logged=logged, context=context))
        return self._keep(found)

    def _steps(self, trainer: Trainer, loader: int) -> dict[str, float]:
        """Optimizer steps since the last evaluation, or since this fit began."""
        earlier = self.history.series("val", loader, complete=False)
        since = earlier[-1].global_step if earlier else self._first_step
        return {"steps": float(trainer.global_step - since)}

    def _keep(self, found: list[Record]) -> list[Record]:
        for record in found:
            self.history.append(record)
        return found

    def _diagnose(self, trainer: Trainer, evaluated: list[Record]) -> None:
        found = []
        for record in evaluated:
            if record.complete:
                found += self._diagnosis.examine(self.history, record.stage, record.loader)
        for event in found:
            self.events.append(event)
            self._voice.reporter.event(event, step_of(trainer))
            if event.level == "warning":
                self._voice.say_event(trainer, event)
            if self._on_event is not None:
                try:
                    self._on_event(event)
                except Exception as error:
                    self._voice.warn_once(f"lossacc: `on_event` raised {type(error).__name__}: {error}", "on_event")
        loaders = {event.loader for event in found if event.stage == "val" and _is_news(event)}
        if loaders:
            self._voice.draw(self.history, self.events, step_of(trainer), loaders)

    def warn_once(self, text: str, key: str | None = None) -> None:
        """Warns on rank zero, once; never raises."""
        self._voice.warn_once(text, key)

    def close(self, trainer: Trainer) -> None:
        """The closing summary, the figures and the verdict."""
        self._voice.finish(trainer, self.history, self.events, self._accuracy_margin)

    def save_files(self) -> None:
        """Brings the local files up to date, of a run that is interrupted."""
        self._voice.reporter.save_files()

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
            "train_rows": None if self.train_rows is None else self.train_rows.save(),
            "train": begun,
            "directories": sorted(self._voice.directories),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Takes a checkpoint's state; one of another version is ignored with one warning."""
        if saved.get("schema") != SCHEMA:
            self._voice.warn_once("lossacc found a checkpoint of another version; its history starts anew.")
            return
        history, events = load_history(saved["history"]), [Event.from_json(line) for line in unpack(saved["events"])]
        self._start_anew()
        self.history, self.events = history, events
        self._voice.recall(events)
        self._diagnosis.load_state("".join(unpack(saved["open"])))
        self._references, self._train_state = saved["references"], saved["train"]
        self._saved_rows = saved["train_rows"]
        if self.train_rows is not None and self._saved_rows is not None:
            self.train_rows.load(self._saved_rows)
        self._voice.directories = set(saved["directories"])
        self._loaded = self._resumed = True


def _target(reference: weakref.ref[Trainer] | None) -> Trainer | None:
    return None if reference is None else reference()


def _is_news(event: Event) -> bool:
    return event.level == "warning" and event.status != "closed"
