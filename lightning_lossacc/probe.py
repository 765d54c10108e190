"""The same few thousand items across evaluations: what changed for whom, as a paired comparison.

Two evaluations of one validation set differ in composition as well as in confidence: 50 rows that turn right near the
boundary look like growing over-confidence in unpaired means while the loss falls. So the probe keeps a fixed set of
items, chosen by a hash of their position in the data set, with their NLL, correctness and NLL on the temperature grid,
at the current evaluation and at one or more references. A paired difference also has a smaller error: a factor 2 in z
is common.

Of the current evaluation alone it keeps the logits as well, where there are few classes and an item is one row: from
them come the fits of `fits.py`, the confusion matrix, and rows that another probe holds too.

Legend: M items of the probe, I items of a batch, C classes, K logits a row (C, or 1 for the binary task), T
temperatures; s_i, c_i, n_i summed NLL, correct rows and rows of item i.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lossacc import fits, kernels, matches, refinement
from lightning_lossacc.sums import Layout

# Columns of an evaluation's items; a current one has NLL and slope on the grid from REFINED on and its logits after
# them, a kept one has there the NLL at its own best temperature and the part of its NLL that its margin alone would
# have, so that a reference costs 56 bytes an item.
ROWS, NLL, CORRECT, TARGET, PREDICTED, REFINED, MARGIN_NLL = range(7)
WORST_ITEMS = 8
# Logits are kept for at most so many classes: 4 MB for 8 192 items.
LOGIT_CLASSES = 64
# One evaluation is compared with several references and kept, always at its own temperature.
_weights = lru_cache(maxsize=8)(refinement.interpolation_weights)
FITTED_ITEMS = 2048


class Reference(NamedTuple):
    """A kept evaluation: where it was, its temperature, bounds of its NLL after one temperature, and its items."""

    epoch: int
    global_step: int
    temperature: float
    nll: float
    bounds: list[float]  # certified lower and upper bound of the probe's NLL after one temperature, nats
    items: Tensor  # (M, 7) float64 on the host


class Probe:
    """Fixed items of one data loader, filled anew in every evaluation.

    Args:
        num_items: size of the data set.
        layout: layout of the statistics, for the temperature grid.
        limit: M; all items if there are fewer.
        device: where batches arrive.
    """

    def __init__(self, num_items: int, layout: Layout, limit: int = 8192, device: torch.device | str = "cpu") -> None:
        self.num_items = num_items
        self.layout = layout
        self.positions = _chosen(num_items, limit).to(device)  # (M,) ascending positions in the data set
        self.references: dict[str, Reference] = {}
        single = 1 if layout.task == "binary" else layout.num_classes
        self.num_logits = single if layout.num_classes <= LOGIT_CLASSES else 0  # K; 0 where none are kept
        self._first_logit = REFINED + 2 * len(layout.temperatures)
        self._tail: fits.Tail | None = None
        self._looked_for_tail = False
        width = self._first_logit + self.num_logits
        with torch.inference_mode(False):
            # One row more than items: batches write what is not in the probe there, without asking the host.
            self.current = torch.zeros(len(self.positions) + 1, width, dtype=torch.float64, device=device)

    def update(self, position: Tensor, preds: Tensor, target: Tensor, backend: kernels.Backend = "auto") -> None:
        """Stores the items of a batch.

        Args:
            position: (I,) int64 position of each item in the data set.
            preds, target, backend: as in `kernels.row_statistics`, I items.
        """
        slot = torch.searchsorted(self.positions, position).clamp_(max=len(self.positions) - 1)
        known = self.positions[slot] == position
        values = kernels.item_values(preds, target, self.layout, backend)
        if self.num_logits:
            logits, _ = kernels.canonical(preds, target, self.layout)  # (I, K, R)
            # Items of several rows have no logits of their own; NaN says so in every one of them.
            row = logits[:, :, 0] if logits.shape[2] == 1 else logits.new_full(logits.shape[:2], math.nan)
            values = torch.cat((values, row.double()), dim=1)
        self.current[torch.where(known, slot, len(self.positions))] = values
        self._looked_for_tail = False

    def clear(self) -> None:
        """Forgets the current evaluation; references stay."""
        self.current.zero_()
        self._looked_for_tail = False

    def items(self, temperature: float) -> Tensor:
        """The current evaluation on the host, (M, 7) float64, refined by `temperature` (NaN without a grid); the last
        column is NaN where no logits are kept.
        """
        current = self.current[:-1].cpu()
        items = torch.full((len(current), MARGIN_NLL + 1), math.nan, dtype=torch.float64)
        items[:, :REFINED] = current[:, :REFINED]
        if self.layout.temperatures and math.isfinite(temperature):
            weights = _weights(self.layout.temperatures, temperature)
            items[:, REFINED] = current[:, REFINED : self._first_logit] @ torch.tensor(weights, dtype=torch.float64)
        if self.num_logits:
            items[:, MARGIN_NLL] = _margin_nll(current[:, self._first_logit :], current[:, TARGET].long())
            items[current[:, ROWS] == 0, MARGIN_NLL] = 0.0
        return items

    def rows(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Positions (n,), logits (n, K) and targets (n,) of the counted items, on the host.

        None where logits are not kept (more than 64 classes, several rows an item) or no item was counted.
        """
        if not self.num_logits:
            return None
        current = self.current[:-1].cpu()
        seen = current[:, ROWS] > 0
        logits = current[seen, self._first_logit :]
        if not len(logits) or bool(logits.isnan().any()):
            return None
        return self.positions.cpu()[seen], logits, current[seen, TARGET].long()

    def fits(self, limit: int = FITTED_ITEMS) -> dict[str, Any]:
        """Cross-fitted NLL after one temperature, with a bias and with a scale per class; see `fits.cross_fitted`.

        Half of the items, by a hash of their position, is fitted and the other half measured, so that the halves stay
        the same over evaluations. At most `limit` items are used. Empty where logits are not kept, or where a class is
        missing in a half.
        """
        rows = self.rows()
        if rows is None:
            return {}
        position, logits, target = rows
        mixed = _mixed(position)
        used = torch.argsort(mixed, stable=True)[:limit]
        return fits.cross_fitted(self._both(logits[used]), target[used], (mixed[used] & 1).bool())

    def tail(self) -> fits.Tail | None:
        """Rows whose label contradicts the model; None where logits are not kept. Found once an evaluation."""
        if not self._looked_for_tail:
            rows = self.rows()
            self._tail = None if rows is None else fits.tail(self._both(rows[1]), rows[2])
            self._looked_for_tail = True
        return self._tail

    def _both(self, logits: Tensor) -> Tensor:
        """Logits (n, C); of a single logit z those of both classes, 0 and z."""
        return torch.cat((torch.zeros_like(logits), logits), dim=1) if self.layout.task == "binary" else logits

    def confusion(self) -> list[list[int]] | None:
        """Rows by target and predicted class, C lists of C; None where logits are not kept (see `rows`)."""
        if self.rows() is None:
            return None
        current = self.current[:-1].cpu()
        seen = current[:, ROWS] > 0
        classes = self.layout.num_classes
        cell = classes * current[seen, TARGET].long() + current[seen, PREDICTED].long()
        return torch.bincount(cell, minlength=classes**2).view(classes, classes).tolist()

    def duplicates(self, other: Probe) -> float | None:
        """Share of this probe's rows that the other probe holds too, by equal logits and targets; see
        `matches.shared_rows`. None where either keeps no logits, or nothing can be said.
        """
        rows = self._rows_beside(other)
        return None if rows is None else matches.shared_rows(*rows)

    def twins(self, other: Probe) -> dict[str, float] | None:
        """Rows that the other probe holds too, and what the others cost; see `matches.twins`."""
        rows = self._rows_beside(other)
        if rows is None:
            return None
        logits, target, *others = rows
        return matches.twins(logits, target, F.cross_entropy(self._both(logits), target, reduction="none"), *others)

    def _rows_beside(self, other: Probe) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Logits and targets of both; None where either keeps none, or of other classes."""
        ours, theirs = self.rows(), other.rows()
        if ours is None or theirs is None or ours[1].shape[1] != theirs[1].shape[1]:
            return None
        return ours[1], ours[2], theirs[1], theirs[2]

    def compare(self, name: str, temperature: float) -> dict[str, Any] | None:
        """The current evaluation against the reference `name`; None without one, or if the items are not the same."""
        reference = self.references.get(name)
        if reference is None:
            return None
        result = compare(reference.items, self.items(temperature), self.positions.tolist(), self.tail())
        if result is None:
            return None
        bounds = {"refinement_bounds_before": list(reference.bounds), "refinement_bounds_after": self._bounds()}
        return {
            "reference_epoch": reference.epoch,
            "reference_step": reference.global_step,
            "full_reference_nll": reference.nll,
            "temperature_before": reference.temperature,
            "temperature_after": temperature,
            **(bounds if "refinement_change" in result else {}),
            **result,
        }

    def keep(self, name: str, epoch: int, global_step: int, temperature: float, nll: float) -> None:
        """Makes the current evaluation the reference `name`."""
        items = self.items(temperature)
        self.references[name] = Reference(epoch, global_step, temperature, nll, self._bounds(), items)

    def _bounds(self) -> list[float]:
        """Certified lower and upper bound of the NLL after the probe's own best temperature, nats; NaN where none."""
        current = self.current[:-1].cpu()
        rows, size = float(current[:, ROWS].sum()), len(self.layout.temperatures)
        if not rows or not size:
            return [math.nan, math.nan]
        grid = (current[:, REFINED : self._first_logit].sum(0) / rows).tolist()
        best = refinement.best_temperature(self.layout.temperatures, grid[:size], grid[size:])
        return [best.lower, best.upper]

    def state(self) -> dict[str, Any]:
        """References as tensors and primitives, for a checkpoint that is read with `weights_only`."""
        return {name: list(reference) for name, reference in self.references.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes references back; those of another number of items or of an older version are dropped."""
        for name, fields in state.items():
            if len(fields) == len(Reference._fields):
                reference = Reference(*fields)
                if reference.items.shape == (len(self.positions), MARGIN_NLL + 1):
                    self.references[name] = reference


def compare(
    before: Tensor, after: Tensor, positions: list[int], tail: fits.Tail | None = None
) -> dict[str, Any] | None:
    """Paired change between two evaluations of the same items, as plain numbers.

    With d_i = s_i(after) - s_i(before) and n = sum n_i: the change is sum d_i / n, and its standard error
    sqrt(I / (I - 1) * sum (d_i - n_i change)^2) / n, for NLL, correctness and the NLL after each evaluation's own
    temperature (the change of the refinement) alike. Groups are a partition of the items, so that their changes add up
    to the whole change.

    Args:
        before, after: (M, 7) rows, NLL, correct rows, target, predicted class, refined NLL and NLL of the margin alone
            of each item.
        positions: position of each item in the data set.
        tail: of the later evaluation, whose rows are the items seen; None where it is not known.

    Returns:
        A dictionary of numbers, or None if fewer than two items or another set of rows was seen.
    """
    if not torch.equal(before[:, ROWS], after[:, ROWS]) or not torch.equal(before[:, TARGET], after[:, TARGET]):
        return None
    seen = after[:, ROWS] > 0
    rows = after[seen, ROWS]
    if len(rows) < 2:
        return None
    index = torch.tensor(positions)[seen]
    before, after = before[seen], after[seen]
    total = float(rows.sum())
    change = after[:, NLL] - before[:, NLL]
    correct_change = after[:, CORRECT] - before[:, CORRECT]
    low, high = torch.quantile(change / rows, torch.tensor([0.005, 0.995], dtype=torch.float64))
    result: dict[str, Any] = {
        "items": len(rows),
        "rows": int(total),
        "nll_before": float(before[:, NLL].sum()) / total,
        "nll_after": float(after[:, NLL].sum()) / total,
        "accuracy_before": float(before[:, CORRECT].sum()) / total,
        "accuracy_after": float(after[:, CORRECT].sum()) / total,
        "nll_change": math.fsum(change.tolist()) / total,
        "nll_change_error": _paired_error(change, rows),
        "nll_change_winsorised": float(((change / rows).clamp(low, high) * rows).sum()) / total,
        "accuracy_change": float(correct_change.sum()) / total,
        "accuracy_change_error": _paired_error(correct_change, rows),
        "groups": _groups(before, after, change, rows, total),
        "worst": _worst(index, before, after, change, rows, total),
    }
    if tail is not None:
        result["tail_change"] = math.fsum((tail.weight * change).tolist()) / total
    refined = after[:, REFINED] - before[:, REFINED]
    if bool(torch.isfinite(refined).all()):
        result |= {
            "refinement_before": float(before[:, REFINED].sum()) / total,
            "refinement_after": float(after[:, REFINED].sum()) / total,
            "refinement_change": float(refined.sum()) / total,
            "refinement_change_error": _paired_error(refined, rows),
        }
    by_margin = after[:, MARGIN_NLL] - before[:, MARGIN_NLL]
    if bool(torch.isfinite(by_margin).all()):
        result |= {
            "margin_nll_change": math.fsum(by_margin.tolist()) / total,
            "margin_nll_change_error": _paired_error(by_margin, rows),
        }
    return result


def _margin_nll(logits: Tensor, target: Tensor) -> Tensor:
    """NLL that the margin alone would have, ln(1 + exp(-margin)): the target against its strongest rival, (M,) nats.

    Args:
        logits: (M, C), or (M, 1) for the binary task.
        target: (M,); entries out of range are read as class 0 and mean nothing.
    """
    if logits.shape[1] == 1:
        return F.softplus(torch.where(target == 1, -logits[:, 0], logits[:, 0]))
    index = target.clamp(0, logits.shape[1] - 1)[:, None]
    rival = logits.scatter(1, index, -math.inf).amax(1)
    return F.softplus(rival - logits.gather(1, index)[:, 0])


def _paired_error(change: Tensor, rows: Tensor) -> float:
    mean = change.sum() / rows.sum()
    items = len(rows)
    return math.sqrt(items / (items - 1) * float(((change - rows * mean) ** 2).sum())) / float(rows.sum())


def _groups(before: Tensor, after: Tensor, change: Tensor, rows: Tensor, total: float) -> list[dict[str, Any]]:
    """Partition of the items: by correctness at both times, or by their number of right rows if they have several."""
    if bool((rows == 1).all()):
        was, is_now = before[:, CORRECT] > 0, after[:, CORRECT] > 0
        masks = {
            "right both times": was & is_now,
            "wrong both times": ~was & ~is_now,
            "wrong to right": ~was & is_now,
            "right to wrong": was & ~is_now,
        }
    else:
        difference = after[:, CORRECT] - before[:, CORRECT]
        masks = {
            "items with more right rows": difference > 0,
            "items with fewer right rows": difference < 0,
            "items with as many right rows": difference == 0,
        }
    return [
        {
            "name": name,
            "items": int(mask.sum()),
            "higher": int((change[mask] > 0).sum()),
            "change": math.fsum(change[mask].tolist()) / total,
        }
        for name, mask in masks.items()
    ]


def _worst(
    index: Tensor, before: Tensor, after: Tensor, change: Tensor, rows: Tensor, total: float
) -> list[dict[str, Any]]:
    """The items whose NLL rose most, with the position in the data set and the part of the change that is theirs."""
    order = torch.argsort(change, descending=True, stable=True)[:WORST_ITEMS]
    return [
        {
            "index": int(index[item]),
            "target": int(after[item, TARGET]),
            "predicted": int(after[item, PREDICTED]),
            "rows": int(rows[item]),
            "nll_before": float(before[item, NLL] / rows[item]),
            "nll_after": float(after[item, NLL] / rows[item]),
            "change": float(change[item]) / total,
        }
        for item in order.tolist()
        if change[item] > 0
    ]


def _chosen(num_items: int, limit: int) -> Tensor:
    """Ascending positions of the items of a probe: all, or the `limit` smallest hashes of the position."""
    position = torch.arange(num_items)
    if num_items <= limit:
        return position
    return torch.argsort(_mixed(position), stable=True)[:limit].sort().values


def _mixed(position: Tensor) -> Tensor:
    """A hash of positions in [0, 2^32)."""
    mixed = position * 0x9E3779B1 + 0x7F4A7C15
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D
    mixed = (mixed ^ (mixed >> 12)) * 0x297A2D39
    return (mixed ^ (mixed >> 15)) & 0xFFFFFFFF
