"""Named families of inputs: (logits (N, C), target (N,)) in float64, to be cast by the test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FAMILIES = ("typical", "confident", "tied", "extreme", "masked", "non_finite", "ignored", "out_of_range", "constant")


def make(family: str, num_rows: int = 60, num_classes: int = 7) -> tuple[Tensor, Tensor]:
    """One family.

    typical: like a trained classifier. confident: large margins, some wrong. tied: small integers, many equal maxima.
    extreme: up to 6e4, the largest of float16. masked: -inf in classes that are not the target. non_finite: NaN,
        +inf, and
    -inf at the target in the first, middle and last rows. ignored: targets -100. out_of_range: targets beyond the
    classes. constant: equal logits.
    """
    target = torch.randint(0, num_classes, (num_rows,))
    logits = torch.randn(num_rows, num_classes, dtype=torch.float64) * 2
    rows = torch.arange(num_rows)
    if family == "typical":
        logits[rows, target] += 2
    elif family == "confident":
        logits[rows, torch.where(rows % 9 == 0, (target + 1) % num_classes, target)] += 25
    elif family == "tied":
        logits = torch.randint(-1, 2, (num_rows, num_classes)).double()
    elif family == "extreme":
        logits = logits * 6000
    elif family == "masked":
        mask = torch.rand(num_rows, num_classes) < 0.4
        mask[rows, target] = False
        mask[0] = True
        mask[0, target[0]] = False
        logits[mask] = -math.inf
    elif family == "non_finite":
        places = (0, num_rows // 2, num_rows - 1)
        for row, value in zip(places, (math.nan, math.inf, -math.inf), strict=True):
            logits[row, target[row]] = value
        logits[1, (target[1] + 1) % num_classes] = math.nan
        logits[2, (target[2] + 1) % num_classes] = math.inf
        logits[3] = math.nan
    elif family == "ignored":
        target[rows % 3 == 0] = -100
    elif family == "out_of_range":
        target[0], target[5], target[-1], target[7] = -1, num_classes, 2**31, torch.iinfo(torch.int64).min + 1
    elif family == "constant":
        logits = torch.zeros(num_rows, num_classes, dtype=torch.float64)
    else:
        raise ValueError(f"Expected `family` to be one of {FAMILIES}, but got {family!r}.")
    return logits, target
