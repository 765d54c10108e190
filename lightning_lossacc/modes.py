"""Which layers act in one mode only, which of them are in the wrong one, and which weights do not learn at all?"""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy


def dropout_rate(module: nn.Module) -> float:
    """Probability of a layer that drops something, else 0."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return float(module.p)
    if isinstance(module, nn.MultiheadAttention) or (isinstance(module, nn.RNNBase) and module.num_layers > 1):
        return float(module.dropout)
    return 0.0


def frozen_share(module: nn.Module) -> float:
    """Share of the weights that no gradient reaches, in [0, 1]; 0 without weights."""
    sizes = [(weight.requires_grad, weight.numel()) for weight in module.parameters() if not is_lazy(weight)]
    total = sum(size for _, size in sizes)
    return sum(size for trains, size in sizes if not trains) / total if total else 0.0


def training_layers(module: nn.Module) -> int:
    """Layers that drop something or normalise by the batch, and are in training mode now.

    A layer of batch normalisation without running statistics acts alike in both modes.
    """
    return sum(
        child.training
        and (
            dropout_rate(child) > 0
            or (isinstance(child, nn.modules.batchnorm._BatchNorm) and child.track_running_stats)
        )
        for child in module.modules()
    )
