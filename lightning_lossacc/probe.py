"""The same few thousand items across evaluations: what changed for whom, as a paired comparison.

Two evaluations of one validation set differ in composition as well as in confidence: 50 rows that turn right near the
boundary look like growing over-confidence in unpaired means while the loss falls. So the probe keeps a fixed set of
items, chosen by a hash of their position in the data set, with their NLL, correctness and NLL on the temperature grid,
at the current evaluation and at one or more references. A paired difference also has a smaller error: a factor 2 in z
is common.

Legend: M items of the probe, I items of a batch; s_i, c_i, n_i summed NLL, correct rows and rows of item i.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lossacc import kernels, refinement
from lightning_lossacc.sums import Layout

# Columns of an evaluation's items; a current one has NLL and slope on the grid from REFINED on, a kept one has there
# the NLL at its own best temperature, so that a reference costs 48 bytes an item.
ROWS, NLL, CORRECT, TARGET, PREDICTED, REFINED = range(6)
WORST_ITEMS = 8


class Reference(NamedTuple):
    """A kept evaluation: where it was, its temperature, and its items."""

    epoch: int
    global_step: int
    temperature: float
    nll: float
    items: Tensor  # (M, 6) float64 on the host


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
        width = REFINED + 2 * len(layout.temperatures)
        with torch.inference_mode(False):
            # One row more than items: batches write what is not in the probe there, without asking the host.
            self.current = torch.zeros(len(self.positions) + 1, width, dtype=torch.float64, device=device)

    def update(self, position: Tensor, preds: Tensor, target: Tensor) -> None:
        """Stores the items of a batch.

        Args:
            position: (I,) int64 position of each item in the data set.
            preds, target: as in `kernels.row_statistics`, I items.
        """
        slot = torch.searchsorted(self.positions, position).clamp_(max=len(self.positions) - 1)
        known = self.positions[slot] == position
        values = kernels.item_values(preds, target, self.layout)
        self.current[torch.where(known, slot, len(self.positions))] = values

    def clear(self) -> None:
        """Forgets the current evaluation; references stay."""
        self.current.zero_()

    def items(self, temperature: float) -> Tensor:
        """The current evaluation on the host, (M, 6) float64, refined by `temperature` (NaN without a grid)."""
        current = self.current[:-1].cpu()
        items = torch.full((len(current), REFINED + 1), math.nan, dtype=torch.float64)
        items[:, :REFINED] = current[:, :REFINED]
        if self.layout.temperatures and math.isfinite(temperature):
            weights = refinement.interpolation_weights(self.layout.temperatures, temperature)
            items[:, REFINED] = current[:, REFINED:] @ torch.tensor(weights, dtype=torch.float64)
        return items

    def compare(self, name: str, temperature: float) -> dict[str, Any] | None:
        """The current evaluation against the reference `name`; None without one, or if the items are not the same."""
        reference = self.references.get(name)
        if reference is None:
            return None
        result = compare(reference.items, self.items(temperature), self.positions.tolist())
        if result is None:
            return None
        return {
            "reference_epoch": reference.epoch,
            "reference_step": reference.global_step,
            "full_reference_nll": reference.nll,
            "temperature_before": reference.temperature,
            "temperature_after": temperature,
            **result,
        }

    def keep(self, name: str, epoch: int, global_step: int, temperature: float, nll: float) -> None:
        """Makes the current evaluation the reference `name`."""
        self.references[name] = Reference(epoch, global_step, temperature, nll, self.items(temperature))

    def state(self) -> dict[str, Any]:
        """References as tensors and primitives, for a checkpoint that is read with `weights_only`."""
        return {name: list(reference) for name, reference in self.references.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes references back; those of another number of items are dropped."""
        for name, fields in state.items():
            reference = Reference(*fields)
            if reference.items.shape == (len(self.positions), REFINED + 1):
                self.references[name] = reference


def compare(before: Tensor, after: Tensor, positions: list[int]) -> dict[str, Any] | None:
    """Paired change between two evaluations of the same items, as plain numbers.

    With d_i = s_i(after) - s_i(before) and n = sum n_i: the change is sum d_i / n, and its standard error
    sqrt(I / (I - 1) * sum (d_i - n_i change)^2) / n, for NLL, correctness and the NLL after each evaluation's own
    temperature (the change of the refinement) alike. Groups are a partition of the items, so that their changes add up
    to the whole change.

    Args:
        before, after: (M, 6) rows, NLL, correct rows, target, predicted class, refined NLL of each item.
        positions: position of each item in the data set.

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
    refined = after[:, REFINED] - before[:, REFINED]
    if bool(torch.isfinite(refined).all()):
        result |= {
            "refinement_before": float(before[:, REFINED].sum()) / total,
            "refinement_after": float(after[:, REFINED].sum()) / total,
            "refinement_change": float(refined.sum()) / total,
            "refinement_change_error": _paired_error(refined, rows),
        }
    return result


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
    mixed = position * 0x9E3779B1 + 0x7F4A7C15
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D
    mixed = (mixed ^ (mixed >> 12)) * 0x297A2D39
    return torch.argsort((mixed ^ (mixed >> 15)) & 0xFFFFFFFF, stable=True)[:limit].sort().values
