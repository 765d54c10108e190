"""What a loss can be at most or at least for a given accuracy: bounds from scalars alone, without logits.

Legend: C classes, e = 1 - accuracy, h(e) = -e ln e - (1 - e) ln (1 - e). All losses are mean cross-entropies in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Likelihood ratio from which labels contradict a model, for 1000 rows: it grows with them. Trainings with
# over-confidence or overfitting had 0 … 7, those with 3 % wrong labels 15 … 180; right labels and rows whose own
# temperatures differ by 40 % had 50 … 110 at 8192.
TAIL_SCORE, TAIL_ROWS = 12.0, 1000


def label_entropy(class_rows: Sequence[float]) -> float:
    """Entropy of the class shares, -sum p ln p (nats): the NLL of a model that has learned the shares and no more."""
    total = math.fsum(class_rows)
    shares = [rows / total for rows in class_rows if rows > 0]
    return -math.fsum(share * math.log(share) for share in shares)


def constant_confidence_nll(error: float, num_classes: int) -> float:
    """NLL of the same answers given with confidence 1 - e always: h(e) + e ln(C - 1) (nats).

    A loss above it is above what a constant would score: the probabilities are miscalibrated by at least the
    difference, on this set. Exact for any classifier of this error rate.

    Args:
        error: e in [0, 1].
        num_classes: C >= 2.
    """
    if error <= 0:
        return 0.0
    rest = error * math.log(num_classes - 1) if num_classes > 2 else 0.0
    certain = 0.0 if error >= 1 else -(1 - error) * math.log1p(-error)
    return certain - error * math.log(error) + rest


def smallest_nll(error: float) -> float:
    """Least NLL of any logits with this error rate: e ln 2 (nats), as a wrong row has p <= 1/2 for its class."""
    return error * math.log(2)


def is_no_nll(losses: Sequence[float], accuracies: Sequence[float]) -> bool:
    """Whether the last three losses are too small for an NLL in nats with as many wrong answers."""
    pairs = [pair for pair in zip(losses, accuracies, strict=False) if all(map(math.isfinite, pair))]
    return len(pairs) >= 3 and all(loss < 0.98 * smallest_nll(1 - accuracy) for loss, accuracy in pairs[-3:])


def double_softmax_floor(num_classes: int) -> float:
    """Least loss of probabilities that are given to a cross-entropy as logits: ln(e + C - 1) - 1 (nats)."""
    return math.log(math.e + num_classes - 1) - 1


def double_sigmoid_floor(positives: float) -> float:
    """Least loss of probabilities that are given to a binary cross-entropy as logits: p ln(1 + 1/e) + (1 - p) ln 2
    (nats), since 1 and 0 are the surest numbers that it can get.

    Args:
        positives: share p of the rows of class 1.
    """
    return positives * math.log1p(1 / math.e) + (1 - positives) * math.log(2)


def smoothing_floor(label_smoothing: float, num_classes: int) -> float:
    """Least cross-entropy with label smoothing s: the entropy of its targets (nats), 1 - s + s/C on one class and s/C
    on each other (Szegedy et al. 2016).
    """
    if label_smoothing <= 0:
        return 0.0
    other = label_smoothing / num_classes
    own = 1 - label_smoothing + other
    return -own * math.log(own) - (num_classes - 1) * other * math.log(other)


def labels_contradict(score: float, rows: int) -> bool:
    """Whether a likelihood ratio of a tail on so many rows is that of wrong labels, and not of an imperfect model."""
    return score >= TAIL_SCORE * max(1.0, rows / TAIL_ROWS)
