"""How does an evaluation become a `Record`? Tensors in, plain numbers out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_lossacc import quantities
from lightning_lossacc.history import History, Record
from lightning_lossacc.probe import Probe
from lightning_lossacc.stages import StageState

UNION = -1
STAGE_WORDS = {"train": ("train",), "val": ("val", "eval", "dev"), "test": ("test",)}


def make(
    trainer: Trainer,
    stage: str,
    loader: int,
    complete: bool,
    values: dict[str, float],
    arrays: dict[str, Any] | None = None,
    logged: dict[str, float] | None = None,
    paired: dict[str, dict[str, Any]] | None = None,
    context: dict[str, float] | None = None,
) -> Record:
    """A record of this moment."""
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
        arrays=arrays or {},
        logged=logged or {},
        paired=paired or {},
        context=context or {},
    )


def union(states: Sequence[StageState]) -> tuple[bool, dict[str, float]] | None:
    """Whether all loaders together are complete, and their values; None for one loader, or layouts that differ."""
    active = [state for state in states if state.layout is not None]
    if len(active) < 2 or len({state.layout.fingerprint for state in active}) > 1:
        return None
    counts = torch.stack([state.counts for state in active]).sum(0)
    sums = torch.stack([state.sums for state in active]).sum(0)
    return all(state.complete for state in active), quantities.summary(counts, sums, active[0].layout)


def pair(
    trainer: Trainer, state: StageState, values: dict[str, float], history: History, best: Mapping[str, int]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Compares with the kept evaluations, then keeps this one where it is the best so far.

    Args:
        trainer: for the place of this evaluation.
        state: of one loader, with its probe.
        values: the scalars of this evaluation.
        history: all evaluations before this one.
        best: keys of which the best evaluation is kept, with 1 where lower is better and -1 where higher is.

    Returns:
        The comparisons by the name of the reference, and the names under which this evaluation was kept.
    """
    probe = state.probe
    if probe is None or not state.complete or not math.isfinite(values["nll"]):
        return {}, []
    compared = {name: probe.compare(name, values["temperature"]) for name in list(probe.references)}
    kept = []
    for name, sign in best.items():
        earlier = [value for value in history.column(name, state.stage, state.loader) if math.isfinite(value)]
        if name not in probe.references or all(sign * values[name] < sign * value for value in earlier):
            keep(trainer, probe, name, values)
            kept.append(name)
    return {name: found for name, found in compared.items() if found is not None}, kept


def keep(trainer: Trainer, probe: Probe, name: str, values: dict[str, float]) -> None:
    """Makes this evaluation the reference `name`."""
    probe.keep(name, trainer.current_epoch, trainer.global_step, values["temperature"], values["nll"])


def probed(state: StageState, train_probe: StageState | None) -> dict[str, Any]:
    """What the logits of the probe tell: fits, confusion, and rows that are among those of the training."""
    probe = state.probe
    if probe is None or not state.complete or not state.num_rows:
        return {}
    found: dict[str, Any] = {"fits": probe.fits(), "confusion": probe.confusion()}
    tail = probe.tail()
    if tail is not None:
        found["tail"] = tail.numbers()
    if train_probe is not None and train_probe.probe is not None and train_probe.complete:
        found["duplicates"] = probe.duplicates(train_probe.probe)
        found["twins"] = probe.twins(train_probe.probe)
    return {name: value for name, value in found.items() if value is not None and value != {}}


def logged(trainer: Trainer, stage: str, seen: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """The user's own loss and accuracy of this stage; read on every rank, since reading may reduce over ranks.

    A name that says no stage counts where it was logged in this one, whose values Lightning shows last. What is logged
    when the epoch ends, or by another loop, comes after this: Lightning still shows an earlier value.

    Args:
        trainer, stage: of the evaluation.
        seen: what was shown when this was asked last, by name; brought up to date.

    Returns:
        What is of this evaluation, and what was logged since the one before was asked for, which it is of.
    """
    metrics = {key: value for key, value in trainer.callback_metrics.items() if not key.startswith("lossacc/")}
    mine = {
        key: value
        for key, value in metrics.items()
        if ("loss" in key.lower() or "acc" in key.lower()) and value.numel() == 1
    }
    own, late = _names_logged_now(trainer)
    found = {
        key: value
        for key, value in mine.items()
        if any(word in key.lower() for word in STAGE_WORDS[stage])
        or (_base(key) in own and not any(word in key.lower() for words in STAGE_WORDS.values() for word in words))
    }
    now = {key: float(value) for key, value in found.items() if not own or _base(key) in own - late}
    # What is logged anew is another tensor, whatever its value.
    before = {key: float(value) for key, value in found.items() if key not in now and value is not seen.get(key)}
    seen.update(found)
    return now, before


def _names_logged_now(trainer: Trainer) -> tuple[set[str], set[str]]:
    """Names that are logged in the loop that is running, and those of them that have no value in this run of it yet;
    Lightning keeps them in a private attribute.
    """
    results = getattr(trainer, "_results", None)
    items = list(results.values()) if isinstance(results, dict) else []
    known = _names(items)
    return known, known - _names([item for item in items if not getattr(item, "has_reset", False)])


def _names(items: Sequence[Any]) -> set[str]:
    metas = [getattr(item, "meta", None) for item in items]
    names = {meta.name for meta in metas if hasattr(meta, "name")}
    forks = [meta for meta in metas if getattr(meta, "forked", False)]
    return names | {meta.forked_name(on_step) for meta in forks for on_step in (False, True)}


def _base(key: str) -> str:
    return key.partition("/dataloader_idx_")[0]
