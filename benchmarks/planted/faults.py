"""The programs (data set and network) and, for each cause, how it is planted in them.

Programs of the part "dev" served to choose limits; those of "report" were only ever judged. No program, data set or
seed is in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from planted import data, networks
from planted.networks import Shape
from planted.plan import Plan

Part = str
PROGRAMS: dict[Part, dict[str, Plan]] = {
    "dev": {
        "vectors-mlp": Plan(
            "vectors-mlp", "healthy", 0, data.Vectors, networks.mlp, learning_rate=2e-3, rows=768, epochs=16
        ),
        "digits-conv": Plan(
            "digits-conv",
            "healthy",
            0,
            data.Digits,
            networks.convolution,
            Shape(width=32),
            learning_rate=2e-3,
            rows=768,
            epochs=16,
        ),
    },
    "report": {
        "images-conv": Plan(
            "images-conv",
            "healthy",
            0,
            data.Images,
            networks.convolution,
            Shape(width=32),
            1.4,
            learning_rate=2e-3,
            rows=768,
            epochs=16,
        ),
        "sequences-gru": Plan(
            "sequences-gru",
            "healthy",
            0,
            data.Sequences,
            networks.Recurrent,
            Shape(width=48),
            learning_rate=6e-3,
            rows=768,
            epochs=16,
        ),
        "tokens-transformer": Plan(
            "tokens-transformer",
            "healthy",
            0,
            data.Tokens,
            networks.Transformer,
            Shape(width=32),
            1.3,
            learning_rate=2e-3,
            rows=768,
            epochs=16,
        ),
        "cells-mlp": Plan(
            "cells-mlp",
            "healthy",
            0,
            data.Cells,
            networks.mlp,
            Shape(depth=3, width=48),
            0.7,
            learning_rate=2e-3,
            rows=768,
            epochs=16,
        ),
    },
}
# Seeds of one part never meet those of the other.
FIRST_SEED = {"dev": 0, "report": 1000}


# Noise at which weights for rare classes cost accuracy.
HARDER = {
    "vectors-mlp": 1.25,
    "digits-conv": 1.8,
    "images-conv": 1.2,
    "sequences-gru": 1.4,
    "tokens-transformer": 1.5,
    "cells-mlp": 3.5,
}


def prior(classes: int, first: float) -> tuple[float, ...]:
    """Shares of the classes: `first`, and the rest alike."""
    return (first, *[(1 - first) / (classes - 1)] * (classes - 1))


def _shape(plan: Plan, **changes: Any) -> Shape:
    return replace(plan.shape, **changes)


def _classes(plan: Plan) -> int:
    return plan.source.num_classes  # type: ignore[attr-defined]


def over_confidence(plan: Plan) -> Plan:
    """Trained on long after the answers stopped changing."""
    return replace(plan, rows=512, epochs=36, learning_rate=2.5 * plan.learning_rate, noise=0.8 * plan.noise)


def overfitting(plan: Plan) -> Plan:
    """A wide network and few noisy rows; smoothing keeps the logits small, so that what grows was learnt wrongly."""
    shape = _shape(plan, width=2 * plan.shape.width)
    return replace(
        plan,
        rows=500,
        epochs=24,
        noise=1.4 * plan.noise,
        smoothing=0.2,
        learning_rate=2.5 * plan.learning_rate,
        shape=shape,
    )


def label_noise(plan: Plan) -> Plan:
    """Three of ten training labels are another class, and there is time to learn them."""
    return replace(
        plan, label_noise=0.3, epochs=30, rows=512, learning_rate=2 * plan.learning_rate, shape=_shape(plan, width=64)
    )


def hard_tail(plan: Plan) -> Plan:
    """A few rows of the world carry a wrong label; the training rows do not."""
    return replace(plan, tail=0.03, epochs=26, noise=0.5 * plan.noise, learning_rate=2 * plan.learning_rate)


def leakage(plan: Plan) -> Plan:
    """All validation rows are training rows."""
    return replace(plan, leak=1.0, epochs=26, learning_rate=2 * plan.learning_rate, noise=1.2 * plan.noise)


def prior_shift(plan: Plan) -> Plan:
    """Classes are alike in training and not in validation, or the other way round."""
    shifted = prior(_classes(plan), 0.8)
    if plan.seed % 2:
        return replace(plan, val_prior=shifted)
    return replace(plan, train_prior=shifted)


def capacity_limit(plan: Plan) -> Plan:
    """One unit before the head (two for many classes), rows in plenty."""
    units = 1 if _classes(plan) <= 5 else 2
    return replace(plan, rows=1200, learning_rate=3 * plan.learning_rate, shape=_shape(plan, bottleneck=units))


def majority_collapse(plan: Plan) -> Plan:
    """One class in nearly all rows, and features that hardly tell the others."""
    rare = prior(_classes(plan), 0.95)
    return replace(plan, train_prior=rare, val_prior=rare, noise=3 * plan.noise, epochs=12, weight_decay=1e-3)


def class_imbalance(plan: Plan) -> Plan:
    """One class in most rows; the others are found now and then."""
    rare = prior(_classes(plan), 0.85)
    return replace(
        plan,
        train_prior=rare,
        val_prior=rare,
        noise=(1.0 if plan.network is networks.convolution else 1.5) * plan.noise,
        rows=1000,
    )


def class_trade_off(plan: Plan) -> Plan:
    """A network that knows the class shares alone is trained on with weights for the rare classes."""
    many = _classes(plan) > 5
    share = prior(_classes(plan), 0.7)
    weights = (1.0, *[12.0 if many else 6.0] * (_classes(plan) - 1))
    return replace(
        plan,
        train_prior=share,
        val_prior=share,
        noise=HARDER[plan.program] * plan.noise,
        rows=1000,
        before=6 if many else 4,
        before_rate=3e-4,
        learning_rate=1e-5,
        epochs=16,
        later=(5, {"learning_rate": 2e-3 if many else 1e-3, "class_weights": weights}),
    )


def nothing_learned(plan: Plan) -> Plan:
    """Inputs of other rows, or the same for all."""
    if plan.seed % 2:
        return replace(plan, constant_inputs=True)
    return replace(plan, shuffled=True, epochs=10, rows=1500)


def label_mapping_mismatch(plan: Plan) -> Plan:
    """Validation numbers its classes from another start."""
    return replace(plan, shifted=True, epochs=12)


def validation_too_small(plan: Plan) -> Plan:
    """Sixteen validation rows."""
    return replace(plan, val_rows=16)


def learning_rate_too_high(plan: Plan) -> Plan:
    """The step is tens of times too long."""
    if plan.seed % 2:
        return replace(plan, learning_rate=0.06)
    return replace(plan, optimizer="sgd", momentum=0.9, learning_rate=0.3)


def learning_rate_too_low(plan: Plan) -> Plan:
    """The step is a hundred times too short."""
    if plan.seed % 2:
        return replace(plan, learning_rate=2e-5)
    return replace(plan, optimizer="sgd", momentum=0.0, learning_rate=2e-3)


def blow_up(plan: Plan) -> Plan:
    """The step is so long that the loss leaves every scale."""
    return replace(plan, optimizer="sgd", momentum=0.9, learning_rate=30.0, epochs=12)


def dead_activations(plan: Plan) -> Plan:
    """The last hidden layer starts far below zero."""
    return replace(plan, shape=_shape(plan, hidden_bias=-20.0), epochs=12)


def over_regularisation(plan: Plan) -> Plan:
    """Weight decay, or dropout, that leaves little to learn with."""
    if plan.seed % 3 == 0:
        return replace(plan, optimizer="sgd", momentum=0.9, learning_rate=0.03, weight_decay=0.1)
    if plan.seed % 3 == 1:
        return replace(plan, learning_rate=2e-3, weight_decay=0.1)
    return replace(plan, learning_rate=2e-3, shape=_shape(plan, dropout=0.9))


def loss_mismatch(plan: Plan) -> Plan:
    """The logged validation loss holds class weights, smoothing or a penalty."""
    kind = plan.seed % 3
    if kind == 0:
        weights = (5.0, *[1.0] * (_classes(plan) - 1))
        return replace(plan, class_weights=weights, logged_loss="weighted")
    if kind == 1:
        return replace(plan, smoothing=0.1, logged_loss="smoothed")
    return replace(plan, penalty=1e-3, logged_loss="penalised")


def double_softmax(plan: Plan) -> Plan:
    """The network ends in a softmax, and the loss takes another."""
    return replace(plan, shape=_shape(plan, softmax=True), learning_rate=2 * plan.learning_rate)


def wrong_accuracy(plan: Plan) -> Plan:
    """The logged accuracy is that of other rows, of a wrong axis, or has a wrong denominator."""
    return replace(plan, logged_accuracy=("order", "width", "denominator")[plan.seed % 3])


def train_eval_mismatch(plan: Plan) -> Plan:
    """Batch normalisation whose running statistics hardly move."""
    return replace(plan, shape=_shape(plan, norm=1e-4))


def under_confidence(plan: Plan) -> Plan:
    """Strong smoothing or mixup."""
    if plan.seed % 2:
        return replace(plan, mixup=1.5)
    return replace(plan, smoothing=0.4)


def scale_growth(plan: Plan) -> Plan:
    """The training loss divides the logits by five and the evaluation does not: they grow while the answers improve."""
    return replace(plan, train_temperature=5.0)


def confidence_growth(plan: Plan) -> Plan:
    """Easy rows: all right early, and surer from then on."""
    return replace(plan, noise=0.4 * plan.noise, learning_rate=5e-4)


def unconfident_shift(plan: Plan) -> Plan:
    """A far too confident network is trained on with far too much dropout and decay."""
    dense = plan.network is networks.mlp
    dropout = 0.9 if dense else 0.5 if plan.network is networks.convolution and _classes(plan) > 5 else 0.85
    changes = {"dropout": dropout, "weight_decay": 0.03, "learning_rate": 3e-3 if dense else 2e-3}
    return replace(
        plan,
        shape=_shape(plan, dropout=1e-6),
        before=25,
        before_temperature=4.0,
        learning_rate=1e-5,
        epochs=16,
        later=(5, changes),
    )


FAULTS: dict[str, Callable[[Plan], Plan]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        over_confidence,
        overfitting,
        label_noise,
        hard_tail,
        leakage,
        prior_shift,
        capacity_limit,
        majority_collapse,
        class_imbalance,
        class_trade_off,
        nothing_learned,
        label_mapping_mismatch,
        validation_too_small,
        learning_rate_too_high,
        learning_rate_too_low,
        blow_up,
        dead_activations,
        over_regularisation,
        loss_mismatch,
        double_softmax,
        wrong_accuracy,
        train_eval_mismatch,
        under_confidence,
        scale_growth,
        confidence_growth,
        unconfident_shift,
    )
}
# Where a cause cannot be planted: one unit tells two classes apart, and easy data lose no accuracy.
IMPOSSIBLE = {
    ("capacity-limit", "cells-mlp"),
    ("class-trade-off", "cells-mlp"),
    ("class-trade-off", "tokens-transformer"),
    ("unconfident-shift", "cells-mlp"),
    ("unconfident-shift", "tokens-transformer"),
}


def plans(part: Part, causes: list[str], seeds: int) -> list[Plan]:
    """Plans of a part, all programs of one seed before the next seed.

    Args:
        part: "dev" or "report".
        causes: names of causes.
        seeds: runs of a program and cause; more where the cause can be planted in some programs only, so that every
            cause has as many runs.
    """
    found = []
    for turn in range(seeds * len(PROGRAMS[part])):
        for cause in causes:
            possible = [plan for name, plan in PROGRAMS[part].items() if (cause, name) not in IMPOSSIBLE]
            seed = FIRST_SEED[part] + turn // len(possible)
            plan = replace(possible[turn % len(possible)], cause=cause, seed=seed)
            found.append(FAULTS[cause](plan))
    return found
