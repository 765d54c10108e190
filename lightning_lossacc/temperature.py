"""Which temperature makes the probabilities fit?

Temperature scaling divides the logits z by one number T > 0: p = softmax(z / T). T minimises the NLL of the validation
set, mean of log sum exp(z / T) - z_y / T, which is convex in b = 1 / T, so that there is one optimum. No answer
changes, only how sure it is (Guo et al. 2017; Platt 1999 without intercept for two classes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lossacc import kernels
from lightning_lossacc.attribution import interval
from lightning_lossacc.sums import Layout

LIMITS = (0.02, 50.0)
_CHUNK = 2**22  # logits that are in float64 at a time, 32 MB


@dataclass(frozen=True, slots=True)
class Temperature:
    """One temperature, and what it saves.

    Attributes:
        value: T; > 1 softens (over-confident logits), < 1 sharpens.
        low, high: 99 % interval of T on the log scale, by the error clustered by item (delta method); NaN at an edge,
            and where only sums were at hand (`TemperatureScaling`).
        nll_before, nll_after: NLL (nats) with T = 1 and with `value`, on the data that it was fitted on.
        gain: NLL (nats) saved on each half of the items by the temperature of the other half: what to expect of new
            data; NaN if a half is empty.
        at_edge: whether the optimum lies outside the range that was searched, so that `value` is the range's end.
        num_rows: rows that it was fitted on.
    """

    value: float
    low: float
    high: float
    nll_before: float
    nll_after: float
    gain: float
    at_edge: bool
    num_rows: int


def fit_temperature(
    logits: Tensor, target: Tensor, *, ignore_index: int | None = -100, limits: tuple[float, float] = LIMITS
) -> Temperature:
    """The temperature with the lowest NLL, by safeguarded Newton steps in float64 on 1 / T, to 1e-12.

    Args:
        logits: (N, C), (N, C, d1, ...), or for two classes with one logit (N,), (N, 1), (N, 1, d1, ...).
        target: class indices (N,), (N, d1, ...); floats 0 and 1 as well for one logit.
        ignore_index: target of rows that do not count, or None.
        limits: smallest and largest T that is searched; the optimum lies at the first where all rows are right, and at
            the last where the logits say nothing about the target.

    Raises:
        TypeError: if the logits are no floats.
        ValueError: if shapes do not fit, no row counts, a target is no class, or a logit is NaN or infinite (−inf,
            which masks a class, is allowed anywhere but at the target).
    """
    if not 0 < limits[0] < 1 < limits[1]:
        raise ValueError(f"Expected `limits` to be positive and to lie around 1, but got {limits}.")
    rows = _Rows.of(logits, target, ignore_index)
    everything = torch.ones(len(rows.target), dtype=torch.bool, device=rows.target.device)
    inverse, at_edge = rows.best(everything, limits)
    nll, slope, curvature = rows.moments(inverse)
    before = rows.moments(1.0)[0]
    gain = _cross_fitted(rows, before, limits)
    low = high = math.nan
    bend = float(curvature.sum())
    if not at_edge and bend > 0 and rows.num_items > 1:
        by_item = torch.zeros(rows.num_items, dtype=torch.float64, device=slope.device).index_add_(0, rows.item, slope)
        error = math.sqrt(rows.num_items / (rows.num_items - 1) * float(by_item.square().sum())) / bend / inverse
        low, high = (math.exp(bound) / inverse for bound in interval(0.0, error))
    return Temperature(1 / inverse, low, high, float(before.mean()), float(nll.mean()), gain, at_edge, len(rows.target))


def _cross_fitted(rows: _Rows, before: Tensor, limits: tuple[float, float]) -> float:
    # A hash of the position: neighbours, which may be variants of one image, are not always parted.
    half = ((rows.item * 0x9E3779B1 + 0x7F4A7C15) >> 16) & 1
    masks = half == 0, half == 1
    if not all(bool(mask.any()) for mask in masks):
        return math.nan
    saved = 0.0
    for mask, other in (masks, masks[::-1]):
        after = rows.moments(rows.best(other, limits)[0])[0]
        saved += float((before - after)[mask].sum())
    return saved / len(before)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that count: logits (M, C), target (M,), and which of `num_items` items each belongs to, (M,)."""

    logits: Tensor
    target: Tensor
    item: Tensor
    num_items: int

    @classmethod
    def of(cls, logits: Tensor, target: Tensor, ignore_index: int | None) -> _Rows:
        is_binary = logits.ndim == 1 or (logits.ndim > 1 and logits.shape[1] == 1)
        classes = 2 if is_binary else (logits.shape[1] if logits.ndim > 1 else 0)
        layout = Layout(
            max(classes, 2), "binary" if is_binary else "multiclass", temperatures=(), ignore_index=ignore_index
        )
        logits, index = kernels.canonical(logits, target, layout)  # (I, C, R), (I, R)
        num_items = len(index)
        item = torch.arange(num_items, device=index.device)[:, None].expand_as(index).reshape(-1)
        flat, index = logits.movedim(1, 2).reshape(index.numel(), -1), index.reshape(-1)
        if is_binary:
            flat = torch.cat([torch.zeros_like(flat), flat], 1)
        if ignore_index is not None:
            kept = index != ignore_index
            flat, index, item = flat[kept], index[kept], item[kept]
        if not len(index):
            raise ValueError("Expected at least one row that counts, but got none; all targets are `ignore_index`.")
        wrong = int(((index < 0) | (index >= classes)).sum())
        if wrong:
            raise ValueError(
                f"Expected `target` to hold classes 0 ... {classes - 1}, but {wrong} of {len(index)} rows hold others; "
                "soft targets have no single class, and rows to skip are marked by `ignore_index`."
            )
        bad = torch.isnan(flat).any(1) | (flat == math.inf).any(1)
        bad |= torch.isinf(flat.gather(1, index[:, None]).squeeze(1))
        if bool(bad.any()):
            raise ValueError(
                f"Expected `logits` to be finite, but {int(bad.sum())} of {len(index)} rows are not; drop those rows."
            )
        return cls(flat, index, item, num_items)

    def moments(self, inverse: float) -> tuple[Tensor, Tensor, Tensor]:
        """NLL of b z, its derivative by b, E_p[z] - z_y, and its second one, Var_p[z]; each (M,) float64."""
        result = torch.empty(3, len(self.target), dtype=torch.float64, device=self.target.device)
        step = max(1, _CHUNK // self.logits.shape[1])
        for start in range(0, len(self.target), step):
            part = slice(start, start + step)
            above = self.logits[part].double()
            above = above - above.gather(1, self.target[part, None])
            result[0, part] = (inverse * above).logsumexp(1)
            probability = (inverse * above).softmax(1)
            above = above.masked_fill(probability == 0, 0.0)  # -inf masks a class: 0 * inf is not a number
            mean = (probability * above).sum(1)
            result[1, part] = mean
            result[2, part] = (probability * (above - mean[:, None]).square()).sum(1)
        nll, slope, curvature = result
        return nll, slope, curvature

    def best(self, mask: Tensor, limits: tuple[float, float]) -> tuple[float, bool]:
        """Inverse temperature of the lowest NLL of some rows, and whether it lies outside of the limits."""

        def slope_and_curvature(inverse: float) -> tuple[float, float]:
            _, slope, curvature = self.moments(inverse)
            return float(slope[mask].sum()), float(curvature[mask].sum())

        low, high = 1 / limits[1], 1 / limits[0]
        lowest, highest = slope_and_curvature(low)[0], slope_and_curvature(high)[0]
        if lowest == highest == 0:
            return 1.0, False  # every class has the same logit: any temperature does
        if lowest >= 0:
            return low, True
        if highest <= 0:
            return high, True
        inverse = 1.0
        for _ in range(100):
            slope, curvature = slope_and_curvature(inverse)
            low, high = (low, inverse) if slope > 0 else (inverse, high)
            wanted = inverse - slope / curvature if curvature > 0 else math.nan
            after = wanted if low < wanted < high else math.sqrt(low * high)
            if abs(after - inverse) <= 1e-12 * inverse:
                break
            inverse = after
        return inverse, False
