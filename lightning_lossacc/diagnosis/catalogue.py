"""Which events there are, which causes are asked for each of them and in which order, and what each of them means.

The order is the order of decision: what is measured wrongly comes before what is learned wrongly, states before
changes, and a cause that makes others meaningless before those. The first cause found names the event; others that hold
as well stand beside it.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable

from lightning_lossacc.diagnosis import confidence, data, generalisation, measurement, optimisation, sets
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.diagnosis.evidence import Evidence

Rule = Callable[[Evidence], Cause | None]

HEADINGS: dict[str, tuple[Rule, ...]] = {
    "confidence": (
        confidence.over_confidence,
        confidence.mixed,
        confidence.under_confidence,
        confidence.scale_growth,
        confidence.confidence_growth,
        confidence.unconfident_shift,
    ),
    "generalisation": (
        generalisation.overfitting,
        generalisation.label_noise,
        generalisation.hard_tail,
        sets.leakage,
        sets.prior_shift,
        generalisation.capacity_limit,
    ),
    "data": (
        data.majority_collapse,
        data.class_imbalance,
        data.class_trade_off,
        data.nothing_learned,
        data.label_mapping_mismatch,
        data.validation_too_small,
    ),
    "optimisation": (
        optimisation.learning_rate_too_high,
        optimisation.learning_rate_too_low,
        optimisation.blow_up,
        optimisation.dead_activations,
        optimisation.over_regularisation,
    ),
    "measurement": (
        measurement.loss_mismatch,
        measurement.double_softmax,
        measurement.wrong_accuracy,
        measurement.train_eval_mismatch,
        measurement.validation_mismatch,
    ),
}
RULES: dict[str, Rule] = {rule.__name__.replace("_", "-"): rule for rules in HEADINGS.values() for rule in rules}

EVENTS: dict[str, str] = {
    "loss-up-accuracy-flat": "the loss rose and accuracy stayed within its margin",
    "loss-up-accuracy-not-down": "the loss rose and accuracy did not fall; whether it rose is not known",
    "loss-up-accuracy-up": "the loss rose and accuracy rose as well",
    "loss-up-accuracy-down": "the loss rose and accuracy fell",
    "loss-up-accuracy-undecided": "the loss rose; accuracy moves too much, or was measured too seldom, to say",
    "loss-down-accuracy-down": "the loss fell and accuracy fell as well",
    "loss-down-accuracy-flat": "the loss fell and accuracy stayed within its margin",
    "accuracy-stuck": "accuracy never rose above chance, or does not move at all",
    "little-learnt": "after ten evaluations 80 % of what the labels hold is still not known, of training rows too",
    "accuracy-equals-class-share": "accuracy is the share of one class, which nearly all rows are given to",
    "accuracy-hides-classes": "frequent classes carry the accuracy and rare ones are mostly missed",
    "class-shares-differ": "classes occur in other shares than in training, to the loss of validation",
    "few-items": "the validation set is so small that single items move everything",
    "loss-high-for-accuracy": "the loss of one evaluation is far above what these answers cost with fitting confidence",
    "oscillation": "the loss or accuracy keeps swinging by a large part of its level",
    "plateau": "the loss, or that after one temperature, has stopped moving far above zero",
    "spike": "one or two evaluations stood far above their surroundings and came back",
    "dead-layer": "90 % of a layer's units give zero, or a flat end, on all inputs; or 30 % died; or logits are equal",
    "non-finite": "rows have NaN or infinite logits",
    "logged-differs": "a loss or an accuracy that you log is not that of the captured logits",
    "val-better-than-train": "validation rows score better than training rows in the same mode, or are the same rows",
    "train-eval-gap": "eval mode is far worse than train mode on training rows, or acts at random, or is not on",
    "behind-first-sight": "after ten evaluations accuracy is not half as far as that of training rows at first sight",
}

_LOSS_UP = (
    "blow-up",
    "double-softmax",
    "label-mapping-mismatch",
    "train-eval-mismatch",
    "validation-mismatch",
    "over-regularisation",
    "learning-rate-too-high",
    "dead-activations",
    "validation-too-small",
    "prior-shift",
    "nothing-learned",
    "majority-collapse",
    "label-noise",
    "scale-growth",
    "hard-tail",
    "over-confidence",
    "under-confidence",
    "overfitting",
    "mixed",
    "class-imbalance",
    "class-trade-off",
)
ORDER: dict[str, tuple[str, ...]] = {
    "loss-down-accuracy-down": (
        "train-eval-mismatch",
        "learning-rate-too-high",
        "unconfident-shift",
        "class-trade-off",
        "class-imbalance",
    ),
    "loss-down-accuracy-flat": ("majority-collapse", "confidence-growth", "capacity-limit", "class-imbalance"),
    "accuracy-stuck": (
        "blow-up",
        "double-softmax",
        "learning-rate-too-high",
        "over-regularisation",
        "dead-activations",
        "learning-rate-too-low",
        "validation-too-small",
        "label-mapping-mismatch",
        "train-eval-mismatch",
        "validation-mismatch",
        "prior-shift",
        "nothing-learned",
        "majority-collapse",
    ),
    "little-learnt": ("over-regularisation", "learning-rate-too-low", "capacity-limit"),
    "accuracy-hides-classes": ("prior-shift", "class-imbalance"),
    "class-shares-differ": ("prior-shift",),
    "few-items": ("validation-too-small",),
    "accuracy-equals-class-share": (
        "blow-up",
        "double-softmax",
        "learning-rate-too-high",
        "over-regularisation",
        "dead-activations",
        "learning-rate-too-low",
        "train-eval-mismatch",
        "validation-mismatch",
        "prior-shift",
        "nothing-learned",
        "majority-collapse",
        "class-imbalance",
    ),
    "loss-high-for-accuracy": (
        "blow-up",
        "double-softmax",
        "label-mapping-mismatch",
        "train-eval-mismatch",
        "validation-mismatch",
        "prior-shift",
        "over-regularisation",
        "learning-rate-too-high",
        "dead-activations",
        "learning-rate-too-low",
        "nothing-learned",
        "majority-collapse",
        "label-noise",
        "hard-tail",
        "over-confidence",
        "under-confidence",
    ),
    "oscillation": (
        "blow-up",
        "train-eval-mismatch",
        "validation-too-small",
        "over-regularisation",
        "learning-rate-too-high",
    ),
    "plateau": (
        "learning-rate-too-high",
        "dead-activations",
        "learning-rate-too-low",
        "over-regularisation",
        "capacity-limit",
    ),
    "spike": ("blow-up", "learning-rate-too-high"),
    "dead-layer": ("learning-rate-too-high", "dead-activations"),
    "non-finite": ("blow-up", "learning-rate-too-high"),
    "logged-differs": ("wrong-accuracy", "loss-mismatch"),
    "val-better-than-train": ("leakage",),
    "train-eval-gap": ("train-eval-mismatch",),
    "behind-first-sight": ("validation-mismatch",),
}

# In files and loggers, not in the terminal: nothing is wrong, or nothing needs to be done now.
INFO_CAUSES = ("confidence-growth", "scale-growth", "capacity-limit", "loss-mismatch")
INFO_EVENTS = ("loss-down-accuracy-flat", "spike")
# Rows that do not go away: wrong labels stay the cause once they have been learnt by heart, and rows that contradict
# the model once its confidence in all the others hides them.
LASTING_CAUSES = ("label-noise", "hard-tail")
# What makes these look wrong as well; a leak is none of it, nor is what was learnt by heart.
RULING_CAUSES = ("label-mapping-mismatch", "validation-mismatch", "train-eval-mismatch")
CONSEQUENCES = (
    "over-confidence",
    "mixed",
    "under-confidence",
    "scale-growth",
    "confidence-growth",
    "unconfident-shift",
    "hard-tail",
    "majority-collapse",
    "class-imbalance",
    "class-trade-off",
    "nothing-learned",
)
FITTING_TEMPERATURE = 1.1
# Ordinary unless a cause is found.
NEEDS_CAUSE = (
    "loss-down-accuracy-flat",
    "plateau",
    "logged-differs",
    "non-finite",
    "train-eval-gap",
    "loss-high-for-accuracy",
    "dead-layer",
    "little-learnt",
)


def _order_of(event: str) -> tuple[str, ...]:
    """Causes that are asked for an event, in the order of decision; the words for the accuracy make no difference."""
    return _LOSS_UP if event.startswith("loss-up") else ORDER[event]


def find_causes(event: str, evidence: Evidence) -> tuple[Cause, ...]:
    """Causes that hold, in the order of decision, without mere consequences of the first; empty if none does."""
    found = [cause for cause in (RULES[name](evidence) for name in _order_of(event)) if cause is not None]
    names = [cause.cause for cause in found]
    tail = evidence.current.arrays.get("tail", {})
    if "hard-tail" in names and tail.get("temperature", math.inf) <= FITTING_TEMPERATURE:
        # Of the rows without it the confidence is no larger than it ought to be.
        found = [cause for cause in found if cause.cause != "over-confidence"]
    return tuple(cause for cause in found if not follows(cause.cause, names[0]))


def follows(cause: str, other: str) -> bool:
    """Whether a cause is a mere consequence of another one: rows that are wrong, unlike or asked in another mode make
    confidence, answers and shares of classes look as if something were wrong with them.
    """
    return other in RULING_CAUSES and cause in CONSEQUENCES


def supersedes(event: str, cause: str, reported: str) -> bool:
    """Whether a first cause is news after the reported one: what comes earlier in the order of decision is, and what
    replaces a cause of confidence or generalisation; a mere consequence of the reported one is not, nor is confidence
    where rows are the reason that do not go away.
    """
    names = _order_of(event)
    if cause not in names:
        return False
    if reported not in names:
        return True
    if reported in LASTING_CAUSES and heading_of(cause) == "confidence":
        return False
    if reported not in LASTING_CAUSES and heading_of(reported) in ("confidence", "generalisation"):
        return True
    return names.index(cause) < names.index(reported)


def heading_of(cause: str) -> str:
    """Heading under which a cause stands.

    Raises:
        KeyError: if there is no such cause.
    """
    return next(heading for heading, rules in HEADINGS.items() if RULES[cause] in rules)


def summary_of(cause: str) -> str:
    """First sentence on a cause: what happens."""
    return inspect.getdoc(RULES[cause]).split("\n\n")[0].replace("\n", " ")


def explain(name: str | None = None) -> str:
    """What a cause or an event means, as `lossacc explain` prints it; all names without one.

    Raises:
        ValueError: if there is no such name; the message holds the nearest one.
    """
    if name is None:
        lines = [f"{'events':<34}what happened", *(f"  {event:<32}{text}" for event, text in EVENTS.items())]
        for heading, rules in HEADINGS.items():
            lines += ["", f"{heading}"]
            names = [rule.__name__.replace("_", "-") for rule in rules]
            lines += [f"  {cause:<32}{summary_of(cause)}" for cause in names]
        return "\n".join([*lines, "", "unknown                           the evidence fits no cause, or more than one"])
    if name == "unknown":
        return "unknown: the evidence fits no cause, or more than one; the first evidence of the report says which."
    if name in RULES:
        seen = [event for event, order in ORDER.items() if name in order]
        if name in _LOSS_UP:
            seen.insert(0, "loss-up-accuracy-…")
        text = f"{name} ({heading_of(name)})\n\n{inspect.getdoc(RULES[name])}\n\nSeen in: {', '.join(seen)}."
        shown = ", but where little was learnt" if "little-learnt" in seen else ""
        return text + (f" Not shown in the terminal (info){shown}." if name in INFO_CAUSES else "")
    if name in EVENTS:
        order = ", ".join(_order_of(name))
        return f"{name}: {EVENTS[name]}.\n\nCauses in the order in which they are asked: {order}."
    known = [*RULES, *EVENTS]
    near = difflib.get_close_matches(name, known, 1, 0.3)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
    raise ValueError(f"Expected `name` to be a cause or an event, but got {name!r}; {hint}")
