"""What would the loss be after one temperature, with a bias per class, with a scale per class? Small convex fits.

A change of class shares moves the best logits by a constant per class (Saerens et al. 2002; Menon et al. 2021), which
no temperature repairs; errors of single classes move scale and bias of those classes. So the NLL after the three fits,
each larger than the one before, tells confidence, prior shift and class-wise errors apart. Everything is cross-fitted:
fitted on one half of the items and measured on the other, so that a larger family does not win by itself.

Legend: n items, C classes, H rows of the larger half, P parameters of a family, q = scale_k log p_k + bias_k.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

MIN_HALF = 16  # items; fewer say nothing
# Rows of a class that either half must have, so that its bias can be fitted at all.
MIN_CLASS_ROWS = 2
# Standard deviation of a normal prior on biases and on scales around 1. It weighs as one item: it bounds parameters of
# separable halves and picks one of the equal biases that differ by a constant.
PRIOR = 3.0
# A class masked by a logit of -inf; exp(-1e4) is 0.
LOWEST = -1.0e4
NEWTON_STEPS, HALVINGS = 25, 12
MIN_TAIL_ROWS = 100
TAIL_ELEMENTS = 1 << 17  # logits that a tail is fitted to: 30 ms on a CPU
SMALLEST = -690.0  # exp of it is no denormal number
BETAS, GRID = (-math.log(16.0), math.log(8.0)), 9  # of log(1 / T)
FAR = 12.0  # below them: logits that are so many e-folds too large
GOLDEN, GOLDEN_STEPS, SHARE_STEPS = (math.sqrt(5) - 1) / 2, 9, 20
DONE = 1e-7  # nats by which one more step would lower the loss


def cross_fitted(logits: Tensor, target: Tensor, second: Tensor) -> dict[str, Any]:
    """Cross-fitted NLL of three nested families, with paired standard errors of what each adds.

    The families act on log p, so that they do not depend on a constant added to all logits of a row:
    "temperature" one scale (Guo et al. 2017); "bias" one scale and one bias per class; "vector" a scale and a bias per
    class (vector scaling, Guo et al. 2017; diagonal Dirichlet calibration, Kull et al. 2019). For two classes, "bias"
    is slope and intercept of a logit (Platt 1999), and "vector" is the same family. Each is fitted on one half by
    Newton's method with a normal prior of standard deviation 3 that weighs as one item, and measured on the other half.
    "bias" well below "temperature" says that class shares or class-wise errors are at work, not confidence alone.

    Args:
        logits: (n, C) of a float dtype; -inf masks a class.
        target: (n,) int64 in 0 ... C-1.
        second: (n,) bool, the half of each item.

    Returns:
        "items"; "nll" as it is; "temperature", "bias", "vector" cross-fitted NLL (nats); "temperature_gain" =
        nll - temperature, "bias_gain" = temperature - bias, "vector_gain" = bias - vector, each with its standard error
        over items under "..._error"; "slope" and "bias_values" (C numbers with mean 0), the mean of both halves' fits
        of "bias": log p * slope + bias_values are the corrected logits. Empty if a half has fewer than 16 items or
        fewer than 2 of a class, or if a number is not finite. Never raises on numbers.
    """
    classes = logits.shape[1]
    sides = torch.stack((~second, second))  # (2, n)
    rows = sides.sum(1)
    per_class = torch.stack([torch.bincount(target[side], minlength=classes) for side in sides])
    if int(rows.min()) < MIN_HALF or int(per_class.min()) < MIN_CLASS_ROWS:
        return {}
    scores = torch.log_softmax(logits.double(), dim=1).clamp_min(LOWEST)
    if not bool(torch.isfinite(scores).all()):
        return {}
    halves = _Halves(scores, target, sides)
    nll = -scores.gather(1, target[:, None])[:, 0]  # (n,)
    losses: dict[str, Tensor] = {"nll": nll}
    parameters = torch.cat((torch.ones(2, classes), torch.zeros(2, classes)), dim=1).double()  # (2, 2 C)
    fitted = parameters
    for name, basis in _families(classes).items():
        parameters = halves.fit(parameters, basis)
        losses[name] = _measured(parameters.flip(0), scores, target, second)
        fitted = parameters if name == "bias" else fitted
    if classes == 2:
        losses["vector"] = losses["bias"]
    result: dict[str, Any] = {"items": len(target)} | {name: float(loss.mean()) for name, loss in losses.items()}
    for name, gain in (
        ("temperature", losses["nll"] - losses["temperature"]),
        ("bias", losses["temperature"] - losses["bias"]),
        ("vector", losses["bias"] - losses["vector"]),
    ):
        result |= {f"{name}_gain": float(gain.mean()), f"{name}_gain_error": float(gain.std()) / math.sqrt(len(gain))}
    # The prior alone sees a constant added to all biases, so that they have mean 0.
    result |= {"slope": float(fitted[:, 0].mean()), "bias_values": fitted[:, classes:].mean(0).tolist()}
    return result if all(math.isfinite(result[name]) for name in (*losses, "slope")) else {}


def _families(classes: int) -> dict[str, Tensor]:
    """Directions (2 C, P) along which each family may move scales and biases."""
    one_scale = torch.cat((torch.ones(classes), torch.zeros(classes))).double()[:, None]
    every = torch.eye(2 * classes, dtype=torch.float64)
    families = {"temperature": one_scale, "bias": torch.cat((one_scale, every[:, classes:]), dim=1)}
    # With two classes a scale per class is redundant: only the difference of both logits matters.
    return families | ({"vector": every} if classes > 2 else {})


class _Halves:
    """Both halves side by side, padded to H rows of weight 0, so that one pass fits both.

    Classes lie before rows: a reduction over 10 contiguous numbers takes three times as long (measured).

    Args:
        scores: (n, C) log p.
        target: (n,).
        sides: (2, n) bool.
    """

    def __init__(self, scores: Tensor, target: Tensor, sides: Tensor) -> None:
        rows = sides.sum(1)
        index = torch.zeros(2, int(rows.max()), dtype=torch.int64)
        for half in range(2):
            index[half, : rows[half]] = sides[half].nonzero()[:, 0]
        present = torch.arange(index.shape[1]) < rows[:, None]
        self.rows = rows.double()
        self.weight = (present / rows[:, None]).double()  # (2, H), sum 1
        self.scores = scores[index].mT.contiguous()  # (2, C, H)
        self.target = target[index][:, None, :]  # (2, 1, H)
        self.hot = torch.zeros_like(self.scores).scatter_(1, self.target, 1.0)
        self.start = torch.cat((torch.ones(scores.shape[1]), torch.zeros(scores.shape[1]))).double()

    def fit(self, parameters: Tensor, basis: Tensor) -> Tensor:
        """Best parameters (2, 2 C) of a family of directions (2 C, P), by Newton steps that are halved if need be."""
        loss = self.loss(parameters)
        for _ in range(NEWTON_STEPS):
            gradient, hessian = self.derivatives(parameters)
            reduced = basis.T @ hessian @ basis  # (2, P, P)
            step, _ = torch.linalg.solve_ex(reduced, (gradient @ basis)[:, :, None])
            direction = step[:, :, 0] @ basis.T  # (2, 2 C)
            promised = (direction * gradient).sum(1) / 2
            if not bool((promised > DONE).any()):  # NaN ends here as well
                break
            size = torch.ones(2, 1, dtype=torch.float64)
            for _ in range(HALVINGS):
                candidate = parameters - size * direction
                candidate_loss = self.loss(candidate)
                better = candidate_loss <= loss
                if bool(better.all()):
                    break
                size = torch.where(better[:, None], size, size / 2)
            parameters = torch.where(better[:, None], candidate, parameters)
            loss = torch.where(better, candidate_loss, loss)
        return parameters

    def loss(self, parameters: Tensor) -> Tensor:
        """Mean NLL with the prior, (2,)."""
        moved = self._moved(parameters)
        nll = moved.logsumexp(1) - moved.gather(1, self.target)[:, 0]
        prior = ((parameters - self.start) ** 2).sum(1) / (2 * PRIOR**2 * self.rows)
        return (self.weight * nll).sum(1) + prior

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (2, 2 C) and Hessian (2, 2 C, 2 C) of `loss`."""
        classes = self.scores.shape[1]
        share = self._moved(parameters).softmax(1)  # (2, C, H)
        slopes = torch.cat((share * self.scores, share), dim=1)  # (2, 2 C, H)
        weighted = self.weight[:, None] * slopes
        first = self.weight[:, None] * (share - self.hot)
        gradient = torch.cat(((first * self.scores).sum(2), first.sum(2)), dim=1)
        hessian = -(weighted @ slopes.mT)
        scaled, plain = weighted.sum(2).split(classes, dim=1)  # (2, C) each
        squared = (weighted[:, :classes] * self.scores).sum(2)
        hessian += torch.diag_embed(torch.cat((squared, plain), dim=1))
        hessian += torch.diag_embed(scaled, offset=classes) + torch.diag_embed(scaled, offset=-classes)
        strength = 1 / (PRIOR**2 * self.rows)  # (2,)
        gradient += strength[:, None] * (parameters - self.start)
        hessian += strength[:, None, None] * torch.eye(2 * classes, dtype=torch.float64)
        return gradient, hessian

    def _moved(self, parameters: Tensor) -> Tensor:
        scales, biases = parameters[:, :, None].split(self.scores.shape[1], dim=1)
        return scales * self.scores + biases


def _measured(parameters: Tensor, scores: Tensor, target: Tensor, second: Tensor) -> Tensor:
    """NLL of each item, (n,), by the row of `parameters` (2, 2 C) that its half selects."""
    scales, biases = parameters[second.long()].split(scores.shape[1], dim=1)  # (n, C) each
    moved = scales * scores + biases
    return moved.logsumexp(1) - moved.gather(1, target[:, None])[:, 0]


class Tail(NamedTuple):
    """Rows whose label contradicts the model, by a mixture of its own probabilities and of any class alike.

    Attributes:
        share: of such rows, in 0 ... 0.5.
        loss: their share of the mean NLL as it is, nats.
        score: likelihood ratio 2 (l1 - l0) against one temperature alone, >= 0; about half a chi-square of one degree
            of freedom if there is no tail (Self and Liang 1987).
        temperature: best for the other rows.
        weight: (n,) probability that a row is one of them.
    """

    share: float
    loss: float
    score: float
    temperature: float
    weight: Tensor

    def numbers(self) -> dict[str, float]:
        """All but the weights."""
        return {name: value for name, value in self._asdict().items() if name != "weight"}


def tail(logits: Tensor, target: Tensor) -> Tail | None:
    """How many rows have a label that no temperature explains?

    p_i = (1 - s) softmax(beta z_i)_y + s / C is fitted in s and beta = 1 / T by maximum likelihood (uniform label
    noise: Lawrence and Schoelkopf 2001). Errors that a model knows of are explained by its temperature and give s = 0:
    wrong labels, corrupted inputs or rows of another kind do not. Rows whose own temperatures differ much look like a
    few of them, and the ratio grows with the rows. The likelihood is concave in s; C counts no class that is masked.

    Args:
        logits: (n, C) of a float dtype; -inf masks a class.
        target: (n,) int64 in 0 ... C-1.

    Returns:
        None for fewer than 100 rows, if a number is not finite, if the best temperature of the other rows is above 16,
        or that of all rows alike below 1/8; the latter may be higher, as a few rows of huge logits make it, and the
        former is 1/8 or less where the other rows are told apart without an error.
    """
    scores = torch.log_softmax(logits.double(), dim=1).clamp_min(LOWEST)
    if len(scores) < MIN_TAIL_ROWS or not bool(torch.isfinite(scores).all()):
        return None
    # Evenly spaced rows stand for many: the first ones of an ordered set are of a few classes.
    step = math.ceil(len(scores) / max(MIN_TAIL_ROWS, TAIL_ELEMENTS // scores.shape[1]))
    some, own = scores[::step], target[::step]
    uniform = 1 / max(int((scores > LOWEST).any(0).sum()), 1)

    @functools.cache
    def chances(log_beta: float) -> Tensor:
        return _of_target(some * math.exp(log_beta), own).exp()

    def mixed(log_beta: float) -> float:
        chance = chances(log_beta)
        return float((chance + _tail_share(chance, uniform) * (uniform - chance)).log().sum())

    def plain(log_beta: float) -> float:
        return float(chances(log_beta).log().sum())

    log_beta, likelihood = _highest(mixed)
    plain_beta, plain_likelihood = _highest(plain)
    if plain_beta <= BETAS[0] or plain_likelihood < len(own) * math.log(uniform):
        # The likelihood has one peak in beta, and 1 / C for each class at beta = 0: the peak lies below the grid.
        plain_likelihood = _highest(plain, (BETAS[0] - FAR, BETAS[0]))[1]
    score = 2 * (likelihood - plain_likelihood)
    # At the upper end of the grid the other rows are all right: no temperature is too low for them.
    if not (BETAS[0] < log_beta and plain_beta < BETAS[1] and math.isfinite(score)):
        return None
    share = _tail_share(chances(log_beta), uniform)
    rest = _of_target(scores * math.exp(log_beta), target).exp()
    weight = share * uniform / (rest + share * (uniform - rest))
    loss = -float((weight * scores.gather(1, target[:, None])[:, 0]).mean())
    return Tail(share, loss, max(score, 0.0), math.exp(-log_beta), weight)


def _of_target(scores: Tensor, target: Tensor) -> Tensor:
    """Log-probability of the target of each row, (n,), at least that of the smallest positive numbers."""
    return (scores.gather(1, target[:, None])[:, 0] - scores.logsumexp(1)).clamp_min(SMALLEST)


def _tail_share(chance: Tensor, uniform: float) -> float:
    """The share s in [0, 0.5] that maximises sum log(chance + s (uniform - chance)), by bisection of its slope."""
    gain = uniform - chance
    if float((gain / chance).sum()) <= 0:
        return 0.0
    low, high = 0.0, 0.5
    for _ in range(SHARE_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if float((gain / (chance + middle * gain)).sum()) > 0 else (low, middle)
    return (low + high) / 2


def _highest(function: Callable[[float], float], bounds: tuple[float, float] = BETAS) -> tuple[float, float]:
    """Place and value of the maximum over log beta: the best of a grid, then a golden section around it."""
    step = (bounds[1] - bounds[0]) / (GRID - 1)
    best = max((bounds[0] + place * step for place in range(GRID)), key=function)
    low, high = best - step, best + step
    first, second = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    values = function(first), function(second)
    for _ in range(GOLDEN_STEPS):
        if values[0] > values[1]:
            high, second = second, first
            first = high - GOLDEN * (high - low)
            values = function(first), values[0]
        else:
            low, first = first, second
            second = low + GOLDEN * (high - low)
            values = values[1], function(second)
    return max(zip(values, (first, second), strict=True))[::-1]
