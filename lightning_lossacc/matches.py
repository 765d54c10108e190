"""Which rows of one set are in another one? Equal inputs have equal logits in evaluation mode.

A network maps different inputs to different logits as long as it has not collapsed and the numbers are exact enough for
so many rows. Both are measured on the rows of one set among themselves, and nothing is said where they fail.

Legend: n and m rows of either set, K logits a row.
"""

from __future__ import annotations

import math

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
# Copies are told from matches by chance if what is left without these is twice as many, and so many standard deviations
# of their number.
CERTAIN_COPIES, CERTAIN_SIGMAS = 2.0, 3.0
# Copies have their targets in common: of 332 matches in a set that repeats itself and was copied 1 … 4 % had another
# one, of those between new rows of such a set, or behind a bottleneck of one unit, 9 … 35 %.
MOST_OTHER, FEW_OTHER = 0.1, 2
# Of so few rows hardly one repeats another one by chance; how often training rows do tells then.
FEW_ROWS = 100
CANDIDATES = 256
# An output that so large a share of the other set has, or so many rows, is that of a saturated network.
LARGEST_CLUSTER, CLUSTER = 0.05, 64
# Rows of some classes were copied before the split: half of them and more have an equal one in their own set, of other
# classes next to none, in so many groups of which none is a large part of its class, and nearly all are in both sets.
COPIED, SINGLE, CLASS_ROWS, GROUPS, LARGEST_GROUP, IN_BOTH = 0.5, 0.02, 20, 5, 0.3, 0.8
UNEQUAL = 2.0  # mean size of the group of a row over the mean size of a group


def shared_rows(logits: Tensor, target: Tensor, other_logits: Tensor, other_target: Tensor) -> float | None:
    """Share of rows with a row of the same target and equal logits in the other set.

    Equal means within 1e-5 of the value and 1e-6 of the spread of the logits, in every class (a fifth of that for a
    single logit). The share that matches by chance is taken off: that of equal rows within the first set (within the
    other one as well, if the first has fewer than 100 rows), for as many rows as the other set has. What is left counts
    if it is twice that and three standard deviations of it. Where rows of some classes only repeat themselves,
    they were copied before the sets were split, and all of them count.

    Args:
        logits, other_logits: (n, K), (m, K) float64.
        target, other_target: (n,), (m,) int64.

    Returns:
        A share in [0, 1]; None if the outputs of most rows are alike, or if matches by chance are frequent and there
        are not far more of them; else 0 if one in ten matches has another target.
    """
    if len(logits) < 2 or not len(other_logits):
        return None
    ours, theirs, tolerance = _prepared(logits, other_logits, is_line=logits.shape[1] == 1)
    if tolerance is None:
        return None
    alike, repeats = _repeats(ours, target, tolerance)
    copied = _copied_before(ours, target, repeats, theirs, other_target, tolerance)
    if copied:
        return copied
    # A row with c equal others among n - 1 has one among m rows with this probability.
    rate = (repeats * ~alike).double() / (len(ours) - 1)
    chance = float((1 - (1 - rate) ** len(theirs)).mean())
    if len(ours) < FEW_ROWS:
        others_alike, others = _repeats(theirs, other_target, tolerance)
        chance = max(chance, float(((others > 0) & ~others_alike).double().mean()))
    if float(alike.double().mean()) > MOST_ALIKE:
        return None
    few = _few(len(theirs))
    equal, same = _equal_rows(ours[~alike], target[~alike], theirs, other_target, tolerance, few)
    matched = (equal > 0) & (equal <= few)
    expected = chance * len(ours)
    left = int((matched & (same > 0)).sum()) - expected
    is_certain = left > max(CERTAIN_COPIES * expected, CERTAIN_SIGMAS * math.sqrt(expected))
    if is_certain and _have_targets_in_common(matched, same > 0):
        return left / len(ours)
    return None if chance > MOST_CHANCE else 0.0


def twins(
    logits: Tensor, target: Tensor, nll: Tensor, other_logits: Tensor, other_target: Tensor
) -> dict[str, float] | None:
    """Rows with a row of the same target and equal logits in the other set, and what the rows without one cost.

    Copies that were made before a random split stand in both sets as the rows of a set that repeats itself do, so that
    nothing is taken off as chance here. What they do to a network that learns rows by heart tells.

    Args:
        logits, other_logits: (n, K), (m, K) float64.
        target, other_target: (n,), (m,) int64.
        nll: (n,) nats.

    Returns:
        Share of the rows that have one, mean NLL (nats) of these and of the others, the standard error of the
        difference, and the number of the others. None if the outputs of many rows are alike, if one match in ten has
        another target, or if fewer than 20 rows have one, or none.
    """
    if len(logits) < 2 * CLASS_ROWS or not len(other_logits):
        return None
    # Two logits lie on a line as well, where the network is sure of their sum.
    ours, theirs, tolerance = _prepared(logits, other_logits, is_line=logits.shape[1] <= 2)
    if tolerance is None:
        return None
    most = min(int(LARGEST_CLUSTER * len(theirs)), CLUSTER)
    equal, same = _equal_rows(ours, target, theirs, other_target, tolerance, most)
    matched, copies = equal > 0, same > 0
    groups = [nll[rows] for rows in (copies, ~matched)]
    is_alike = bool((equal > most).any())
    if is_alike or not _have_targets_in_common(matched, copies) or min(map(len, groups)) < CLASS_ROWS:
        return None
    error = math.hypot(*(float(group.std()) / math.sqrt(len(group)) for group in groups))
    with_one, without = (float(group.mean()) for group in groups)
    share = float(copies.double().mean())
    return {"share": share, "nll": with_one, "others_nll": without, "error": error, "others": float(len(groups[1]))}


def _prepared(logits: Tensor, other_logits: Tensor, is_line: bool) -> tuple[Tensor, Tensor, tuple[float, float] | None]:
    """Both sets with numbers for masked classes, and the tolerance of equality; None for it if all rows are alike."""
    # A masked class is -inf in all rows; any number does.
    ours, theirs = (rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for rows in (logits, other_logits))
    spread = float(ours.std(0).max())
    if not spread > RELATIVE * float(ours.abs().max()):
        return ours, theirs, None
    strictness = STRICTER if is_line else 1.0
    return ours, theirs, (strictness * ABSOLUTE * spread, strictness * RELATIVE)


def _repeats(rows: Tensor, target: Tensor, tolerance: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Which rows have an output that more than a few of their own set have, (n,) bool, and how many others of the same
    target have it, (n,) int64, counted up to a few.
    """
    few = _few(len(rows))
    equal, same = _equal_rows(rows, target, rows, target, tolerance, few + 1)
    # A row equals itself, unless it has so many neighbours that it was not reached.
    return (equal > few + 1) | (equal == 0), (same - 1).clamp(min=0)


def _copied_before(
    ours: Tensor,
    target: Tensor,
    repeats: Tensor,
    theirs: Tensor,
    other_target: Tensor,
    tolerance: tuple[float, float],
) -> float:
    """Share of rows that were copied for balance before the sets were split, 0 if none were: see `COPIED`."""
    sizes = torch.bincount(target).double()
    shares = torch.bincount(target[repeats > 0], minlength=len(sizes)) / sizes
    known = sizes >= CLASS_ROWS
    if not (known & (shares <= SINGLE)).any():
        return 0.0
    rows = (repeats > 0) & (known & (shares >= COPIED))[target]
    copies, labels = ours[rows], target[rows]
    equal, group = _equal_rows(copies, labels, ours, target, tolerance, int(LARGEST_GROUP * len(ours)))
    groups = float((1 / group).sum())
    if groups < GROUPS or bool((group > LARGEST_GROUP * sizes[labels]).any()):
        return 0.0
    # Copying gives each row as many; templates that come by themselves differ by far.
    if float(group.double().mean()) > UNEQUAL * len(group) / groups:
        return 0.0
    _, there = _equal_rows(copies, labels, theirs, other_target, tolerance, 1)
    is_shared = float((there > 0).double().mean()) >= IN_BOTH and int((equal > group).sum()) <= FEW_OTHER
    return float(rows.sum()) / len(ours) if is_shared else 0.0


def _have_targets_in_common(matched: Tensor, same: Tensor) -> bool:
    """Whether next to all rows with an equal one have one of the same target, as copies do."""
    others = int((matched & ~same).sum())
    return others <= max(MOST_OTHER * int(matched.sum()), FEW_OTHER)


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
