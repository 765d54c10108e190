"""Are the captured "logits" logits at all? Probabilities under a cross-entropy are a double softmax.

A loss that takes logits and is given probabilities trains, badly: NLL cannot fall below ln(e + C - 1) - 1, however
certain the network is. Log-probabilities are harmless, since their normaliser is 0 and softmax gives them back.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rounded probabilities of a half-precision softmax sum to 1 within about 1e-2, others within 1e-5.
TOLERANCE, HALF_TOLERANCE = 1e-3, 1e-2
LOW, HIGH = 0.25, 0.75
FEW, MAX_ROWS = 16, 1024  # items and rows of an item that are looked at
_CHECKED, _NO_PROBABILITIES, _NO_LOG_PROBABILITIES, _LOW, _HIGH = range(5)


class Looks:
    """Evidence about one evaluation, five sums that add up over ranks; `verdict` reads the device, once.

    Several columns are judged by the first batch, where rows that sum to 1 are no accident. One column has no such
    mark: each of its batches counts, and its numbers must also reach below 0.25 and above 0.75, since the logits of a
    network that has not learnt yet may all lie in [0, 1].
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        with torch.inference_mode(False):
            self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        self._seen = False

    def update(self, logits: Tensor) -> None:
        """Looks at a batch of shape (I, C, R)."""
        single = logits.shape[1] == 1
        if logits.numel() == 0 or (self._seen and not single):
            return
        # Enough to tell, and no copy of a large batch.
        logits = logits[:, :, :MAX_ROWS] if single else logits[:FEW, :, :FEW]
        self._seen = True
        outside = (~((logits >= 0) & (logits <= 1))).sum()
        self.sums[_CHECKED] += 1
        if single:
            self.sums[_NO_PROBABILITIES] += outside
            self.sums[_NO_LOG_PROBABILITIES] += 1
            self.sums[_LOW] += (logits < LOW).sum()
            self.sums[_HIGH] += (logits > HIGH).sum()
            return
        tolerance = HALF_TOLERANCE if logits.element_size() < 4 else TOLERANCE
        wide = logits if logits.dtype == torch.float64 else logits.float()
        # Comparisons with NaN are false, so that a row with one is neither.
        self.sums[_NO_PROBABILITIES] += outside + (~((wide.sum(1) - 1).abs() < tolerance)).sum()
        self.sums[_NO_LOG_PROBABILITIES] += (~(wide.logsumexp(1).abs() < tolerance)).sum()
        self.sums[_LOW] += 1
        self.sums[_HIGH] += 1

    def verdict(self) -> str:
        """`"probabilities"`, `"log-probabilities"`, or empty: logits, or nothing was seen."""
        checked, no_probabilities, no_log_probabilities, low, high = self.sums.tolist()
        if not checked:
            return ""
        if not no_probabilities and low and high:
            return "probabilities"
        return "" if no_log_probabilities else "log-probabilities"

    def clear(self) -> None:
        """Ready for the next evaluation."""
        self.sums.zero_()
        self._seen = False
