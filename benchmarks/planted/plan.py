"""`Plan`: one training in full: data, network, optimiser, what is logged, and the fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from planted.data import Source
from planted.networks import Shape


@dataclass(frozen=True, slots=True)
class Plan:
    """One training.

    Attributes:
        program: data set and network by name.
        cause: the planted fault; `"healthy"` for none.
        seed: of the task, the rows, the weights and the order.
        source: makes the rows, from seed and noise.
        network: makes the network, from input shape, classes and `shape`.
        noise: of the inputs.
        blur: share of the rows of every pool whose labels are dealt among them at random: what no network can tell.
        rows, val_rows, epochs, batch: sizes; one evaluation an epoch.
        optimizer: "sgd", "adam" or "adamw".
        learning_rate, momentum, weight_decay, schedule: of the optimiser; schedules "constant", "cosine", "step",
            "one-cycle" and "restarts".
        scale_rate: learning rate of a learnt factor of the logits.
        smoothing, class_weights, mixup, penalty: of the training loss (`penalty` times half the squared weights).
        augment: standard deviation of fresh noise on each training input.
        balanced: whether training draws rows of rare classes as often as of frequent ones.
        train_prior, val_prior: shares of the classes; None for all alike.
        label_noise: share of training labels replaced by another class.
        tail: share of rows outside training whose label is another class.
        leak: share of the validation rows that are training rows.
        constant_inputs, shuffled: inputs that say nothing: all alike, or of other rows.
        shifted, swapped: whether validation numbers its classes from another start, or exchanges the first two.
        logged_loss: "nll", "smoothed", "weighted" or "penalised": the validation loss that the user logs.
        logged_accuracy: "right", "order" (predictions against the labels of other rows), "width" (index of the batch)
            or "denominator" (divided by the size of a full batch).
        later: epoch and changes of the training loss and optimiser from then on.
        train_temperature: what the logits are divided by in the training loss alone.
        before: epochs of earlier training at `before_rate`, unseen by the monitor, without smoothing, dropout, decay
            class weights and wrong labels, and with logits divided by `before_temperature`.
        before_rows: rows of that training; 0 for as many as later.
        before_prior: shares of the classes in that training; None for those of later.
    """

    program: str
    cause: str
    seed: int
    source: Callable[[int, float], Source]
    network: Callable[..., nn.Module]
    shape: Shape = field(default_factory=Shape)
    noise: float = 1.0
    blur: float = 0.0
    rows: int = 1500
    val_rows: int = 400
    epochs: int = 30
    batch: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    scale_rate: float = 0.0
    smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    mixup: float = 0.0
    penalty: float = 0.0
    augment: float = 0.0
    balanced: bool = False
    train_prior: tuple[float, ...] | None = None
    val_prior: tuple[float, ...] | None = None
    label_noise: float = 0.0
    tail: float = 0.0
    leak: float = 0.0
    constant_inputs: bool = False
    shuffled: bool = False
    shifted: bool = False
    swapped: bool = False
    logged_loss: str = "nll"
    logged_accuracy: str = "right"
    later: tuple[int, dict[str, Any]] | None = None
    train_temperature: float = 1.0
    before: int = 0
    before_rate: float = 2e-3
    before_temperature: float = 1.0
    before_rows: int = 0
    before_prior: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """File name of the run."""
        return f"{self.cause}/{self.program}-{self.seed}"
