"""Remedies for numbers that do not measure what they are taken for."""

from __future__ import annotations

import math

from lightning_lossacc.advice.measured import Measured, number, percent
from lightning_lossacc.attribution import LEVEL, accuracy_spread, interval
from lightning_lossacc.floors import double_sigmoid_floor, double_softmax_floor

USUAL_MOMENTUM = 0.1  # of batch normalisation in PyTorch


def log_raw_nll(measured: Measured) -> str:
    """The NLL beside the training objective."""
    terms, nll = measured.loss_terms, measured.value("nll")
    if "F.nll_loss" in terms:
        return _take_logarithms()
    has = f"; your loss has {terms} as well" if terms else ""
    return (
        f'log the NLL beside the loss: `self.log("val_nll", F.cross_entropy(logits, y))`{has}, and let callbacks '
        f'monitor "lossacc/val/nll"{f" ({nll:.4f})" if math.isfinite(nll) else ""}'
    )


def pass_logits(measured: Measured) -> str:
    """Cross-entropy takes logits, and applies log-softmax itself."""
    if "F.nll_loss" in measured.loss_terms:
        return _take_logarithms()
    classes, rows = measured.num_classes, measured.val_counts
    floor = ""
    if measured.is_single_logit:
        if len(rows) == 2 and sum(rows) > 0 and math.isfinite(measured.value("nll")):
            lowest = double_sigmoid_floor(rows[1] / sum(rows))
            floor = f": on probabilities the loss cannot fall below {lowest:.3f} with these classes, and stands at "
            floor += f"{measured.value('nll'):.3f}"
        return (
            "drop the sigmoid before the loss, F.binary_cross_entropy_with_logits(logits, y.float()) with what the "
            f"last layer gives, and count an answer as 1 where its logit is above 0{floor}"
        )
    if classes > 1:
        lowest = double_softmax_floor(classes)
        floor = f": on probabilities the loss cannot fall below ln(e + {classes - 1}) - 1 = {lowest:.3f}"
        floor += f", and stands at {measured.value('nll'):.3f}" if math.isfinite(measured.value("nll")) else ""
    return f"drop the softmax before the loss, F.cross_entropy(logits, y) with what the last layer gives{floor}"


def _take_logarithms() -> str:
    return (
        "F.nll_loss takes log-probabilities: give it F.log_softmax(logits, 1), or the logits to F.cross_entropy; as it "
        "is, larger values are all it takes to lower the loss"
    )


def right_accuracy(measured: Measured) -> str:
    """The three accuracies that a logged number may be."""
    classes = measured.num_classes or "C"
    kinds = (
        ('average="micro"', "accuracy"),
        ('average="macro"', "balanced_accuracy"),
        ('top_k=5, average="micro"', "top_k_accuracy"),
    )
    known = [
        f"{argument} gives {percent(measured.value(key))}"
        for argument, key in kinds
        if math.isfinite(measured.value(key)) and (key != "top_k_accuracy" or (measured.num_classes or 6) > 5)
    ]
    logged = [f"{name} {number(value)}" for name, value in measured.current.logged.items() if "acc" in name.lower()]
    yours = f"; you logged {', '.join(logged)}" if logged else ""
    return (
        f"torchmetrics.classification.MulticlassAccuracy({classes}, ...) on the same logits: "
        f"{'; '.join(known) or 'micro, macro and top-k differ'}{yours}"
    )


def compute_over_epoch(measured: Measured) -> str:
    """A mean of batch means is not the accuracy."""
    return (
        'log the metric object, `self.accuracy(logits, y); self.log("val_accuracy", self.accuracy)`, so that rows '
        "count alike: a mean over batches weights the last, smaller one too much"
    )


def same_answers(measured: Measured) -> str | None:
    """Layers that act in training only."""
    layers, probe = measured.context("training_layers"), measured.train_probe
    if not (layers > 0 or (probe is not None and probe.context.get("random_rows", 0.0) > 0)):
        return None
    where = "in `validation_step` and the hooks around it" if layers > 0 else "in `forward` and what it calls"
    return (
        f"look {where} for `.train()`, for F.dropout(x, p) without `self.training` (it drops by default), and for "
        "noise that is added in every mode: F.dropout(x, p, self.training), or nn.Dropout(p)"
    )


def batch_norm(measured: Measured) -> str | None:
    """Running statistics that fit the evaluation."""
    if measured.context("batch_norm_layers") == 0:
        return None
    layers, momentum = measured.context("batch_norm_layers"), measured.context("batch_norm_momentum")
    counted = f" ({int(layers)} BatchNorm layers)" if layers > 0 else ""
    updates = measured.current.global_step
    # Share of the initial statistics that is left after so many updates.
    left = (1 - momentum) ** updates if momentum > 0 else math.nan
    if left > 0.05 and momentum < USUAL_MOMENTUM:
        return (
            f"running statistics{counted}: momentum={number(momentum)} keeps {percent(left)} of their initial values "
            f"after {updates} updates: nn.BatchNorm2d(channels, momentum={number(USUAL_MOMENTUM)}); 0.99 or 0.999 of "
            "other libraries is 1 minus it"
        )
    slower = momentum / 10 if momentum > 0 else USUAL_MOMENTUM / 10
    other = f"nn.BatchNorm2d(channels, momentum={number(slower)}), " if (1 - slower) ** updates <= 0.05 else ""
    return (
        f"running statistics{counted}: {other}larger batches, "
        "Trainer(sync_batchnorm=True) over several devices, or nn.GroupNorm / nn.LayerNorm, which have none"
    )


def evaluation_mode(measured: Measured) -> str:
    """The mode in which rows are evaluated."""
    dropout = measured.context("dropout")
    active = f" (dropout {number(dropout)} is on in training mode)" if dropout > 0 else ""
    return (
        f"call module.eval() and torch.no_grad() around every evaluation of your own{active}; Lightning does so for "
        "its own"
    )


def same_preprocessing(measured: Measured) -> str:
    """Inputs that are prepared alike."""
    return "prepare both sets alike, augmentation aside: print mean, std and range of one batch of each"


def compare_sets(measured: Measured) -> str:
    """The same rows through both pipelines."""
    if measured.train_probe is not None:
        known = measured.train_probe.values.get("accuracy", math.nan)
        return (
            f"accuracy is {percent(known)} on training rows in eval mode, {percent(measured.value('accuracy'))} here: "
            "print mean, std, range and labels of one batch of each set, and send training rows through the validation "
            "loader, `trainer.validate(module, DataLoader(train_set))`"
        )
    return (
        "send training rows through the validation loader, LossAccuracyMonitor(train_probe=True) or "
        "`trainer.validate(module, DataLoader(train_set))`: if they are as bad, look at order and weights of training, "
        "else print mean, std, range and labels of one batch of each set"
    )


def same_weights(measured: Measured) -> str:
    """What stands between training and validation beside the data."""
    return (
        "validate the weights that were trained: an average of them needs a decay that forgets the initial ones within "
        "the run, as 1 - 10 / steps does; and shuffle the training loader, DataLoader(..., shuffle=True)"
    )


def swapped_weights(measured: Measured) -> str | None:
    """Where no layer acts in one mode only, it is the weights that differ; None where one does."""
    acts = measured.context("batch_norm_layers") != 0 or measured.context("dropout") > 0 or same_answers(measured)
    return None if acts else same_weights(measured)


def train_probe(measured: Measured) -> str:
    """Training rows in evaluation mode."""
    return (
        "LossAccuracyMonitor(train_probe=train_set_without_augmentation) evaluates training rows in evaluation mode, "
        "so that dropout and augmentation drop out of the comparison"
    )


def more_items(measured: Measured, accuracy_margin: float = 0.01, relative: float = 0.05) -> str:
    """How many items it takes to know accuracy to one point and the NLL to 5 %, as of this evaluation.

    I' = I (z s / d)^2 for an interval of half width d, with the clustered standard error s of I items.
    """
    items = measured.current.num_items
    errors = {
        f"accuracy to ±{100 * accuracy_margin:.0f} pp": (measured.value("accuracy_standard_error"), accuracy_margin),
        f"the NLL to ±{100 * relative:.0f} %": (
            measured.value("nll_standard_error"),
            relative * measured.value("nll"),
        ),
    }
    wanted = []
    for what, (error, width) in errors.items():
        half = interval(0.0, error)[1]
        if half > 0 and width > 0:
            wanted.append(f"{math.ceil(items * (half / width) ** 2)} items to know {what}")
    if not wanted:
        return "a larger validation set: with so few items a single one decides every number"
    spread = accuracy_spread(measured.value("accuracy_standard_error"), items)
    return (
        f"a larger validation set: {' and '.join(wanted)} ({100 * LEVEL:.0f} %); with {items} items accuracy is known "
        f"to ±{100 * spread:.1f} pp"
    )


def cross_validate(measured: Measured) -> str:
    """Every row once in validation."""
    return (
        "k-fold cross-validation, sklearn.model_selection.StratifiedKFold(5): every row is evaluated once, and five "
        "runs show the jitter between runs"
    )


def log_logits(measured: Measured) -> str:
    """What is missing for a cause."""
    return "run once with LossAccuracyMonitor() instead of a log of scalars: causes need logits and paired rows"
