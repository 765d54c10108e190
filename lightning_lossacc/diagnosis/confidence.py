"""Causes in the size of the probabilities: the same answers, given with more or less confidence."""

from __future__ import annotations

import math

from lightning_lossacc.diagnosis.data import COLLAPSED
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.diagnosis.evidence import Evidence, accuracy_of, loss_of
from lightning_lossacc.floors import constant_confidence_nll

# Of a rise, the share that is left after one temperature: below the first it is over-confidence, above the second it is
# overfitting. The estimate must lie there and its interval must not reach the other one's region; else it is mixed.
OVERCONFIDENCE_SHARE = 0.25
OVERFITTING_SHARE = 0.50
# One evaluation is called over- or under-confident when one temperature takes the first share of its loss away, and
# remains so until it is less than the second.
STATIC_SHARE, KEPT_SHARE = 0.15, 0.13
MIXED_WIDTH = 0.40  # of the interval of the share that is left; a wider one tells nothing
LOST_SHARE, LOST_NATS = 0.25, 0.02  # of label entropy less the loss after one temperature
BALANCED_GAIN = 0.02
REFINED_GAIN = 0.05
FAR_AHEAD = 0.2  # accuracy


def over_confidence(evidence: Evidence) -> Cause | None:
    """The loss rose because the probabilities became too large; one temperature takes the rise back.

    What it finds: less than 25 % of the rise is left after one temperature, the 99 % interval of that share stays below
        50 %, the best temperature is above 1 and has grown, and at most a quarter of what had been learnt (label
        entropy less the loss after one temperature) is gone. From one evaluation: a temperature above 1 takes 15 % of
        the loss or more away. From a log of scalars: a constant confidence of 1 - e would score better.
    Why it matters: nothing was unlearned. Stopping at the loss minimum may give away a better model.
    Evidence it needs: paired rows and the temperature grid.
    What to do: divide the logits by the temperature; label smoothing, weight decay; keep the checkpoint with the
        lowest loss after one temperature.
    When it is wrong: if the temperature was chosen on the very rows that it is judged on (so the gain is
        cross-fitted). Beyond the grid's upper edge the gain is larger than measured; if the reference lies there as
        well, nothing is said.
    Reference: Guo et al. 2017; Mukhoti et al. 2020.
    """
    if "nll" not in evidence.current.values:
        return _certified(evidence)
    if evidence.is_static:
        return _miscalibrated(evidence, "over-confidence", evidence.temperature > 1)
    change, low, high = evidence.refinement_change
    share, _, highest_share = evidence.refinement_share
    if not (share < OVERCONFIDENCE_SHARE and highest_share < OVERFITTING_SHARE):
        return None
    if (evidence.at_edge and not evidence.at_upper_bound) or _lost(evidence) is not None:
        return None
    grown = evidence.difference("temperature")
    if not (evidence.temperature > 1 and grown > 0):
        return None
    against = ()
    if evidence.accuracy.kind == "down":
        against = (f"accuracy fell by {-100 * evidence.accuracy.change:.1f} pp",)
    against += _unlike(evidence)
    return Cause(
        "over-confidence",
        share=min(1.0, 1 - change / evidence.nll_change),
        evidence=(
            f"after one temperature the loss changed by {change:+.4f} nats ({low:+.4f} … {high:+.4f})",
            f"best temperature {evidence.temperature - grown:.2f} → {evidence.temperature:.2f}{_beyond(evidence)}",
            f"mean confidence of wrong rows {_pair(evidence, 'confidence_wrong')}",
        ),
        against=against,
    )


def scale_growth(evidence: Evidence) -> Cause | None:
    """Accuracy and the loss after one temperature still improve; only the probabilities get worse.

    What it finds: the 99 % interval of the change after one temperature is below zero, and accuracy is up, by its trend
        or row by row; or that change is 5 % or more, and accuracy is not down.
    Why it matters: gradient descent keeps growing the logits of a network that separates its training data, and the
    validation loss rises with them while the direction still improves.
    Evidence it needs: paired rows and the temperature grid.
    What to do: train on while the loss after one temperature falls; set the temperature at the end.
    When it is wrong: if only a few rows carry the improvement; look at the flips.
    Reference: Soudry et al. 2018.
    """
    change, low, high = evidence.refinement_change
    if not high < 0 or evidence.is_static or evidence.accuracy.kind == "down":
        return None
    if evidence.at_edge and not evidence.at_upper_bound:
        return None
    gained, error = (evidence.paired.get(key, math.nan) for key in ("accuracy_change", "accuracy_change_error"))
    lower = -change >= REFINED_GAIN * evidence.reference.values.get("refinement_nll", math.inf)
    is_up = evidence.accuracy.kind == "up" or gained > 2.58 * error
    if not is_up and not (lower and gained > -2.58 * error):
        return None
    by = 100 * (gained if math.isfinite(gained) else evidence.accuracy.change)
    return Cause(
        "scale-growth",
        share=1.0,
        evidence=(
            f"after one temperature the loss still fell by {-change:.4f} nats ({low:+.4f} … {high:+.4f})",
            f"accuracy rose by {by:.1f} pp" if is_up else f"accuracy did not fall ({by:+.1f} pp)",
        ),
    )


def mixed(evidence: Evidence) -> Cause | None:
    """Part of the rise is confidence and part is not.

    What it finds: the share of the rise that is left after one temperature is neither small (over-confidence) nor large
        (overfitting), or too uncertain for one of these names, and its 99 % interval is no wider than 40 pp; or it is
        small beside an explosion of confidence, but a quarter of what had been learnt.
    Why it matters: a temperature repairs one part, regularisation the other.
    Evidence it needs: paired rows and the temperature grid.
    What to do: both, largest share first.
    When it is wrong: near the limits of 25 % and 50 % a little more data may name one cause.
    Reference: Berta et al. 2025.
    """
    share, low, high = evidence.refinement_share
    if evidence.at_edge or share != share or not high - low <= MIXED_WIDTH:
        return None
    lost = _lost(evidence)
    is_confidence = share < OVERCONFIDENCE_SHARE and high < OVERFITTING_SHARE and lost is None
    if is_confidence or (share > OVERFITTING_SHARE and low > OVERCONFIDENCE_SHARE) or evidence.is_static:
        return None
    return Cause(
        "mixed",
        share=1.0,
        evidence=(
            f"{_percent(low)} … {_percent(high)} % of the rise is left after one temperature",
            f"{_percent(1 - high)} … {_percent(1 - low)} % is confidence",
            *([] if lost is None else [lost]),
        ),
    )


def _lost(evidence: Evidence) -> str | None:
    """What is gone of what had been learnt, in words, if that is more than a quarter of it and matters.

    A rise of confidence may be so large that any loss of ranking is a small share of it.
    """
    change, low, _ = evidence.refinement_change
    learnt = evidence.label_entropy - evidence.reference.values.get("refinement_nll", math.nan)
    if not (low > 0 and learnt > 0 and change > max(LOST_SHARE * learnt, LOST_NATS)):
        return None
    return f"of {learnt:.4f} nats that had been learnt {change:.4f} are gone after one temperature"


def confidence_growth(evidence: Evidence) -> Cause | None:
    """The loss fell while accuracy stayed: the same rows are right, by a wider margin.

    What it finds: the low quantile of margin / temperature rose, or most of the fall comes from rows right both times.
    Why it matters: it does not; the answers are the same and more robust.
    Evidence it needs: the margin histogram and the temperature grid; paired rows for the second form.
    What to do: nothing.
    When it is wrong: if the logits merely grew, the margin would grow with them; hence the division by the temperature.
    Reference: Pleiss et al. 2020 (margin).
    """
    margins = [
        record.values.get("margin_p05", float("nan")) / record.values.get("temperature", float("nan"))
        for record in (evidence.reference, evidence.current)
    ]
    wider = margins[1] > margins[0]
    lines = []
    if wider:
        lines.append(f"5 % quantile of margin / temperature {margins[0]:+.2f} → {margins[1]:+.2f}")
    if evidence.paired is not None and evidence.nll_change < 0:
        groups = {group["name"]: group["change"] for group in evidence.paired["groups"]}
        right = groups.get("right both times", 0.0) / evidence.nll_change
        if right > 0.5:
            lines.append(f"{100 * right:.0f} % of the fall comes from rows right both times")
    return Cause("confidence-growth", share=1.0, evidence=tuple(lines)) if lines else None


def under_confidence(evidence: Evidence) -> Cause | None:
    """The probabilities are too small for the accuracy; one temperature below 1 takes the loss down.

    What it finds: from one evaluation, a temperature below 1 takes 15 % of the loss or more away; over an interval,
        the loss rose, less than 25 % of the rise is left after one temperature, which is below 1 and fell.
    Why it matters: the answers are as good as before; their probabilities, and every threshold on them, are not.
    Evidence it needs: the temperature grid; paired rows over an interval.
    What to do: less label smoothing, mixup, dropout or weight decay; divide the logits by the temperature.
    When it is wrong: early in training every network is under-confident; it is named when that stays.
    Reference: Müller et al. 2019; Guo et al. 2017.
    """
    if "nll" not in evidence.current.values:
        return None
    if evidence.is_static:
        return _miscalibrated(evidence, "under-confidence", evidence.temperature < 1)
    change, low, high = evidence.refinement_change
    fallen = evidence.difference("temperature")
    share, _, highest_share = evidence.refinement_share
    certain = share < OVERCONFIDENCE_SHARE and highest_share < OVERFITTING_SHARE
    # At the low edge the loss after one temperature is an upper bound, so that the share is one as well.
    at_low_edge = evidence.value("temperature_at_edge") == 1 and evidence.temperature < 1
    if not (certain and evidence.temperature < 1 and (fallen < 0 or at_low_edge)):
        return None
    if evidence.nll_change <= 0:
        return None
    return Cause(
        "under-confidence",
        share=min(1.0, 1 - change / evidence.nll_change),
        evidence=(
            f"after one temperature the loss changed by {change:+.4f} nats ({low:+.4f} … {high:+.4f})",
            f"best temperature {evidence.temperature - fallen:.2f} → {evidence.temperature:.2f}",
        ),
    )


def unconfident_shift(evidence: Evidence) -> Cause | None:
    """Loss and accuracy fell together: wrong rows became less confident, while more rows are wrong.

    What it finds: the loss after one temperature did not fall (its 99 % interval is not below zero) and the best
        temperature did, so that the gain is one of confidence, while accuracy is down, and balanced accuracy did not
        rise by 2 pp.
    Why it matters: which evaluation is better depends on the use: the one has better probabilities, the other better
        answers.
    Evidence it needs: paired rows and the temperature grid.
    What to do: keep both checkpoints; a temperature gives the earlier one the later one's loss.
    When it is wrong: after a change of label smoothing, mixup or weight decay it is a consequence of that change.
    Reference: Guo et al. 2017; Berta et al. 2025.
    """
    change, low, high = evidence.refinement_change
    if not (evidence.nll_change < 0 and evidence.accuracy.change < 0) or high != high:
        return None
    share = 1 - change / evidence.nll_change
    # One that gives every row to one class has nothing left to be sure of.
    if evidence.value("predicted_majority_rate") >= COLLAPSED:
        return None
    # A network that became surer did not gain by doubt.
    if evidence.difference("temperature") > 0:
        return None
    # What rare classes gained is no matter of confidence.
    if not (share > 0.5 and high > 0) or evidence.difference("balanced_accuracy") > BALANCED_GAIN:
        return None
    return Cause(
        "unconfident-shift",
        share=min(1.0, share),
        evidence=(
            f"after one temperature the loss changed by {change:+.4f} nats ({low:+.4f} … {high:+.4f}) "
            f"of {evidence.nll_change:+.4f}",
            f"mean confidence of wrong rows {_pair(evidence, 'confidence_wrong')}",
        ),
    )


def _miscalibrated(evidence: Evidence, cause: str, is_side: bool) -> Cause | None:
    """One evaluation whose loss is mostly a matter of one temperature."""
    nll, refined, gain = (evidence.value(key) for key in ("nll", "refinement_nll", "temperature_gain"))
    edge, terms = evidence.value("temperature_at_edge") == 1, evidence.loss_terms
    if not (is_side and nll - refined >= KEPT_SHARE * nll and (gain > 0 or edge)):
        return None
    if edge and evidence.temperature > 1:
        # No temperature is best: such logits say nothing, and that is no matter of confidence alone.
        return None
    against = (
        (f"your loss has {terms}, which brings this",) if evidence.is_smoothed() and cause == "under-confidence" else ()
    )
    if cause == "over-confidence":
        against = _unlike(evidence)
    return Cause(
        cause,
        share=(nll - refined) / nll,
        evidence=(
            f"one temperature of {evidence.temperature:.2f}{' or beyond' if edge else ''} takes {nll - refined:.4f} of "
            f"{nll:.4f} nats away ({100 * (nll - refined) / nll:.0f} %)",
            f"mean confidence {100 * evidence.value('confidence'):.1f} % at accuracy "
            f"{100 * evidence.value('accuracy'):.1f} %",
        ),
        against=against,
    )


def _unlike(evidence: Evidence) -> tuple[str, ...]:
    """What speaks against a matter of confidence alone: training rows are far more accurate than these."""
    train, here = evidence.train_accuracy, accuracy_of(evidence.current)
    if not train - here >= FAR_AHEAD:
        return ()
    return (
        f"training rows are {100 * train:.0f} % accurate and these {100 * here:.0f} %: learnt by heart, or these are "
        "of another kind (a later time, another site), and a temperature changes no answer",
    )


def _certified(evidence: Evidence) -> Cause | None:
    """From loss, accuracy and C alone: what a constant confidence would score is below what was logged."""
    error, num_classes = 1 - accuracy_of(evidence.current), evidence.num_classes
    if num_classes is None or not 0 <= error <= 1:
        return None
    loss, bound = loss_of(evidence.current), constant_confidence_nll(error, num_classes)
    before = 0.0 if evidence.is_static else loss_of(evidence.reference)
    change = loss if evidence.is_static else evidence.full_nll_change
    share = (loss - max(bound, before)) / change if change > 0 else math.nan
    if not share > (KEPT_SHARE if evidence.is_static else 1 - OVERCONFIDENCE_SHARE):
        return None
    lines = [f"a constant confidence of {100 * (1 - error):.1f} % would score {bound:.4f}, not {loss:.4f}"]
    if loss > math.log(num_classes):
        lines.append(f"the loss is above ln C = {math.log(num_classes):.4f}, so the best temperature is above 1")
    return Cause("over-confidence", share, tuple(lines), ("or this accuracy is macro or top-k",))


def _beyond(evidence: Evidence) -> str:
    return " or beyond" if evidence.at_upper_bound else ""


def _percent(share: float) -> int:
    """A share of the rise in percent; a part that went the other way counts as nothing, or as all of it."""
    return round(100 * min(max(share, 0.0), 1.0))


def _pair(evidence: Evidence, key: str) -> str:
    before, after = evidence.reference.values.get(key), evidence.current.values.get(key)
    return f"{before:.2f} → {after:.2f}" if before is not None and after is not None else "not measured"
