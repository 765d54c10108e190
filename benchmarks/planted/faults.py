"""For each cause, how it is planted in a program; recipes alternate with the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from planted.plan import Plan
from planted.programs import FIRST_SEED, PROGRAMS, Part, classes, prior, reshaped, with_seed


def over_confidence(plan: Plan) -> Plan:
    """A factor of the logits that learns too fast on few rows; or trained on long after answers stopped changing."""
    if plan.seed % 3 == 1:
        shared = replace(plan, rows=400, before=8, before_rows=1200, epochs=26, noise=0.8 * plan.noise)
        shape = reshaped(plan, logit_scale=1.0)
        return replace(shared, learning_rate=0.4 * plan.learning_rate, scale_rate=0.05, shape=shape)
    return replace(plan, rows=500, epochs=40, learning_rate=2.5 * plan.learning_rate, noise=0.8 * plan.noise)


def overfitting(plan: Plan) -> Plan:
    """Few rows, learnt by heart by a trained network or from the start; smoothing keeps the logits small."""
    shared = replace(plan, rows=300, epochs=28, batch=32, learning_rate=2 * plan.learning_rate, smoothing=0.25)
    if plan.seed % 3:
        noise = (1.2 if plan.seed % 2 else 1.0) * plan.noise
        return replace(shared, before=8, before_rows=1200, blur=0.2, noise=noise)
    return replace(shared, epochs=40, smoothing=0.3, blur=0.3, shape=reshaped(plan, width=2 * plan.shape.width))


def label_noise(plan: Plan) -> Plan:
    """Three of ten training labels are another class, and there is time to learn them."""
    share = 0.2 if plan.seed % 2 else 0.3
    rate, shape = 1.5 * plan.learning_rate, reshaped(plan, width=64)
    easier = 0.6 * plan.noise
    return replace(plan, label_noise=share, epochs=36, rows=768, learning_rate=rate, noise=easier, shape=shape)


def hard_tail(plan: Plan) -> Plan:
    """A few rows of the world carry a wrong label; the training rows do not."""
    share = 0.05 if plan.seed % 2 else 0.03
    return replace(plan, tail=share, epochs=30, noise=0.4 * plan.noise, rows=768, learning_rate=2 * plan.learning_rate)


def leakage(plan: Plan) -> Plan:
    """All validation rows are training rows, or half of them."""
    rows = 600 if plan.seed % 2 else plan.val_rows
    shared = replace(plan, rows=rows, epochs=36, learning_rate=2.5 * plan.learning_rate, blur=0.15)
    return replace(shared, leak=0.6) if plan.seed % 2 else replace(shared, leak=1.0)


def prior_shift(plan: Plan) -> Plan:
    """Classes are alike in training and not in validation, or the other way round."""
    shifted = prior(plan, 0.8)
    return replace(plan, val_prior=shifted) if plan.seed % 2 else replace(plan, train_prior=shifted)


def capacity_limit(plan: Plan) -> Plan:
    """One unit before the head (two for many classes), rows in plenty."""
    units = 1 if classes(plan) <= 6 else 2
    return replace(
        plan,
        rows=1000,
        epochs=44,
        noise=0.7 * plan.noise,
        learning_rate=1.5 * plan.learning_rate,
        shape=reshaped(plan, bottleneck=units),
    )


def majority_collapse(plan: Plan) -> Plan:
    """One class in nearly all rows, and features that hardly tell the others."""
    rare = prior(plan, 0.95)
    shared = replace(plan, train_prior=rare, val_prior=rare, epochs=16, weight_decay=1e-3)
    return replace(shared, blur=0.9) if plan.seed % 2 else replace(shared, noise=3 * plan.noise, blur=0.5)


def class_imbalance(plan: Plan) -> Plan:
    """One class in most rows; the others are found now and then."""
    rare = prior(plan, 0.85 if classes(plan) == 2 else 0.82)
    shared = replace(plan, train_prior=rare, val_prior=rare, rows=1100, epochs=26)
    return replace(shared, noise=0.8 * plan.noise, blur=0.45) if plan.seed % 2 else replace(shared, blur=0.35)


def class_trade_off(plan: Plan) -> Plan:
    """A network that knew one class above all is trained on with weights for the others, which outdo their shares."""
    share = prior(plan, 0.65)
    weight = 14.0 if plan.seed % 2 else 20.0
    weights = (1.0, *[weight] * (classes(plan) - 1))
    return replace(
        plan,
        train_prior=share,
        val_prior=share,
        noise=1.1 * plan.noise,
        rows=1200,
        val_rows=1600,
        before=14,
        before_rows=1600,
        before_prior=prior(plan, 0.8),
        before_temperature=3.0,
        learning_rate=1e-6,
        epochs=26,
        later=(5, {"learning_rate": 0.3 * plan.learning_rate, "class_weights": weights}),
    )


def nothing_learned(plan: Plan) -> Plan:
    """Inputs of other rows, or the same for all."""
    if plan.seed % 2:
        return replace(plan, constant_inputs=True)
    return replace(plan, shuffled=True, epochs=10, rows=1500)


def label_mapping_mismatch(plan: Plan) -> Plan:
    """Validation numbers its classes from another start, or exchanges two."""
    return replace(plan, swapped=True) if plan.seed % 2 else replace(plan, shifted=True)


def validation_too_small(plan: Plan) -> Plan:
    """A dozen to three dozen validation rows."""
    return replace(plan, val_rows=(12, 24, 36)[plan.seed % 3])


def learning_rate_too_high(plan: Plan) -> Plan:
    """The step is tens of times too long."""
    if plan.seed % 2:
        return replace(plan, learning_rate=0.05, epochs=24)
    return replace(plan, optimizer="sgd", momentum=0.9, learning_rate=0.4, epochs=24)


def learning_rate_too_low(plan: Plan) -> Plan:
    """The step is a hundred times too short."""
    if plan.seed % 2:
        return replace(plan, learning_rate=1e-5, epochs=24)
    return replace(plan, optimizer="sgd", momentum=0.0, learning_rate=5e-4, epochs=24)


def blow_up(plan: Plan) -> Plan:
    """The step is so long that the loss leaves every scale."""
    return replace(plan, optimizer="sgd", momentum=0.9, learning_rate=30.0, epochs=12)


def dead_activations(plan: Plan) -> Plan:
    """The last hidden layer starts far below zero; or its units are tanh, and start far out or with huge weights."""
    if plan.seed % 4 == 1:
        return replace(plan, shape=reshaped(plan, hidden_bias=20.0, activation=nn.Tanh))
    if plan.seed % 4 == 3:
        return replace(plan, shape=reshaped(plan, hidden_bias=1e3, hidden_gain=200.0, activation=nn.Tanh))
    return replace(plan, shape=reshaped(plan, hidden_bias=-20.0))


def over_regularisation(plan: Plan) -> Plan:
    """Weight decay, or dropout, that leaves little to learn with."""
    shared = replace(plan, rows=900, epochs=30)
    if plan.seed % 3 == 0:
        return replace(shared, optimizer="sgd", momentum=0.9, learning_rate=0.03, weight_decay=0.06)
    if plan.seed % 3 == 1:
        return replace(shared, learning_rate=2e-3, weight_decay=0.03)
    return replace(shared, learning_rate=2e-3, shape=reshaped(plan, dropout=0.9))


def loss_mismatch(plan: Plan) -> Plan:
    """The logged validation loss holds class weights, smoothing or a penalty."""
    kind = plan.seed % 3
    if kind == 0:
        weights = (5.0, *[1.0] * (classes(plan) - 1))
        return replace(plan, class_weights=weights, logged_loss="weighted")
    if kind == 1:
        return replace(plan, smoothing=0.1, logged_loss="smoothed")
    return replace(plan, penalty=1e-3, logged_loss="penalised")


def double_softmax(plan: Plan) -> Plan:
    """The network ends in a softmax, and the loss takes another."""
    return replace(plan, shape=reshaped(plan, softmax=True), learning_rate=2 * plan.learning_rate, epochs=24)


def wrong_accuracy(plan: Plan) -> Plan:
    """The logged accuracy is that of other rows, of a wrong axis, or has a wrong denominator."""
    return replace(plan, logged_accuracy=("order", "width", "denominator")[plan.seed % 3])


def train_eval_mismatch(plan: Plan) -> Plan:
    """Batch normalisation whose running statistics hardly move."""
    return replace(plan, shape=reshaped(plan, norm=5e-4 if plan.seed % 2 else 1e-4), noise=0.7 * plan.noise)


def under_confidence(plan: Plan) -> Plan:
    """Strong smoothing or mixup."""
    shared = replace(plan, epochs=28, rows=900, noise=0.7 * plan.noise)
    return replace(shared, mixup=1.5) if plan.seed % 2 else replace(shared, smoothing=0.4)


def scale_growth(plan: Plan) -> Plan:
    """The training loss divides the logits and the evaluation does not: they grow while the answers improve."""
    divisor, rate = (3.0, 0.5 * plan.learning_rate) if plan.seed % 2 else (4.0, 0.3 * plan.learning_rate)
    return replace(plan, train_temperature=divisor, rows=1200, epochs=24, blur=0.15, learning_rate=rate)


def confidence_growth(plan: Plan) -> Plan:
    """Easy rows: all right early, and surer from then on."""
    return replace(plan, noise=0.4 * plan.noise, learning_rate=plan.learning_rate / 4, rows=900, epochs=30)


def unconfident_shift(plan: Plan) -> Plan:
    """A far too confident network of many rows is trained on with few, smoothing and perhaps dropout."""
    shared = replace(
        plan,
        shape=reshaped(plan, dropout=1e-6),
        blur=0.1,
        rows=250 if plan.seed % 2 else 160,
        before=12,
        before_rows=1600,
        before_temperature=5.0,
        learning_rate=1e-6,
        epochs=20,
    )
    changes = {"smoothing": 0.3, "learning_rate": (1.5 if plan.seed % 2 else 2.0) * plan.learning_rate}
    return replace(shared, later=(5, changes | ({"dropout": 0.4} if plan.seed % 2 else {})))


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
# Where a cause cannot be planted: one unit tells two classes apart, or the four of two marks; of two classes the
# weights that cost accuracy cost loss; and where sequences, point sets or pairs of categories are learnt, accuracy
# rises for as long as confidence, and what is learnt by heart of sequences is wrong.
IMPOSSIBLE = {
    ("capacity-limit", "brainwaves-power"),
    ("capacity-limit", "cells-mlp"),
    ("capacity-limit", "choices-wide"),
    ("capacity-limit", "marks-lstm"),
    ("capacity-limit", "siblings-products"),
    ("capacity-limit", "smears-pooling"),
    ("capacity-limit", "soils-fourier"),
    ("capacity-limit", "visits-transformer"),
    ("class-trade-off", "brainwaves-power"),
    ("class-trade-off", "calls-squeeze"),
    ("class-trade-off", "cells-mlp"),
    ("class-trade-off", "choices-wide"),
    ("class-trade-off", "letters-words"),
    ("class-trade-off", "siblings-products"),
    ("class-trade-off", "smears-pooling"),
    ("class-trade-off", "soils-fourier"),
    ("class-trade-off", "visits-transformer"),
    ("confidence-growth", "choices-wide"),
    ("confidence-growth", "clouds-set"),
    ("confidence-growth", "letters-words"),
    ("confidence-growth", "marks-lstm"),
    ("confidence-growth", "strokes-causal"),
    ("confidence-growth", "visits-transformer"),
    ("over-confidence", "marks-lstm"),
    ("overfitting", "calls-squeeze"),
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
            found.append(FAULTS[cause](with_seed(possible[turn % len(possible)], cause, seed)))
    return found
