"""torchmetrics classes over the two vectors of a `Layout`: state, update, compute, and nothing else.

Every class accumulates the whole layout, so that equal ones share one update inside a `MetricCollection`; state names
carry the layout's fingerprint, so that different ones never do (torchmetrics groups metrics by names and values of
their states after the first batch, and would merge two look-alikes). States are updated in place and never change their
dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_lossacc import kernels, quantities, refinement
from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.sums import EVALUATION_TEMPERATURES, InputKind, Layout, Task


class LossAccuracy(Metric):
    """Loss, accuracy, margin, confidence, calibration and refinement of a classifier in one pass over its logits.

    Constant memory, no host synchronisation in `update` on a GPU, exact under any split into batches, ranks and shards.
    Definitions: `lightning_lossacc.kernels.reference` (rows), `lightning_lossacc.quantities`.

    Args:
        task: `"multiclass"` for logits (N, C, ...), `"binary"` for one logit a row.
        num_classes: C; required for multiclass, 2 for binary.
        ignore_index: target value of rows without any effect; None for none.
        top_k: k of `top_k_accuracy`.
        num_bins: confidence bins of the calibration errors.
        temperatures: grid of the refinement; empty switches it off and is faster.
        per_class: whether class tables and balanced accuracy are kept.
        input_kind: what `preds` are; never guessed from their values.
        backend: `"auto"` counts by Triton on a CUDA device, by code that a C++ compiler makes for a CPU (seconds, once
            a machine), and by PyTorch where neither can run; `"triton"`, `"compiled"` and `"reference"` insist on one
            of them. See `backend_for`.
        kwargs: see `torchmetrics.Metric`; `dist_sync_on_step` is refused, since `forward` never synchronises.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from lightning_lossacc import LossAccuracy
        >>> metric = LossAccuracy(num_classes=3)
        >>> metric.update(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2]))
        >>> round(metric.compute()["accuracy"].item(), 3)
        0.5
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(
        self,
        task: Task = "multiclass",
        num_classes: int | None = None,
        *,
        ignore_index: int | None = -100,
        top_k: int = 5,
        num_bins: int = 15,
        temperatures: tuple[float, ...] = EVALUATION_TEMPERATURES,
        per_class: bool = True,
        input_kind: InputKind = "logits",
        backend: kernels.Backend = "auto",
        **kwargs: Any,
    ) -> None:
        if kwargs.get("dist_sync_on_step"):
            raise ValueError(
                "Expected `dist_sync_on_step` to be False, but got True; `forward` returns the values of its own batch."
            )
        super().__init__(**kwargs)
        self.backend = kernels.expect_backend(backend)
        if task == "binary":
            num_classes = 2 if num_classes is None else num_classes
        if num_classes is None:
            raise ValueError("Expected `num_classes` to be given for the multiclass task, but got None.")
        self.layout = Layout(
            num_classes=num_classes,
            task=task,
            num_bins=num_bins,
            top_k=top_k,
            temperatures=tuple(temperatures),
            per_class=per_class,
            ignore_index=ignore_index,
            input_kind=input_kind,
        )
        # A state filled past the wrapped `update` (by a fused loss, by `merge`) would otherwise return a stale result.
        self.compute_with_cache = False
        self.counts_name = f"counts_{self.layout.fingerprint}"
        self.sums_name = f"sums_{self.layout.fingerprint}"
        counts, sums = self.layout.zeros()
        self.add_state(self.counts_name, counts, dist_reduce_fx="sum")
        self.add_state(self.sums_name, sums, dist_reduce_fx="sum")

    @property
    def counts(self) -> Tensor:
        """The int64 vector of the layout."""
        return getattr(self, self.counts_name)

    @property
    def sums(self) -> Tensor:
        """The float64 vector of the layout."""
        return getattr(self, self.sums_name)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch; shapes and errors as in `lightning_lossacc.kernels.row_statistics`."""
        kernels.row_statistics(preds, target, self.counts, self.sums, self.layout, self.backend)

    def backend_for(self, preds: Tensor) -> kernels.Choice:
        """Name of the implementation that counts such logits (`"triton"`, `"reference"`, `"compiled"`), and why."""
        return kernels.choose(preds, self.layout, self.backend)

    def compute(self) -> Any:
        """All quantities by name (`lightning_lossacc.quantities.KEYS`), as scalar float64 tensors on the metric's
        device.
        """
        return self._tensors(self._summary())

    def forward(self, preds: Tensor, target: Tensor) -> Any:
        """Adds a batch and returns the quantities of this batch alone."""
        counts, sums = self.layout.zeros(self.device)
        kernels.row_statistics(preds, target, counts, sums, self.layout, self.backend)
        self.counts.add_(counts)
        self.sums.add_(sums)
        self._update_count += 1
        self._computed = None
        self._forward_cache = self._tensors(quantities.summary(counts, sums, self.layout))
        return self._forward_cache

    def reset(self) -> None:
        """Empties the state in place, inside and outside inference mode."""
        counts, sums = self.counts, self.sums
        super().reset()
        self._restore(counts.zero_(), sums.zero_())

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Adds another metric of the same configuration, or its state.

        Raises:
            ValueError: if the configurations differ.
        """
        if isinstance(incoming_state, LossAccuracy):
            if incoming_state.layout.fingerprint != self.layout.fingerprint:
                raise ValueError(
                    f"Expected a metric with layout {self.layout}, but got {incoming_state.layout}; sums of different "
                    "layouts cannot be added."
                )
            incoming_state = {self.counts_name: incoming_state.counts, self.sums_name: incoming_state.sums}
        if not isinstance(incoming_state, dict) or not {self.counts_name, self.sums_name} <= set(incoming_state):
            raise ValueError(
                f"Expected `incoming_state` to be a metric of the same configuration or its state with "
                f"{self.counts_name!r} and {self.sums_name!r}, but got {incoming_state!r}."
            )
        self.counts.add_(incoming_state[self.counts_name].to(self.device))
        self.sums.add_(incoming_state[self.sums_name].to(self.device))
        self._update_count += 1
        self._computed = None

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draws the quantities as torchmetrics does; needs matplotlib.

        Args:
            val: a result of `compute` or `forward`, or several; None computes one.
            ax: axes to draw on; None makes a figure.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)

    def reliability(self) -> dict[str, Tensor]:
        """Reliability diagram: `edges` (B + 1,), `rows`, `accuracy`, `confidence` (B,); NaN for an empty bin."""
        return self._columns(quantities.reliability)

    def per_class(self) -> dict[str, Tensor]:
        """Per class: `class`, `rows`, `predicted`, `correct`, `nll` (C,)."""
        if not self.layout.per_class:
            raise ValueError("Expected `per_class=True` at construction for the per-class table, but got False.")
        return self._columns(quantities.class_table)

    def margin_histogram(self) -> dict[str, Tensor]:
        """Rows by margin: `edges` (129,), and `rows` (130,) with an overflow bin at either end."""
        edges = torch.tensor(margin_edges(), dtype=torch.float64)
        return {"edges": edges, "rows": self.layout.parts(self.counts, self.sums)["margin_histogram"].cpu().clone()}

    def temperature_curve(self) -> dict[str, Tensor]:
        """NLL by `temperature` (T,) as `nll`; the optimum with certain bounds as `best`, `lower`, `upper`."""
        if not self.layout.temperatures:
            raise ValueError("Expected `temperatures` at construction for the temperature curve, but got none.")
        curve = self._columns(refinement.temperature_curve)
        found = refinement.refinement(self.counts.cpu(), self.sums.cpu(), self.layout)
        bounds = {"best": found.nll, "best_temperature": found.temperature, "lower": found.lower, "upper": found.upper}
        return curve | {name: torch.tensor(value, dtype=torch.float64) for name, value in bounds.items()}

    def _summary(self) -> dict[str, float]:
        return quantities.summary(self.counts, self.sums, self.layout)

    def _tensors(self, values: dict[str, float]) -> Any:
        """One copy to the device, whatever the number of values."""
        stacked = torch.tensor(list(values.values()), dtype=torch.float64).to(self.device)
        return dict(zip(values, stacked.unbind(), strict=True))

    def _columns(self, table: Callable[[Tensor, Tensor, Layout], dict[str, list[float]]]) -> dict[str, Tensor]:
        columns = table(self.counts, self.sums, self.layout)
        return {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}

    def _restore(self, counts: Tensor, sums: Tensor) -> None:
        """Keeps the identity of the state tensors, on which in-place kernels and captured graphs rely."""
        setattr(self, self.counts_name, counts)
        setattr(self, self.sums_name, sums)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = "") -> LossAccuracy:
        """Moves the device and never the dtype: bfloat16 sums of 1000 rows would count 256."""

        def move(tensor: Tensor) -> Tensor:
            probe = torch.empty(0, dtype=torch.int64, device=tensor.device)
            return tensor.to(fn(probe).device)

        return super()._apply(move, exclude_state)

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """Two all-reduces, whatever the number of quantities."""
        del dist_sync_fn
        group = process_group or self.process_group
        counts, sums = self.counts.clone(), self.sums.clone()
        torch.distributed.all_reduce(counts, group=group)
        torch.distributed.all_reduce(sums, group=group)
        self._restore(counts, sums)


class _Single(LossAccuracy):
    """One quantity of `LossAccuracy` as a scalar, so that `MetricTracker` and monitors can rank it."""

    quantity: str

    def compute(self) -> Tensor:
        """The quantity as a scalar float64 tensor; NaN without a counted row."""
        return self._tensors(self._summary())

    def _tensors(self, values: dict[str, float]) -> Tensor:
        return torch.tensor(values[self.quantity], dtype=torch.float64, device=self.device)


class MeanNLL(_Single):
    """Mean negative log-likelihood (nats); arguments as `LossAccuracy`."""

    quantity = "nll"
    higher_is_better = False
    plot_lower_bound = 0.0


class Accuracy(_Single):
    """Share of rows whose target is the lowest index among the maxima (micro); arguments as `LossAccuracy`."""

    quantity = "accuracy"
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


class MeanMargin(_Single):
    """Mean of the target's logit minus the largest other one (Pleiss et al. 2020); arguments as `LossAccuracy`."""

    quantity = "margin_mean"
    higher_is_better = True


class Overconfidence(_Single):
    """Mean confidence minus accuracy, signed; arguments as `LossAccuracy`."""

    quantity = "overconfidence"
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0


class RefinementNLL(_Single):
    """NLL after the best single temperature (Berta et al. 2025); arguments as `LossAccuracy`."""

    quantity = "refinement_nll"
    higher_is_better = False
    plot_lower_bound = 0.0
