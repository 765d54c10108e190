"""Which layers act in one mode only, training or evaluation, and which of them are in the wrong one?"""

from __future__ import annotations

from torch import nn


def dropout_rate(module: nn.Module) -> float:
    """Probability of a layer that drops something, else 0."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return float(module.p)
    if isinstance(module, nn.MultiheadAttention) or (isinstance(module, nn.RNNBase) and module.num_layers > 1):
        return float(module.dropout)
    return 0.0


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
