"""What has one stage and data loader accumulated since its evaluation began?

A `StageState` turns captured batches into the two vectors of a `Layout` and into a `Probe`, in one process; `ranks.py`
adds them up over several.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_lossacc import kernels, quantities, refinement
from lightning_lossacc.buffer import RowBuffer
from lightning_lossacc.capture import Captured
from lightning_lossacc.looks import Looks
from lightning_lossacc.loss_calls import NLL, Tally
from lightning_lossacc.probe import Probe
from lightning_lossacc.sampling import Sampling
from lightning_lossacc.sums import EVALUATION_TEMPERATURES, Layout

CLASS_TABLE = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for, the same on every rank."""

    num_bins: int = 15
    top_k: int = 5
    probe_items: int = 8192
    num_classes: int | None = None
    backend: kernels.Backend = "auto"

    def __post_init__(self) -> None:
        kernels.expect_backend(self.backend)


@dataclass(slots=True)
class StageState:
    """Accumulators of one stage and loader.

    Attributes:
        stage, loader: which.
        settings: what the user asked for.
        grid: whether the temperature grid is summed (evaluation) or not (training).
        sampling: order of the items, known only for evaluation.
        layout, counts, sums: None before the first captured batch.
        looks: whether the captured numbers are logits; None before the first captured batch.
        probe: paired items; None where the order is unknown.
        unpaired: why there is no probe, in words; empty while there may be one.
        batches: batches seen since the evaluation began.
        complete: False if a part of this evaluation is missing.
        label_smoothing, weighted: of the loss that was captured last.
        wants_log: whether that loss takes log-probabilities, as `F.nll_loss` does, and applies no softmax.
        failure: first reason why a batch could not be counted; stays over evaluations.
        reference_state: references of a checkpoint, until a first batch tells the layout of their probe.
    """

    stage: str
    loader: int
    settings: Settings
    grid: bool
    sampling: Sampling = field(default_factory=Sampling)
    layout: Layout | None = None
    counts: Tensor | None = None
    sums: Tensor | None = None
    looks: Looks | None = None
    probe: Probe | None = None
    unpaired: str = ""
    batches: int = 0
    complete: bool = True
    label_smoothing: float = 0.0
    weighted: bool = False
    wants_log: bool = False
    failure: str | None = None
    reference_state: dict[str, Any] = field(default_factory=dict)
    _position: int = 0  # items of this rank in the batches before the current one
    _calls: int = 0  # losses captured in the current batch
    _buffer: RowBuffer = field(init=False)

    def __post_init__(self) -> None:
        self._buffer = RowBuffer(self._count)

    def begin_batch(self) -> None:
        """Called before the step."""
        self._calls = 0

    def end_batch(self) -> None:
        """Called after the step."""
        self._position += self._expected_items()
        self.batches += 1

    def add(self, captured: Captured, position: Tensor | None = None) -> None:
        """Counts one captured loss call; bad shapes are remembered in `failure` and never raised into the step.

        Args:
            captured: logits and targets.
            position: (I,) int64 position of each item in the data set; None reads it from the sampling.
        """
        self.label_smoothing, self.weighted = captured.label_smoothing, captured.weighted
        self.wants_log = captured.source.startswith(f"F.{NLL} ")
        if captured.counted:
            self._calls += 1
            self.looks.update(captured.logits.flatten(2) if captured.logits.ndim > 2 else captured.logits[:, :, None])
            return
        try:
            if self.layout is None:
                self._begin(infer_layout(captured, self.settings, self.grid), captured.logits.device)
            if position is None:
                logits, target, owned = self._items(captured.logits, captured.target)
            else:
                logits, target, owned = _by_item(captured.logits, captured.target, len(position))
                if owned is None:
                    raise ValueError(
                        f"Expected logits of {len(position)} items, but got shape {tuple(captured.logits.shape)}."
                    )
            logits, target = kernels.canonical(logits, target, self.layout)
            self._calls += 1
            self._buffer.add(logits, target, self._positions(owned, logits.device) if position is None else position)
        except Exception as error:
            self._fail_by(error)

    def reserve(self, captured: Captured) -> Tally | None:
        """What a fused loss may fill while it reads the logits: the vectors, if its rows need nothing else.

        Paired and padded rows are looked at one by one, and small batches on a CPU are counted together.
        """
        layout, logits = self.layout, captured.logits
        if layout is None or self.probe is not None or captured.target.is_floating_point():
            return None
        if (layout.task, layout.num_classes) != (captured.task, logits.shape[1]):
            return None
        if layout.ignore_index != captured.ignore_index or self._buffer.waits_for_more(logits):
            return None
        expected, items = self._expected_items(), None
        if expected and not (self._calls and len(logits) != expected):
            if self._position + expected > self.sampling.owned:
                return None
            items = _by_item(logits, captured.target, expected)[2]
        return Tally(self.counts, self.sums, layout, items)

    def flush(self) -> None:
        """Counts the rows that still wait in the buffer; before anything reads the sums."""
        try:
            self._buffer.flush()
        except Exception as error:
            self._fail_by(error)

    def _count(self, logits: Tensor, target: Tensor, position: Tensor | None) -> None:
        kernels.row_statistics(logits, target, self.counts, self.sums, self.layout, self.settings.backend)
        self.looks.update(logits)
        if self.probe is not None and position is not None:
            self.probe.update(position, logits, target, self.settings.backend)

    def _fail_by(self, error: Exception) -> None:
        self.fail(str(error) if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}")

    def fail(self, reason: str) -> None:
        """Remembers why a batch is missing; this evaluation stays out of trends."""
        self.failure = self.failure or reason
        self.complete = False

    def begin_evaluation(self, sampling: Sampling, references: dict[str, Any]) -> None:
        """Empties the accumulators; `references` of a checkpoint wait for the first batch."""
        is_new = sampling != self.sampling
        self.sampling = sampling
        self.reference_state = references or self.reference_state
        if self.layout is not None and is_new:
            self._make_probe()
        self.clear()

    def clear(self) -> None:
        """Ready for the next evaluation; layout, vectors' identity and references stay."""
        self._buffer.clear()
        if self.layout is not None:
            self.counts.zero_()
            self.sums.zero_()
            self.looks.clear()
        if self.probe is not None:
            self.probe.clear()
        self.batches = self._position = self._calls = 0
        self.complete = True

    def forget(self) -> None:
        """Drops what was counted and stays what it is for other ranks: layout, completeness, pairing."""
        batches, complete = self.batches, self.complete
        self.clear()
        self.batches, self.complete = batches, complete

    def adopt(self, layout: Layout, device: torch.device) -> None:
        """Takes another rank's layout on a rank that has seen no batch."""
        if self.layout is None:
            self._begin(layout, device)

    def unpair(self, reason: str) -> None:
        """Switches paired comparison off and says why."""
        self.probe, self.unpaired, self.reference_state = None, reason, {}

    def copy(self) -> StageState:
        """The same sums in vectors of their own, which may be added up over ranks while this state goes on."""
        self.flush()
        other = replace(self)
        if self.layout is not None:
            other.counts, other.sums = self.counts.clone(), self.sums.clone()
            other.looks = Looks(self.counts.device)
        return other

    def references(self) -> dict[str, Any]:
        """Kept evaluations of the probe, for a checkpoint; also those of a checkpoint that still wait for a batch."""
        return self.reference_state if self.probe is None else self.probe.state()

    def values(self) -> dict[str, float]:
        """All scalar quantities."""
        return quantities.summary(self.counts, self.sums, self.layout)

    @property
    def loss_terms(self) -> str:
        """What the captured loss has beside the NLL, in words; empty if nothing."""
        smoothing = [f"smoothing {self.label_smoothing:g}"] if self.label_smoothing else []
        missing = self.wants_log and self.looks.verdict() != "log-probabilities"
        return " and ".join(
            [f"no log_softmax before F.{NLL}"] * missing + smoothing + ["class weights"] * self.weighted
        )

    @property
    def num_rows(self) -> int:
        """Counted rows so far; reads the device."""
        return 0 if self.layout is None else int(self.counts[self.layout.count_slices["rows"]])

    def excluded(self) -> dict[str, int]:
        """Rows that were left out, by reason; reads the device."""
        part = self.layout.parts(self.counts.cpu(), self.sums.cpu())
        return {name: int(part[name]) for name in ("ignored", "invalid", "non_finite", "unsupported")}

    def arrays(self) -> dict[str, Any]:
        """Reliability bins, margin histogram, per-class table (largest 64 classes) and the temperature curve."""
        part = self.layout.parts(self.counts.cpu(), self.sums.cpu())
        arrays: dict[str, Any] = {
            "reliability": quantities.reliability(self.counts, self.sums, self.layout),
            "margin_histogram": part["margin_histogram"].tolist(),
            "classes": quantities.class_table(self.counts, self.sums, self.layout, largest=CLASS_TABLE),
            "cells": {name: part[f"bin_{name}"].view(2, -1).tolist() for name in ("rows", "nll")},
            "excluded": self.excluded() | {"ties": int(part["ties"])},
            "loss_terms": self.loss_terms,
            "task": self.layout.task,
            "looks_like": self.looks.verdict(),
        }
        if self.layout.temperatures:
            arrays["temperature_curve"] = refinement.temperature_curve(self.counts, self.sums, self.layout)
            arrays["half_temperatures"] = refinement.half_temperatures(self.counts, self.sums, self.layout)
        return arrays

    def _begin(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self.counts, self.sums = layout.zeros(device)
        self.looks = Looks(device)
        self._make_probe()

    def _make_probe(self) -> None:
        self.probe, self.unpaired = None, ""
        if not self.grid:
            self.unpaired = "training batches are not paired"
        elif not self.sampling.known:
            self.unpaired = self.sampling.reason
        elif self.settings.probe_items > 0:
            self.probe = Probe(self.sampling.num_items, self.layout, self.settings.probe_items, self.counts.device)
            self.probe.load_state(self.reference_state)

    def _expected_items(self) -> int:
        """Items in the current batch, padding included; 0 if unknown."""
        if self.sampling.batch_size is None or self.sampling.owned is None:
            return 0
        padded = math.ceil(self.sampling.num_items / self.sampling.stride)
        return max(0, min(self.sampling.batch_size, padded - self._position))

    def _items(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int | None]:
        """Rows grouped by item and without padding; the number of items, or None if rows could not be told apart."""
        expected = self._expected_items()
        if not expected or (self._calls and len(logits) != expected):
            return logits, target, None
        logits, target, expected = _by_item(logits, target, expected)
        if expected is None:
            return logits, target, None
        owned = max(0, min(expected, self.sampling.owned - self._position))
        return logits[:owned], target[:owned], owned

    def _positions(self, owned: int | None, device: torch.device) -> Tensor | None:
        """Positions of the batch's items in the data set, for the probe; None where rows are not paired."""
        if self.probe is None:
            return None
        if owned is None or self._calls > 1:
            several = (
                "the step calls the loss several times" if self._calls > 1 else "rows of a batch are not its items"
            )
            self.unpair(several)
            return None
        count = torch.arange(self._position, self._position + owned, device=device)
        return self.sampling.first + self.sampling.stride * count


def _by_item(logits: Tensor, target: Tensor, items: int) -> tuple[Tensor, Tensor, int | None]:
    """Rows grouped by item, and their number; None if rows cannot be told apart."""
    if len(logits) == items:
        return logits, target, items
    # Tokens of a sequence are often flattened into rows: (B * L, C) becomes (B, C, L), the unit of sampling.
    if not items or len(logits) % items or logits.ndim != 2 or target.ndim != 1:
        return logits, target, None
    return logits.unflatten(0, (items, -1)).movedim(1, -1), target.unflatten(0, (items, -1)), items


def infer_layout(captured: Captured, settings: Settings, grid: bool) -> Layout:
    """Layout from the first captured batch."""
    logits = captured.logits
    if captured.task == "binary":
        num_classes = 2
    elif logits.ndim < 2:
        raise ValueError(f"Expected logits of shape (N, C, ...), but got {tuple(logits.shape)}.")
    else:
        num_classes = logits.shape[1] if settings.num_classes is None else settings.num_classes
    return make_layout(captured.task, num_classes, captured.ignore_index, settings, grid)


def make_layout(task: Any, num_classes: int, ignore_index: int | None, settings: Settings, grid: bool) -> Layout:
    """What is counted for a task, the same on every rank."""
    return Layout(
        num_classes=num_classes,
        task=task,
        num_bins=settings.num_bins,
        top_k=settings.top_k,
        temperatures=EVALUATION_TEMPERATURES if grid else (),
        ignore_index=ignore_index,
    )


def precompile(settings: Settings, precision: str, device: torch.device) -> None:
    """Compiles what (N, C) logits of the known number of classes need, so that no step waits for it.

    Args:
        settings: nothing is done without `num_classes`.
        precision: of the Trainer, such as `"32-true"` or `"bf16-mixed"`: half-precision layers give such logits.
        device: where the logits will be.
    """
    if settings.num_classes is None or settings.backend == "reference":
        return
    dtype = {"16": torch.float16, "bf16": torch.bfloat16}.get(precision.split("-")[0], torch.float32)
    for grid in (False, True):
        kernels.precompile(make_layout("multiclass", settings.num_classes, -100, settings, grid), dtype, device)
