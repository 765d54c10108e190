"""What did training look like up to an evaluation? Its own loss and accuracy so far, and what the watchers saw.

Validation runs before the training epoch ends, so that the sums of the epoch are read while they still grow: from a
copy, which may be added up over ranks. What the watchers measure differs by rank; rank zero's numbers are used on all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_lossacc.modes import averages
from lightning_lossacc.stages import StageState

# Largest number of classes whose training rows are listed.
LISTED_CLASSES = 1000
# In this order watched numbers travel between ranks, which must send as many of them each.
WATCHED = (
    "learning_rate",
    "gradient_norm",
    "gradient_norm_max",
    "update_ratio",
    "update_ratio_max",
    "dead_units",
    "dead_units_total",
    "saturated_units",
    "watched_units",
    "non_finite_steps",
    "weight_norm",
    "weight_decay",
    "penalty",
    "dropout",
    "batch_norm_layers",
    "batch_norm_momentum",
    "batch_norm_drift",
    "training_layers",
    "frozen_share",
)
# Optimizers beside AdamW and its variants whose decay is decoupled, by name: not all of them are in torch.
DECOUPLED = ("Adafactor", "LAMB", "Lamb", "Lion", "Muon", "SGDW")


def to_vector(watched: Mapping[str, float], device: torch.device, is_first_rank: bool) -> Tensor:
    """Rank zero's numbers and zeros from all others, (19,) float64, so that their sum is rank zero's; NaN is absent."""
    values = [watched.get(key, math.nan) if is_first_rank else 0.0 for key in WATCHED]
    return torch.tensor(values, dtype=torch.float64, device=device)


def from_vector(vector: Tensor) -> dict[str, float]:
    """The inverse of `to_vector`, for the numbers that are known."""
    return {key: value for key, value in zip(WATCHED, vector.tolist(), strict=True) if not math.isnan(value)}


def left_out(module: nn.Module, optimizers: Iterable[Optimizer]) -> str | None:
    """Which trainable parameters are in no optimizer, in words; None if all are, or if there is no optimizer.

    Averages of weights follow them without one.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    known = averages(module) | {id(weight) for group in groups for weight in group["params"]}
    trained = [
        (name, weight)
        for name, weight in module.named_parameters()
        if weight.requires_grad and not is_lazy(weight) and weight.numel()
    ]
    missing = [(name, weight) for name, weight in trained if id(weight) not in known]
    if not groups or not missing:
        return None
    share = sum(weight.numel() for _, weight in missing) / sum(weight.numel() for _, weight in trained)
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    part = f"{100 * share:.3g} %" if share < 0.9995 else "all" if share == 1 else "over 99.9 %"
    return (
        f"lossacc · {part} of the trainable parameters ({missing[0][0]}{others}) are in no optimizer, which leaves "
        "them as they are; requires_grad_(False) says that it is meant"
    )


def measured(train: StageState) -> tuple[dict[str, float], list[int]]:
    """NLL, accuracy and rows of the training steps of this epoch so far, and their rows by class; reads the device.

    Empty if a part of the epoch is missing or nothing has been counted. NLL (nats) and accuracy are those of the steps
    themselves: with dropout and augmentation, of weights that still changed, without the loss's weights and smoothing.

    Args:
        train: a flushed copy of the epoch's sums, those of all ranks.
    """
    if train.layout is None or not train.complete or not train.num_rows:
        return {}, []
    values = train.values()
    context = {"train_rows": values["num_rows"]} | {
        f"train_{key}": values[key] for key in ("nll", "accuracy") if math.isfinite(values[key])
    }
    if train.layout.num_classes > LISTED_CLASSES:
        return context, []
    return context, train.counts[train.layout.count_slices["class_rows"]].tolist()


def clipping(norm: float | None, algorithm: Any) -> dict[str, float]:
    """Norm at which a Trainer clips gradients, of its two arguments; empty if it does not, or clips single values."""
    by_norm = getattr(algorithm, "value", algorithm) in (None, "norm")
    return {"gradient_clip": float(norm)} if norm and by_norm else {}


def is_decoupled(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether weight decay shrinks the weights by itself, rate times decay a step, and is no part of the gradient.

    Such decay has no loss beside that of the data, so that it moves no optimum by `decay / 2 |w|^2`.
    Source: Loshchilov and Hutter 2019 (decoupled weight decay).
    """
    name = type(optimizer).__name__
    return bool(group.get("decoupled_weight_decay")) or "AdamW" in name or name in DECOUPLED
