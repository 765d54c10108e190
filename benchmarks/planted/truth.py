"""What is true of a training, measured on a large fresh sample of its generator and by training on.

Legend: E evaluations, N rows, C classes. Losses in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from planted.data import Source
from planted.module import rows_of
from planted.plan import Plan

FRESH_ROWS = 8_000
PATH_ROWS = 1_000


class Snapshots(Callback):
    """Keeps the weights after every validation."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A copy of all weights and buffers."""
        self.states.append({name: value.clone() for name, value in pl_module.network.state_dict().items()})


def refined(logits: Tensor, target: Tensor) -> tuple[float, float]:
    """Smallest mean NLL over one temperature in [1/8, 64], and that temperature, by bisection of the slope."""
    low, high = math.log(1 / 64), math.log(8)  # of beta = 1 / T
    picked = logits.gather(1, target[:, None]).squeeze(1)
    for _ in range(24):
        beta = math.exp((low + high) / 2)
        slope = ((beta * logits).softmax(1) * logits).sum(1).mean() - picked.mean()
        low, high = (low, (low + high) / 2) if slope > 0 else ((low + high) / 2, high)
    beta = math.exp((low + high) / 2)
    return float(F.cross_entropy(beta * logits, target)), 1 / beta


def measure(logits: Tensor, target: Tensor) -> dict[str, Any]:
    """Loss, accuracy, loss after one temperature and what tells the causes apart, of logits (N, C).

    `recalls` has one number a class, NaN for a class without rows.
    """
    if not torch.isfinite(logits).all():
        return {"finite": 0.0}
    logits = logits.double()
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    right = (predicted == target).double()
    recalls = [right[target == label].mean().item() for label in range(classes)]
    found = [recall for recall in recalls if recall == recall]
    loss = F.cross_entropy(logits, target, reduction="none")
    refined_nll, temperature = refined(logits, target)
    return {
        "finite": 1.0,
        "nll": loss.mean().item(),
        "accuracy": right.mean().item(),
        "balanced_accuracy": sum(found) / len(found),
        "recalls": recalls,
        "refined_nll": refined_nll,
        "temperature": temperature,
        "largest_predicted": predicted.bincount(minlength=classes).max().item() / len(target),
        "largest_class": target.bincount(minlength=classes).max().item() / len(target),
    }


@torch.no_grad()
def outputs(network: nn.Module, inputs: Tensor, rows: int = 500) -> Tensor:
    """Logits of all inputs in evaluation mode."""
    network.eval()
    return torch.cat([network(part) for part in inputs.split(rows)])


# From here on the slope of a tanh is below 0.01, and of a sigmoid below 0.0025.
SATURATED = {nn.Tanh: (-0.995, 0.995), nn.Sigmoid: (0.0025, 0.9975)}


def _stuck(module: nn.Module, output: Tensor) -> Tensor:
    """Where an activation has no slope to speak of."""
    if isinstance(module, nn.ReLU):
        return output <= 0
    low, high = SATURATED[type(module)]
    return (output < low) | (output > high)


@torch.no_grad()
def dead_share(network: nn.Module, inputs: Tensor) -> float:
    """Share of units of the worst layer that are stuck on 99 % of the inputs: ReLU at zero, tanh or sigmoid flat."""
    shares: list[float] = [0.0]

    def look(module: nn.Module, arguments: Any, output: Tensor) -> None:
        channels = output.transpose(1, -1).reshape(-1, output.shape[1]) if output.dim() > 2 else output
        stuck = _stuck(module, channels).float().mean(0)
        shares.append((stuck >= (1.0 if isinstance(module, nn.ReLU) else 0.99)).float().mean().item())

    kinds = (nn.ReLU, *SATURATED)
    handles = [module.register_forward_hook(look) for module in network.modules() if isinstance(module, kinds)]
    network.eval()
    network(inputs)
    for handle in handles:
        handle.remove()
    return max(shares)


def bias_gain(logits: Tensor, target: Tensor) -> float:
    """What one bias a class saves beyond one temperature, nats."""
    logits, steps = logits.double(), 60
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([scale, bias], max_iter=steps)

    def closure() -> Tensor:
        search.zero_grad()
        loss = F.cross_entropy(scale * logits + bias, target)
        loss.backward()
        return loss

    search.step(closure)
    return refined(logits, target)[0] - closure().detach().item()


def train_without(plan: Plan, source: Source) -> dict[str, Any]:
    """The same training without the fault: measures on `PATH_ROWS` fresh rows where their NLL is lowest, and `rise`,
    from there to the end.
    """
    torch.manual_seed(plan.seed)
    network = plan.network(source.shape, source.num_classes, plan.shape)
    inputs, labels, _ = rows_of(plan, source, "train", plan.rows)
    fresh, target, _ = rows_of(plan, source, "fresh", PATH_ROWS)
    optimizer: torch.optim.Optimizer
    if plan.optimizer == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), plan.learning_rate, plan.momentum)
    else:
        optimizer = torch.optim.Adam(network.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)
    found: list[dict[str, Any]] = []
    for epoch in range(plan.epochs):
        network.train()
        for chosen in torch.randperm(plan.rows).split(plan.batch):
            loss = F.cross_entropy(network(inputs[chosen]), labels[chosen], label_smoothing=plan.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 3 == 2:
            found.append(measure(outputs(network, fresh), target))
    lowest = min(found, key=lambda measures: measures.get("nll", math.inf))
    return lowest | {"rise": found[-1].get("nll", math.nan) - lowest.get("nll", math.nan)}


def train_before(plan: Plan, source: Source, network: nn.Module) -> None:
    """The earlier training of a plan that begins with a trained network."""
    rows = plan.before_rows or plan.rows
    earlier = replace(plan, train_prior=plan.before_prior or plan.train_prior)
    inputs, _, labels = rows_of(earlier, source, "train", rows)
    optimizer = torch.optim.Adam(network.parameters(), plan.before_rate)
    drops = {module: module.p for module in network.modules() if isinstance(module, nn.Dropout)}
    for module in drops:
        module.p = 0.0
    network.train()
    for _ in range(plan.before):
        for chosen in torch.randperm(rows).split(plan.batch):
            loss = F.cross_entropy(network(inputs[chosen]) / plan.before_temperature, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for module, share in drops.items():
        module.p = share


def find(
    plan: Plan,
    source: Source,
    network: nn.Module,
    states: list[dict[str, Tensor]],
    best: int,
    temperatures: list[float],
) -> dict[str, Any]:
    """The truth about one run.

    Args:
        plan, source, network: the run; `network` is left with the last weights.
        states: weights after each evaluation.
        best: evaluation with the lowest validation NLL.
        temperatures: best temperature on the validation rows of each evaluation; NaN where there is none.

    Returns:
        `path` (measures on `PATH_ROWS` fresh rows after every evaluation), `best`, `end` (on `FRESH_ROWS`), and what
        the planted cause needs.
    """
    fresh, target, clean = rows_of(plan, source, "fresh", FRESH_ROWS)
    # Labels that were dealt at random contradict their rows as well.
    _, _, given = rows_of(replace(plan, blur=0.0), source, "fresh", FRESH_ROWS)
    agrees = (target == given) & (target == clean)
    few, few_target = fresh[:PATH_ROWS], target[:PATH_ROWS]
    path = []
    for state, temperature in zip(states, temperatures, strict=True):
        network.load_state_dict(state)
        logits = outputs(network, few)
        path.append(measure(logits, few_target))
        if path[-1]["finite"] and math.isfinite(temperature):
            path[-1]["tempered_nll"] = F.cross_entropy(logits / temperature, few_target).item()
    truth: dict[str, Any] = {"path": path}
    for name, place in (("best", best), ("end", len(states) - 1)):
        network.load_state_dict(states[place])
        logits = outputs(network, fresh)
        truth[name] = measure(logits, target) | {"evaluation": place}
        if not torch.isfinite(logits).all():
            continue
        if plan.tail or plan.blur:
            truth[name]["clean_nll"] = measure(logits[agrees], target[agrees])["nll"]
        if name == "best":
            continue
        truth[name]["bias_gain"] = bias_gain(logits[:4000], target[:4000])
        if plan.shifted or plan.swapped:
            truth[name]["unshifted_accuracy"] = (logits.argmax(1) == clean).double().mean().item()
        if plan.shape.norm:
            network.train()
            with torch.no_grad():
                inputs = torch.cat([network(part) for part in fresh[:4000].split(500)])
            truth[name]["train_mode"] = measure(inputs, target[:4000])
            network.load_state_dict(states[place])
    truth["dead"] = dead_share(network, few)
    if plan.cause in REPAIRS:
        truth["without"] = train_without(REPAIRS[plan.cause](plan), source)
    return truth


SOUND_RATE = {"optimizer": "adam", "learning_rate": 2e-3, "momentum": 0.0}
REPAIRS: dict[str, Callable[[Plan], Plan]] = {
    "learning-rate-too-high": lambda plan: replace(plan, **SOUND_RATE),
    "learning-rate-too-low": lambda plan: replace(plan, **SOUND_RATE),
    "over-regularisation": lambda plan: replace(
        plan, **SOUND_RATE, weight_decay=0.0, shape=replace(plan.shape, dropout=0.0)
    ),
    "capacity-limit": lambda plan: replace(plan, shape=replace(plan.shape, bottleneck=0)),
    "label-noise": lambda plan: replace(plan, label_noise=0.0),
}
