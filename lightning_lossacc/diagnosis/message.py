"""The words of an event: the same in the terminal, in files and in every logger, at most eight lines."""

from __future__ import annotations

import json
import math

from lightning_lossacc import attribution
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.diagnosis.evidence import Evidence, accuracy_of, loss_of
from lightning_lossacc.history import Record, to_json

STATUS = {"open": "opened", "doubled": "doubled", "revised": "named", "closed": "closed"}
LONGEST = 8  # lines


def words_of(event: str) -> str:
    """An event's name on screen: `loss-up-accuracy-flat` is "loss up, accuracy flat"."""
    first, middle, rest = event.partition("-accuracy-")
    joined = f"{first}, accuracy {rest}" if middle and first.startswith("loss-") and "for" not in first else event
    return joined.replace("-", " ")


def headline(event: Event) -> str:
    """First line: cause, place, status, epochs, event."""
    since = "" if event.reference_epoch == event.epoch else f"since epoch {event.reference_epoch} · "
    return (
        f"{event.cause} · {place(event.stage, event.loader)} · {STATUS[event.status]} at epoch {event.epoch} · "
        f"{since}{words_of(event.event)}"
    )


def compose(event: Event, evidence: Evidence, best_refinement_epoch: int, ahead: str = "") -> str:
    """The whole text of an event; `ahead` is what more epochs are to bring."""
    lines = [headline(event), numbers(evidence), *(_change(event, evidence) if evidence.paired else _reasons(event))]
    if evidence.paired is None and not evidence.is_static and event.cause == "unknown":
        lines.append("no cause is named without a comparison of rows")
    terms = evidence.current.arrays.get("loss_terms")
    if terms and event.event.startswith("loss-up"):
        lines.append(f"your loss has {terms} as well, so that it may move otherwise than this NLL")
    others = [cause.cause for cause in event.causes[1:]]
    if others:
        lines.append(f"as well: {', '.join(others)}")
    lines += [f"against {cause.cause}: {cause.against[0]}" for cause in event.causes[:1] if cause.against]
    if ahead:
        lines.append(ahead)
    end = [f"do: {event.remedies[0] if event.remedies else 'nothing'}"]
    if not evidence.is_static and evidence.paired is not None:
        holds = "shown" if event.generalises == "shown" else "not shown"
        end.append(f"best epoch by refined NLL: {best_refinement_epoch} · holds on new data: {holds}")
    return "\n".join(lines[: LONGEST - len(end)] + end)


def closed(event: Event, current: Record) -> Event:
    """The report that an open event has gone."""
    fields = json.loads(event.to_json())
    fields |= {
        "status": "closed",
        "epoch": current.epoch,
        "global_step": current.global_step,
        "remedies": [],
        "message": (
            f"closed: {event.cause} · {place(event.stage, event.loader)} · {words_of(event.event)} · at epoch "
            f"{current.epoch} · {_name(current)} {loss_of(current):.4f}, accuracy {100 * accuracy_of(current):.1f} % · "
            f"it was reported since epoch {event.epoch}"
        ),
    }
    return Event.from_json(to_json(fields))


def numbers(evidence: Evidence) -> str:
    """Second line: loss and accuracy, before and after with intervals where something changed.

    The trend of the accuracy is the change of its level over several evaluations, on which the verdict rests; the two
    numbers before it are single evaluations.
    """
    name = _name(evidence.current)
    if not math.isfinite(loss_of(evidence.current)):
        return f"no finite {name}"
    loss, share = loss_of(evidence.current), 100 * accuracy_of(evidence.current)
    if evidence.is_static:
        text = f"{name} {loss:.4f}, accuracy {share:.1f} %"
        if "balanced_accuracy" in evidence.current.values:
            text += f", balanced {100 * evidence.value('balanced_accuracy'):.1f} %"
        return text
    spread = ""
    if evidence.paired is not None and evidence.paired["items"] == evidence.current.num_items:
        low, high = attribution.interval(evidence.nll_change, evidence.paired["nll_change_error"])
        spread = f", 99 % {low:+.4f} … {high:+.4f}"
    text = f"{name} {loss_of(evidence.reference):.4f} → {loss:.4f} ({evidence.full_nll_change:+.4f}{spread})"
    accuracy = evidence.accuracy
    if not math.isfinite(accuracy.change):
        return f"{text}; accuracy is not known"
    trend = f"trend {100 * accuracy.change:+.1f} pp, {100 * accuracy.low:+.1f} … {100 * accuracy.high:+.1f}"
    if not math.isfinite(accuracy.high - accuracy.low):
        trend = "no trend before 8 evaluations"
    text += (
        f"; accuracy {100 * accuracy_of(evidence.reference):.1f} → {share:.1f} % "
        f"({trend}; margin ±{100 * accuracy.margin:.1f})"
    )
    if accuracy.kind == "undecided" and math.isfinite(accuracy.resolvable):
        text += f"; smallest change that could be resolved: {100 * accuracy.resolvable:.1f} pp"
    return text


def place(stage: str, loader: int) -> str:
    """Stage, with the loader where there are several."""
    return stage if loader <= 0 else f"{stage} (loader {loader})"


def _name(record: Record) -> str:
    """What the loss of a record is: the measured NLL, or a logged loss, which may be another one."""
    return "NLL" if record.num_rows else "loss"


def _change(event: Event, evidence: Evidence) -> list[str]:
    """Who changed, what is left after one temperature or the first cause's own reason, and the worst rows."""
    paired = evidence.paired
    lines = [attribution.group_sentence(paired)]
    worst = attribution.worst_sentence(paired) if evidence.nll_change > 0 else ""
    of_confidence = event.cause in ("over-confidence", "mixed", "overfitting", "under-confidence", "scale-growth")
    if of_confidence:
        lines.append(" · ".join(part for part in (attribution.temperature_sentence(paired), worst) if part))
    else:
        lines += [" · ".join(event.causes[0].evidence[:2]), *([worst] if worst else [])]
    if paired["items"] < evidence.current.num_items:
        lines.append(
            f"on {paired['items']} of {evidence.current.num_items} items; all of them changed by "
            f"{evidence.full_nll_change:+.4f}, {evidence.full_nll_change - evidence.nll_change:+.4f} more"
        )
    return lines


def _reasons(event: Event) -> list[str]:
    """Evidence of the first causes, where rows were not compared."""
    return [
        f"{cause.cause}: {' · '.join(cause.evidence)}" if len(event.causes) > 1 else " · ".join(cause.evidence)
        for cause in event.causes[:2]
    ]
