"""Which rows of one set are in another one? Equal inputs have equal logits in evaluation mode.

A network maps different inputs to different logits as long as it has not collapsed and the numbers are exact enough for
so many rows. Both are measured on the rows of one set among themselves, and nothing is said where they fail.

Legend: n and m rows of either set, K logits a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE = 1e-5
ABSOLUTE = 1e-6  # of the spread of the logits over rows
# Neighbours on a line are close by chance: a single logit must agree to more digits.
STRICTER = 0.2
# An output that more rows (or a larger share of them) have in common is that of a saturated or dead network, no copy.
FEW_COPIES = 3
FEW_SHARE = 0.002
# If more rows have such an output, or as many would match by chance, nothing is said.
MOST_ALIKE = 0.5
MOST_CHANCE = 0.05
CANDIDATES = 256


def shared_rows(logits: Tensor, target: Tensor, other_logits: Tensor, other_target: Tensor) -> float | None:
    """Share of rows with a row of the same target and equal logits in the other set.

    Equal means within 1e-5 of the value and 1e-6 of the spread of the logits, in every class (a fifth of that for a
    single logit). The share that matches by
    chance, estimated from equal rows within the first set, is taken off, so that a set which repeats itself is counted
    low rather than high.

    Args:
        logits, other_logits: (n, K), (m, K) float64.
        target, other_target: (n,), (m,) int64.

    Returns:
        A share in [0, 1]; None if the outputs of most rows are alike, or matches by chance are frequent.
    """
    if len(logits) < 2 or not len(other_logits):
        return None
    # A masked class is -inf in all rows; any number does.
    ours, theirs = (rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for rows in (logits, other_logits))
    spread = float(ours.std(0).max())
    if not spread > RELATIVE * float(ours.abs().max()):
        return None
    strictness = STRICTER if ours.shape[1] == 1 else 1.0
    tolerance = strictness * ABSOLUTE * spread, strictness * RELATIVE
    equal, same = _equal_rows(ours, target, ours, target, tolerance, _few(len(ours)) + 1)
    alike = equal > _few(len(ours)) + 1  # a row equals itself
    chance = float(((same > 1) & ~alike).double().mean()) * len(theirs) / len(ours)
    if float(alike.double().mean()) > MOST_ALIKE or chance > MOST_CHANCE:
        return None
    ours, target = ours[~alike], target[~alike]
    equal, same = _equal_rows(ours, target, theirs, other_target, tolerance, _few(len(theirs)))
    copies = (same > 0) & (equal <= _few(len(theirs)))
    return max(0.0, float(copies.sum()) / len(logits) - chance)


def _few(rows: int) -> int:
    return max(FEW_COPIES, int(FEW_SHARE * rows))


def _equal_rows(
    ours: Tensor, target: Tensor, theirs: Tensor, other_target: Tensor, tolerance: tuple[float, float], limit: int
) -> tuple[Tensor, Tensor]:
    """Number of equal rows of the other set, and of those with the same target, (n,) int64 each.

    Candidates are neighbours in the order of one fixed mixture of the logits, so that not every pair is compared. A row
    is not followed beyond `limit` equal ones.
    """
    floor, relative = tolerance
    mixture = torch.cos(1.0 + 2.0 * torch.arange(ours.shape[1], dtype=torch.float64))
    order = torch.argsort(theirs @ mixture, stable=True)
    theirs, labels = theirs[order], other_target[order]
    there, here = (theirs @ mixture).contiguous(), ours @ mixture
    reach = (floor + 1.01 * relative * ours.abs()) @ mixture.abs() + 1e-12 * here.abs()
    first = torch.searchsorted(there, here - reach)
    last = torch.searchsorted(there, here + reach, right=True)
    equal = torch.zeros(len(ours), dtype=torch.int64)
    same = torch.zeros_like(equal)
    followed = torch.arange(len(ours))
    for offset in range(CANDIDATES):
        followed = followed[(first[followed] + offset < last[followed]) & (equal[followed] <= limit)]
        if not len(followed):
            break
        candidate = first[followed] + offset
        found = theirs[candidate]
        is_equal = ((ours[followed] - found).abs() <= floor + relative * found.abs()).all(1)
        equal[followed] += is_equal
        same[followed] += is_equal & (target[followed] == labels[candidate])
    return equal, same
