"""What has become of each training row: learnt when, forgotten how often, and learnt against which confident answer?

A network learns rows whose label agrees with their neighbours first, and wrongly labelled ones late and by heart (Arpit
et al. 2017). So rows that the model, when its validation loss was best, gave to another class with confidence, and that
it calls by their label today, are learnt by heart: hard rows or wrong labels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_lossacc.probe import CORRECT, MARGIN_NLL, NLL, PREDICTED, ROWS, TARGET, Reference

SUSPECTS = 16


class Memory:
    """Follows the rows of a probe over evaluations; on the host, 16 bytes a row.

    Args:
        num_items: M, rows of the probe.
        state: of a checkpoint, or empty; one of another number of rows is dropped.

    Attributes:
        evaluations: number of evaluations so far.
        right: (M,) whether the row was right at the last evaluation.
        ever_right: (M,) whether it was right at any.
        learnt: (M,) int32 number of the evaluation, from 0, from which on it was right until now; -1 if it is wrong.
        forgotten: (M,) int16 times that it went from right to wrong.
        margin: (M,) float64 sum over evaluations of target logit minus largest other logit, clipped to +-64; of its
            bound -ln(exp(NLL) - 1), which is no larger, where logits are not kept.
    """

    def __init__(self, num_items: int, state: dict[str, Any] | None = None) -> None:
        with torch.inference_mode(False):
            self.evaluations = 0
            self.right = torch.zeros(num_items, dtype=torch.bool)
            self.ever_right = torch.zeros(num_items, dtype=torch.bool)
            self.learnt = torch.full((num_items,), -1, dtype=torch.int32)
            self.forgotten = torch.zeros(num_items, dtype=torch.int16)
            self.margin = torch.zeros(num_items, dtype=torch.float64)
        if state and state["right"].shape == self.right.shape:
            vars(self).update(state)

    def update(self, items: Tensor) -> None:
        """Takes an evaluation, (M, 7) as of `Probe.items`."""
        right = items[:, CORRECT] > 0
        self.forgotten += self.right & ~right
        self.learnt[right & ~self.right] = self.evaluations
        self.learnt[~right] = -1
        self.ever_right |= right
        self.right = right
        exact = items[:, MARGIN_NLL].isfinite()
        # ln(1 + exp(-m)) = x gives m = -ln(exp(x) - 1).
        penalty = torch.where(exact, items[:, MARGIN_NLL], items[:, NLL])
        self.margin += (-torch.log(torch.expm1(penalty))).clamp(-64, 64).nan_to_num(0.0)
        self.evaluations += 1

    def state(self) -> dict[str, Any]:
        """Tensors and primitives, for a checkpoint that is read with `weights_only`."""
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in vars(self).items()}


def summary(
    memory: Memory, items: Tensor, reference: Reference | None, positions: list[int], num_classes: int
) -> dict[str, Any]:
    """What the memory says at this evaluation, as plain numbers; empty where an item has several rows.

    `items`, `evaluations`, `right` (rows right now), `never_right` (rows that never were), `forgetting_events_mean`
    (times a row went from right to wrong, mean over rows that ever were right; Toneva et al. 2019). With a reference
    also `reference_epoch`, `learnt_since_reference` (rows wrong then and right now), `memorised` (of these: rows given
    to another class with an NLL above ln C + 1), `memorised_share` (of all rows), and `suspects`: at most 16 rows,
    memorised or still wrong with such an NLL, with the smallest mean margin over all evaluations (area under the
    margin; Pleiss et al. 2020), each with `index` (position in the data set), `target`, `predicted` (at the reference),
    `nll_reference` and `margin_mean`.

    Args:
        memory: after this evaluation.
        items: (M, 7) this evaluation.
        reference: of the same rows at the best validation loss so far; None if there is none.
        positions: position of each row in the data set.
        num_classes: C.
    """
    seen = items[:, ROWS] > 0
    if not bool(seen.any()) or bool((items[:, ROWS] > 1).any()):
        return {}
    number = int(seen.sum())
    ever = int(memory.ever_right.sum())
    found: dict[str, Any] = {
        "items": number,
        "evaluations": memory.evaluations,
        "right": int(memory.right.sum()),
        "never_right": number - ever,
        "forgetting_events_mean": int(memory.forgotten.sum()) / ever if ever else 0.0,
    }
    if reference is None:
        return found
    before = reference.items
    contradicted = seen & (before[:, ROWS] > 0) & (before[:, CORRECT] == 0)
    confident = contradicted & (before[:, NLL] > math.log(num_classes) + 1)
    memorised = int((confident & memory.right).sum())
    margin = memory.margin / memory.evaluations
    suspects = torch.nonzero(confident)[:, 0]
    order = suspects[torch.argsort(margin[suspects], stable=True)][:SUSPECTS]
    return found | {
        "reference_epoch": reference.epoch,
        "learnt_since_reference": int((contradicted & memory.right).sum()),
        "memorised": memorised,
        "memorised_share": memorised / number,
        "suspects": [
            {
                "index": positions[item],
                "target": int(before[item, TARGET]),
                "predicted": int(before[item, PREDICTED]),
                "nll_reference": float(before[item, NLL]),
                "margin_mean": float(margin[item]),
            }
            for item in order.tolist()
        ],
    }
