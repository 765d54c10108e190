"""The words of an event: the same in the terminal, in files and in every logger, at most eight lines."""

from __future__ import annotations

import math

from lightning_lossacc import attribution
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.diagnosis.evidence import Evidence

WORDS = {
    "loss-up-accuracy-flat": "loss up, accuracy flat",
    "loss-up-accuracy-not-down": "loss up, accuracy not down",
    "loss-up-accuracy-up": "loss up, accuracy up",
    "loss-up-accuracy-down": "loss up, accuracy down",
    "loss-up-accuracy-undecided": "loss up, accuracy undecided",
    "loss-down-accuracy-down": "loss down, accuracy down",
    "loss-down-accuracy-flat": "loss down, accuracy flat",
}


def headline(event: Event) -> str:
    """First line: cause, place, status, epochs, event."""
    status = {"open": "opened", "doubled": "doubled", "closed": "closed"}[event.status]
    return (
        f"{event.cause} · {place(event.stage, event.loader)} · {status} at epoch {event.epoch} · "
        f"since epoch {event.reference_epoch} · {WORDS[event.event]}"
    )


def compose(event: Event, evidence: Evidence, best_refinement_epoch: int) -> str:
    """The whole text of an event."""
    lines = [headline(event), numbers(evidence)]
    if evidence.paired is not None:
        lines.append(attribution.group_sentence(evidence.paired))
        worst = attribution.worst_sentence(evidence.paired) if evidence.nll_change > 0 else ""
        reason = attribution.temperature_sentence(evidence.paired)
        if event.cause == "unknown":
            reason = event.causes[0].evidence[0]
        lines.append(" · ".join(part for part in (reason, worst) if part))
        if evidence.paired["items"] < evidence.current.num_items:
            lines.append(
                f"on {evidence.paired['items']} of {evidence.current.num_items} items; all of them changed by "
                f"{evidence.full_nll_change:+.4f}, {evidence.full_nll_change - evidence.nll_change:+.4f} more"
            )
    else:
        lines.append("rows could not be paired with the reference, so no cause is named")
    terms = evidence.current.arrays.get("loss_terms")
    if terms:
        lines.append(f"your loss has {terms} as well, so that it may move otherwise than this NLL")
    advice = event.remedies[0] if event.remedies else "nothing"
    shown = "shown" if event.generalises == "shown" else "not shown"
    lines.append(f"do: {advice}")
    lines.append(f"best epoch by refined NLL: {best_refinement_epoch} · holds on new data: {shown}")
    return "\n".join(lines)


def numbers(evidence: Evidence) -> str:
    """Second line: NLL and accuracy before and after with intervals.

    The trend of the accuracy is the change of its level over several evaluations, on which the verdict rests; the two
    numbers before it are single evaluations.
    """
    before, after = evidence.reference.values, evidence.current.values
    if evidence.paired is not None and evidence.paired["items"] == evidence.current.num_items:
        low, high = attribution.interval(evidence.nll_change, evidence.paired["nll_change_error"])
        spread = f", 99 % {low:+.4f} … {high:+.4f}"
    else:
        spread = ""
    accuracy = evidence.accuracy
    trend = f"trend {100 * accuracy.change:+.1f} pp, {100 * accuracy.low:+.1f} … {100 * accuracy.high:+.1f}"
    if not math.isfinite(accuracy.high - accuracy.low):
        trend = "no trend before 8 evaluations"
    text = (
        f"NLL {before['nll']:.4f} → {after['nll']:.4f} ({evidence.full_nll_change:+.4f}{spread}); "
        f"accuracy {100 * before['accuracy']:.1f} → {100 * after['accuracy']:.1f} % "
        f"({trend}; margin ±{100 * accuracy.margin:.1f})"
    )
    if accuracy.kind == "undecided" and math.isfinite(accuracy.resolvable):
        text += f"; smallest change that could be resolved: {100 * accuracy.resolvable:.1f} pp"
    return text


def place(stage: str, loader: int) -> str:
    """Stage, with the loader where there are several."""
    return stage if loader <= 0 else f"{stage} (loader {loader})"
