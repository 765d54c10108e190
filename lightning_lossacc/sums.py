"""Where each number is: all statistics of a classifier live in two flat vectors, and `Layout` names their parts.

One int64 vector holds counts, one float64 vector holds sums. Batches, devices, ranks and runs merge by addition: counts
exactly, sums to 1e-12 relative. Both vectors have the same parts on every device, so a checkpoint, an all-reduce and a
kernel need no further agreement than the `Layout`.

Legend: N rows, C classes, B confidence bins, T temperatures, I items. A *row* is one prediction, an *item* one entry of
dimension 0 (an image, a sequence), the unit of sampling: n_i, s_i, c_i are an item's rows, summed NLL and correct rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lightning_lossacc.margin_bins import MARGIN_BINS

Task = Literal["multiclass", "binary"]
InputKind = Literal["logits", "probabilities", "log_probabilities"]

# 1/4 ... 8 in half octaves. With values and slopes at these points the NLL after the best temperature is found within
# 1.2e-4 nats and the temperature within 0.1 % (optima 0.27 ... 7.5, C 2 ... 8000); whole octaves miss by 2.5e-3 nats.
EVALUATION_TEMPERATURES: tuple[float, ...] = tuple(0.25 * 2 ** (step / 2) for step in range(11))


@dataclass(frozen=True)
class Layout:
    """What is counted, and at which place of the two vectors.

    Attributes:
        num_classes: C; 2 for the binary task.
        task: `"multiclass"` for logits (N, C, ...), `"binary"` for one logit a row.
        num_bins: B, confidence bins of equal width on [0, 1], closed on the left; the last one holds 1 as well.
        top_k: a row counts as a top-k hit if fewer than `top_k` classes beat its target; at most C is meant.
        temperatures: ascending temperatures at which NLL and slope are summed; empty switches the grid off.
        per_class: whether class counts and class NLL are kept (4 C numbers).
        ignore_index: target value of rows without any effect, or None.
        input_kind: what `preds` are; never guessed.

    Raises:
        ValueError: if an argument is out of range.
    """

    num_classes: int
    task: Task = "multiclass"
    num_bins: int = 15
    top_k: int = 5
    temperatures: tuple[float, ...] = EVALUATION_TEMPERATURES
    per_class: bool = True
    ignore_index: int | None = -100
    input_kind: InputKind = "logits"

    def __post_init__(self) -> None:
        _expect(self.task in ("multiclass", "binary"), "task", "be 'multiclass' or 'binary'", self.task)
        _expect(
            isinstance(self.num_classes, int) and self.num_classes >= 2,
            "num_classes",
            "be an integer of at least 2",
            self.num_classes,
        )
        _expect(
            self.task != "binary" or self.num_classes == 2,
            "num_classes",
            "be 2 for the binary task",
            self.num_classes,
        )
        _expect(self.num_bins >= 1, "num_bins", "be at least 1", self.num_bins)
        _expect(self.top_k >= 1, "top_k", "be at least 1", self.top_k)
        _expect(
            all(0 < low < high for low, high in zip(self.temperatures, self.temperatures[1:], strict=False))
            and all(temperature > 0 for temperature in self.temperatures),
            "temperatures",
            "be positive and ascending",
            self.temperatures,
        )
        _expect(
            not self.temperatures or (1.0 in self.temperatures and len(self.temperatures) >= 2),
            "temperatures",
            "be empty, or to hold 1.0 and at least one other value",
            self.temperatures,
        )
        _expect(
            self.ignore_index is None or isinstance(self.ignore_index, int),
            "ignore_index",
            "be an integer or None",
            self.ignore_index,
        )
        _expect(
            self.input_kind in ("logits", "probabilities", "log_probabilities"),
            "input_kind",
            "be 'logits', 'probabilities' or 'log_probabilities'",
            self.input_kind,
        )

    @cached_property
    def count_slices(self) -> dict[str, slice]:
        """Part of the int64 vector by name.

        `rows` counted rows; `ignored`, `invalid` (target outside 0 ... C-1), `non_finite` (NaN or +inf anywhere, -inf
        at the target), `unsupported` (targets that are no single class): rows kept out of everything else; `ties` rows
        with margin 0; `items` items with at least one counted row; `items_rows_squared` sum n_i^2, `items_rows_correct`
        sum n_i c_i, `items_correct_squared` sum c_i^2; `correct`; `top_k`; `margin_rows` rows with a finite margin;
        `half_rows` (2) rows of either half of the items; `bin_rows` (2, B) wrong and right rows by confidence bin;
        `margin_histogram` (130) with an overflow bin at either end; `class_rows`, `class_predicted`, `class_correct`
        (C).
        """
        classes = self.num_classes if self.per_class else 0
        return _slices(
            rows=1,
            ignored=1,
            invalid=1,
            non_finite=1,
            unsupported=1,
            ties=1,
            correct=1,
            top_k=1,
            margin_rows=1,
            items=1,
            items_rows_squared=1,
            items_rows_correct=1,
            items_correct_squared=1,
            half_rows=2,
            bin_rows=2 * self.num_bins,
            margin_histogram=MARGIN_BINS + 2,
            class_rows=classes,
            class_predicted=classes,
            class_correct=classes,
        )

    @cached_property
    def sum_slices(self) -> dict[str, slice]:
        """Part of the float64 vector by name.

        `nll` sum of NLL (nats); `items_nll_squared` sum s_i^2; `items_rows_nll` sum n_i s_i; `margin` over rows with a
        finite margin; `confidence`; `entropy` (nats); `brier`; `bin_confidence`, `bin_nll` (2, B) wrong and right rows
        by bin; `class_nll` (C) by target class; `temperature_nll`, `temperature_slope` (2, T) of either half of the
        items: sum of NLL of logits / temperature, and of its derivative by the inverse temperature.
        """
        return _slices(
            nll=1,
            confidence=1,
            entropy=1,
            brier=1,
            margin=1,
            items_nll_squared=1,
            items_rows_nll=1,
            bin_confidence=2 * self.num_bins,
            bin_nll=2 * self.num_bins,
            class_nll=self.num_classes if self.per_class else 0,
            temperature_nll=2 * len(self.temperatures),
            temperature_slope=2 * len(self.temperatures),
        )

    @property
    def size_counts(self) -> int:
        """Length of the int64 vector."""
        return max(part.stop for part in self.count_slices.values())

    @property
    def size_sums(self) -> int:
        """Length of the float64 vector."""
        return max(part.stop for part in self.sum_slices.values())

    @cached_property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that differ between layouts that must not be merged."""
        fields = (
            self.task,
            self.num_classes,
            self.num_bins,
            min(self.top_k, self.num_classes),
            self.temperatures,
            self.per_class,
            self.ignore_index,
            self.input_kind,
        )
        return hashlib.sha256(repr(fields).encode()).hexdigest()[:8]

    def zeros(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Empty vectors: counts (size_counts,) int64 and sums (size_sums,) float64, usable in and out of inference
        mode.
        """
        with torch.inference_mode(False):
            return (
                torch.zeros(self.size_counts, dtype=torch.int64, device=device),
                torch.zeros(self.size_sums, dtype=torch.float64, device=device),
            )

    def parts(self, counts: Tensor, sums: Tensor) -> dict[str, Tensor]:
        """Views of both vectors by name; writing to a view writes to the vector."""
        views = {name: counts[part] for name, part in self.count_slices.items()}
        views.update({name: sums[part] for name, part in self.sum_slices.items()})
        return views


def _slices(**sizes: int) -> dict[str, slice]:
    start, slices = 0, {}
    for name, size in sizes.items():
        slices[name] = slice(start, start + size)
        start += size
    return slices


def _expect(holds: bool, name: str, expectation: str, found: object) -> None:
    if not holds:
        raise ValueError(f"Expected `{name}` to {expectation}, but got {found!r}.")
