"""Remedies for probabilities that are too large or too small."""

from __future__ import annotations

import math

from lightning_lossacc.advice.measured import CONFIRM, Measured, described, number


def temperature(measured: Measured) -> str:
    """Divide the logits by the best temperature, with the NLL that this saves on items it was not fitted on.

    The gain is cross-fitted: T of either half of the items is judged on the other half (Guo et al. 2017 fit T on the
    validation set).
    """
    best = measured.value("temperature")
    if not math.isfinite(best):
        return "logits / T with T = lightning_lossacc.scaling.fit_temperature(logits, target).value, on validation data"
    if measured.value("temperature_at_edge") == 1.0:
        side = "at least" if best > 1 else "at most"
        return (
            f"logits / T with T {side} {best:.2f}, the end of the grid: "
            "fit_temperature(logits, target) from lightning_lossacc.scaling finds it on saved logits"
        )
    halves = sorted(measured.current.arrays.get("half_temperatures", []))
    spread = f" (halves of the items: {halves[0]:.2f} and {halves[1]:.2f})" if len(halves) == 2 else ""
    gain = measured.value("temperature_gain")
    if not math.isfinite(gain):
        saved = ""
    elif gain > 0:
        saved = f" saves {gain:.4f} nats (cross-fitted; {CONFIRM})"
    else:
        saved = f" saves nothing (cross-fitted: {gain:+.4f} nats)"
    return f"logits / T with T = {best:.2f}{spread}{saved}"


def useful_temperature(measured: Measured) -> str | None:
    """The same, only where it saves something."""
    return temperature(measured) if measured.value("temperature_gain") > 0 else None


def scaling_callback(measured: Measured) -> str | None:
    """Keep T in the checkpoint."""
    if abs(measured.value("temperature") - 1) < 0.02:
        return None
    return (
        "keep T in the checkpoint: `Trainer(callbacks=[LossAccuracyMonitor(), scaling := TemperatureScaling()])`, then "
        "`scaling.wrap(module)` predicts with logits / T and the same classes"
    )


def vector_scaling(measured: Measured) -> str | None:
    """A bias, or a bias and a scale a class, where that saves more than one temperature on the probe."""
    fits = measured.fits
    if not {"nll", "temperature"} <= fits.keys():
        return None
    name = min(("bias", "vector"), key=lambda kind: fits.get(kind, math.inf))
    more = fits["temperature"] - fits.get(name, math.inf)
    if not more > max(0.002, 0.01 * fits["nll"]):
        return None
    # Paired over the same items: a saving within its own error is none.
    if more < 2.6 * fits.get(f"{name}_gain_error", 0.0):
        return None
    what = "a scale and a bias a class (vector scaling, Guo et al. 2017)"
    if name == "bias":
        what = f"one scale and a bias a class{f', {measured.correction}' if measured.correction else ''},"
    return (
        f"fit {what} on validation logits: {more:.4f} nats less than one temperature, {fits['nll'] - fits[name]:.4f} "
        f"less than now, on {int(fits.get('items', 0))} items (cross-fitted; {CONFIRM})"
    )


def label_smoothing(measured: Measured) -> str | None:
    """Label smoothing (Szegedy et al. 2016), which holds confidence down while training."""
    if "smoothing" in measured.loss_terms:
        return None
    return (
        "nn.CrossEntropyLoss(label_smoothing=0.05): confidence stops growing near 0.95, and the logged loss then "
        "lies above the NLL"
    )


def less_smoothing(measured: Measured) -> str:
    """Less of what makes a model timid."""
    now = measured.loss_terms
    named = f"your loss has {now}: " if "smoothing" in now else ""
    return f"{named}label_smoothing=0.0 (or half of it), and mixup off in the last epochs, let confidence grow"


def focal_loss(measured: Measured) -> str:
    """Focal loss (Lin et al. 2017), against confidence as in Mukhoti et al. (2020)."""
    return (
        "focal loss: `nll = F.cross_entropy(logits, y, reduction='none'); "
        "loss = ((1 - (-nll).exp()) ** 2 * nll).mean()`; it pays less for rows that are surely right, at the price of "
        "calibration: its optimum is not the true probability but a smaller one "
        "(Charoenphakdee et al. 2021), so set T afterwards"
    )


def train_on(measured: Measured) -> str:
    """Nothing was unlearned: the loss rises by scale alone."""
    return (
        f"train on while lossacc/val/refinement_nll falls ({described(measured.current)}); stop by "
        'EarlyStopping(monitor="lossacc/val/refinement_nll"), not by the loss'
    )


def nothing_to_repair(measured: Measured) -> str:
    """Confidence growth is no fault."""
    left = measured.value("calibration_nll")
    rest = f"; confidence alone can still save {left:.4f} nats, then the loss stops" if left > 0 else ""
    return f"nothing to repair: the answers are the same and surer{rest}"


def both_checkpoints(measured: Measured) -> str:
    """Loss and accuracy point to different epochs: the use decides."""
    now = measured.current
    by_accuracy = max(measured.evaluations, key=lambda record: record.values.get("accuracy", -math.inf))
    numbers = "; ".join(dict.fromkeys(described(record) for record in (by_accuracy, now)))
    return (
        "keep both checkpoints, the one by accuracy for decisions and the one by loss for probabilities, and compare "
        f"them on a test set ({numbers}): "
        'ModelCheckpoint(monitor="lossacc/val/accuracy", mode="max")'
    )


def fewer_doubts(measured: Measured) -> str | None:
    """Dropout and weight decay that hold the scale of the logits down."""
    parts = []
    dropout, decay = measured.context("dropout"), measured.context("weight_decay")
    if dropout > 0:
        parts.append(f"nn.Dropout({number(dropout)}) → nn.Dropout({number(dropout / 2)})")
    if decay > 0:
        parts.append(f"weight decay {number(decay)} → {number(decay / 3)}")
    return f"hold the logits down less: {', '.join(parts)}" if parts else None
