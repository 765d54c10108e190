"""Which layers act in one mode only, which of them are in the wrong one, and which weights do not learn at all?"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel


def dropout_rate(module: nn.Module) -> float:
    """Probability of a layer that drops something, else 0."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return float(module.p)
    if isinstance(module, nn.MultiheadAttention) or (isinstance(module, nn.RNNBase) and module.num_layers > 1):
        return float(module.dropout)
    return 0.0


def averages(module: nn.Module) -> set[int]:
    """Identities of the weights that follow others as their average, without an optimizer."""
    copies = [child for child in module.modules() if isinstance(child, AveragedModel)]
    return {id(weight) for child in copies for weight in child.parameters()}


def frozen_share(module: nn.Module, optimizers: Iterable[Optimizer] = ()) -> float:
    """Share of the weights that do not learn, in [0, 1]: no gradient reaches them, or no optimizer has them.

    Averages of weights are left out, and optimizers that hold anything else as well (copies in another precision, say)
    tell nothing; 0 without weights.
    """
    left_out = averages(module)
    weights = [weight for weight in module.parameters() if not is_lazy(weight) and id(weight) not in left_out]
    held = {id(weight) for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]}
    known = bool(held) and held <= {id(weight) for weight in module.parameters()}
    total = sum(weight.numel() for weight in weights)
    learning = sum(weight.numel() for weight in weights if weight.requires_grad and (id(weight) in held or not known))
    return 1 - learning / total if total else 0.0


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
