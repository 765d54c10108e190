"""Advice for a cause, most specific first, with its gain where one was measured. Plain numbers in, sentences out."""

from __future__ import annotations

import math

from lightning_lossacc.history import Record


def remedies(cause: str, current: Record, best_refinement: Record) -> tuple[str, ...]:
    """What to do about a cause.

    Args:
        cause: name of the cause.
        current: the evaluation at which it was found.
        best_refinement: the evaluation with the lowest loss after one temperature so far.
    """
    checkpoint = (
        f"keep the checkpoint with the lowest loss after one temperature (epoch {best_refinement.epoch}, "
        f"{best_refinement.values.get('refinement_nll', math.nan):.4f}): "
        'ModelCheckpoint(monitor="lossacc/val/refinement_nll")'
    )
    softer = "more weight decay, or label_smoothing=0.05, so that confidence grows less"
    if cause in ("over-confidence", "mixed"):
        advice = [temperature_advice(current), checkpoint, softer]
        if cause == "mixed":
            advice.append("regularise as for overfitting: the rest of the rise is not confidence")
        return tuple(advice)
    if cause == "overfitting":
        return (
            checkpoint,
            "more weight decay, dropout or augmentation, or more data: no temperature takes this rise back",
        )
    if cause == "scale-growth":
        return ("train on while lossacc/val/refinement_nll falls", temperature_advice(current))
    if cause == "confidence-growth":
        return ()
    return ("compare the checkpoints of the two epochs on a test set",)


def temperature_advice(current: Record) -> str:
    """Divide the logits by the best temperature, with the NLL that this saves on items it was not fitted on."""
    temperature = current.values.get("temperature", math.nan)
    halves = sorted(current.arrays.get("half_temperatures", []))
    spread = f" (halves of the items: {halves[0]:.2f} and {halves[1]:.2f})" if len(halves) == 2 else ""
    gain = current.values.get("temperature_gain", math.nan)
    saved = f" saves {gain:.4f} nats (cross-fitted; confirm on a test set)" if math.isfinite(gain) else ""
    return f"logits / T with T = {temperature:.2f}{spread}{saved}"
