"""A made-up run in which every figure has something to show: over-confidence from epoch 8 on, ten classes."""

from __future__ import annotations

import itertools
import math
from bisect import bisect

from lightning_lossacc.history import History, Record
from lightning_lossacc.margin_bins import margin_edges

CLASSES = 10
ROWS = 1000
REFERENCE = 8


def full_run(num_epochs=40, loader=0):
    """Training and validation records with arrays, pairs and context."""
    history = History()
    for epoch in range(num_epochs):
        history.append(full_record(epoch, "train", loader=0))
        history.append(full_record(epoch, loader=loader))
    return history


def full_record(epoch, stage="val", loader=0, **changes):
    """One evaluation; NLL lowest at epoch 8, accuracy 92 % from there on."""
    late, early = max(epoch - REFERENCE, 0), max(REFERENCE - epoch, 0)
    temperature = 1.0 + 0.04 * late
    nll, refined = 0.25 + 0.1 * early + 0.004 * late, 0.24 + 0.1 * early
    values = {
        "nll": nll,
        "accuracy": 0.92 - 0.05 * early,
        "balanced_accuracy": 0.91 - 0.05 * early,
        "refinement_nll": refined,
        "calibration_nll": nll - refined,
        "temperature": temperature,
        "temperature_at_edge": 0.0,
        "confidence": 0.93 + 0.001 * late,
        "overconfidence": 0.01 + 0.001 * late,
        "ece": 0.015 + 0.001 * late,
        "margin_p05": -1.0,
        "nll_standard_error": 0.02,
        "accuracy_standard_error": 0.01,
    }
    context = {
        "train_nll": 0.2 / (epoch + 1),
        "train_accuracy": 0.99,
        "learning_rate": 0.1 * 0.9**epoch,
        "gradient_norm": 2.0 / (epoch + 1),
        "gradient_norm_max": 3.0 / (epoch + 1),
        "update_ratio": 1e-3,
        "update_ratio_max": 2e-3,
        "dead_units": 0.1,
        "dead_units_total": 0.05,
    }
    fields = {
        "stage": stage,
        "loader": loader,
        "epoch": epoch,
        "global_step": 100 * (epoch + 1),
        "time": 1.7e9 + epoch,
        "complete": True,
        "num_rows": ROWS,
        "num_items": ROWS,
        "values": values,
        "arrays": arrays(epoch, temperature),
        "logged": {"val_loss": nll},
        "paired": {"nll": pair(epoch)} if stage == "val" and epoch else {},
        "context": context if stage == "val" else {},
    }
    return Record(**(fields | changes))


def arrays(epoch, temperature=1.0):
    """Reliability bins, margins and classes; class 3 gains and class 7 loses with the epochs."""
    rows = [0, 0, 10, 20, 30, 40, 50, 50, 60, 70, 80, 90, 100, 150, 250]
    edges = [index / 15 for index in range(16)]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    margins = [temperature * (4 + 4 * math.sin(index)) for index in range(ROWS)]
    label = list(range(CLASSES))
    shift = [0.0] * CLASSES
    shift[3], shift[7] = 0.2 * epoch, -0.3 * epoch
    return {
        "reliability": {
            "edges": edges,
            "rows": rows,
            "accuracy": [
                max(middle - 0.002 * epoch, 0.0) if count else math.nan
                for middle, count in zip(middles, rows, strict=True)
            ],
            "confidence": [middle if count else math.nan for middle, count in zip(middles, rows, strict=True)],
        },
        "margin_histogram": histogram(margins),
        "classes": {
            "class": label,
            "rows": [100.0] * CLASSES,
            "predicted": [100.0] * CLASSES,
            "correct": [90.0 + part for part in shift],
            "nll": [0.25 - 0.01 * part for part in shift],
        },
        "excluded": {"ignored": 3, "invalid": 0, "non_finite": 0, "unsupported": 0, "ties": 0},
        "loss_terms": "smoothing 0.1",
    }


def histogram(margins):
    """(130,) rows by margin bin."""
    edges, counts = margin_edges(), [0] * 130
    for margin in margins:
        counts[bisect(edges, margin)] += 1
    return counts


def pair(epoch):
    """Comparison with epoch 8, or before it with the epoch before."""
    reference = REFERENCE if epoch > REFERENCE else epoch - 1
    change = 0.004 * (epoch - REFERENCE) if epoch > REFERENCE else -0.1
    groups = [
        {"name": "right both times", "items": 900, "higher": 10, "change": -0.5 * change},
        {"name": "wrong both times", "items": 80, "higher": 60, "change": 1.4 * change},
        {"name": "wrong to right", "items": 12, "higher": 0, "change": -0.1 * change},
        {"name": "right to wrong", "items": 8, "higher": 8, "change": 0.2 * change},
    ]
    worst = [
        {
            "index": 10 * place,
            "target": place,
            "predicted": place + 1,
            "rows": 1,
            "nll_before": 5.0,
            "nll_after": 6.0,
            "change": 0.001,
        }
        for place in range(3)
    ]
    return {
        "reference_epoch": reference,
        "reference_step": 100 * (reference + 1),
        "items": ROWS,
        "rows": ROWS,
        "full_reference_nll": 0.25,
        "nll_before": 0.25,
        "nll_after": 0.25 + change,
        "accuracy_before": 0.92,
        "accuracy_after": 0.92,
        "accuracy_change": 0.0,
        "accuracy_change_error": 0.003,
        "nll_change": change,
        "nll_change_error": 0.003,
        "nll_change_winsorised": change,
        "temperature_before": 1.0,
        "temperature_after": 1.0 + 0.04 * max(epoch - REFERENCE, 0),
        "refinement_change": 0.1 * change,
        "refinement_change_error": 0.001,
        "groups": groups,
        "worst": worst,
    }
