"""What has become of the fixed training rows over a run: their evaluations, references and memory, and their record."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_lossacc import records
from lightning_lossacc.history import History, Record
from lightning_lossacc.memory import Memory, summary
from lightning_lossacc.stages import Settings, StageState
from lightning_lossacc.train_probe import STAGE, TrainProbe

BEST_VALIDATION = "val-nll"


class TrainRows:
    """One history's evaluations of a `TrainProbe`.

    Args:
        probe: reads and evaluates the rows.
        settings: what the user asked for.

    Attributes:
        state: accumulators of the evaluation that goes on.
    """

    def __init__(self, probe: TrainProbe, settings: Settings) -> None:
        self._probe = probe
        probe.failure = probe.random_rows = None
        self.state = StageState(STAGE, 0, settings, grid=True)
        self._references: dict[str, Any] = {}
        self._memory: Memory | None = None
        self._memory_state: dict[str, Any] = {}

    @property
    def notes(self) -> list[str]:
        """What is to be said, each once."""
        off = [] if self.state.failure is None else [f"lossacc: `train_probe` is off: {self.state.failure}"]
        return [*self._probe.notes, *off]

    def evaluate(self, trainer: Trainer, module: LightningModule, ignore_index: int) -> StageState:
        """Fills the state; on other ranks than the first one with nothing, since all evaluate the same rows."""
        references, self._references = self._references, {}
        try:
            self.state.begin_evaluation(self._probe.sampling, references)
            self._probe.evaluate(trainer, module, self.state, ignore_index)
            if not trainer.is_global_zero:
                self.state.forget()
        except Exception as error:
            # Other ranks are about to add up theirs, and would wait.
            self.state.fail(f"{type(error).__name__}: {error}")
        return self.state

    def record(self, trainer: Trainer, history: History) -> Record | None:
        """The record of this evaluation, with its memory; None if nothing was counted."""
        state = self.state
        if state.layout is None or not state.num_rows:
            return None
        values, arrays, classes = state.values(), state.arrays(), state.layout.num_classes
        paired, _ = records.pair(trainer, state, values, history, {"nll": 1})
        if state.complete and state.probe is not None:
            items = state.probe.items(values["temperature"])
            self._memory = self._memory or Memory(len(items), self._memory_state)
            self._memory.update(items)
            best = state.probe.references.get(BEST_VALIDATION)
            followed = summary(self._memory, items, best, state.probe.positions.tolist(), classes)
            arrays |= {"memory": followed} if followed else {}
        context = {"num_classes": float(classes), "random_rows": self._probe.random_rows or 0.0}
        return records.make(trainer, STAGE, 0, state.complete, values, arrays, paired=paired, context=context)

    def keep(self, trainer: Trainer) -> None:
        """Called where the validation loss is best so far: what these rows are like now."""
        state = self.state
        if state.probe is not None and state.complete and state.num_rows:
            records.keep(trainer, state.probe, BEST_VALIDATION, state.values())

    def save(self) -> dict[str, Any]:
        """References and memory, in primitives and tensors: 128 bytes a row."""
        memory = self._memory_state if self._memory is None else self._memory.state()
        return {"references": self._references or self.state.references(), "memory": memory}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of `save`; they wait for an evaluation of as many rows."""
        self._references, self._memory_state = saved["references"], saved["memory"]
